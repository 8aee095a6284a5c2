//! What whoever wires the program decides about the server.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lowtide_core::Bytes;
use lowtide_core::job::Moment;
use lowtide_jobs::{Retention, Tracer};

use crate::access::AccessMode;
use crate::access::audit::AuditSink;
use crate::webhooks::WebhookOptions;

/// Where the server has its time from.
pub type Clock = fn() -> Moment;

/// Limits, and what is switched on.
#[derive(Clone, Debug)]
pub struct Options {
    /// Names under which the server may be addressed, beside loopback and the address it listens at. Without a port;
    /// `*` is any name, for a proxy that checks it.
    pub hosts: Vec<String>,
    /// Pages of other origins that may use the server, such as `https://studio.example`.
    pub origins: Vec<String>,
    /// Who needs a key.
    pub access: AccessMode,
    /// Where it is told what holders of keys do; `None` for nowhere.
    pub audit: Option<AuditSink>,
    /// Bytes of a request's body.
    pub body_max: Bytes,
    /// Bytes of a picture that is sent to begin from.
    pub input_max: Bytes,
    /// How long a picture that no job names is kept after it was sent or last asked for.
    pub input_grace: Duration,
    /// Connections at once; further ones are told to come back.
    pub connections_max: usize,
    /// From the end of one answer, or the beginning of a connection, to the end of the next request's head.
    pub head_timeout: Duration,
    /// From the end of a request's head to the end of its body.
    pub body_timeout: Duration,
    /// How long a client may read nothing of an answer.
    pub write_timeout: Duration,
    /// How long requests may go on after the end signal.
    pub grace: Duration,
    /// Whether the panel is served.
    pub panel: bool,
    /// Whether the OpenAI dialect is served.
    pub openai: bool,
    /// Whether the dialect of the Stable Diffusion web UI is served.
    pub sdapi: bool,
    /// Whether ComfyUI's dialect is served.
    pub comfyui: bool,
    /// Who may be told what becomes of jobs, and how.
    pub webhooks: WebhookOptions,
    /// The program's version, for clients.
    pub version: String,
    /// How much of the past is kept; `None` leaves removing it to somebody else.
    pub retention: Option<Retention>,
    /// How often the past is removed.
    pub retain_every: Duration,
    /// How far back the memory chart goes; 10 to 60 minutes.
    pub history: Duration,
    /// Memory to imagine in addition, for "what would more buy".
    pub what_if: Vec<Bytes>,
    /// Who hears what takes time.
    pub tracer: Option<Arc<dyn Tracer>>,
    /// Where time comes from.
    pub clock: Clock,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            hosts: Vec::new(),
            origins: Vec::new(),
            access: AccessMode::default(),
            audit: None,
            body_max: Bytes::mib(1),
            input_max: Bytes::mib(64),
            input_grace: Duration::from_secs(3600),
            connections_max: 512,
            head_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(60),
            grace: Duration::from_secs(5),
            panel: true,
            openai: true,
            sdapi: true,
            comfyui: true,
            webhooks: WebhookOptions::default(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            retention: None,
            retain_every: Duration::from_secs(60),
            history: Duration::from_secs(3600),
            what_if: vec![Bytes::gib(1), Bytes::gib(3)],
            tracer: None,
            clock: wall_clock,
        }
    }
}

/// Milliseconds since the epoch, as the system has them.
fn wall_clock() -> Moment {
    // A clock before 1970 is not set; everything then happens at 0, in the order of the store.
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    Moment(since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }))
}
