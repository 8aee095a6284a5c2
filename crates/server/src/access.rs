//! Who asks: keys, what their holders may see and do, how often, and what is told of it afterwards.
//!
//! Whoever is asking is known while a request is handled, and nowhere else: [`Inner::caller`] answers it there, and
//! where nobody is asking, while keys are needed, it answers somebody who may see nothing. Work that goes on after its
//! request, such as a stream of events, takes the caller along ([`scope`]).

pub(crate) mod audit;
mod rate;

use std::collections::HashMap;
use std::future::Future;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use lowtide_core::job::{JobId, Moment, Priority};
use lowtide_jobs::{AccessKey, Artifact, ArtifactId, Job, NoAccess, Quota, StoreError, recognise};

use crate::app::{App, Inner};
use crate::base64;
use crate::refusal::Refusal;
use rate::{Bucket, Standing};

/// A key that is not known may have been made since the last look; the store is asked again no more often than this.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// The longest header that can be one of ours.
const HEADER_LEN_MAX: usize = 512;

/// Who needs a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AccessMode {
    /// Everybody, from the first key on that was ever made; before that nobody.
    #[default]
    Auto,
    /// Nobody.
    Open,
    /// Everybody.
    Keys,
}

/// The address a request comes from, put into it by the accept loop.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer(pub(crate) IpAddr);

tokio::task_local! {
    static CALLER: Arc<Caller>;
}

/// Who asks.
#[derive(Debug, Default)]
pub(crate) struct Caller {
    who: Who,
    standing: Option<Standing>,
    /// Jobs that this request made.
    made: Mutex<Vec<JobId>>,
}

#[derive(Clone, Debug, Default)]
enum Who {
    /// Somebody who shows no key where one is needed.
    #[default]
    Nobody,
    /// Anybody: no keys are needed.
    Anybody,
    /// The holder of a key.
    Holder(Arc<AccessKey>),
}

impl Caller {
    fn of(who: Who) -> Caller {
        Caller {
            who,
            ..Caller::default()
        }
    }

    /// The key, where there is one.
    pub(crate) fn key(&self) -> Option<&AccessKey> {
        match &self.who {
            Who::Holder(key) => Some(key),
            Who::Nobody | Who::Anybody => None,
        }
    }

    /// Whether all jobs are this caller's to see and to change.
    pub(crate) fn sees_all(&self) -> bool {
        match &self.who {
            Who::Anybody => true,
            Who::Holder(key) => key.admin,
            Who::Nobody => false,
        }
    }

    /// Whether jobs of this owner are.
    pub(crate) fn may_see(&self, owner: Option<&str>) -> bool {
        let own = || self.key().is_some_and(|key| Some(&*key.name) == owner);
        self.sees_all() || own()
    }

    /// Where what is chosen for later requests is kept apart.
    pub(crate) fn desk(&self) -> &str {
        self.key().map_or("", |key| &key.name)
    }

    /// Whose a new job is, where the request says this of it.
    ///
    /// # Errors
    /// It is not for this caller to say.
    pub(crate) fn owner_of(&self, said: Option<String>) -> Result<Option<String>, Refusal> {
        match (self.key(), said) {
            (None, said) => Ok(said),
            (Some(key), Some(said)) if key.admin || said == key.name => Ok(Some(said)),
            (Some(key), None) => Ok(Some(key.name.clone())),
            (Some(key), Some(_)) => Err(Refusal::Forbidden {
                problem: format!(
                    "owner: the key '{}' submits in its own name: leave it out",
                    key.name
                ),
            }),
        }
    }

    /// How much of the queue its jobs may have.
    pub(crate) fn quota(&self) -> Quota {
        let limits = self.key().map(|key| key.limits).unwrap_or_default();
        Quota {
            waiting_max: limits.waiting,
            running_max: limits.running,
            priority_max: limits.priority,
        }
    }

    /// Whether a job of this caller may be so urgent.
    ///
    /// # Errors
    /// It may not.
    pub(crate) fn check_priority(&self, wanted: Option<Priority>) -> Result<(), Refusal> {
        match (wanted, self.quota().priority_max) {
            (Some(wanted), Some(most)) if wanted > most => Err(Refusal::Forbidden {
                problem: format!("priority: this key may ask for {most} at most, not for {wanted}"),
            }),
            _ => Ok(()),
        }
    }

    /// Whether this caller may do what concerns everybody.
    ///
    /// # Errors
    /// It may not.
    pub(crate) fn check_admin(&self) -> Result<(), Refusal> {
        match self.sees_all() {
            true => Ok(()),
            false => Err(Refusal::Forbidden {
                problem: "this concerns everybody's jobs and needs an admin key".to_owned(),
            }),
        }
    }

    /// A job came of this request.
    pub(crate) fn made(&self, job: JobId) {
        lock(&self.made).push(job);
    }
}

