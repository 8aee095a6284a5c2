//! `lowtide keys`: keys to the service, in the store that it has its jobs in.

use std::time::Duration;

use lowtide_jobs::{AccessKey, JobStore, Limits, Listen, NoAccess, Usage};
use serde_json::{Value, json};

use super::folders::Surroundings;
use super::log::{day, now};
use super::settings::Settings;
use super::store;
use super::value::{Kind, time};
use super::work;
use crate::args::{KeyArgs, KeysArgs, KeysVerb};
use crate::console::{self, Table};
use crate::failure::Failure;

/// Runs a verb of `keys`.
pub(crate) fn run(args: &KeysArgs) -> Result<(), Failure> {
    let around = Surroundings::of_process();
    let given = args.settings();
    let settings = Settings::read(&given, given.given(), &around)?;
    if let KeysVerb::Create(wanted) = &args.verb {
        // What is wrong with it is said before there is a store.
        checked(wanted)?;
        store::make_folder(&settings)?;
    } else if !store::is_there(&settings) {
        // Asking leaves nothing behind.
        return match &args.verb {
            KeysVerb::Create(_) | KeysVerb::List => Ok(console::print(&listed(&[], args.json))?),
            KeysVerb::Usage => Ok(console::print(&used(&[], args.json))?),
            KeysVerb::Revoke { key } => Err(unknown(key)),
        };
    }
    let store = store::open(&settings, Listen::Queue)?;
    let by = whoever(&around);
    let text = match &args.verb {
        KeysVerb::Create(wanted) => create(store.as_ref(), wanted, &by, args.json)?,
        KeysVerb::List => listed(&keys(store.as_ref())?, args.json),
        KeysVerb::Revoke { key } => revoke(store.as_ref(), key, &by, args.json)?,
        KeysVerb::Usage => used(&store.usage().map_err(store::failed)?, args.json),
    };
    Ok(console::print(&text)?)
}

/// Who is at this machine, for those who ask later who made a key.
fn whoever(around: &Surroundings) -> String {
    let name = ["USER", "LOGNAME", "USERNAME"]
        .iter()
        .find_map(|variable| around.variables.get(*variable))
        .filter(|name| !name.is_empty());
    format!(
        "{}@{}",
        name.map_or("somebody", String::as_str),
        work::host()
    )
}

fn keys(store: &dyn JobStore) -> Result<Vec<AccessKey>, Failure> {
    store.access_keys().map_err(store::failed)
}

/// How long a key is for.
fn checked(wanted: &KeyArgs) -> Result<Option<Duration>, Failure> {
    if !AccessKey::is_name(&wanted.name) {
        return Err(Failure::mistake(format!(
            "--name '{}': 1 to 64 of a-z A-Z 0-9 - _ . @ are needed",
            wanted.name
        )));
    }
    let Some(text) = &wanted.ends else {
        return Ok(None);
    };
    let kind = Kind::Time { never: false };
    let value = kind
        .read(&json!(text), false)
        .map_err(|problem| Failure::mistake(format!("--ends '{text}': {problem}")))?;
    Ok(time(&value))
}

fn create(store: &dyn JobStore, wanted: &KeyArgs, by: &str, json: bool) -> Result<String, Failure> {
    let (mut key, token) = AccessKey::new(&wanted.name, by, now());
    key.admin = wanted.admin;
    key.ends = checked(wanted)?.map(|time| now() + time);
    key.limits = Limits {
        per_minute: wanted.per_minute,
        waiting: wanted.waiting,
        running: wanted.running,
        priority: wanted.priority,
    };
    store.keep_key(&key).map_err(store::failed)?;
    if json {
        let mut view = view(&key);
        view["token"] = json!(token.reveal());
        return Ok(format!("{view}\n"));
    }
    console::note(&format!(
        "key {} of {}: keep what follows, it is not shown again",
        key.id, key.name
    ));
    Ok(format!("{}\n", token.reveal()))
}

fn unknown(named: &str) -> Failure {
    Failure::mistake(format!(
        "there is no key '{named}'; 'lowtide keys list' shows them"
    ))
}

