//! Telling others what becomes of a job: webhooks, signed, as clients of Cog and Replicate read them.
//!
//! That a job began, and how far it is, is told by the server that accepted it, as well as that goes. That it is over is
//! owed: the store remembers it until it was told or given up, whatever is killed meanwhile, and gives each end to one
//! caller at a time. Nobody is called at an address that the settings do not allow, whatever its name says.

mod body;
mod call;
mod desk;
mod dispatch;
mod hosts;
mod request;
mod secret;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use lowtide_core::job::RetryPolicy;

pub(crate) use body::view;
pub(crate) use desk::Desk;
pub(crate) use dispatch::dispatch;
pub(crate) use request::{read, schema};

pub use hosts::{Reach, WebhookHosts};
pub use secret::WebhookSecret;

/// What whoever wires the program decides about webhooks.
#[derive(Clone, Debug)]
pub struct WebhookOptions {
    /// What calls are signed with; `None` leaves them without a signature.
    pub secret: Option<WebhookSecret>,
    /// Who may be called.
    pub hosts: WebhookHosts,
    /// How long a call may take, from looking up the name to the head of the answer.
    pub timeout: Duration,
    /// How often and how soon an end is told again; `failures_max` counts all tries.
    pub retry: RetryPolicy,
    /// Under which address clients reach this server, such as `https://studio.example`; without it addresses of files
    /// begin with a slash.
    pub base: Option<String>,
    /// Where it is said that somebody will not be told any more; `None` for nowhere.
    pub notices: Option<NoticeSink>,
}

impl Default for WebhookOptions {
    /// Anybody public, 10 s, 13 tries within about six hours.
    fn default() -> WebhookOptions {
        WebhookOptions {
            secret: None,
            hosts: WebhookHosts::default(),
            timeout: Duration::from_secs(10),
            retry: RetryPolicy {
                failures_max: 13,
                losses_max: 13,
                backoff_first: Duration::from_secs(5),
                backoff_max: Duration::from_secs(6 * 3600),
            },
            base: None,
            notices: None,
        }
    }
}

/// Where sentences go that a person who watches the server should see.
#[derive(Clone)]
pub struct NoticeSink(Arc<dyn Fn(&str) + Send + Sync>);

impl NoticeSink {
    /// One that has this done with every sentence; it must not wait for anything.
    pub fn new(tell: impl Fn(&str) + Send + Sync + 'static) -> NoticeSink {
        NoticeSink(Arc::new(tell))
    }

    fn tell(&self, sentence: &str) {
        let NoticeSink(tell) = self;
        tell(sentence);
    }
}

impl fmt::Debug for NoticeSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NoticeSink")
    }
}