/// Does something in the name of a caller.
pub(crate) async fn scope<T>(caller: Arc<Caller>, act: impl Future<Output = T>) -> T {
    CALLER.scope(caller, act).await
}

/// As [`scope`], for what blocks.
pub(crate) fn scope_blocking<T>(caller: Option<Arc<Caller>>, act: impl FnOnce() -> T) -> T {
    match caller {
        Some(caller) => CALLER.sync_scope(caller, act),
        None => act(),
    }
}

/// Who asks, where somebody does.
pub(crate) fn present() -> Option<Arc<Caller>> {
    CALLER.try_with(Arc::clone).ok()
}

impl Inner {
    /// Who asks.
    pub(crate) fn caller(&self) -> Arc<Caller> {
        present().unwrap_or_else(|| {
            let who = match self.access.needed(self.options.access) {
                Some(false) => Who::Anybody,
                Some(true) | None => Who::Nobody,
            };
            Arc::new(Caller::of(who))
        })
    }

    /// A job that the caller may see; others are not there.
    pub(crate) fn job_of_caller(&self, id: JobId) -> Result<Job, Refusal> {
        let job = self.store.job(id)?;
        match self.caller().may_see(job.owner.as_deref()) {
            true => Ok(job),
            false => Err(StoreError::NotFound { job: id }.into()),
        }
    }

    /// A finished file that the caller may see, if there is one.
    pub(crate) fn artifact_of_caller(&self, id: ArtifactId) -> Result<Option<Artifact>, Refusal> {
        let Some((job, artifact)) = self.store.artifact(id)? else {
            return Ok(None);
        };
        if self.caller().sees_all() {
            return Ok(Some(artifact));
        }
        match self.job_of_caller(job) {
            Ok(_) => Ok(Some(artifact)),
            Err(Refusal::NotFound { .. }) => Ok(None),
            Err(refusal) => Err(refusal),
        }
    }
}

impl Inner {
    /// Whether what a caller's request began may go on: its key was not revoked and is not over.
    pub(crate) fn still_may(&self, caller: &Caller) -> bool {
        let Some(mine) = caller.key() else {
            return true;
        };
        let keys = self.access.keys().unwrap_or_default();
        let now = keys.iter().find(|key| key.id == mine.id);
        now.is_some_and(|key| key.check(self.now()).is_ok())
    }
}

/// What is known of keys, and how much of their limits was used.
#[derive(Debug, Default)]
pub(crate) struct Access {
    /// A std mutex, held to copy a pointer.
    known: Mutex<Known>,
    looking: Mutex<()>,
    buckets: Mutex<HashMap<String, Bucket>>,
    /// Requests answered, by the key's name.
    answered: Mutex<HashMap<String, u64>>,
    /// Requests that showed no key or a wrong one.
    pub(crate) turned_away: AtomicU64,
    /// Requests beyond a key's rate.
    pub(crate) too_many: AtomicU64,
    pub(crate) audit: audit::Brake,
}

#[derive(Clone, Debug, Default)]
struct Known {
    /// `None` before the first look.
    keys: Option<Arc<Vec<AccessKey>>>,
    looked: Option<Instant>,
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Access {
    /// Whether a key is needed; `None` where that is not known yet.
    fn needed(&self, mode: AccessMode) -> Option<bool> {
        match mode {
            AccessMode::Open => Some(false),
            AccessMode::Keys => Some(true),
            AccessMode::Auto => Some(!lock(&self.known).keys.as_ref()?.is_empty()),
        }
    }

    /// Requests answered, by name.
    pub(crate) fn answered(&self) -> Vec<(String, u64)> {
        let mut all: Vec<_> = lock(&self.answered)
            .iter()
            .map(|(name, count)| (name.clone(), *count))
            .collect();
        all.sort();
        all
    }

    /// The keys, as last looked at.
    pub(crate) fn keys(&self) -> Option<Arc<Vec<AccessKey>>> {
        lock(&self.known).keys.clone()
    }
}

/// Looks at the keys of the store, and tells of those that were made or revoked since the last look.
pub(crate) fn renew(app: &Inner) -> Result<(), StoreError> {
    renew_after(app, Instant::now())
}

/// As [`renew`], if no look began since then.
fn renew_after(app: &Inner, since: Instant) -> Result<(), StoreError> {
    // One at a time: what was read first must not take the place of what was read later.
    let _turn = lock(&app.access.looking);
    if app.access.looked().is_some_and(|looked| looked >= since) {
        return Ok(());
    }
    let began = Instant::now();
    let new = Arc::new(app.store.access_keys()?);
    let before = {
        let mut known = lock(&app.access.known);
        known.looked = Some(began);
        known.keys.replace(Arc::clone(&new))
    };
    for key in before
        .iter()
        .flat_map(|before| audit::changes(before, &new))
    {
        audit::tell(app, key);
    }
    Ok(())
}

/// Whether anybody may ask for this: the panel's files, which contain nothing of anybody, whether the server lives, and
/// what it offers.
fn is_for_all(path: Option<&str>) -> bool {
    path.is_some_and(|path| {
        [
            "/",
            "/openapi.json",
            "/health",
            "/health/live",
            "/health/ready",
        ]
        .contains(&path)
            || path.starts_with("/panel/")
    })
}

/// What of a request says who sends it.
pub(crate) struct Knock {
    peer: Option<IpAddr>,
    route: Option<MatchedPath>,
    token: Result<String, Refusal>,
}

impl Knock {
    /// Of this request.
    pub(crate) fn of(request: &Request) -> Knock {
        Knock {
            peer: request.extensions().get::<Peer>().map(|peer| peer.0),
            route: request.extensions().get::<MatchedPath>().cloned(),
            token: shown(request.headers()),
        }
    }

