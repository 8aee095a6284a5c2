//! Detectors: where in a picture things are. A detector is one small network in a file of its own.

mod aliases;
mod labels;
mod letterbox;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use lowtide_core::{
    Budget, Bytes, DeviceProfile, Formula, Offload, PhaseLayout, PipelineLayout, Plan, Quality,
    Vars, plan,
};
use lowtide_kernels as kernels;
use lowtide_kernels::memory;
use lowtide_media::{Mask, Picture};
use lowtide_models::yolov8::{self, Config, Outline, Sieve};
use lowtide_models::{Compute, Precision};
use lowtide_weights::{Checkpoint, Fingerprint};

use crate::device::limits::Seat;
use crate::device::{cpu, figures};
use crate::pipeline::{FileHeaders, Part, SMALL_THINGS_BYTES, phase};
use crate::shared::Counted;
use crate::stream::{Blocks, Stream, Traffic};
use crate::{Error, Options, Result};
pub(crate) use aliases::meant;
use letterbox::Letterbox;

/// What plans and errors call the phase and the component.
pub(crate) const PHASE: &str = "detect";
pub(crate) const COMPONENT: &str = "detector";

/// Pixels of the longer side that a network sees, unless somebody says otherwise: what they were trained with.
pub const SIDE_DEFAULT: usize = 640;

/// How long that side may be asked to be.
pub(crate) const SIDES: std::ops::RangeInclusive<u64> = 32..=4096;

/// Of two boxes of a kind that share more than this of their area one goes.
pub const OVERLAP_DEFAULT: f32 = 0.7;

/// The most things of a picture.
pub const THINGS_MAX: usize = 300;

/// Products of a detector are always in single precision: it takes little time, and a box is to be where it is elsewhere.
const COMPUTE: Compute = Compute {
    precision: Precision::F32,
};

/// An opened detector: its shapes and what its classes are called, no weights.
pub struct Detector {
    name: String,
    config: Config,
    part: Part,
    labels: Vec<String>,
}

/// What is looked for, and how closely.
#[derive(Clone, Debug, PartialEq)]
pub struct Search {
    /// Things with such a score and above, 0 to 1.
    pub confidence: f32,
    /// Of two boxes of a kind that share more than this of their area one goes.
    pub overlap: f32,
    /// Pixels of the longer side that the network sees.
    pub side: usize,
    /// Classes by name or number; all of them where there are none.
    pub classes: Vec<String>,
}

impl Default for Search {
    fn default() -> Search {
        Search {
            confidence: 0.3,
            overlap: OVERLAP_DEFAULT,
            side: SIDE_DEFAULT,
            classes: Vec::new(),
        }
    }
}

/// A thing in a picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Detection {
    /// Left, top, right and bottom in pixels of the picture.
    pub edges: [f32; 4],
    /// How sure the detector is, 0 to 1.
    pub score: f32,
    /// Which class.
    pub class: usize,
    /// What the class is called.
    pub label: String,
    /// What belongs to it, of the picture's size; `None` where the detector tells boxes alone.
    pub outline: Option<Mask>,
}

impl Detection {
    /// Pixels of its box.
    pub fn area(&self) -> f32 {
        let [left, top, right, bottom] = self.edges;
        (right - left).max(0.0) * (bottom - top).max(0.0)
    }

    /// What it covers of a picture of this size: its outline, else its box.
    ///
    /// # Errors
    /// [`Error::Picture`] where the picture has no pixels.
    pub fn mask(&self, width: u32, height: u32) -> Result<Mask> {
        if let Some(outline) = &self.outline {
            return Ok(outline.clone());
        }
        let [left, top, right, bottom] = self.edges.map(|edge| edge.max(0.0) as u32);
        // The pixels in which its edges lie belong to it.
        let inside = |x, y| (left..=right).contains(&x) && (top..=bottom).contains(&y);
        Ok(Mask::where_inside(width, height, inside)?)
    }
}

