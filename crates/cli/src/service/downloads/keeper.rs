//! The thread that begins downloads for jobs that wait, and tells jobs whose model does not come.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use lowtide_core::job::JobId;
use lowtide_hub::{Event, Settings as HubSettings, Stop, Wanted, pull};
use lowtide_jobs::report::Hints;
use lowtide_jobs::{Candidate, JobStore, StoreError, WorkerId};
use lowtide_server::{Door, DownloadState, Downloads};

use super::{Fetcher, State, order};
use crate::failure::{Failure, one_line};
use crate::service::door::Desk;
use crate::service::log::{Level, Logger, now};

/// The queue is looked at no more often than this.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Jobs of each priority that are looked at.
const CANDIDATES: usize = 256;
/// Downloads at a time; each has several connections.
const AT_ONCE: usize = 2;
/// So long one that is over is still told of.
const TOLD_FOR: Duration = Duration::from_secs(600);
/// A model that was here is looked for again after so long.
const SEEN_FOR: Duration = Duration::from_secs(30);
/// A job is leased for so long to be told that it fails.
const LEASE: Duration = Duration::from_secs(15);
/// In whose name that is done.
const NAME: &str = "downloads";

/// Keeps a fetcher going; dropping it stops what runs. What came is kept.
pub(crate) struct Keeper {
    fetcher: Arc<Fetcher>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Starts the thread. Where nothing may be fetched none is needed.
    ///
    /// # Errors
    /// When there is no thread for it.
    pub(crate) fn start(
        fetcher: Arc<Fetcher>,
        desk: Arc<Desk>,
        log: Logger,
    ) -> Result<Keeper, Failure> {
        let settings = fetcher.hub.clone().ok();
        let settings = settings.filter(|_| fetcher.forbidden().is_none());
        let start = |settings: HubSettings| {
            let round = Round {
                fetcher: Arc::clone(&fetcher),
                settings,
                desk,
                log,
                here: BTreeMap::new(),
                checked: BTreeSet::new(),
                threads: Vec::new(),
            };
            std::thread::Builder::new()
                .name("downloads".to_owned())
                .spawn(move || round.keep())
                .context("no thread for downloads")
        };
        let thread = settings.map(start).transpose()?;
        Ok(Keeper { fetcher, thread })
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let mut state = self.fetcher.lock();
        state.ending = true;
        state.entries.iter().for_each(|entry| entry.stop.ask());
        drop(state);
        self.fetcher.store.nudge();
        if let Some(thread) = self.thread.take() {
            // One that panicked has nothing left to be waited for.
            let _ = thread.join();
        }
    }
}

/// What the thread has.
struct Round {
    fetcher: Arc<Fetcher>,
    settings: HubSettings,
    desk: Arc<Desk>,
    log: Logger,
    /// Models that were here, and when that was seen.
    here: BTreeMap<String, Instant>,
    /// Jobs whose request was looked at since their model came.
    checked: BTreeSet<JobId>,
    threads: Vec<JoinHandle<()>>,
}

