//! Every setting of the service: its place, what may be written there, and what holds where nothing is.

use super::value::Kind;

/// One setting.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Key {
    /// Where it stands, parts joined by dots; `*` is a name the user chooses.
    pub(crate) place: &'static str,
    /// What may be written.
    pub(crate) kind: Kind,
    /// What holds where nobody says anything; `None` where that depends on the machine.
    pub(crate) default: Option<&'static str>,
    /// What holds then, in words.
    pub(crate) otherwise: &'static str,
}

const fn key(place: &'static str, kind: Kind, default: &'static str) -> Key {
    Key {
        place,
        kind,
        default: Some(default),
        otherwise: "",
    }
}

const fn open(place: &'static str, kind: Kind, otherwise: &'static str) -> Key {
    Key {
        place,
        kind,
        default: None,
        otherwise,
    }
}

const fn count(min: u64, max: u64) -> Kind {
    Kind::Count { min, max }
}

/// Longest queue, most jobs kept: beyond it a list takes noticeable time.
const JOBS_MAX: u64 = 10_000_000;

/// All of them, in the order in which they are shown.
pub(crate) const KEYS: &[Key] = &[
    key("server.host", Kind::Text, "127.0.0.1"),
    key("server.port", count(0, 65_535), "7860"),
    open("server.data_dir", Kind::Path, "the user's data folder"),
    open("server.files_dir", Kind::Path, "the data folder"),
    open("server.files_bucket", Kind::Text, "none: files_dir"),
    open(
        "server.files_endpoint",
        Kind::Text,
        "Amazon's S3 of the region",
    ),
    open("server.files_region", Kind::Text, "us-east-1"),
    key(
        "server.files_style",
        Kind::Word(&["auto", "path", "host"]),
        "auto",
    ),
    open("server.files_ca", Kind::Path, "the public authorities"),
    open("server.store", Kind::Store, "lowtide.db in the data folder"),
    key("server.store_queue", Kind::Text, "main"),
    open("server.store_ca", Kind::Path, "the public authorities"),
    open("server.store_cert", Kind::Path, "none"),
    open("server.store_key", Kind::Path, "none"),
    key("server.worker", Kind::Flag, "true"),
    key("server.panel", Kind::Flag, "true"),
    key("server.openai", Kind::Flag, "true"),
    key("server.sdapi", Kind::Flag, "true"),
    key("server.comfyui", Kind::Flag, "true"),
    key(
        "server.access",
        Kind::Word(&["auto", "keys", "open"]),
        "auto",
    ),
    key("server.origins", Kind::Texts, ""),
    key("server.hosts", Kind::Texts, ""),
    key("server.body_max", Kind::Size, "1MiB"),
    key("server.input_max", Kind::Size, "64MiB"),
    open(
        "server.url",
        Kind::Text,
        "none: addresses begin with a slash",
    ),
    key("server.connections_max", count(1, 100_000), "256"),
    key("device.name", Kind::Device, "auto"),
    open(
        "device.budget",
        Kind::Size,
        "free memory less the reserve, looked at anew for each job",
    ),
    open(
        "device.reserve",
        Kind::SizeOrShare,
        "a sixteenth of the memory, at most 1 GiB",
    ),
    open("device.threads", count(1, 1_024), "one a core"),
    key(
        "device.precision",
        Kind::Word(&["auto", "f32", "tf32", "bf16", "f16"]),
        "auto",
    ),
    key(
        "device.offload",
        Kind::Word(&["auto", "never", "components", "stream"]),
        "auto",
    ),
    key("worker.max_concurrent_jobs", count(1, 64), "2"),
    open(
        "worker.keep_alive",
        Kind::KeepAlive,
        "what after_job and idle_timeout say",
    ),
    key("worker.after_job", AFTER_JOB, "keep"),
    key("worker.idle_timeout", Kind::Time { never: true }, "600s"),
    key("worker.preload", Kind::Texts, ""),
    key("worker.prompt_cache", Kind::Size, "64MiB"),
    key("worker.batch_max", count(1, 64), "8"),
    key("worker.lease", Kind::Time { never: false }, "15s"),
    key("worker.heartbeat", Kind::Time { never: false }, "1s"),
    key(
        "worker.checkpoint_every",
        Kind::Time { never: false },
        "20s",
    ),
    key("worker.previews", Kind::Flag, "true"),
    key("queue.waiting_max", count(1, JOBS_MAX), "10000"),
    key("queue.retries", count(0, 100), "2"),
    key("queue.retention_age", Kind::Time { never: true }, "30d"),
    key("queue.retention_bytes", Kind::Size, "10GiB"),
    key("queue.inputs_bytes", Kind::Size, "8GiB"),
    key("queue.retention_jobs", count(1, JOBS_MAX), "10000"),
    key("queue.durability", Kind::Word(&["full", "relaxed"]), "full"),
    open(
        "queue.priority.*",
        Kind::Word(&["urgent", "normal", "batch"]),
        "normal",
    ),
    key(
        "webhooks.allow",
        Kind::Word(&["public", "listed", "nobody"]),
        "public",
    ),
    key("webhooks.hosts", Kind::Texts, ""),
    open("webhooks.secret", Kind::Secret, "what is in the file"),
    open(
        "webhooks.secret_file",
        Kind::Path,
        "webhooks.secret in the data folder",
    ),
    key("webhooks.retries", count(0, 100), "12"),
    key("webhooks.timeout", Kind::Time { never: false }, "10s"),
    key("models.dirs", Kind::Paths, ""),
    key("models.programs", Kind::Paths, ""),
    key("models.elsewhere", Kind::Flag, "true"),
    key("models.download", Kind::Flag, "false"),
    key("models.loras", Kind::Paths, ""),
    key("models.embeddings", Kind::Paths, ""),
    key("models.detectors", Kind::Paths, ""),
    open("models.aliases.*", Kind::Text, "none"),
    open(
        "models.options.*.keep_alive",
        Kind::KeepAlive,
        "the worker's",
    ),
    open("models.options.*.after_job", AFTER_JOB, "the worker's"),
    open(
        "models.options.*.idle_timeout",
        Kind::Time { never: true },
        "the worker's",
    ),
    open("presets.*.*", Kind::Scalar, "the model's"),
    key(
        "kinds.enabled",
        Kind::Texts,
        "text-to-image,noise,upscale,detail,detect",
    ),
    key("log.format", Kind::Word(&["text", "json"]), "text"),
    open("log.traces", Kind::Text, "nobody"),
    key("log.level", Kind::Word(&["info", "debug", "quiet"]), "info"),
];

