//! Kinds of jobs, behind one door: what a worker and a planner need to know of them.
//!
//! A [`Processor`] is one kind of job. It opens models; an [`Opened`] model checks requests, predicts what they cost and
//! starts [`Run`]s, which a worker moves step by step. A request is JSON, since it comes from a client and rests in a
//! store; what it must look like is said by the processor's schema, and checked by its own types.
//!
//! To add a kind, write one file with these three and name it in [`crate::processors::all`].

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use lowtide_core::{Budget, Bytes, Plan};
use lowtide_media::{Format, Pixels, encode, shrunk};
use lowtide_weights::ModelFolder;
use serde_json::Value;

use crate::shared::Counted;
use crate::{Options, Progress, Result};

/// One kind of job.
pub trait Processor: Send + Sync {
    /// What clients call it, such as `text-to-image`.
    fn kind(&self) -> &'static str;

    /// One sentence for people.
    fn about(&self) -> &'static str;

    /// The JSON Schema (2020-12) of a request, an object with `properties` that carry titles, units and bounds.
    fn schema(&self) -> Value;

    /// Models that come with the processor and need no files, by name; most have none.
    fn own_models(&self) -> &'static [&'static str] {
        &[]
    }

    /// Whether it can run this model.
    fn runs(&self, folder: &ModelFolder) -> bool;

    /// Checks a request whose model is not here yet, as far as that can be done without it, and draws what every attempt
    /// must have the same, such as a seed.
    ///
    /// # Errors
    /// [`crate::Error::Request`] with the field's name.
    fn check_unseen(&self, request: &Value, files: &dyn Files) -> Result<Value> {
        let _ = files;
        Ok(request.clone())
    }

    /// Opens a model: reads configurations and headers, no weights. `folder` is `None` for its own models.
    ///
    /// # Errors
    /// When the files are not such a model.
    fn open(
        &self,
        model: &str,
        folder: Option<ModelFolder>,
        setup: Setup,
    ) -> Result<Arc<dyn Opened>>;
}

/// What a model is opened with.
#[derive(Clone)]
pub struct Setup {
    /// How it uses its device.
    pub options: Options,
    /// Files that requests may name.
    pub files: Arc<dyn Files>,
}

impl From<Options> for Setup {
    /// Without any files.
    fn from(options: Options) -> Setup {
        let files = Arc::new(NoFiles);
        Setup { options, files }
    }
}

/// Files that requests name: where they are is not a processor's business.
pub trait Files: Send + Sync {
    /// The content of the input file that a request calls `name`, a picture say; of at most `bytes_max` bytes.
    ///
    /// # Errors
    /// A sentence: there is none, or it is too large.
    fn input(&self, name: &str, bytes_max: u64) -> std::result::Result<Vec<u8>, String>;

    /// Where the LoRA called `name` lies.
    ///
    /// # Errors
    /// A sentence: there is none, and which there are.
    fn lora(&self, name: &str) -> std::result::Result<PathBuf, String>;

    /// Textual inversion embeddings: by the word that calls them, where they lie.
    fn embeddings(&self) -> Vec<(String, PathBuf)>;

    /// Opens another model by its name.
    ///
    /// # Errors
    /// A sentence: there is none, or none can be named here.
    fn model(&self, name: &str) -> std::result::Result<ModelFolder, String> {
        let _ = name;
        Err("no other model can be named here".to_owned())
    }

    /// Where the detector called `name` lies: a file's name, with its ending or without.
    ///
    /// # Errors
    /// A sentence: there is none, and which there are.
    fn detector(&self, name: &str) -> std::result::Result<PathBuf, String> {
        let _ = name;
        Err("there are no detectors here".to_owned())
    }
}

/// There are no files.
#[derive(Clone, Copy, Debug)]
pub struct NoFiles;

impl Files for NoFiles {
    fn input(&self, _: &str, _: u64) -> std::result::Result<Vec<u8>, String> {
        Err("no input files can be had here".to_owned())
    }

    fn lora(&self, _: &str) -> std::result::Result<PathBuf, String> {
        Err("there are no LoRAs here".to_owned())
    }

    fn embeddings(&self) -> Vec<(String, PathBuf)> {
        Vec::new()
    }
}

/// An opened model. Its weights come when a run needs them, and stay or go as the options and the planner say; what is
/// said of weights is already true of a kind that has none.
pub trait Opened: Send + Sync {
    /// What it consists of.
    fn card(&self) -> Card;

    /// Checks a request and returns it with everything filled in: defaults, and a seed where none was given. The result
    /// can be started on any worker, now or after a restart, and gives the same bytes each time.
    ///
    /// # Errors
    /// [`crate::Error::Request`] with the field's name; also for a field nobody knows.
    fn check(&self, request: &Value) -> Result<Value>;