impl Round {
    fn keep(mut self) {
        let store = Arc::clone(&self.fetcher.store);
        let mut looked: Option<Instant> = None;
        while !self.fetcher.lock().ending {
            let early = looked.map_or(Duration::ZERO, |at| LOOK_EVERY.saturating_sub(at.elapsed()));
            if !early.is_zero() {
                std::thread::park_timeout(early);
            }
            looked = Some(Instant::now());
            // Whoever asks the store next hears what is wrong with it; the next round tries again.
            let _ = self.look(store.as_ref());
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }

    fn look(&mut self, store: &dyn JobStore) -> lowtide_jobs::Result<()> {
        let candidates = store.candidates(CANDIDATES, now())?;
        let jobs: BTreeSet<JobId> = candidates.jobs.iter().map(|job| job.id).collect();
        self.checked.retain(|job| jobs.contains(job));
        let mut waiting: BTreeMap<Wanted, Vec<JobId>> = BTreeMap::new();
        for job in &candidates.jobs {
            let Some(wanted) = Fetcher::wanted(&job.model) else {
                continue;
            };
            match self.is_here(&job.model) {
                true if unseen(job) => self.arrived(store, job)?,
                true => {}
                false => waiting.entry(wanted).or_default().push(job.id),
            }
        }
        // Before any of them is told: who is told now waits no more.
        let hopeless: BTreeSet<JobId> = self.fetcher.lock().hopeless.keys().copied().collect();
        for jobs in waiting.values_mut() {
            jobs.retain(|job| !hopeless.contains(job));
        }
        if !candidates.held {
            self.tell_hopeless(store, &jobs)?;
        }
        self.renew(waiting);
        self.begin();
        Ok(())
    }

    fn is_here(&mut self, model: &str) -> bool {
        if self
            .here
            .get(model)
            .is_some_and(|at| at.elapsed() < SEEN_FOR)
        {
            return true;
        }
        // A tree that is begun has a folder before it has a pipeline in it.
        let here = self.fetcher.catalog.open(model).is_ok();
        match here {
            true => self.here.insert(model.to_owned(), Instant::now()),
            false => self.here.remove(model),
        };
        here
    }

    /// The model is here: what could not be checked of the request before is checked now.
    fn arrived(&mut self, store: &dyn JobStore, job: &Candidate) -> lowtide_jobs::Result<()> {
        if !self.checked.insert(job.id) {
            return Ok(());
        }
        let request = match store.job(job.id) {
            Ok(record) => record.request,
            // It is over, or gone.
            Err(StoreError::NotFound { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        let request = serde_json::from_str(&request).unwrap_or_default();
        if let Err(refused) = self.desk.check(&job.kind, Some(&job.model), request, None) {
            let why = format!("its model came, and the request cannot be: {refused}");
            self.fetcher.lock().hopeless.insert(job.id, why);
        }
        Ok(())
    }

    /// Fails jobs whose model does not come: a moment's lease is how a job is told.
    fn tell_hopeless(
        &mut self,
        store: &dyn JobStore,
        queued: &BTreeSet<JobId>,
    ) -> lowtide_jobs::Result<()> {
        let hopeless = self.fetcher.lock().hopeless.clone();
        let worker: WorkerId = NAME.parse().expect("letters alone");
        for (job, why) in hopeless {
            if queued.contains(&job) {
                match store.claim(job, &worker, LEASE, now()) {
                    Ok(claimed) => drop(store.fail(&claimed.lease, &why, false, now())?),
                    // Somebody was quicker: it was cancelled or paused.
                    Err(StoreError::NotClaimable { .. } | StoreError::NotFound { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            self.fetcher.lock().hopeless.remove(&job);
        }
        Ok(())
    }

    /// Begins what jobs wait for, stops what none waits for any more, forgets what was over long ago.
    fn renew(&mut self, mut waiting: BTreeMap<Wanted, Vec<JobId>>) {
        let mut state = self.fetcher.lock();
        let State {
            entries, hopeless, ..
        } = &mut *state;
        for jobs in waiting.values_mut() {
            jobs.retain(|job| !hopeless.contains_key(job));
        }
        for entry in entries.iter_mut().filter(|entry| !entry.state.is_over()) {
            let jobs = waiting.remove(&entry.wanted).unwrap_or_default();
            if jobs.is_empty() && !entry.jobs.is_empty() && !entry.by_hand {
                entry.end(DownloadState::Stopped, None);
            }
            entry.jobs = jobs;
        }
        let told = |at: Instant| at.elapsed() < TOLD_FOR;
        entries.retain(|entry| entry.over.is_none_or(told));
        for (wanted, jobs) in waiting.into_iter().filter(|(_, jobs)| !jobs.is_empty()) {
            // Where there are too many already, the next round tries again.
            if let Ok(entry) = state.entry(wanted) {
                entry.jobs = jobs;
            }
        }
    }

    /// Starts threads for those whose turn it is.
    fn begin(&mut self) {
        self.threads.retain(|thread| !thread.is_finished());
        let mut state = self.fetcher.lock();
        for entry in &mut state.entries {
            if self.threads.len() >= AT_ONCE || entry.state != DownloadState::Waiting {
                continue;
            }
            entry.state = DownloadState::Looking;
            let job = Job {
                fetcher: Arc::clone(&self.fetcher),
                settings: self.settings.clone(),
                wanted: entry.wanted.clone(),
                stop: entry.stop.clone(),
                log: self.log.clone(),
            };
            let thread = std::thread::Builder::new().name("download".to_owned());
            match thread.spawn(move || job.run()) {
                Ok(thread) => self.threads.push(thread),
                // The next round may have one.
                Err(_) => entry.state = DownloadState::Waiting,
            }
        }
    }
}

/// Whether a job was accepted before its model was here: then nobody knows what it needs.
fn unseen(job: &Candidate) -> bool {
    let hints = job.hints.as_deref().and_then(Hints::from_json);
    hints.is_none_or(|hints| hints.peak == 0)
}

/// What the thread of one download has.
struct Job {
    fetcher: Arc<Fetcher>,
    settings: HubSettings,
    wanted: Wanted,
    stop: Stop,
    log: Logger,
}

impl Job {
    fn run(self) {
        self.log.info(&format!("fetches {}", self.wanted));
        let tell = |event: Event| {
            if let Event::Note(text) = &event {
                self.log.info(&one_line(text));
            }
            self.change(|entry| entry.heard(&event));
        };
        let pulled = pull(&self.settings, &order(&self.wanted), &self.stop, &tell);
        match pulled {
            Ok(pulled) => {
                let (files, bytes) = (pulled.files, pulled.bytes);
                self.log
                    .info(&format!("{} is here: {files} files, {bytes}", self.wanted));
                self.change(|entry| entry.end(DownloadState::Done, None));
            }
            // Whoever stopped it has said so.
            Err(lowtide_hub::Error::Stopped) => {}
            Err(error) => {
                let sentence = one_line(&error.to_string());
                let text = format!("{} could not be fetched: {sentence}", self.wanted);
                self.log.say(Level::Warn, &text);
                self.failed(&sentence);
            }
        }
        self.fetcher.store.nudge();
    }

    /// Changes the entry, if it is still this download's.
    fn change(&self, change: impl FnOnce(&mut super::Entry)) {
        let mut state = self.fetcher.lock();
        let mut entries = state.entries.iter_mut();
        let ours = |entry: &&mut super::Entry| {
            entry.wanted == self.wanted && !entry.state.is_over() && !self.stop.is_asked()
        };
        if let Some(entry) = entries.find(ours) {
            change(entry);
        }
    }

    fn failed(&self, sentence: &str) {
        let mut jobs = Vec::new();
        self.change(|entry| {
            jobs = std::mem::take(&mut entry.jobs);
            entry.end(DownloadState::Failed, Some(sentence.to_owned()));
        });
        let mut state = self.fetcher.lock();
        for job in jobs {
            let why = format!(
                "its model could not be fetched: {sentence}; when that is mended, 'lowtide jobs requeue {job}' tries again"
            );
            state.hopeless.insert(job, why);
        }
    }
}
