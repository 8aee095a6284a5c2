//! What a worker is made of.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use lowtide_core::lifecycle::{AfterJob, IDLE_DEFAULT, KeepAlive};
use lowtide_engine::Options;
use lowtide_engine::processor::{Files, Processor};
use lowtide_jobs::{ArtifactStore, JobStore, SessionStore, Tracer, WorkerId};
use lowtide_weights::ModelFolder;

use crate::Log;

/// The model folders a worker may open, by name.
pub trait Folders: Send + Sync {
    /// All names, as of now.
    fn names(&self) -> Vec<String>;

    /// Opens the folder of one of these names.
    ///
    /// # Errors
    /// A sentence: there is no such name, or the folder is no model.
    fn open(&self, name: &str) -> Result<ModelFolder, String>;
}

/// No folders: only what processors bring along.
pub struct NoFolders;

impl Folders for NoFolders {
    fn names(&self) -> Vec<String> {
        Vec::new()
    }

    fn open(&self, name: &str) -> Result<ModelFolder, String> {
        Err(format!("there is no model '{name}'"))
    }
}

/// What a worker is made of.
pub struct Setup {
    /// The queue.
    pub store: Arc<dyn JobStore>,
    /// Where finished files go.
    pub artifacts: Arc<dyn ArtifactStore>,
    /// The worker's name, another one for each process.
    pub id: WorkerId,
    /// Where sessions are saved. Workers that are restarted find theirs here.
    pub sessions: PathBuf,
    /// Where they are kept as well for workers that do not see that folder.
    pub shared_sessions: Option<Arc<dyn SessionStore>>,
    /// The kinds of jobs it does.
    pub processors: Vec<Arc<dyn Processor>>,
    /// The models it can open.
    pub folders: Arc<dyn Folders>,
    /// How the device is used.
    pub device: Options,
    /// Files that requests may name.
    pub files: Arc<dyn Files>,
    /// How it works.
    pub options: WorkerOptions,
    /// Where lines go.
    pub log: Log,
    /// Who hears what takes time.
    pub tracer: Option<Arc<dyn Tracer>>,
}

/// How a worker works.
#[derive(Clone, Debug)]
pub struct WorkerOptions {
    /// Sessions that may be open at once; one of them steps.
    pub max_concurrent_jobs: usize,
    /// How long models stay, unless a request or the model's own options say otherwise.
    pub keep_alive: Option<KeepAlive>,
    /// What happens to a model after a job where no keep-alive is given.
    pub after_job: AfterJob,
    /// The idle timer; `None` turns it off.
    pub idle: Option<Duration>,
    /// By model, what differs.
    pub models: BTreeMap<String, ModelOptions>,
    /// Models to bring to the device before the first job.
    pub preload: Vec<String>,
    /// The most jobs in a batch; 1 turns batches off.
    pub batch_max: usize,
    /// How long a lease lasts that is not renewed.
    pub lease: Duration,
    /// How often the worker says how it is.
    pub heartbeat: Duration,
    /// Whether pictures in progress are shown.
    pub previews: bool,
    /// After so much computing a session is saved, in case the worker vanishes.
    pub checkpoint_every: Duration,
}

impl Default for WorkerOptions {
    fn default() -> WorkerOptions {
        WorkerOptions {
            max_concurrent_jobs: 2,
            keep_alive: None,
            after_job: AfterJob::Keep,
            idle: Some(IDLE_DEFAULT),
            models: BTreeMap::new(),
            preload: Vec::new(),
            batch_max: 8,
            lease: Duration::from_secs(15),
            heartbeat: Duration::from_secs(1),
            previews: true,
            checkpoint_every: Duration::from_secs(20),
        }
    }
}

/// What differs for one model. What is `None` is as for all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ModelOptions {
    /// How long it stays.
    pub keep_alive: Option<KeepAlive>,
    /// What happens after a job.
    pub after_job: Option<AfterJob>,
    /// Its idle timer; `Some(None)` turns it off.
    pub idle: Option<Option<Duration>>,
}