const AFTER_JOB: Kind = Kind::Word(&["keep", "offload", "release"]);

/// Presets that are there without a file; a file can change them.
pub(crate) const PRESETS: &[(&str, &str, u64)] =
    &[("standard", "steps", 30), ("fast", "steps", 20)];

impl Key {
    /// The parts of its place.
    pub(crate) fn parts(&self) -> impl Iterator<Item = &'static str> {
        self.place.split('.')
    }

    /// Whether it has a name the user chooses in it: such settings come from files alone.
    pub(crate) fn is_open(&self) -> bool {
        self.place.contains('*')
    }

    /// Its environment variable.
    pub(crate) fn variable(&self) -> String {
        let name = self.place.replace('.', "_").to_uppercase();
        format!("LOWTIDE_{name}")
    }
}

/// What a place means.
#[derive(Clone, Debug)]
pub(crate) enum Found {
    /// A setting.
    Setting(&'static Key),
    /// A table with settings in it.
    Table,
    /// Nothing; and the nearest of what may stand beside it.
    Nothing {
        /// What could stand here instead, if it is near.
        nearest: Option<String>,
        /// All that could.
        choices: Vec<&'static str>,
    },
}

/// Looks a place up.
pub(crate) fn find(place: &[String]) -> Found {
    let fits = |key: &Key, count: usize| {
        key.parts()
            .zip(place)
            .take(count)
            .all(|(part, written)| part == "*" || part == written)
    };
    if let Some(key) = KEYS
        .iter()
        .find(|key| key.parts().count() == place.len() && fits(key, place.len()))
    {
        return Found::Setting(key);
    }
    let below = |key: &&Key| key.parts().count() > place.len() && fits(key, place.len());
    if KEYS.iter().any(|key| below(&key)) {
        return Found::Table;
    }
    let depth = place.len().saturating_sub(1);
    let mut choices: Vec<&'static str> = KEYS
        .iter()
        .filter(|key| fits(key, depth))
        .filter_map(|key| key.parts().nth(depth))
        .filter(|part| *part != "*")
        .collect();
    choices.dedup();
    let written = place.last().map_or("", String::as_str);
    Found::Nothing {
        nearest: nearest(written, choices.iter().copied()),
        choices,
    }
}

/// More slips than these make another word.
const SLIPS_MAX: usize = 4;

/// The word most like `written`, if it is so near that it may be meant.
pub(crate) fn nearest<'a>(
    written: &str,
    words: impl IntoIterator<Item = &'a str>,
) -> Option<String> {
    let far = (written.chars().count().max(3) / 2).min(SLIPS_MAX);
    words
        .into_iter()
        .map(|word| (distance(written, word), word))
        .filter(|(distance, _)| *distance <= far)
        .min()
        .map(|(_, word)| word.to_owned())
}

