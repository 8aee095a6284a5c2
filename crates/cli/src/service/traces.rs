//! Spans on their way to a collector, as OpenTelemetry's protocol has them over HTTP: JSON posted to `/v1/traces`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use lowtide_jobs::{Span, Tracer};
use serde_json::{Value, json};

use super::folders::Surroundings;
use super::log::{Level, Logger};
use super::settings::Settings;
use crate::failure::Failure;

/// Spans that wait to be sent; what comes while so many wait is dropped and counted.
const WAITING_MAX: usize = 4096;
/// Spans in one request.
const BATCH_MAX: usize = 512;
/// A batch is sent when it is full, or so old.
const SEND_EVERY: Duration = Duration::from_secs(1);
/// A collector answers within this.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// What is wrong is said no more often than this.
const SAY_EVERY: Duration = Duration::from_secs(60);
/// Where headers are: they may be secrets, and are no setting.
const HEADERS: &str = "OTEL_EXPORTER_OTLP_HEADERS";

/// Sends spans from a thread of its own.
#[derive(Debug)]
struct Traces {
    queue: Option<SyncSender<Span>>,
    dropped: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

/// The one the settings name, if any.
///
/// # Errors
/// When its address is none.
pub(crate) fn start(
    settings: &Settings,
    who: &str,
    around: &Surroundings,
    log: &Logger,
) -> Result<Option<Arc<dyn Tracer>>, Failure> {
    let Some(endpoint) = &settings.traces else {
        return Ok(None);
    };
    let traces = Traces::start(endpoint, who, &around.variables, log.clone())?;
    Ok(Some(Arc::new(traces)))
}

impl Traces {
    /// To the collector at this address, such as `http://collector:4318`. `who` tells this process from others.
    ///
    /// # Errors
    /// When the address is none, or there is no thread.
    fn start(
        endpoint: &str,
        who: &str,
        variables: &BTreeMap<String, String>,
        log: Logger,
    ) -> Result<Traces, Failure> {
        if !endpoint.starts_with("http://") && !endpoint.starts_with("https://") {
            return Err(Failure::mistake(format!(
                "log.traces '{endpoint}': write the collector's address, such as http://collector:4318"
            )));
        }
        let (queue, spans) = sync_channel(WAITING_MAX);
        let dropped = Arc::new(AtomicU64::new(0));
        let agent = ureq::Agent::config_builder()
            .timeout_global(Some(ANSWER_MAX))
            .build();
        let sender = Sender {
            agent: agent.into(),
            url: format!("{}/v1/traces", endpoint.trim_end_matches('/')),
            headers: headers(variables.get(HEADERS).map_or("", String::as_str))?,
            resource: attributes(&[
                ("service.name", "lowtide"),
                ("service.version", env!("CARGO_PKG_VERSION")),
                ("service.instance.id", who),
            ]),
            dropped: dropped.clone(),
            said: None,
            log,
        };
        let thread = std::thread::Builder::new()
            .name("traces".to_owned())
            .spawn(move || sender.run(&spans))
            .context("no thread to send traces")?;
        Ok(Traces {
            queue: Some(queue),
            dropped,
            thread: Some(thread),
        })
    }
}

impl Tracer for Traces {
    fn note(&self, span: Span) {
        let queue = self.queue.as_ref();
        if queue.is_none_or(|queue| queue.try_send(span).is_err()) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Traces {
    /// Waits until what is there is sent, once.
    fn drop(&mut self) {
        drop(self.queue.take());
        if let Some(thread) = self.thread.take() {
            // One that panicked has said so already.
            let _ = thread.join();
        }
    }
}

/// `name=value,name=value`, values with `%20` and its like.
fn headers(text: &str) -> Result<Vec<(String, String)>, Failure> {
    let pairs = text
        .split(',')
        .map(str::trim)
        .filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (name, value) = pair.split_once('=').ok_or_else(|| {
                Failure::mistake(format!("{HEADERS}: write name=value, joined by commas"))
            })?;
            Ok((name.trim().to_owned(), decoded(value.trim())))
        })
        .collect()
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let digits = after.get(..2).and_then(|two| std::str::from_utf8(two).ok());
        let byte = digits.and_then(|two| u8::from_str_radix(two, 16).ok());
        match byte.filter(|_| first == b'%') {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

struct Sender {
    agent: ureq::Agent,
    url: String,
    headers: Vec<(String, String)>,
    resource: Value,
    dropped: Arc<AtomicU64>,
    said: Option<Instant>,
    log: Logger,
}

impl Sender {
    fn run(mut self, spans: &Receiver<Span>) {
        loop {
            let Ok(first) = spans.recv() else { return };
            let mut batch = vec![first];
            let until = Instant::now() + SEND_EVERY;
            let over = loop {
                let left = until.saturating_duration_since(Instant::now());
                match spans.recv_timeout(left) {
                    Ok(span) => batch.push(span),
                    Err(RecvTimeoutError::Timeout) => break false,
                    Err(RecvTimeoutError::Disconnected) => break true,
                }
                if batch.len() == BATCH_MAX {
                    break false;
                }
            };
            self.send(&batch);
            if over {
                return;
            }
        }
    }

    fn send(&mut self, batch: &[Span]) {
        let mut request = self.agent.post(&self.url);
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        if let Err(cause) = request.send_json(body(&self.resource, batch)) {
            self.dropped
                .fetch_add(batch.len() as u64, Ordering::Relaxed);
            self.say(&cause.to_string());
        } else if self.dropped.load(Ordering::Relaxed) > 0 {
            self.say("more came than could be sent");
        }
    }

    fn say(&mut self, why: &str) {
        if self.said.is_some_and(|at| at.elapsed() < SAY_EVERY) {
            return;
        }
        self.said = Some(Instant::now());
        let dropped = self.dropped.swap(0, Ordering::Relaxed);
        self.log.say(
            Level::Warn,
            &format!("{dropped} spans did not reach '{}': {why}", self.url),
        );
    }
}

fn body(resource: &Value, batch: &[Span]) -> Value {
    let spans: Vec<Value> = batch.iter().map(told).collect();
    json!({ "resourceSpans": [{
        "resource": { "attributes": resource },
        "scopeSpans": [{
            "scope": { "name": "lowtide", "version": env!("CARGO_PKG_VERSION") },
            "spans": spans,
        }],
    }] })
}

fn told(span: &Span) -> Value {
    let job = span.job.to_string();
    let mut about = vec![("lowtide.job", &job[..])];
    about.extend(span.about.iter().map(|(name, text)| (*name, &text[..])));
    // A submission answers somebody outside, a claim takes up what another process left; the rest is within.
    let kind = match span.name {
        "submit" => 2,
        "claim" => 5,
        _ => 1,
    };
    let mut told = json!({
        "traceId": span.at.trace(),
        "spanId": span.at.span(),
        "name": span.name,
        "kind": kind,
        "startTimeUnixNano": nanos(span.began),
        "endTimeUnixNano": nanos(span.began + span.took),
        "attributes": attributes(&about),
    });
    if let Some(parent) = span.parent {
        told["parentSpanId"] = json!(parent.span());
    }
    if let Some(error) = &span.error {
        told["status"] = json!({ "code": 2, "message": error });
    }
    told
}

/// 64 bits are text in JSON.
fn nanos(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_nanos().to_string()
}

fn attributes(all: &[(&str, &str)]) -> Value {
    let one =
        |(name, text): &(&str, &str)| json!({ "key": name, "value": { "stringValue": text } });
    all.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_pairs_that_may_be_escaped() {
        assert_eq!(
            headers("authorization=Bearer%20abc, x-a=b").unwrap(),
            [
                ("authorization".to_owned(), "Bearer abc".to_owned()),
                ("x-a".to_owned(), "b".to_owned())
            ]
        );
        assert_eq!(headers("").unwrap(), []);
        let wrong = headers("secret").unwrap_err().to_string();
        assert!(!wrong.contains("secret"), "{wrong}");
        assert_eq!(decoded("50%"), "50%");
    }
}
