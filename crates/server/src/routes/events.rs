//! Events as they happen, over server-sent events. A client that was away goes on where it stopped.

use std::collections::{HashMap, VecDeque};
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use lowtide_core::job::{JobId, JobState};
use lowtide_jobs::EventId;
use serde_json::json;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::watch;

use super::Routes;
use crate::access::Caller;
use crate::app::App;
use crate::base64;
use crate::hub::{self, Line, PAGE};
use crate::incoming::{Asked, Id};
use crate::openapi::Operation;
use crate::refusal::Refusal;
use crate::schemas;

/// A comment so often keeps proxies from thinking that nobody is there.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// Jobs of which a stream remembers whether they are its client's.
const SHOWN_MAX: usize = 4_096;

const HEARTBEAT_TEXT: &[u8] = b": still here\n\n";

pub(super) fn routes(routes: Routes) -> Routes {
    let stream = |operation: Operation| {
        operation
            .query("previews", schemas::flag(), "1: unfinished pictures too, as `preview` events with a data URL")
            .header("Last-Event-ID", schemas::whole(0, i64::MAX as u64), "Goes on after this event")
            .answers_with(200, "Events; `reset` says that some are gone, so that the state should be looked at anew", "text/event-stream", json!({ "type": "string" }))
    };
    let all = stream(Operation::new("events", "Everything that happens"));
    let one = Operation::new(
        "events",
        "What happens to a job, from its beginning; ends when it is over",
    )
    .segment("id", schemas::id(), "The job's id")
    .answers_nothing(204, "It is over and there is nothing after Last-Event-ID");
    routes
        .get("/v1/events", of_all, all)
        .get("/v1/jobs/{id}/events", of_job, stream(one))
}

async fn of_all(
    State(app): State<App>,
    headers: HeaderMap,
    mut asked: Asked,
) -> Result<Response, Refusal> {
    let previews = asked.flag("previews")?;
    asked.done()?;
    let resume = last_event_id(&headers)?;
    let (lines, latest) = hub::listen(&app).await?;
    // Who was never here wants to know what happens from now on.
    let mut feed = Feed::new(app, lines, resume.unwrap_or(latest), previews);
    if resume.is_some() {
        feed.catch_up().await?;
    }
    Ok(feed.respond())
}

async fn of_job(
    State(app): State<App>,
    Id(id): Id,
    headers: HeaderMap,
    mut asked: Asked,
) -> Result<Response, Refusal> {
    let previews = asked.flag("previews")?;
    asked.done()?;
    let resume = last_event_id(&headers)?;
    let (lines, _) = hub::listen(&app).await?;
    let job = app.ask(move |store| store.job(id)).await?;
    let mut feed = Feed::new(app, lines, resume.unwrap_or_default(), previews);
    feed.job = Some(id);
    // The beginning of a job's events may be gone; that is news only to who was here before.
    feed.tells_gaps = resume.is_some();
    feed.catch_up().await?;
    if job.state.is_final() {
        if resume.is_some() && feed.ready.is_empty() {
            // Tells a browser to stop asking.
            return Ok(StatusCode::NO_CONTENT.into_response());
        }
        feed.over = true;
    } else if job.state == JobState::Queued {
        feed.say_position(id);
        feed.say_download(id);
    }
    Ok(feed.respond())
}

fn last_event_id(headers: &HeaderMap) -> Result<Option<EventId>, Refusal> {
    let Some(value) = headers.get("last-event-id") else {
        return Ok(None);
    };
    match value
        .to_str()
        .ok()
        .and_then(|text| text.trim().parse().ok())
    {
        Some(number) if number <= i64::MAX as u64 => Ok(Some(EventId(number))),
        _ => Err(Refusal::malformed(
            "Last-Event-ID",
            "the number of an event is needed",
        )),
    }
}

/// One client's stream.
struct Feed {
    app: App,
    lines: Receiver<Arc<Line>>,
    ending: watch::Receiver<bool>,
    job: Option<JobId>,
    /// The latest event that was sent.
    last: EventId,
    /// Texts to be sent first.
    ready: VecDeque<Bytes>,
    previews: bool,
    /// What the latest preview sent was of.
    shown: Option<(JobId, usize, u64)>,
    tells_gaps: bool,
    /// The store may have more than what is ready; it comes before anything that was heard meanwhile.
    behind: bool,
    /// The job is over with what was sent last.
    over: bool,
    caller: Arc<Caller>,
    /// Whether the caller may see the jobs that were told of.
    shown_to: HashMap<JobId, bool>,
}

impl Feed {
    fn new(app: App, lines: Receiver<Arc<Line>>, last: EventId, previews: bool) -> Feed {
        app.counters
            .streams
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Feed {
            ending: app.hub.ending(),
            caller: app.caller(),
            shown_to: HashMap::new(),
            app,
            lines,
            job: None,
            last,
            ready: VecDeque::new(),
            previews,
            shown: None,
            tells_gaps: true,
            behind: false,
            over: false,
        }
    }

