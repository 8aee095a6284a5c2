//! What is looked at when a connection begins: whether the server can do what is needed, and whether what it accepts
//! survives a power cut.

use super::address::Address;
use super::wire::{Command, Reply};
use crate::{Result, StoreError};

/// The oldest server that has every command used here.
const VERSION_MIN: (u32, u32) = (6, 2);

/// The first server that tells when something is on its disk.
const VERSION_WAITAOF: (u32, u32) = (7, 2);

/// What this version writes; a later one that writes differently raises it.
pub(super) const SCHEMA: u32 = 1;

/// How it is known that something is on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sureness {
    /// The server answers only afterwards.
    Answer,
    /// It is asked after each write.
    Asked,
    /// Nobody wants to know.
    Relaxed,
}

/// The questions.
pub(super) fn questions(prefix: &str) -> Vec<Command> {
    vec![
        Command::new("INFO").arg("server"),
        Command::new("INFO").arg("persistence"),
        Command::new("CONFIG").arg("GET").arg("append*"),
        Command::new("CONFIG").arg("GET").arg("maxmemory-policy"),
        Command::new("HGET")
            .arg(format!("{prefix}meta"))
            .arg("schema"),
    ]
}

/// What the answers mean.
///
/// # Errors
/// `Denied` where the server will not do, with what to change; `TooNew`.
pub(super) fn judge(answers: &[Reply], address: &Address, relaxed: bool) -> Result<Sureness> {
    let [server, persistence, append, eviction, schema] = answers else {
        return Err(denied(address, "it answers strangely".to_owned()));
    };
    if let Reply::Error(error) = server {
        return Err(denied(address, format!("INFO: {error}")));
    }
    let version = version(&server.text());
    if version < VERSION_MIN {
        let reason = format!(
            "it is version {}.{}; at least Redis 6.2 or any Valkey is needed",
            version.0, version.1
        );
        return Err(denied(address, reason));
    }
    if let Some(found) = schema
        .some_number()
        .filter(|&found| found > u64::from(SCHEMA))
    {
        return Err(StoreError::TooNew {
            path: address.to_string().into(),
            found: u32::try_from(found).unwrap_or(u32::MAX),
            known: SCHEMA,
        });
    }
    if relaxed {
        return Ok(Sureness::Relaxed);
    }
    let policy = pairs(eviction).find(|(name, _)| name == "maxmemory-policy");
    if let Some((_, policy)) = policy.filter(|(_, policy)| policy.starts_with("allkeys")) {
        let reason = format!(
            "maxmemory-policy is {policy}, which throws jobs away when memory is short; \
             set it to noeviction, or choose queue.durability = relaxed"
        );
        return Err(denied(address, reason));
    }
    sureness(&persistence.text(), append, version).map_err(|reason| denied(address, reason))
}

fn sureness(
    persistence: &str,
    append: &Reply,
    version: (u32, u32),
) -> std::result::Result<Sureness, String> {
    let way_out = match version >= VERSION_WAITAOF {
        true => {
            "set appendonly to yes (and appendfsync to always, which answers sooner), or choose queue.durability = relaxed"
        }
        false => {
            "set appendonly to yes and appendfsync to always, or choose queue.durability = relaxed"
        }
    };
    if field(persistence, "aof_enabled") != Some("1") {
        return Err(format!(
            "it keeps nothing that survives a power cut: appendonly is no; {way_out}"
        ));
    }
    let fsync = pairs(append).find(|(name, _)| name == "appendfsync");
    let fsync = fsync.map(|(_, value)| value);
    if fsync.as_deref() == Some("always") {
        return Ok(Sureness::Answer);
    }
    if version >= VERSION_WAITAOF {
        return Ok(Sureness::Asked);
    }
    Err(match fsync {
        Some(fsync) => {
            format!("a power cut may take what it accepted last: appendfsync is {fsync}; {way_out}")
        }
        None => format!(
            "whether what it accepts survives a power cut is not to be known: CONFIG GET is not allowed to this user; \
             allow it, or {way_out}"
        ),
    })
}

fn denied(address: &Address, reason: String) -> StoreError {
    StoreError::Denied {
        store: address.to_string(),
        reason,
    }
}

fn version(info: &str) -> (u32, u32) {
    let text = field(info, "redis_version").unwrap_or_default();
    let mut parts = text.split('.').map(|part| part.parse().unwrap_or_default());
    (
        parts.next().unwrap_or_default(),
        parts.next().unwrap_or_default(),
    )
}

/// A line `name:value` of what INFO says.
fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = info.lines().filter_map(|line| line.split_once(':'));
    lines
        .find(|(found, _)| *found == name)
        .map(|(_, value)| value.trim())
}

/// What CONFIG GET says.
fn pairs(reply: &Reply) -> impl Iterator<Item = (String, String)> {
    let items = reply.clone().list();
    let texts: Vec<String> = items.iter().map(Reply::text).collect();
    let pair = |pair: &[String]| Some((pair.first()?.clone(), pair.get(1)?.clone()));
    texts
        .chunks(2)
        .filter_map(pair)
        .collect::<Vec<_>>()
        .into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Reply {
        Reply::Text(text.as_bytes().to_vec())
    }

    fn config(pairs: &[(&str, &str)]) -> Reply {
        let items = pairs
            .iter()
            .flat_map(|(name, value)| [text(name), text(value)]);
        Reply::List(items.collect())
    }

    fn judged(version: &str, aof: &str, fsync: &str, policy: &str) -> Result<Sureness> {
        let address = Address::parse("redis://a:secret@host").unwrap();
        let fsync = match fsync {
            "" => Reply::Error("NOPERM no".to_owned()),
            _ => config(&[("appendonly", "yes"), ("appendfsync", fsync)]),
        };
        let answers = [
            text(&format!("# Server\r\nredis_version:{version}\r\n")),
            text(&format!("aof_enabled:{aof}\r\n")),
            fsync,
            config(&[("maxmemory-policy", policy)]),
            Reply::Nil,
        ];
        judge(&answers, &address, false)
    }

    #[test]
    fn only_what_survives_a_power_cut_will_do() {
        let keep = "noeviction";
        for (version, aof, fsync, expected) in [
            ("7.0.15", "1", "always", Sureness::Answer),
            ("7.2.4", "1", "always", Sureness::Answer),
            ("7.2.4", "1", "everysec", Sureness::Asked),
            ("8.0.0", "1", "", Sureness::Asked),
        ] {
            assert_eq!(judged(version, aof, fsync, keep), Ok(expected), "{version}");
        }
        for (version, aof, fsync, policy, said) in [
            ("7.0.15", "0", "always", keep, "appendonly is no"),
            ("7.0.15", "1", "everysec", keep, "appendfsync is everysec"),
            ("7.0.15", "1", "", keep, "CONFIG GET"),
            ("7.2.0", "0", "", keep, "appendonly is no"),
            ("6.0.9", "1", "always", keep, "6.2"),
            ("7.0.15", "1", "always", "allkeys-lru", "allkeys-lru"),
        ] {
            let error = judged(version, aof, fsync, policy).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