/// What looking at a picture took.
#[derive(Clone, Debug)]
pub struct Looked {
    /// The things, the surest first.
    pub things: Vec<Detection>,
    /// What was read, and the wait for it.
    pub traffic: Traffic,
    /// The highest number of bytes in use.
    pub peak: Bytes,
}

impl Detector {
    /// Whether a checkpoint is a detector of a kind that is built in.
    pub fn is_told_by(checkpoint: &Checkpoint) -> bool {
        Config::is_told_by(&FileHeaders(checkpoint))
    }

    /// Opens a file; reads its headers.
    ///
    /// # Errors
    /// When it cannot be read or is none.
    pub fn open(path: &Path) -> Result<Detector> {
        let name = path.file_name().unwrap_or_default();
        let name = name.to_string_lossy().into_owned();
        Detector::of(&name, Arc::new(Checkpoint::open(path)?))
    }

    /// The detector whose weights these are.
    ///
    /// # Errors
    /// When it is none.
    pub fn of(name: &str, checkpoint: Arc<Checkpoint>) -> Result<Detector> {
        let wrap = |source| Error::Model {
            model: name.to_owned(),
            component: COMPONENT,
            source,
        };
        let headers = FileHeaders(&checkpoint);
        let config = Config::read(&headers).map_err(wrap)?;
        let layout = yolov8::layout(&headers, &config).map_err(wrap)?;
        let labels = labels::of(checkpoint.metadata("names"), config.classes);
        let blocks = Blocks::new(name, checkpoint.clone(), &layout)?;
        Ok(Detector {
            name: name.to_owned(),
            labels,
            part: Part { layout, blocks },
            config,
        })
    }

    /// The file's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The published size, such as `YOLOv8n-seg`.
    pub fn architecture(&self) -> String {
        self.config.name()
    }

    /// What its classes are called, in their order.
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// Whether it tells outlines, not boxes alone.
    pub fn has_outlines(&self) -> bool {
        self.config.has_outlines()
    }

    /// Blocks of its network.
    pub fn blocks(&self) -> usize {
        self.part.layout.blocks.len()
    }

    /// Bytes of its weights.
    pub fn bytes(&self) -> Bytes {
        self.part.layout.bytes()
    }

    /// Bytes of its weights in memory.
    pub fn held(&self) -> Bytes {
        self.part.blocks.held()
    }

    /// Its network's weights.
    pub(crate) fn part(&self) -> &Part {
        &self.part
    }

