//! Events on their way from the store to clients: one thread reads them once, however many listen.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use lowtide_core::job::JobId;
use lowtide_jobs::{Event, EventId, Happening, StoreError};
use serde_json::{Value, json};
use tokio::sync::{broadcast, watch};

use crate::Download;
use crate::app::{App, Inner};
use crate::outlook::Place;
use crate::refusal::Refusal;

/// Lines a client may be behind before it has to read them from the store.
const BEHIND_MAX: usize = 1_024;

/// Events read at once.
pub(crate) const PAGE: usize = 500;

/// The outlook is made no more often than this.
const OUTLOOK_EVERY: Duration = Duration::from_millis(250);

/// The longest wait for a change: also how late the end signal is seen where nobody nudges.
const WAIT_MAX: Duration = Duration::from_millis(500);

/// How far models on their way here are is told no more often than this.
const DOWNLOADS_EVERY: Duration = Duration::from_millis(500);

/// Jobs whose new place is told after one look at the queue.
const MOVED_MAX: usize = 64;

/// Something that happened, ready to be sent.
#[derive(Debug)]
pub(crate) struct Line {
    /// Its number; `None` for what is not kept, as a new place in the queue.
    pub(crate) id: Option<EventId>,
    /// To which job.
    pub(crate) job: Option<JobId>,
    /// Its name.
    pub(crate) name: String,
    /// JSON.
    pub(crate) data: String,
    /// Whether the job is over with this.
    pub(crate) over: bool,
}

/// What clients and the thread share.
pub(crate) struct Hub {
    lines: broadcast::Sender<Arc<Line>>,
    /// The latest event that was passed on; `None` while nobody listens, so that nothing is read for nobody.
    cursor: Mutex<Option<EventId>>,
    tick: watch::Sender<u64>,
    ending: watch::Sender<bool>,
    pumping: AtomicBool,
}

impl Default for Hub {
    fn default() -> Hub {
        Hub {
            lines: broadcast::Sender::new(BEHIND_MAX),
            cursor: Mutex::new(None),
            tick: watch::Sender::new(0),
            ending: watch::Sender::new(false),
            pumping: AtomicBool::new(false),
        }
    }
}

impl Hub {
    /// Becomes another value after something changed in the store.
    pub(crate) fn ticks(&self) -> watch::Receiver<u64> {
        self.tick.subscribe()
    }

    /// Becomes true when the server ends.
    pub(crate) fn ending(&self) -> watch::Receiver<bool> {
        self.ending.subscribe()
    }

    /// Whether the server ends.
    pub(crate) fn is_ending(&self) -> bool {
        *self.ending.borrow()
    }

    /// The server ends.
    pub(crate) fn end(&self) {
        self.ending.send_replace(true);
    }

    /// Whoever listens from now on is told of everything after this event.
    pub(crate) fn follow(
        &self,
        latest: impl FnOnce() -> Result<EventId, StoreError>,
    ) -> Result<(), StoreError> {
        let known = self.cursor().is_some();
        if !known {
            let latest = latest()?;
            self.cursor().get_or_insert(latest);
        }
        Ok(())
    }

