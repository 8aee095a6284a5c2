//! What is told of what people do: who did what, when, from where, and how it ended. Never with what: neither keys nor
//! the texts of requests are part of it.

use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use axum::http::Method;
use lowtide_core::job::{JobId, Moment};
use lowtide_jobs::AccessKey;

use super::{Caller, lock};
use crate::app::Inner;

/// Lines about refused requests in a second; more are counted and not written, so that nobody fills a disk.
const REFUSED_MAX: u32 = 10;

/// Jobs that are named in one line.
const JOBS_MAX: usize = 16;

/// Something that somebody did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Audited {
    /// When.
    pub at: Moment,
    /// The name of the key, where one was shown that is known.
    pub who: Option<String>,
    /// The key's id.
    pub key: Option<String>,
    /// The address it came from.
    pub from: Option<IpAddr>,
    /// What, such as `POST /v1/jobs` or `key revoked`.
    pub what: String,
    /// On what, such as a job's id or a model.
    pub subject: Option<String>,
    /// The jobs it made.
    pub jobs: Vec<JobId>,
    /// The answer's status.
    pub status: Option<u16>,
}

impl fmt::Display for Audited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.who {
            Some(who) => f.write_str(who)?,
            None => f.write_str("nobody known")?,
        }
        if let Some(from) = self.from {
            write!(f, " from {from}")?;
        }
        write!(f, ": {}", self.what)?;
        if let Some(subject) = &self.subject {
            write!(f, " of {subject}")?;
        }
        for job in &self.jobs {
            write!(f, ", job {job}")?;
        }
        match self.status {
            Some(status) => write!(f, ", {status}"),
            None => Ok(()),
        }
    }
}

/// Where it is told.
#[derive(Clone)]
pub struct AuditSink(Arc<dyn Fn(&Audited) + Send + Sync>);

impl AuditSink {
    /// One that has this done with every line; it must not wait for anything.
    pub fn new(tell: impl Fn(&Audited) + Send + Sync + 'static) -> AuditSink {
        AuditSink(Arc::new(tell))
    }
}

impl fmt::Debug for AuditSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AuditSink")
    }
}

/// How many lines about refused requests there were in this second.
#[derive(Debug, Default)]
pub(crate) struct Brake(Mutex<(u64, u32)>);

impl Brake {
    fn lets_through(&self, now: Moment) -> bool {
        let mut seen = lock(&self.0);
        let second = now.0 / 1000;
        if seen.0 != second {
            *seen = (second, 0);
        }
        seen.1 = seen.1.saturating_add(1);
        seen.1 <= REFUSED_MAX
    }
}

/// Tells it.
pub(crate) fn tell(app: &Inner, line: Audited) {
    if let Some(AuditSink(sink)) = &app.options.audit {
        sink(&line);
    }
}

/// A request, as far as it is told of.
pub(crate) struct Asked {
    pub(crate) method: Method,
    /// The route as declared, not what the client wrote.
    pub(crate) route: String,
    /// The address it came from.
    pub(crate) from: Option<IpAddr>,
    /// The variable segment of the path.
    pub(crate) subject: Option<String>,
}

/// Tells of an answered request that changes something, or that was refused for who sent it.
pub(crate) fn answered(app: &Inner, asked: &Asked, caller: Option<&Caller>, status: u16) {
    let refused = matches!(status, 401 | 403 | 429);
    let changes = asked.method == Method::POST || asked.method == Method::DELETE;
    let now = app.now();
    let known = caller.and_then(Caller::key);
    match (known, refused) {
        (_, true) if app.access.needed(app.options.access) != Some(true) => return,
        (_, true) if !app.access.audit.lets_through(now) => return,
        (Some(_), false) if !changes => return,
        (None, false) => return,
        _ => {}
    }
    let jobs = caller.map(|caller| lock(&caller.made).clone());
    let mut jobs = jobs.unwrap_or_default();
    jobs.truncate(JOBS_MAX);
    let line = Audited {
        at: now,
        who: known.map(|key| key.name.clone()),
        key: known.map(|key| key.id.clone()),
        from: asked.from,
        what: format!("{} {}", asked.method, asked.route),
        subject: asked.subject.clone(),
        jobs,
        status: Some(status),
    };
    tell(app, line);
}

/// What was done to keys between two looks at them.
pub(super) fn changes(before: &[AccessKey], after: &[AccessKey]) -> Vec<Audited> {
    let mut lines = Vec::new();
    for key in after {
        let old = before.iter().find(|old| old.id == key.id);
        let line = |at: Moment, by: &str, what: &str| Audited {
            at,
            who: Some(by.to_owned()),
            key: None,
            from: None,
            what: what.to_owned(),
            subject: Some(format!("{} ({})", key.name, key.id)),
            jobs: Vec::new(),
            status: None,
        };
        let revoked = old.is_some_and(|old| old.revoked.is_some());
        match (old, key.revoked) {
            (None, None) => lines.push(line(key.made, &key.made_by, "key created")),
            (_, Some(at)) if !revoked => {
                let by = key.revoked_by.as_deref().unwrap_or("somebody");
                lines.push(line(at, by, "key revoked"));
            }
            (Some(old), _) if old != key => {
                lines.push(line(key.made, &key.made_by, "key changed"));
            }
            _ => {}
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_come_and_go_are_told_of_once() {
        let (key, token) = AccessKey::new("ci", "root@box", Moment(5));
        let told: Vec<String> = changes(&[], std::slice::from_ref(&key))
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(told, [format!("root@box: key created of ci ({})", key.id)]);
        assert!(!told[0].contains(token.reveal()) && !told[0].contains(&key.sum));
        let mut revoked = key.clone();
        revoked.revoked = Some(Moment(9));
        revoked.revoked_by = Some("anna@box".to_owned());
        let both = [key.clone()];
        let told = changes(&both, &[revoked.clone()]);
        assert_eq!((told.len(), told[0].at), (1, Moment(9)));
        assert!(told[0].to_string().starts_with("anna@box: key revoked"));
        assert_eq!(changes(&[revoked.clone()], &[revoked]), []);
        assert_eq!(changes(&both, &both), []);
    }

    #[test]
    fn refused_requests_fill_no_disk() {
        let brake = Brake::default();
        let through = (0..1_000).filter(|_| brake.lets_through(Moment(5_000)));
        assert_eq!(through.count(), 10);
        assert!(brake.lets_through(Moment(6_000)));
    }
}