    /// Reads its weights, which then stay.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn load(&self) -> Result<Bytes> {
        self.part
            .blocks
            .preload()
            .map_err(|failure| self.failed(failure))?;
        Ok(self.part.blocks.kept())
    }

    /// Forgets its weights; returns the bytes.
    pub fn forget(&self) -> Bytes {
        let before = self.part.blocks.kept();
        self.part.blocks.forget_unless(|_| false);
        before.saturating_sub(self.part.blocks.kept())
    }

    /// The classes that a search names, by number; `None` where it names none.
    ///
    /// # Errors
    /// [`Error::Request`] for one that the detector does not have.
    pub fn classes(&self, named: &[String]) -> Result<Option<Vec<usize>>> {
        if named.is_empty() {
            return Ok(None);
        }
        let number = |name: &String| {
            let same = |label: &String| label.eq_ignore_ascii_case(name);
            let by_name = self.labels.iter().position(same);
            let by_number = || name.parse().ok().filter(|&class| class < self.labels.len());
            by_name.or_else(by_number).ok_or_else(|| {
                let shown: Vec<&str> = self.labels.iter().take(20).map(|l| &l[..]).collect();
                let problem = format!(
                    "names '{name}', which {} does not know; it knows {}",
                    self.name,
                    shown.join(", ")
                );
                Error::request("classes", problem)
            })
        };
        named.iter().map(number).collect::<Result<_>>().map(Some)
    }

    /// What the process may use, beside the weights of this detector that it can forget.
    pub(crate) fn budget(&self, options: &Options) -> Budget {
        let ours = self.part.blocks.kept() + Bytes::from(kernels::scratch_allocated());
        let in_use = Bytes(memory::live()).saturating_sub(ours);
        figures::within(options.budget, options.reserve, in_use)
    }

    /// Plans a look at a picture and carries it out.
    ///
    /// # Errors
    /// [`Error::DoesNotFit`]; when weights cannot be read; [`Error::Request`] for a class that it does not know.
    pub fn find(&self, picture: &Picture, search: &Search, options: &Options) -> Result<Looked> {
        self.prepare(picture, search, options)?.look(picture)
    }

    /// Plans looks at pictures of this one's size.
    ///
    /// # Errors
    /// [`Error::DoesNotFit`].
    pub fn prepare(
        &self,
        picture: &Picture,
        search: &Search,
        options: &Options,
    ) -> Result<Prepared<'_>> {
        let size = (picture.width(), picture.height());
        let budget = self.budget(options);
        let profile = cpu::profile(COMPUTE.precision);
        let keep = keeps(options);
        Ok(Prepared {
            plan: self.plan(size, search.side, (budget, keep), &profile)?,
            detector: self,
            search: search.clone(),
            seat: Seat::take(),
            keep,
        })
    }

    /// What looking at a picture of this size costs.
    pub(crate) fn phase(
        &self,
        (width, height): (u32, u32),
        side: usize,
        reuse: bool,
    ) -> PhaseLayout {
        let input = Letterbox::new((width, height), side);
        let modes = yolov8::modes(&self.config, input.height, input.width);
        let scratch = kernels::scratch_bytes(kernels::threads()) as f64 + SMALL_THINGS_BYTES;
        let pixels = f64::from(width) * f64::from(height);
        // The picture, and of outlines one after the other.
        let held =
            Formula::constant(scratch + pixels * if self.has_outlines() { 5.0 } else { 4.0 });
        PhaseLayout {
            reuse,
            ..phase(PHASE, &self.part.layout, 1, held, modes)
        }
    }

    /// Plans a look at a picture of this size.
    ///
    /// # Errors
    /// [`Error::DoesNotFit`].
    pub(crate) fn plan(
        &self,
        picture: (u32, u32),
        side: usize,
        (budget, reuse): (Budget, bool),
        profile: &DeviceProfile,
    ) -> Result<Plan> {
        let layout = PipelineLayout {
            model: self.name.clone(),
            phases: vec![self.phase(picture, side, reuse)],
        };
        Ok(plan(
            &layout,
            &Vars::new(),
            profile,
            &budget,
            Quality::Exact,
        )?)
    }

    /// Looks at a picture, as planned for its size.
    ///
    /// # Errors
    /// When weights cannot be read or memory is refused.
    pub(crate) fn look(
        &self,
        picture: &Picture,
        search: &Search,
        (plan, keep): (&Plan, bool),
    ) -> Result<Looked> {
        let classes = self.classes(&search.classes)?;
        let planned = &plan.phases[0];
        memory::trim();
        memory::reset_peak();
        let blocks = self.part.blocks.clone();
        let mut stream =
            Stream::start(blocks, planned, 1).map_err(|failure| self.failed(failure))?;
        let box_ = Letterbox::new((picture.width(), picture.height()), search.side);
        let input = box_.input(picture).map_err(|source| self.wrap(source))?;
        let output = yolov8::forward(&mut stream, &self.config, COMPUTE, input);
        let output = output.map_err(|source| self.wrap(source))?;
        let traffic = stream.traffic();
        match keep {
            true => stream.shelve(),
            false => {
                drop(stream);
                self.part.blocks.forget_unless(|_| false);
            }
        }
        let sieve = Sieve {
            score: search.confidence,
            overlap: search.overlap,
            classes: classes.as_deref(),
            most: THINGS_MAX,
        };
        let mut things = Vec::new();
        for found in yolov8::find(&self.config, &output, &sieve) {
            let edges = box_.back(found.edges);
            let outline = Outline::of(&output, &found, box_.height);
            let outline = outline.map(|outline| {
                let inside = |x: u32, y: u32| {
                    let (x, y) = (x as f32 + 0.5, y as f32 + 0.5);
                    let boxed = x > edges[0] && x < edges[2] && y > edges[1] && y < edges[3];
                    let (input_x, input_y) = box_.there(x, y);
                    boxed && outline.has(input_x, input_y)
                };
                Mask::where_inside(picture.width(), picture.height(), inside)
            });
            things.push(Detection {
                edges,
                score: found.score,
                class: found.class,
                label: self.labels[found.class].clone(),
                outline: outline.transpose()?,
            });
        }
        Ok(Looked {
            things,
            traffic,
            peak: Bytes(memory::peak()),
        })
    }

    fn wrap(&self, source: lowtide_models::Error) -> Error {
        match source {
            lowtide_models::Error::OutOfMemory(source) => Error::OutOfMemory {
                phase: PHASE,
                source,
            },
            source => Error::Model {
                model: self.name.clone(),
                component: COMPONENT,
                source,
            },
        }
    }

    fn failed(&self, failure: crate::stream::Failure) -> Error {
        match failure {
            crate::stream::Failure::Memory(source) => Error::OutOfMemory {
                phase: PHASE,
                source,
            },
            other => self.wrap(lowtide_models::Error::Source(Box::new(other))),
        }
    }
}