    /// The address it comes from.
    pub(crate) fn peer(&self) -> Option<IpAddr> {
        self.peer
    }
}

/// Who sends this request.
///
/// # Errors
/// It shows no key where one is needed, or came too soon after others.
pub(crate) async fn admit(app: &App, knock: Knock) -> Result<Caller, Refusal> {
    let Knock { route, token, .. } = knock;
    let mode = app.options.access;
    // Before the store is asked for anything: whether that answers is what some of these are for.
    if is_for_all(route.as_ref().map(MatchedPath::as_str)) {
        return Ok(Caller::of(Who::Nobody));
    }
    // Whoever shows a key where none is needed may have the first one.
    let first = app.access.needed(mode) == Some(false) && mode == AccessMode::Auto;
    let unseen = first && token.is_ok() && app.access.pause().is_zero();
    if app.access.needed(mode).is_none() || unseen {
        app.blocking(|app| Ok(renew(app)?)).await?;
    }
    if app.access.needed(mode) == Some(false) {
        return Ok(Caller::of(Who::Anybody));
    }
    let key = match token {
        Ok(text) => holder(app, &text).await,
        Err(refusal) => Err(refusal),
    };
    let key = key.inspect_err(|_| {
        app.access.turned_away.fetch_add(1, Ordering::Relaxed);
    })?;
    *lock(&app.access.answered)
        .entry(key.name.clone())
        .or_default() += 1;
    let standing = match key.limits.per_minute {
        Some(per_minute) => Some(app.access.count(&key.id, per_minute, app.now())?),
        None => None,
    };
    Ok(Caller {
        standing,
        ..Caller::of(Who::Holder(key))
    })
}

impl Access {
    fn count(&self, id: &str, per_minute: u32, now: Moment) -> Result<Standing, Refusal> {
        let mut buckets = lock(&self.buckets);
        let bucket = buckets.entry(id.to_owned()).or_default();
        bucket.take(per_minute, now).map_err(|standing| {
            self.too_many.fetch_add(1, Ordering::Relaxed);
            Refusal::TooOften {
                limit: per_minute,
                retry_after_s: standing.next_s,
                reset_s: standing.reset_s,
            }
        })
    }
}

/// The key that a text opens, after another look at the store where it is not known.
async fn holder(app: &App, text: &str) -> Result<Arc<AccessKey>, Refusal> {
    let find = |app: &Inner| {
        let keys = app.access.keys().unwrap_or_default();
        recognise(&keys, text, app.now()).cloned().map(Arc::new)
    };
    let mut found = find(app);
    if found == Err(NoAccess::Unknown) {
        // What was made before this request came is known to a look that began after it; many such requests share one.
        let came = Instant::now();
        while app.access.looked().is_none_or(|looked| looked < came) {
            tokio::time::sleep(app.access.pause()).await;
            app.blocking(move |app| Ok(renew_after(app, came)?)).await?;
        }
        found = find(app);
    }
    found.map_err(|why| Refusal::Unauthorized {
        problem: format!("{why}: 'lowtide keys create' makes one"),
    })
}

impl Access {
    /// When the last look at the keys began.
    fn looked(&self) -> Option<Instant> {
        lock(&self.known).looked
    }

