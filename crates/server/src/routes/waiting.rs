//! Waiting for jobs, without asking the store again and again.

use std::time::Duration;

use lowtide_core::job::JobId;
use lowtide_jobs::Job;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::Instant;

use crate::app::App;
use crate::hub;
use crate::refusal::Refusal;

/// Waits until a job is over, at most so long, and returns it as it then is. Ends early when the server does.
pub(crate) async fn until_over(
    app: &App,
    id: JobId,
    wait: Option<Duration>,
) -> Result<Job, Refusal> {
    let end = wait.map(|wait| Instant::now() + wait);
    let (mut lines, _) = hub::listen(app).await?;
    let mut ending = app.hub.ending();
    loop {
        // Looked at after listening began: what happens after this look is heard.
        let job = app.ask(move |store| store.job(id)).await?;
        if job.state.is_final() || app.hub.is_ending() {
            return Ok(job);
        }
        let over = async {
            loop {
                match lines.recv().await {
                    Ok(line) if line.over && line.job == Some(id) => return,
                    Ok(_) => {}
                    // Some were missed, and it may be among them.
                    Err(RecvError::Lagged(_)) => return,
                    Err(RecvError::Closed) => std::future::pending().await,
                }
            }
        };
        let late = async {
            match end {
                Some(end) => tokio::time::sleep_until(end).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = over => {}
            () = late => return app.ask(move |store| store.job(id)).await,
            () = hub::ended(&mut ending) => {}
        }
    }
}

/// A client that asked for a job and nothing else: dropped before the job is over, it has gone away, and the job is
/// cancelled. It is made where the job is submitted, so that a client that goes away at that moment is one as well.
pub(crate) struct Patron {
    app: App,
    job: JobId,
    content: bool,
}

impl Patron {
    /// The client of a job that was just submitted; of one that `existed` before, somebody else may be waiting.
    pub(crate) fn new(app: App, job: JobId, existed: bool) -> Patron {
        Patron {
            app,
            job,
            content: existed,
        }
    }

    /// Its job.
    pub(crate) fn job(&self) -> JobId {
        self.job
    }

    /// Waits until the job is over.
    pub(crate) async fn until_over(mut self) -> Result<Job, Refusal> {
        let over = until_over(&self.app, self.job, None).await;
        self.content = true;
        over
    }
}

impl Drop for Patron {
    fn drop(&mut self) {
        // When the server ends, clients are cut off without having gone away: what was accepted is done after the next
        // start.
        if self.content || self.app.hub.is_ending() {
            return;
        }
        let (app, job) = (App::clone(&self.app), self.job);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            // Where it cannot be cancelled it is over already.
            runtime.spawn_blocking(move || app.store.cancel(job, app.now()).map(drop));
        }
    }
}