    fn cursor(&self) -> std::sync::MutexGuard<'_, Option<EventId>> {
        self.cursor.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits until the server ends.
pub(crate) async fn ended(ending: &mut watch::Receiver<bool>) {
    // Whoever has the sender going away is an end, too.
    while !*ending.borrow_and_update() && ending.changed().await.is_ok() {}
}

/// Everything that happens from now on, and the latest event that happened before: each later one comes, though some of
/// the earlier ones may come as well.
pub(crate) async fn listen(
    app: &App,
) -> Result<(broadcast::Receiver<Arc<Line>>, EventId), Refusal> {
    // In this order: an event that the thread passes on after this line is in the receiver.
    let receiver = app.hub.lines.subscribe();
    let latest = app
        .blocking(|app| Ok(app.store.stats(app.now())?.last_event))
        .await?;
    app.hub.cursor().get_or_insert(latest);
    Ok((receiver, latest))
}

/// Reads events and places in the queue for as long as the server runs.
pub(crate) fn pump(app: &Inner) {
    let hub = &app.hub;
    if hub.pumping.swap(true, Ordering::SeqCst) {
        return;
    }
    let mut seen = 0;
    let mut looked: Option<Instant> = None;
    let mut stale = true;
    let mut told = Told::default();
    while !hub.is_ending() {
        let wait = match (stale, looked) {
            (true, None) => Duration::ZERO,
            (true, Some(at)) => OUTLOOK_EVERY.saturating_sub(at.elapsed()),
            (false, _) => WAIT_MAX,
        };
        match app.store.wait_change(seen, wait) {
            Ok(mark) => {
                if mark != seen {
                    stale = true;
                    app.calls.stir();
                }
                seen = mark;
            }
            // The next look may do better; without a pause it would come at once.
            Err(_) => std::thread::park_timeout(OUTLOOK_EVERY),
        }
        // Before what jobs do next: a model that came is heard of first.
        told.renew(app);
        // Errors of the store are told to whoever asks it; here the next round tries again.
        let _ = pass_on(app);
        hub.tick.send_replace(seen);
        let due = looked.is_none_or(|at| at.elapsed() >= OUTLOOK_EVERY);
        if stale && due {
            looked = Some(Instant::now());
            stale = renew(app).is_err();
        }
    }
}

/// How far a model on its way here is, said to everybody or to a job that waits for it.
pub(crate) fn download(one: &Download, job: Option<JobId>) -> Line {
    let mut data = one.view();
    data["event"] = "download".into();
    if let Some(job) = job {
        data["job"] = job.to_string().into();
    }
    Line {
        id: None,
        job,
        name: "download".to_owned(),
        data: data.to_string(),
        over: false,
    }
}

/// What was said of models on their way here.
#[derive(Default)]
struct Told {
    at: Option<Instant>,
    all: Vec<Download>,
}

impl Told {
    /// Says what changed since: once to who listens to everything, and to each job that waits for it or just did. That
    /// more bytes came is not said as often as what becomes of it.
    fn renew(&mut self, app: &Inner) {
        let Some(downloads) = app.door.downloads() else {
            return;
        };
        let all = downloads.all();
        let early = self.at.is_some_and(|at| at.elapsed() < DOWNLOADS_EVERY);
        let same = |(one, before): (&Download, &Download)| {
            (&one.model, one.state) == (&before.model, before.state)
        };
        if early && all.len() == self.all.len() && all.iter().zip(&self.all).all(same) {
            return;
        }
        self.at = Some(Instant::now());
        for one in all.iter().filter(|one| !self.all.contains(one)) {
            let _ = app.hub.lines.send(Arc::new(download(one, None)));
            // A job that no longer waits, since the model is here, is told so as well.
            let before = self.all.iter().filter(|before| before.model == one.model);
            let jobs: BTreeSet<JobId> = before
                .chain([one])
                .flat_map(|one| &one.jobs)
                .copied()
                .collect();
            for job in jobs {
                let _ = app.hub.lines.send(Arc::new(download(one, Some(job))));
            }
        }
        self.all = all;
    }
}

fn pass_on(app: &Inner) -> Result<(), StoreError> {
    let hub = &app.hub;
    loop {
        let after = {
            let mut cursor = hub.cursor();
            if hub.lines.receiver_count() == 0 && !app.calls.listens() {
                *cursor = None;
            }
            match *cursor {
                Some(after) => after,
                None => return Ok(()),
            }
        };
        let page = app.store.events_after(after, None, PAGE)?.events;
        let Some(last) = page.last().map(|event| event.id) else {
            return Ok(());
        };
        for event in &page {
            if let Some(job) = event.job {
                app.calls.heard(job, &event.what);
            }
            // Nobody listening any more is no error.
            let _ = hub.lines.send(Arc::new(line(event)));
        }
        *hub.cursor() = Some(last);
        if page.len() < PAGE {
            return Ok(());
        }
    }
}

fn renew(app: &Inner) -> Result<(), StoreError> {
    let (before, after) = app.forecasts.renew(app)?;
    if app.hub.lines.receiver_count() > 0 {
        for (job, place) in after.moved_since(&before, MOVED_MAX) {
            let _ = app.hub.lines.send(Arc::new(position(app, job, place)));
        }
    }
    Ok(())
}

/// A job's place in the queue, to be sent.
pub(crate) fn position(app: &Inner, job: JobId, place: Place) -> Line {
    let now = app.now();
    let eta_s = place.finish.map(|finish| finish.seconds_since(now));
    Line {
        id: None,
        job: Some(job),
        name: "position".to_owned(),
        data: json!({ "event": "position", "job": job.to_string(), "position": place.position, "eta_s": eta_s })
            .to_string(),
        over: false,
    }
}

/// An event, to be sent.
pub(crate) fn line(event: &Event) -> Line {
    let mut data = serde_json::to_value(event).expect("an event has JSON");
    let name = data["event"].as_str().unwrap_or_default().to_owned();
    if let Value::Object(fields) = &mut data
        && let Some(at) = fields.shift_remove("at")
    {
        fields.insert("at_ms".to_owned(), at);
    }
    let over = match event.what {
        Happening::Done | Happening::Failed { .. } | Happening::Cancelled => true,
        Happening::Submitted { .. }
        | Happening::Claimed { .. }
        | Happening::Progress(_)
        | Happening::Parked
        | Happening::Unparked
        | Happening::Paused { .. }
        | Happening::Resumed
        | Happening::GivenBack
        | Happening::Delayed { .. }
        | Happening::CancelRequested
        | Happening::Moved { .. }
        | Happening::Requeued
        | Happening::QueueHeld { .. } => false,
    };
    Line {
        id: Some(event.id),
        job: event.job,
        name,
        data: data.to_string(),
        over,
    }
}
