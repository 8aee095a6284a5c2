//! What every route can reach.

use std::sync::Arc;

use lowtide_core::job::Moment;
use lowtide_jobs::{ArtifactStore, InputStore, JobStore, StoreError};
use tokio::sync::Semaphore;

use crate::access::{self, Access};
use crate::counters::Counters;
use crate::fleet::Fleet;
use crate::history::History;
use crate::hub::Hub;
use crate::outlook::Forecasts;
use crate::refusal::Refusal;
use crate::routes::{Board, Desktop};
use crate::{Door, Kind, Options, webhooks};

/// What every route can reach.
pub(crate) type App = Arc<Inner>;

/// See [`App`].
pub(crate) struct Inner {
    /// Jobs.
    pub(crate) store: Arc<dyn JobStore>,
    /// Their files.
    pub(crate) artifacts: Arc<dyn ArtifactStore>,
    /// Files they begin from.
    pub(crate) inputs: Arc<dyn InputStore>,
    /// Room for long bodies.
    pub(crate) long_bodies: Arc<Semaphore>,
    /// What they mean.
    pub(crate) door: Arc<dyn Door>,
    /// Limits.
    pub(crate) options: Options,
    /// The kinds of jobs; they do not change while the server runs.
    pub(crate) kinds: Vec<Kind>,
    /// Events on their way to clients.
    pub(crate) hub: Hub,
    /// When jobs will be done.
    pub(crate) forecasts: Forecasts,
    /// Memory over time.
    pub(crate) history: History,
    /// Requests by route.
    pub(crate) counters: Counters,
    /// Keys, and how much of their limits was used.
    pub(crate) access: Access,
    /// What clients of the Stable Diffusion web UI chose and wait for.
    pub(crate) sdapi: Desktop,
    /// The graphs that ComfyUI's clients sent.
    pub(crate) comfy: Board,
    /// Who is told what becomes of jobs.
    pub(crate) calls: webhooks::Desk,
    /// When the server began.
    pub(crate) started: Moment,
    /// The description of all routes, as text.
    pub(crate) openapi: std::sync::OnceLock<String>,
}

impl Inner {
    /// The time.
    pub(crate) fn now(&self) -> Moment {
        (self.options.clock)()
    }

    /// Has a call done that blocks, on a thread that may. There are at most so many such threads, and each connection
    /// waits for at most one of them.
    pub(crate) async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        act: impl FnOnce(&Inner) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        let app = Arc::clone(self);
        let caller = access::present();
        let act = move || access::scope_blocking(caller, || act(&app));
        match tokio::task::spawn_blocking(act).await {
            Ok(result) => result,
            Err(error) => Err(Refusal::Internal {
                problem: format!("a call did not come back ({error}); this is a bug"),
            }),
        }
    }

    /// As [`Inner::blocking`], for a plain call to the store.
    pub(crate) async fn ask<T: Send + 'static>(
        self: &Arc<Self>,
        act: impl FnOnce(&dyn JobStore) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, Refusal> {
        self.blocking(move |app| Ok(act(app.store.as_ref())?)).await
    }

    /// What workers say of themselves now.
    pub(crate) fn fleet(&self) -> Result<Fleet, StoreError> {
        Ok(Fleet::read(self.store.workers()?, self.now()))
    }
}