    /// Predicts what a checked request costs. `budget`: what the device allows; `None`: as things are in this process.
    /// May guess the number of tokens; never guesses it too low.
    ///
    /// # Errors
    /// [`crate::Error::DoesNotFit`] with the numbers.
    fn forecast(&self, request: &Value, budget: Option<Budget>) -> Result<Forecast>;

    /// What a job of usual size is and costs, for kinds whose requests name files and so cannot be made up; `None` for
    /// the others.
    ///
    /// # Errors
    /// As [`Opened::forecast`].
    fn sample(&self, budget: Budget) -> Option<Result<(String, Forecast)>> {
        let _ = budget;
        None
    }

    /// Starts one session for these orders, which agree in [`BatchKey`] where there are several.
    ///
    /// # Errors
    /// When nothing fits, a file cannot be read, or a saved session is not one of this model.
    fn start(&self, orders: Vec<Order<'_>>) -> Result<Box<dyn Run>>;

    /// Bytes of weights in memory now, those that a run uses included.
    fn held(&self) -> Bytes {
        Bytes::ZERO
    }

    /// The same, but for weights that were `counted`: those that several models share count once in a sum over models.
    fn held_beside(&self, counted: &mut Counted) -> Bytes {
        let _ = counted;
        self.held()
    }

    /// Brings weights to the device ahead of any job, as far as the budget has room; returns the bytes held.
    ///
    /// # Errors
    /// When a file cannot be read.
    fn load(&self) -> Result<Bytes> {
        Ok(Bytes::ZERO)
    }

    /// Lets all weights go that no run uses, returns the bytes that gave back.
    fn forget(&self) -> Bytes {
        Bytes::ZERO
    }

    /// Lets weights go that no run uses until it holds at most `most` bytes; returns the bytes that gave back.
    fn shrink(&self, most: Bytes) -> Bytes {
        match self.held() > most {
            true => self.forget(),
            false => Bytes::ZERO,
        }
    }

    /// Bytes of its weights that stay in memory once they were read, when this checked request runs as forecast.
    ///
    /// # Errors
    /// As [`Opened::forecast`].
    fn stays(&self, request: &Value, forecast: &Forecast) -> Result<Bytes> {
        let _ = (request, forecast);
        Ok(Bytes::ZERO)
    }

    /// Reads weights ahead of a run of this checked request, in the order in which it will use them, while something
    /// else computes. Before each read `more` is asked whether so many bytes more may be taken; it may let the caller
    /// wait, and says no when it is enough. No run of the model may be in progress.
    ///
    /// # Errors
    /// When a file cannot be read.
    fn bring(
        &self,
        request: &Value,
        forecast: &Forecast,
        more: &dyn Fn(Bytes) -> bool,
    ) -> Result<Brought> {
        let _ = (request, forecast, more);
        Ok(Brought::default())
    }

    /// Width and height of what a checked request gives, from a picture of this size where it takes one.
    fn result_size(&self, request: &Value, given: Option<[u32; 2]>) -> Option<[u32; 2]> {
        let _ = request;
        given
    }

    /// The cache of what was made of prompts.
    fn prompt_cache(&self) -> CacheFigures {
        CacheFigures::default()
    }
}

/// What was read ahead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Brought {
    /// Bytes of weights.
    pub bytes: Bytes,
    /// Time that took.
    pub reading: Duration,
}

/// What a model consists of.
#[derive(Clone, Debug, PartialEq)]
pub struct Card {
    /// Bytes of all weights.
    pub bytes: Bytes,
    /// Networks: name, blocks, bytes.
    pub components: Vec<(String, usize, Bytes)>,
    /// What a request leaves out, as JSON.
    pub defaults: Value,
}

/// A cache in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheFigures {
    /// What is in it.
    pub entries: u64,
    /// Their bytes.
    pub bytes: Bytes,
    /// Its bound.
    pub bytes_max: Bytes,
    /// Looked for and found.
    pub hits: u64,
    /// Looked for in vain.
    pub misses: u64,
}

/// What a job will cost.
#[derive(Clone, Debug, PartialEq)]
pub struct Forecast {
    /// How it would run; `None` for kinds that need no plan.
    pub plan: Option<Plan>,
    /// Seconds with the model on the device.
    pub seconds: f64,
    /// Peak on the device above what is in use by others, the model's weights included.
    pub peak: Bytes,
    /// How it shares a batch; `None` where it cannot.
    pub batch: Option<BatchForecast>,
}

/// How a job shares a batch.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchForecast {
    /// What has to agree.
    pub key: BatchKey,
    /// What each further job adds to the peak.
    pub more: Bytes,
    /// What each further job adds to the seconds.
    pub more_seconds: f64,
}