    /// How long until the next look may be.
    fn pause(&self) -> Duration {
        let looked = self.looked();
        looked.map_or(Duration::ZERO, |at| LOOK_AGAIN.saturating_sub(at.elapsed()))
    }
}

/// The token that a request shows: as a bearer, or as the password of anybody, as clients of the web UI send it.
fn shown(headers: &HeaderMap) -> Result<String, Refusal> {
    let unauthorized = |problem: &str| Refusal::Unauthorized {
        problem: problem.to_owned(),
    };
    let mut all = headers.get_all(header::AUTHORIZATION).iter();
    let Some(value) = all.next() else {
        return Err(unauthorized(
            "a key is needed: send it as Authorization: Bearer, or as the password of HTTP Basic",
        ));
    };
    if all.next().is_some() {
        return Err(unauthorized("the header Authorization is there twice"));
    }
    let text = value
        .to_str()
        .ok()
        .filter(|text| text.len() <= HEADER_LEN_MAX);
    let (scheme, rest) = text
        .and_then(|text| text.trim().split_once(' '))
        .ok_or_else(|| unauthorized("the header Authorization cannot be read"))?;
    let rest = rest.trim();
    if scheme.eq_ignore_ascii_case("bearer") {
        return Ok(rest.to_owned());
    }
    if scheme.eq_ignore_ascii_case("basic") {
        let pair = base64::decode(rest).and_then(|bytes| String::from_utf8(bytes).ok());
        let pair = pair.ok_or_else(|| unauthorized("what follows Basic is no base64 of a text"))?;
        // Some programs have only a name to give.
        let (name, password) = pair.split_once(':').unwrap_or((&pair, ""));
        return Ok(if password.is_empty() { name } else { password }.to_owned());
    }
    Err(unauthorized(
        "the header Authorization is neither Bearer nor Basic",
    ))
}

/// Lets only those through who may do what concerns everybody.
pub(crate) async fn admin_only(request: Request, next: Next) -> Response {
    let caller = request.extensions().get::<Arc<Caller>>();
    match caller.map_or_else(
        || Caller::default().check_admin(),
        |caller| caller.check_admin(),
    ) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    }
}

/// Tells a client how much of its rate is left.
pub(crate) fn tell_standing(caller: &Caller, headers: &mut HeaderMap) {
    if let (Some(standing), Some(key)) = (&caller.standing, caller.key()) {
        let limit = key.limits.per_minute.unwrap_or_default();
        tell_rate(headers, (limit, standing.left, standing.reset_s));
    }
}

/// The headers that many services have for this: how many requests a minute, how many are left now, and after how many
/// seconds all of them are.
pub(crate) fn tell_rate(headers: &mut HeaderMap, (limit, left, reset_s): (u32, u32, u64)) {
    for (name, value) in [
        ("x-ratelimit-limit", u64::from(limit)),
        ("x-ratelimit-remaining", u64::from(left)),
        ("x-ratelimit-reset", reset_s),
    ] {
        headers.insert(name, HeaderValue::from(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_str(value).unwrap())])
    }

    #[test]
    fn a_token_is_a_bearer_or_a_password() {
        for (value, token) in [
            ("Bearer lt_a", Some("lt_a")),
            ("bearer  lt_a ", Some("lt_a")),
            ("Basic bWU6bHRfYQ==", Some("lt_a")),
            ("basic bHRfYTo=", Some("lt_a")),
            ("basic bHRfYQ==", Some("lt_a")),
            ("Digest x", None),
            ("Bearer", None),
            ("Basic !", None),
        ] {
            assert_eq!(shown(&headers(value)).ok().as_deref(), token, "{value}");
        }
        assert!(shown(&HeaderMap::new()).is_err());
        let mut twice = headers("Bearer a");
        twice.append(header::AUTHORIZATION, HeaderValue::from_static("Bearer b"));
        assert!(shown(&twice).is_err());
        assert!(shown(&headers(&format!("Bearer {}", "a".repeat(600)))).is_err());
    }

    #[test]
    fn a_holder_has_its_own_and_an_admin_everything() {
        let (mut key, _) = AccessKey::new("me", "root", Moment(0));
        key.limits.priority = Some(Priority::Normal);
        let holder = |key: &AccessKey| Caller::of(Who::Holder(Arc::new(key.clone())));
        let mine = holder(&key);
        assert!(mine.may_see(Some("me")) && !mine.may_see(Some("you")) && !mine.may_see(None));
        assert_eq!(mine.owner_of(None), Ok(Some("me".to_owned())));
        assert!(mine.owner_of(Some("you".to_owned())).is_err());
        assert!(mine.check_admin().is_err());
        assert!(mine.check_priority(Some(Priority::Urgent)).is_err());
        assert!(mine.check_priority(Some(Priority::Batch)).is_ok());
        key.admin = true;
        let admin = holder(&key);
        assert!(admin.may_see(None) && admin.check_admin().is_ok());
        assert_eq!(
            admin.owner_of(Some("you".to_owned())),
            Ok(Some("you".to_owned()))
        );
        let nobody = Caller::default();
        assert!(!nobody.may_see(None) && nobody.check_admin().is_err());
        let anybody = Caller::of(Who::Anybody);
        assert!(anybody.may_see(Some("me")) && anybody.check_admin().is_ok());
    }
}
