//! Where saved sessions are: a folder of this worker's, and for workers that do not see it a store as well.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lowtide_jobs::{Job, JobStore, SessionStore, StoreError};
use serde_json::json;

use crate::log::{Level, Log};
use crate::session::{job_of, job_of_part, saved_file};

/// Saved sessions.
#[derive(Clone)]
pub(crate) struct Depot {
    folder: PathBuf,
    shared: Option<Arc<dyn SessionStore>>,
    log: Log,
}

impl Depot {
    pub(crate) fn new(folder: PathBuf, shared: Option<Arc<dyn SessionStore>>, log: Log) -> Depot {
        Depot {
            folder,
            shared,
            log,
        }
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Lets others see what was just saved under this name. Where that fails, whoever has the job next begins anew unless
    /// it is this worker.
    pub(crate) fn share(&self, name: &str) {
        let Some(shared) = &self.shared else { return };
        if let Err(error) = shared.keep(name, &self.folder.join(name)) {
            let text = format!("a saved session stays on this machine alone: {error}");
            self.log.say(Level::Warn, text, json!({ "session": name }));
        }
    }

    /// The file of this job's saved session, which is brought here where it is elsewhere.
    pub(crate) fn find(&self, job: &Job) -> Option<PathBuf> {
        let (Some(shared), Some(session)) = (&self.shared, &job.session) else {
            return saved_file(&self.folder, job);
        };
        let name = &session.location;
        if job_of(name) == Some(job.id) && !self.folder.join(name).is_file() {
            let fetched = shared.fetch(name, &self.folder.join(name));
            if let Err(error) = fetched {
                let text = format!(
                    "job {} begins anew, its saved session cannot be fetched: {error}",
                    job.id
                );
                self.log
                    .say(Level::Warn, text, json!({ "job": job.id.to_string() }));
            }
        }
        saved_file(&self.folder, job)
    }

    /// Removes what is of no more use. A leftover is removed at the next start.
    pub(crate) fn remove(&self, files: &[PathBuf]) {
        for file in files {
            let _ = std::fs::remove_file(file);
            let name = file.file_name().and_then(|name| name.to_str());
            if let (Some(shared), Some(name)) = (&self.shared, name) {
                let _ = shared.remove(name);
            }
        }
    }

    /// Removes saved sessions of jobs that are over.
    pub(crate) fn tidy(&self, store: &dyn JobStore) {
        let entries = std::fs::read_dir(&self.folder).into_iter().flatten();
        for entry in entries.filter_map(std::io::Result::ok) {
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            if job_of_part(name).is_some() {
                // Whoever wrote it was ended while it did.
                let _ = std::fs::remove_file(entry.path());
            }
            if is_over(store, name) {
                // Else it is tried at the next start.
                let _ = std::fs::remove_file(entry.path());
            }
        }
        let Some(shared) = &self.shared else { return };
        // Where they cannot be listed now, the next start does it.
        for name in shared.names().unwrap_or_default() {
            if is_over(store, &name) {
                let _ = shared.remove(&name);
            }
        }
    }
}

/// Whether the job whose saved session has this name has no more use for it.
fn is_over(store: &dyn JobStore, name: &str) -> bool {
    let Some(job) = job_of(name) else {
        return false;
    };
    match store.job(job) {
        // Whoever sends a failed one through the queue again wants it from the beginning.
        Ok(job) => job.state.is_final(),
        Err(StoreError::NotFound { .. }) => true,
        Err(_) => false,
    }
}