    /// Makes ready what the store has after the latest event that was sent; one page, so that a client that is slow holds
    /// no more than that.
    async fn catch_up(&mut self) -> Result<(), Refusal> {
        let (after, job) = (self.last, self.job);
        let page = self
            .app
            .ask(move |store| store.events_after(after, job, PAGE))
            .await?;
        if page.gap && self.tells_gaps {
            self.ready.push_back(Bytes::from_static(
                b"event: reset\ndata: {\"event\":\"reset\"}\n\n",
            ));
        }
        // Told once: from here on the log is whole as far as this client knows.
        self.tells_gaps = true;
        self.behind = page.events.len() == PAGE;
        for event in &page.events {
            let line = hub::line(event);
            if self.may_tell(&line).await {
                self.push(&line);
            } else {
                self.last = event.id;
            }
        }
        Ok(())
    }

    /// Whether this is the caller's to know. What concerns no job is everybody's.
    async fn may_tell(&mut self, line: &Line) -> bool {
        // The one job of this stream was looked at when it began.
        let (Some(id), None, false) = (line.job, self.job, self.caller.sees_all()) else {
            return true;
        };
        if let Some(&known) = self.shown_to.get(&id) {
            return known;
        }
        let job = self.app.ask(move |store| store.job(id)).await;
        let shown = job.is_ok_and(|job| self.caller.may_see(job.owner.as_deref()));
        if self.shown_to.len() >= SHOWN_MAX {
            self.shown_to.clear();
        }
        self.shown_to.insert(id, shown);
        shown
    }

    fn push(&mut self, line: &Line) {
        if self.job.is_some() && self.job != line.job {
            return;
        }
        if let Some(id) = line.id {
            if id <= self.last {
                return;
            }
            self.last = id;
            // A failed job that was sent through again goes on after its end.
            self.over = line.over && self.job.is_some();
        }
        self.ready.push_back(text(line));
    }

    fn say_position(&mut self, id: JobId) {
        if let Some(place) = self.app.forecasts.latest().place(id) {
            self.ready
                .push_back(text(&hub::position(&self.app, id, place)));
        }
    }

    /// How far the model is that the job waits for; else that is told when it changes.
    fn say_download(&mut self, id: JobId) {
        let all = self.app.door.downloads().map(|downloads| downloads.all());
        for one in all.iter().flatten().filter(|one| one.jobs.contains(&id)) {
            self.ready.push_back(text(&hub::download(one, Some(id))));
        }
    }

    /// The preview of a job that just moved on, where there is a new one.
    async fn show(&mut self, job: JobId) {
        // A preview that cannot be had is left out; the next one comes soon.
        let Ok(Some(preview)) = self.app.ask(move |store| store.preview(job)).await else {
            return;
        };
        let seen = (job, preview.content.len(), digest(&preview.content));
        if self.shown.replace(seen) == Some(seen) {
            return;
        }
        let url = format!(
            "data:{};base64,{}",
            preview.media_type,
            base64::encode(&preview.content)
        );
        let data = json!({ "event": "preview", "job": job.to_string(), "media_type": preview.media_type, "url": url });
        self.ready
            .push_back(Bytes::from(format!("event: preview\ndata: {data}\n\n")));
    }

    /// The next text; `None` at the end.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if !self.app.still_may(&self.caller) {
                return None;
            }
            if let Some(text) = self.ready.pop_front() {
                return Some(text);
            }
            if self.behind {
                // Where the store cannot be asked the client comes again and goes on from its last event.
                self.catch_up().await.ok()?;
                continue;
            }
            if self.over || self.app.hub.is_ending() {
                return None;
            }
            let received = tokio::select! {
                received = self.lines.recv() => received,
                () = hub::ended(&mut self.ending) => return None,
                () = tokio::time::sleep(HEARTBEAT) => return Some(Bytes::from_static(HEARTBEAT_TEXT)),
            };
            match received {
                Ok(line) => {
                    if !self.may_tell(&line).await {
                        continue;
                    }
                    self.push(&line);
                    let wants = self.previews && line.name == "progress" && !self.ready.is_empty();
                    if let (true, Some(job)) = (wants, line.job) {
                        self.show(job).await;
                    }
                }
                // What comes out of the receiver afterwards was sent from the store already, or comes after.
                Err(RecvError::Lagged(_)) => self.behind = true,
                Err(RecvError::Closed) => return None,
            }
        }
    }

    fn respond(self) -> Response {
        let texts = stream::unfold(self, |mut feed| async move {
            let text = feed.next().await?;
            Some((Ok::<_, std::convert::Infallible>(text), feed))
        });
        let mut response = crate::answer::with_type(
            StatusCode::OK,
            "text/event-stream",
            Body::from_stream(texts),
        );
        // Known to the proxy that most people have.
        response
            .headers_mut()
            .insert("x-accel-buffering", HeaderValue::from_static("no"));
        response
            .headers_mut()
            .insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        response
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.app
            .counters
            .streams
            .fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
    }
}

/// As the standard writes it. JSON has no line breaks outside of its texts, and there they are escaped.
fn text(line: &Line) -> Bytes {
    let mut text = String::with_capacity(line.data.len() + 48);
    if let Some(EventId(id)) = line.id {
        let _ = writeln!(text, "id: {id}");
    }
    let _ = write!(text, "event: {}\ndata: {}\n\n", line.name, line.data);
    Bytes::from(text)
}

/// FNV-1a: tells one preview from the next.
fn digest(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