/// Planned looks at pictures of one size.
pub struct Prepared<'a> {
    detector: &'a Detector,
    search: Search,
    plan: Plan,
    seat: Seat,
    keep: bool,
}

impl Prepared<'_> {
    /// Looks at a picture.
    ///
    /// # Errors
    /// As [`Detector::find`].
    pub fn look(&self, picture: &Picture) -> Result<Looked> {
        self.seat.own(self.plan.budget.total);
        let how = (&self.plan, self.keep);
        self.detector.look(picture, &self.search, how)
    }
}

/// Whether the weights of detectors stay after a look.
pub(crate) fn keeps(options: &Options) -> bool {
    match options.offload {
        Offload::Auto => options.keep_weights,
        Offload::Never => true,
        Offload::Components | Offload::Stream => false,
    }
}

/// Detectors by file, opened once each.
#[derive(Default)]
pub(crate) struct Detectors {
    opened: Mutex<HashMap<PathBuf, (Fingerprint, Arc<Detector>)>>,
}

/// Detectors that stay open; a file that is named once more is opened again.
const OPENED_MAX: usize = 16;

impl Detectors {
    /// The detector in this file.
    ///
    /// # Errors
    /// As [`Detector::open`].
    pub(crate) fn open(&self, path: &Path) -> Result<Arc<Detector>> {
        let checkpoint = Checkpoint::open(path)?;
        let fingerprint = checkpoint.fingerprint()?;
        let mut opened = self.lock();
        if let Some((known, detector)) = opened.get(path)
            && *known == fingerprint
        {
            return Ok(detector.clone());
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let detector = Arc::new(Detector::of(&name, Arc::new(checkpoint))?);
        if opened.len() >= OPENED_MAX {
            opened.clear();
        }
        opened.insert(path.to_owned(), (fingerprint, detector.clone()));
        Ok(detector)
    }

    /// Bytes of weights in memory.
    pub(crate) fn held(&self) -> Bytes {
        self.lock().values().map(|(_, one)| one.held()).sum()
    }

    /// The same, but for blocks that were `counted`.
    pub(crate) fn held_beside(&self, counted: &mut Counted) -> Bytes {
        let opened = self.lock();
        let blocks = opened.values().map(|(_, one)| &one.part.blocks);
        blocks.map(|blocks| blocks.held_beside(counted)).sum()
    }

    /// Forgets all weights; returns the bytes.
    pub(crate) fn forget(&self) -> Bytes {
        self.lock().values().map(|(_, one)| one.forget()).sum()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<PathBuf, (Fingerprint, Arc<Detector>)>> {
        // A map is changed by one insertion or one clearing, so a panic elsewhere leaves it valid.
        self.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