/// Letters to add, remove or change to get from one word to the other.
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut before: Vec<usize> = (0..=other.len()).collect();
    for (row, letter) in one.chars().enumerate() {
        let mut now = vec![row + 1];
        for (column, &opposite) in other.iter().enumerate() {
            let change = before[column] + usize::from(letter != opposite);
            now.push(change.min(before[column + 1] + 1).min(now[column] + 1));
        }
        before = now;
    }
    before.pop().unwrap_or(0)
}

/// A place as it is written in messages; a part that is more than a plain word in quotes.
pub(crate) fn written(place: &[String]) -> String {
    let plain = |c: char| c.is_alphanumeric() || c == '_' || c == '-';
    let parts: Vec<String> = place
        .iter()
        .map(|part| match !part.is_empty() && part.chars().all(plain) {
            true => part.clone(),
            false => format!("{part:?}"),
        })
        .collect();
    parts.join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(text: &str) -> Vec<String> {
        text.split('.').map(str::to_owned).collect()
    }

    #[test]
    fn places_are_settings_tables_or_nothing() {
        assert!(matches!(find(&place("server.port")), Found::Setting(_)));
        assert!(matches!(find(&place("server")), Found::Table));
        assert!(matches!(find(&place("models.options.any")), Found::Table));
        assert!(matches!(
            find(&place("models.options.any.after_job")),
            Found::Setting(_)
        ));
        for (wrong, right) in [
            ("sever", "server"),
            ("server.prot", "port"),
            ("worker.idle_timout", "idle_timeout"),
            ("models.options.any.afterjob", "after_job"),
        ] {
            match find(&place(wrong)) {
                Found::Nothing { nearest, .. } => assert_eq!(nearest.as_deref(), Some(right)),
                found => panic!("{wrong}: {found:?}"),
            }
        }
    }

    #[test]
    fn every_default_is_one() {
        for key in KEYS {
            if let Some(default) = key.default {
                let value = serde_json::Value::from(default);
                let read = key.kind.read(&value, false);
                assert!(read.is_ok(), "{}: {read:?}", key.place);
            }
            assert!(
                key.default.is_some() == key.otherwise.is_empty(),
                "{}",
                key.place
            );
        }
    }

    #[test]
    fn what_is_far_is_not_offered() {
        assert_eq!(nearest("frobnicate", ["port", "host"]), None);
        assert_eq!(nearest("hots", ["port", "host"]), Some("host".to_owned()));
    }
}
