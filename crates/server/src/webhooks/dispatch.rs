//! The thread that has others told, and what the threads do that call them.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use lowtide_core::job::{JobId, Moment, Retry, Setback, Setbacks};
use lowtide_jobs::{Call, Settled, StoreError};

use super::body::{self, Event};
use super::call::{self, Failed};
use super::desk::News;
use crate::app::{App, Inner};

/// Calls at once, of either kind: one receiver that hangs keeps neither the others nor beginnings from ends.
const CALLS_MAX: usize = 16;

/// Calls at once that tell of beginnings and progress.
const NEWS_MAX: usize = 8;

/// The store is asked for ends no more often than this.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The longest wait, for what nobody rang for.
const WAIT_MAX: Duration = Duration::from_secs(5);

/// How long a store that is away is let be.
const TROUBLE: Duration = Duration::from_secs(1);

/// Time beyond its own that a call may take for the store before somebody else may have it.
const SPARE: Duration = Duration::from_secs(30);

/// Deep enough for TLS, and touched only as far as it is used.
const STACK_BYTES: usize = 512 << 10;

/// Has others told until the server ends.
pub(crate) fn dispatch(app: &App) {
    let agent = call::agent(&app.options.webhooks, &app.options.version);
    let mut looked: Option<Instant> = None;
    while !app.hub.is_ending() {
        let mut wake = Instant::now() + WAIT_MAX;
        loop {
            match app.calls.take(NEWS_MAX) {
                Ok(news) => begin(app, news.job, {
                    let (app, agent) = (Arc::clone(app), agent.clone());
                    move || tell_news(&app, &agent, news)
                }),
                Err(next) => {
                    wake = wake.min(next.unwrap_or(wake));
                    break;
                }
            }
        }
        let due = looked.map_or(Duration::ZERO, |at| LOOK_EVERY.saturating_sub(at.elapsed()));
        if due.is_zero() {
            looked = Some(Instant::now());
            let next = ends(app, &agent).unwrap_or(Some(TROUBLE));
            wake = next.map_or(wake, |next| wake.min(Instant::now() + next));
            app.calls
                .wait(wake.saturating_duration_since(Instant::now()));
        } else {
            std::thread::park_timeout(due);
        }
    }
    app.calls.settle(app.options.grace);
}

/// Has a call made on a thread of its own. Where there is none it ends at once, and what is owed is due again later.
fn begin(app: &App, job: JobId, call: impl FnOnce() + Send + 'static) {
    let ended = Ended(Arc::clone(app), job);
    let thread = std::thread::Builder::new()
        .name("webhook".to_owned())
        .stack_size(STACK_BYTES);
    // It is dropped with the closure, whatever becomes of that.
    let spawned = thread.spawn(move || {
        let _ended = ended;
        call();
    });
    drop(spawned);
}

/// Counts a call as over when it is.
struct Ended(App, JobId);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.calls.end(self.1);
    }
}

/// Takes ends that are due; how long until the next one is.
fn ends(app: &App, agent: &ureq::Agent) -> Result<Option<Duration>, StoreError> {
    loop {
        let now = app.now();
        match app.store.next_call()? {
            None => return Ok(None),
            Some(due) if due > now => return Ok(Some(due.since(now))),
            Some(_) => {}
        }
        let free = app.calls.free(CALLS_MAX);
        if free == 0 || app.hub.is_ending() {
            return Ok(None);
        }
        let timeout = app.options.webhooks.timeout;
        let taken = app
            .store
            .take_calls(free, timeout.saturating_mul(2) + SPARE, now)?;
        if taken.is_empty() {
            return Ok(None);
        }
        for call in taken {
            app.calls.begin_end(call.job);
            let (theirs, agent) = (Arc::clone(app), agent.clone());
            begin(app, call.job, move || {
                // What cannot be noted is due again when nobody holds it any more.
                let _ = tell_end(&theirs, &agent, &call);
            });
        }
    }
}

fn tell_news(app: &App, agent: &ureq::Agent, news: News) {
    let News {
        job,
        webhook,
        event,
    } = news;
    let Ok(job) = app.store.job(job) else {
        return;
    };
    // Whoever wants to know the end is told of it by itself.
    if job.state.is_final() && event == Event::Progress {
        return;
    }
    let now = app.now();
    let id = match event {
        Event::Start => format!("msg_{}_start", job.id),
        Event::Progress | Event::Completed => format!("msg_{}_progress_{}", job.id, now.0),
    };
    let Ok(body) = body::text(app, job, event) else {
        return;
    };
    let options = &app.options.webhooks;
    let sent = call::send(agent, options, &webhook, (&id, &body), now);
    app.calls.count(event, sent.is_ok());
}

fn tell_end(app: &Inner, agent: &ureq::Agent, call: &Call) -> Result<(), StoreError> {
    let options = &app.options.webhooks;
    if !app.calls.land(call.job, options.timeout + SPARE / 2) {
        return Ok(());
    }
    let job = app.store.job(call.job)?;
    let webhook = job.webhook.clone();
    let Some((webhook, finished)) = webhook.zip(job.finished).filter(|_| job.state.is_final())
    else {
        return app.store.settle_call(call, &Settled::Void, app.now());
    };
    // The same whenever it is sent again; another end of the same job is another message.
    let id = format!("msg_{}_{}", call.job, finished.0);
    let body = body::text(app, job, Event::Completed)?;
    let sent = call::send(agent, options, &webhook, (&id, &body), app.now());
    app.calls.count(Event::Completed, sent.is_ok());
    let settled = match sent {
        Ok(()) => Settled::Told,
        Err(failed) => after(app, call, failed),
    };
    app.store.settle_call(call, &settled, app.now())?;
    if let Settled::GivenUp { problem } = &settled {
        app.calls.given_up.fetch_add(1, Ordering::Relaxed);
        if let Some(notices) = &options.notices {
            notices.tell(&format!(
                "{} was not told that job {} is over, and is not tried any more after {} tries: {problem}",
                webhook.shown(),
                call.job,
                call.tries,
            ));
        }
    }
    Ok(())
}

/// What is done after a try that failed.
fn after(app: &Inner, call: &Call, failed: Failed) -> Settled {
    let Failed { problem, again } = failed;
    let setback = match again {
        true => Setback::Transient,
        false => Setback::Permanent,
    };
    let setbacks = Setbacks {
        failures: call.tries,
        losses: 0,
    };
    let now: Moment = app.now();
    // No two jobs and no two tries come back at the same moment.
    let random = (call.job.0 as u64).rotate_left(call.tries % 64) ^ now.0;
    match app
        .options
        .webhooks
        .retry
        .after(setback, setbacks, now, random)
    {
        Retry::From(due) => Settled::Again { due, problem },
        Retry::GiveUp => Settled::GivenUp { problem },
    }
}
