//! One call.

use std::io;

use axum::http::Uri;
use lowtide_core::job::Moment;
use lowtide_jobs::Webhook;
use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::DefaultConnector;

use super::WebhookOptions;
use super::hosts::{Checked, NotAllowed};

/// Bytes of an answer's head. Of its body nothing is read.
const HEAD_MAX: usize = 16 << 10;

/// Letters of what a receiver's trouble is said in.
const PROBLEM_LEN_MAX: usize = 200;

/// Why nobody was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failed {
    /// In words, without what may be secret.
    pub(super) problem: String,
    /// Whether another try could do better.
    pub(super) again: bool,
}

impl Failed {
    fn again(problem: impl Into<String>) -> Failed {
        Failed {
            problem: problem.into(),
            again: true,
        }
    }

    fn never(problem: impl Into<String>) -> Failed {
        Failed {
            problem: problem.into(),
            again: false,
        }
    }
}

/// What calls are made with: names are looked up and checked each time, no connection is kept, nothing is followed, and
/// no proxy of the environment comes between, which would look names up by itself.
pub(super) fn agent(options: &WebhookOptions, version: &str) -> ureq::Agent {
    let config = ureq::Agent::config_builder()
        .timeout_global(Some(options.timeout))
        .http_status_as_error(false)
        .max_redirects(0)
        .max_idle_connections(0)
        .max_response_header_size(HEAD_MAX)
        .proxy(None)
        .user_agent(format!("lowtide/{version}"))
        .build();
    let checked = Checked {
        hosts: options.hosts.clone(),
        names: DefaultResolver::default(),
    };
    ureq::Agent::with_parts(config, DefaultConnector::default(), checked)
}

/// Tells a receiver. `id` names the message: it is the same when it is sent again.
///
/// # Errors
/// Anything but an answer of success.
pub(super) fn send(
    agent: &ureq::Agent,
    options: &WebhookOptions,
    webhook: &Webhook,
    (id, body): (&str, &str),
    now: Moment,
) -> Result<(), Failed> {
    // The settings may have changed since the job was accepted.
    options.hosts.check(&webhook.url).map_err(Failed::never)?;
    let uri: Uri = webhook
        .url
        .parse()
        .map_err(|_| Failed::never("its address is none"))?;
    let timestamp_s = now.0 / 1_000;
    let mut request = agent
        .post(uri)
        .header("content-type", "application/json")
        .header("webhook-id", id)
        .header("webhook-timestamp", timestamp_s.to_string());
    if let Some(secret) = &options.secret {
        request = request.header("webhook-signature", secret.sign(id, timestamp_s, body));
    }
    // The answer is dropped with its body unread.
    let status = match request.send(body) {
        Ok(answer) => answer.status().as_u16(),
        Err(error) => return Err(failed(error, options)),
    };
    match status {
        200..=299 => Ok(()),
        300..=399 => Err(Failed::again(format!(
            "it answered {status}, and redirects are not followed"
        ))),
        // Whoever says so does not want to be asked again.
        410 => Err(Failed::never("it answered 410: it is gone")),
        _ => Err(Failed::again(format!("it answered {status}"))),
    }
}

fn failed(error: ureq::Error, options: &WebhookOptions) -> Failed {
    match error {
        ureq::Error::Timeout(_) => Failed::again(format!(
            "it did not answer within {} s",
            options.timeout.as_secs_f64()
        )),
        ureq::Error::HostNotFound => Failed::again("nobody knows its name"),
        ureq::Error::Io(error) => match error.get_ref().and_then(|inner| inner.downcast_ref()) {
            Some(refused @ NotAllowed(_)) => Failed::never(refused.to_string()),
            None => Failed::again(reason(&error)),
        },
        // Others may repeat the address, and that may be secret: only those that do not are told.
        error @ (ureq::Error::Tls(_)
        | ureq::Error::Rustls(_)
        | ureq::Error::Protocol(_)
        | ureq::Error::LargeResponseHeader(..)) => {
            let said: String = error.to_string();
            Failed::again(said.chars().take(PROBLEM_LEN_MAX).collect::<String>())
        }
        _ => Failed::again("the call failed"),
    }
}

fn reason(error: &io::Error) -> String {
    let said = match error.kind() {
        io::ErrorKind::ConnectionRefused => "nobody listens there".to_owned(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof => {
            "it hung up before it answered".to_owned()
        }
        _ => error.to_string(),
    };
    said.chars().take(PROBLEM_LEN_MAX).collect()
}