fn revoke(store: &dyn JobStore, named: &str, by: &str, json: bool) -> Result<String, Failure> {
    let all = keys(store)?;
    let of = |key: &&AccessKey| key.id == named || key.name == named;
    let open = |key: &&AccessKey| key.revoked.is_none();
    let found: Vec<&AccessKey> = all.iter().filter(of).collect();
    if found.is_empty() {
        return Err(unknown(named));
    }
    let mut revoked = Vec::new();
    for key in found.into_iter().filter(open) {
        let mut key = key.clone();
        key.revoked = Some(now());
        key.revoked_by = Some(by.to_owned());
        store.keep_key(&key).map_err(store::failed)?;
        revoked.push(key);
    }
    match (revoked.is_empty(), json) {
        (true, _) => Err(Failure::mistake(format!("'{named}' was revoked before"))),
        (false, true) => Ok(listed(&revoked, true)),
        (false, false) => Ok(revoked
            .iter()
            .map(|key| format!("revoked {} of {}\n", key.id, key.name))
            .collect()),
    }
}

fn state(key: &AccessKey) -> &'static str {
    match key.check(now()) {
        Ok(()) => "open",
        Err(NoAccess::Revoked) => "revoked",
        Err(NoAccess::Ended | NoAccess::Unknown) => "ended",
    }
}

fn view(key: &AccessKey) -> Value {
    json!({
        "key": key.id, "name": key.name, "state": state(key), "admin": key.admin,
        "per_minute": key.limits.per_minute, "waiting_max": key.limits.waiting, "running_max": key.limits.running,
        "priority_max": key.limits.priority.map(|priority| priority.name()),
        "made_ms": key.made.0, "made_by": key.made_by, "ends_ms": key.ends.map(|at| at.0),
        "revoked_ms": key.revoked.map(|at| at.0), "revoked_by": key.revoked_by,
    })
}

fn listed(keys: &[AccessKey], json: bool) -> String {
    if json {
        let keys: Vec<Value> = keys.iter().map(view).collect();
        return format!("{}\n", json!({ "keys": keys }));
    }
    if keys.is_empty() {
        return "no keys: whoever reaches the service can use it\n".to_owned();
    }
    let mut table = Table::new(&[]);
    table.row(["key", "name", "state", "may", "made", "by"]);
    for key in keys {
        table.row([
            key.id.clone(),
            key.name.clone(),
            state(key).to_owned(),
            may(key),
            day(key.made),
            key.made_by.clone(),
        ]);
    }
    table.text()
}

/// What a key may, in a few words.
fn may(key: &AccessKey) -> String {
    let limits = &key.limits;
    let parts = [
        key.admin.then(|| "everything".to_owned()),
        limits
            .per_minute
            .map(|most| format!("{most} requests a minute")),
        limits.waiting.map(|most| format!("{most} waiting")),
        limits.running.map(|most| format!("{most} running")),
        limits.priority.map(|most| format!("up to {most}")),
        key.ends.map(|at| format!("until {}", day(at))),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    match parts.is_empty() {
        true => "its own jobs".to_owned(),
        false => parts.join(", "),
    }
}

fn used(usage: &[Usage], json: bool) -> String {
    if json {
        let names: Vec<Value> = usage
            .iter()
            .map(|one| {
                json!({
                    "name": one.owner, "submitted": one.submitted, "done": one.done, "failed": one.failed,
                    "cancelled": one.cancelled, "files": one.artifacts, "work_s": one.worked_ms as f64 / 1e3,
                    "waiting": one.waiting, "running": one.running,
                })
            })
            .collect();
        return format!("{}\n", json!({ "names": names }));
    }
    if usage.is_empty() {
        return "no keys, and so nothing is counted by name\n".to_owned();
    }
    let mut table = Table::new(&[1, 2, 3, 4, 5, 6, 7, 8]);
    table.row([
        "name",
        "jobs",
        "done",
        "failed",
        "cancelled",
        "files",
        "seconds",
        "waiting",
        "running",
    ]);
    for one in usage {
        let counts = [
            one.submitted,
            one.done,
            one.failed,
            one.cancelled,
            one.artifacts,
            one.worked_ms / 1000,
            one.waiting,
            one.running,
        ];
        let counts = counts.iter().map(u64::to_string);
        table.row(std::iter::once(one.owner.clone()).chain(counts));
    }
    table.text()
}
