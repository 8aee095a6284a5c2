//! A worker in a thread, with a real store in a folder of its own.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use lowtide_core::job::{JobId, JobState, Moment, RetryPolicy};
use lowtide_engine::Options;
use lowtide_engine::processor::{NoFiles, Processor};
use lowtide_jobs::report::{BatchHints, Hints, ModelStatus, Status};
use lowtide_jobs::{
    ArtifactStore, FolderArtifacts, Job, JobStore, Order, Policy, SqliteOptions, SqliteStore,
    Submission, random_job_id,
};
use lowtide_worker::{Log, NoFolders, Setup, Stop, Worker, WorkerOptions};
use serde_json::{Value, json};

use crate::processor::{Acts, Stage};

pub(crate) struct Rig {
    pub(crate) store: Arc<dyn JobStore>,
    pub(crate) artifacts: Arc<FolderArtifacts>,
    pub(crate) stage: Arc<Stage>,
    options: WorkerOptions,
    folder: tempfile::TempDir,
    running: Option<(Stop, JoinHandle<lowtide_worker::Result<()>>)>,
    workers: u32,
}

pub(crate) fn now() -> Moment {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    Moment(since.unwrap().as_millis() as u64)
}

/// Asks until the answer is there.
pub(crate) fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(
            start.elapsed() < Duration::from_secs(30),
            "waited in vain for {what}"
        );
        std::thread::yield_now();
    }
}

impl Rig {
    pub(crate) fn new() -> Rig {
        Rig::with(WorkerOptions::default())
    }

    pub(crate) fn with(options: WorkerOptions) -> Rig {
        let folder = tempfile::tempdir().unwrap();
        let policy = Policy {
            retry: RetryPolicy {
                failures_max: 2,
                losses_max: 3,
                backoff_first: Duration::from_millis(1),
                backoff_max: Duration::from_millis(2),
            },
            ..Policy::default()
        };
        let store = SqliteStore::open(
            &folder.path().join("jobs.sqlite"),
            SqliteOptions {
                policy,
                ..SqliteOptions::default()
            },
        );
        let artifacts = FolderArtifacts::open(&folder.path().join("artifacts"));
        Rig {
            store: Arc::new(store.unwrap()),
            artifacts: Arc::new(artifacts.unwrap()),
            stage: Arc::new(Stage::default()),
            options,
            folder,
            running: None,
            workers: 0,
        }
    }

    pub(crate) fn sessions(&self) -> PathBuf {
        self.folder.path().join("sessions")
    }

    /// A worker that has not begun.
    pub(crate) fn open(&self, device: Options) -> lowtide_worker::Result<Worker> {
        let processors: Vec<Arc<dyn Processor>> = vec![Arc::new(Acts(self.stage.clone()))];
        Worker::open(Setup {
            store: self.store.clone(),
            artifacts: self.artifacts.clone(),
            id: self.worker().parse().unwrap(),
            sessions: self.sessions(),
            shared_sessions: None,
            tracer: None,
            processors,
            folders: Arc::new(NoFolders),
            device,
            files: Arc::new(NoFiles),
            options: self.options.clone(),
            log: match std::env::var_os("LOWTIDE_TEST_LOG") {
                Some(_) => Log::new(|line| eprintln!("{} {:?} {}", now().0, line.level, line.text)),
                None => Log::none(),
            },
        })
    }

    /// Starts a worker, another one than before.
    pub(crate) fn start(&mut self) {
        self.workers += 1;
        let worker = self.open(Options::default()).unwrap();
        let stop = Stop::new();
        let theirs = stop.clone();
        let thread = std::thread::spawn(move || worker.run(&theirs));
        self.running = Some((stop, thread));
    }

    pub(crate) fn worker(&self) -> String {
        format!("w{}", self.workers)
    }

    /// Asks the worker to end, without waiting.
    pub(crate) fn ask_to_stop(&self) {
        let (stop, _) = self.running.as_ref().unwrap();
        stop.ask();
        self.store.nudge();
    }

    /// Waits until it has ended.
    pub(crate) fn join(&mut self) {
        let (_, thread) = self.running.take().unwrap();
        thread.join().unwrap().unwrap();
    }

    pub(crate) fn stop(&mut self) {
        self.ask_to_stop();
        self.join();
    }

    pub(crate) fn submission(&self, request: Value) -> Submission {
        let mut submission =
            Submission::new(random_job_id(now()), "act", "one", &request.to_string());
        submission.hints = Some(
            Hints {
                seconds: 1.0,
                peak: 1 << 20,
                batch: Some(BatchHints {
                    size: [1, 1],
                    settings: "same".to_owned(),
                    more: 1 << 10,
                    more_seconds: 0.1,
                }),
                steps: Vec::new(),
            }
            .to_json(),
        );
        submission
    }

    pub(crate) fn submit(&self, submission: Submission) -> JobId {
        self.store.submit(submission, now()).unwrap().job
    }

    pub(crate) fn act(&self, name: &str, steps: u32) -> JobId {
        let mut submission = self.submission(json!({ "name": name, "steps": steps }));
        submission.hints = None;
        self.submit(submission)
    }

    pub(crate) fn job(&self, job: JobId) -> Job {
        self.store.job(job).unwrap()
    }

    pub(crate) fn wait_state(&self, job: JobId, state: JobState) -> Job {
        let start = Instant::now();
        loop {
            let found = self.job(job);
            if found.state == state {
                return found;
            }
            assert!(
                start.elapsed() < Duration::from_secs(30) && !found.state.is_final(),
                "job is {} instead of {state}: {:?}",
                found.state,
                found.error
            );
            std::thread::yield_now();
        }
    }

    /// The text a finished job wrote.
    pub(crate) fn text(&self, job: &Job) -> String {
        let outcome = job.outcome.as_ref().unwrap();
        let content = self.artifacts.read(&outcome.artifacts[0]).unwrap();
        String::from_utf8(content).unwrap()
    }

    pub(crate) fn status(&self) -> Option<Status> {
        let workers = self.store.workers().unwrap();
        let ours = workers
            .into_iter()
            .find(|one| one.worker.as_str() == self.worker())?;
        serde_json::from_str(&ours.status).ok()
    }

    pub(crate) fn wait_model(&self, what: &str, is: impl Fn(&ModelStatus) -> bool) -> ModelStatus {
        until(what, || {
            let status = self.status()?;
            status
                .models
                .into_iter()
                .find(|model| model.name == "one")
                .filter(|model| is(model))
        })
    }

    /// Sends an order and waits for its answer.
    pub(crate) fn order(&self, order: Order) -> (bool, String) {
        let worker = self.worker().parse().unwrap();
        let expires = now() + Duration::from_secs(60);
        let command = self.store.send(&worker, order, expires, now()).unwrap();
        until("an answer", || {
            let answer = self.store.command(command).unwrap().acknowledged?;
            Some((answer.ok, answer.message))
        })
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.running.take() {
            stop.ask();
            self.store.nudge();
            // A test that failed has its own message.
            let _ = thread.join();
        }
    }
}