/// What has to agree for jobs to share a batch, beside the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BatchKey {
    /// Width and height of the result.
    pub size: [u32; 2],
    /// A digest of every other setting that has to be the same; the same in every process and version of Rust.
    pub settings: u64,
}

/// One job of a session.
#[derive(Clone, Debug)]
pub struct Order<'a> {
    /// The checked request.
    pub request: Value,
    /// Where an earlier session of this job was saved; it goes on from there, to the same bytes.
    pub resume: Option<&'a Path>,
}

/// A job, or a batch of jobs, in progress. Dropping it gives back everything it holds. What has a body here is right for
/// a kind without weights and plan.
pub trait Run: Send {
    /// Does one step.
    ///
    /// # Errors
    /// After an error the run is over. A refusal of memory is not one before the last rung was tried.
    fn step(&mut self) -> Result<Stepped>;

    /// Gives the weights back and keeps what was reached: a few tensors.
    fn park(&mut self) {}

    /// Writes what member `member` (an index into the orders) has reached, whole or not at all. Returns whether there was
    /// anything to write: `false` means that going on is beginning anew.
    ///
    /// # Errors
    /// When the file cannot be written.
    fn save(&self, member: usize, file: &Path) -> Result<bool>;

    /// Nobody wants this member any more: no work is done for it from the next step on. Its result is left out.
    fn drop_member(&mut self, member: usize);

    /// What member `member` looks like so far, small; `None` where there is nothing to see yet.
    fn preview(&self, member: usize) -> Option<File> {
        let _ = member;
        None
    }

    /// The plan in force.
    fn plan(&self) -> Option<&Plan> {
        None
    }

    /// Predicted seconds that remain, corrected by what the steps so far took.
    fn remaining_s(&self) -> f64;

    /// Bytes it holds on the device now, the model's weights not included.
    fn holds(&self) -> Bytes;

    /// Bytes of these that it keeps while parked.
    fn keeps(&self) -> Bytes {
        self.holds()
    }

    /// Predicted peak of what is to come, weights included.
    fn peak(&self) -> Bytes;

    /// Rungs taken after memory was refused.
    fn rungs_taken(&self) -> usize {
        0
    }

    /// Others want to take up to `wanted` bytes of the device beside this run until its end. Lets weights go that it
    /// needs no more, and says how many bytes they may take in all.
    fn cede(&mut self, wanted: Bytes) -> Bytes {
        let room = self.plan().map(|plan| plan.budget.available());
        let room = room.map_or(Bytes::ZERO, |room| room.saturating_sub(self.peak()));
        wanted.min(room)
    }

    /// Whether it is about to wait for weights of its own, which reading for others would hold up.
    fn arriving(&self) -> bool {
        false
    }

    /// Where a run of several steps is; `None` for a run of one.
    fn stage(&self) -> Option<Stage> {
        None
    }
}

/// Where a run of several steps is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// The step, from 1.
    pub step: usize,
    /// How many there are.
    pub steps: usize,
    /// Its kind.
    pub kind: String,
    /// Its model.
    pub model: String,
    /// Models whose weights it uses or reads ahead now.
    pub using: Vec<String>,
    /// Models of the steps after it.
    pub later: Vec<String>,
}

/// What a run did in one step.
#[derive(Debug)]
pub enum Stepped {
    /// There is more to do.
    Progress(Progress),
    /// The results, by member; `None` for those that were dropped. The run is over.
    Finished(Vec<Option<Product>>),
}

/// What came of one job.
#[derive(Clone, Debug, PartialEq)]
pub struct Product {
    /// Its files, in order.
    pub files: Vec<File>,
    /// Seeds, plan, rungs, seconds, peaks: JSON.
    pub report: Value,
}

/// A finished file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Such as `image/png`.
    pub media_type: String,
    /// Its bytes.
    pub content: Vec<u8>,
}

/// Largest side of a preview, pixels.
const PREVIEW_SIDE_MAX: u32 = 256;

impl File {
    /// A picture and the text that goes with it.
    ///
    /// # Errors
    /// [`crate::Error::Picture`].
    pub fn picture(pixels: Pixels<'_>, format: Format, text: &str) -> Result<File> {
        Ok(File {
            media_type: format.media_type().to_owned(),
            content: encode(pixels, format, text)?,
        })
    }

    /// The picture with sides of at most 256 pixels. `None` where it has none at all.
    pub fn preview(pixels: Pixels<'_>) -> Option<File> {
        let (width, height, rgb) = shrunk(pixels, PREVIEW_SIDE_MAX).ok()?;
        // Of few pixels JPEG would make other ones.
        let format = match width.max(height) < PREVIEW_SIDE_MAX {
            true => Format::Png,
            false => Format::Jpeg,
        };
        let rgb = &rgb;
        File::picture(Pixels { width, height, rgb }, format, "").ok()
    }
}
