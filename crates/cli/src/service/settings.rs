//! What the settings mean, typed.

mod bucket;
mod webhooks;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use lowtide_core::Bytes;
use lowtide_core::job::Priority;
use lowtide_core::lifecycle::{AfterJob, KeepAlive};
use lowtide_engine::PrecisionChoice;
use lowtide_jobs::TlsFiles;
use lowtide_server::AccessMode;
use serde_json::{Map, Value, json};

use super::folders::Surroundings;
use super::layers::{Origin, Resolved};
use super::store::Place;
use super::value::time;
use crate::args::{GivenSetting, SettingArgs};
use crate::failure::Failure;
use crate::gpu::Devices;
use crate::named_files::{Places, detectors_of};

pub(crate) use bucket::BucketSettings;
pub(crate) use webhooks::{SecretPlace, WebhookSettings};

/// How the service is to be.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) server: ServerSettings,
    pub(crate) device: DeviceSettings,
    pub(crate) worker: WorkerSettings,
    pub(crate) queue: QueueSettings,
    pub(crate) models: ModelsSettings,
    pub(crate) webhooks: WebhookSettings,
    /// Fields of a request by preset.
    pub(crate) presets: BTreeMap<String, Map<String, Value>>,
    /// The kinds of jobs that are done.
    pub(crate) kinds: Vec<String>,
    pub(crate) log: LogSettings,
    /// The collector that spans are sent to.
    pub(crate) traces: Option<String>,
    /// Every value with its origin.
    pub(crate) resolved: Resolved,
}

/// How it is reached.
#[derive(Clone, Debug)]
pub(crate) struct ServerSettings {
    pub(crate) host: String,
    /// 0: one that is free.
    pub(crate) port: u16,
    pub(crate) data_dir: PathBuf,
    /// Where finished files, inputs and saved sessions are: what machines that work together share.
    pub(crate) files_dir: PathBuf,
    /// The bucket that holds files and inputs instead, and saved sessions as well.
    pub(crate) files_bucket: Option<BucketSettings>,
    /// Where the queue is.
    pub(crate) store: Place,
    /// Whether a worker is started beside the server.
    pub(crate) worker: bool,
    pub(crate) panel: bool,
    pub(crate) openai: bool,
    pub(crate) sdapi: bool,
    pub(crate) comfyui: bool,
    /// Who needs a key.
    pub(crate) access: AccessMode,
    /// Further values of `Origin` and `Host` that are let in.
    pub(crate) origins: Vec<String>,
    pub(crate) hosts: Vec<String>,
    pub(crate) body_max: Bytes,
    /// Bytes of a picture to begin from.
    pub(crate) input_max: Bytes,
    pub(crate) connections_max: usize,
}

/// Memory left for others.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Reserve {
    Bytes(Bytes),
    /// Of the device's memory, 0 to 1.
    Share(f64),
}

/// How the device is used.
#[derive(Clone, Debug)]
pub(crate) struct DeviceSettings {
    pub(crate) name: Devices,
    pub(crate) budget: Option<Bytes>,
    pub(crate) reserve: Option<Reserve>,
    pub(crate) threads: Option<usize>,
    pub(crate) precision: PrecisionChoice,
    /// `auto`, `never`, `components`, `stream`.
    pub(crate) offload: String,
}

/// How a model lives, where it differs from the others.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct ModelSettings {
    pub(crate) keep_alive: Option<KeepAlive>,
    pub(crate) after_job: Option<AfterJob>,
    /// `Some(None)`: never.
    pub(crate) idle: Option<Option<Duration>>,
}

/// How a worker works.
#[derive(Clone, Debug)]
pub(crate) struct WorkerSettings {
    pub(crate) max_concurrent_jobs: usize,
    pub(crate) keep_alive: Option<KeepAlive>,
    pub(crate) after_job: AfterJob,
    pub(crate) idle: Option<Duration>,
    pub(crate) preload: Vec<String>,
    pub(crate) prompt_cache: Bytes,
    pub(crate) batch_max: usize,
    pub(crate) lease: Duration,
    pub(crate) heartbeat: Duration,
    pub(crate) checkpoint_every: Duration,
    pub(crate) previews: bool,
}

/// Limits of the queue.
#[derive(Clone, Debug)]
pub(crate) struct QueueSettings {
    pub(crate) waiting_max: u64,
    pub(crate) retries: u32,
    pub(crate) retention_age: Option<Duration>,
    pub(crate) retention_bytes: Bytes,
    /// Bytes of all pictures that jobs begin from.
    pub(crate) inputs_bytes: Bytes,
    pub(crate) retention_jobs: u64,
    /// Whether an accepted job survives a power cut.
    pub(crate) durable: bool,
    pub(crate) priority: BTreeMap<String, Priority>,
}

/// Which models there are.
#[derive(Clone, Debug, Default)]
pub(crate) struct ModelsSettings {
    pub(crate) dirs: Vec<PathBuf>,
    /// Folders of other programs that have models.
    pub(crate) programs: Vec<PathBuf>,
    /// Whether the hub's cache and other programs' folders are looked through.
    pub(crate) elsewhere: bool,
    /// Whether a model that is asked for may be fetched.
    pub(crate) download: bool,
    /// Where LoRAs and textual inversions are.
    pub(crate) places: Places,
    pub(crate) aliases: BTreeMap<String, String>,
    pub(crate) options: BTreeMap<String, ModelSettings>,
}

/// What is said while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LogSettings {
    pub(crate) json: bool,
    pub(crate) debug: bool,
    pub(crate) quiet: bool,
}

impl Settings {
    /// Reads file, environment and arguments, in that order. `given`: what the arguments say.
    ///
    /// # Errors
    /// What is wrong, and where it was written.
    pub(crate) fn read(
        args: &SettingArgs,
        given: Vec<GivenSetting>,
        around: &Surroundings,
    ) -> Result<Settings, Failure> {
        let mut resolved = Resolved::defaults();
        let file = around.settings_file(args.config.as_deref())?;
        if let Some(path) = &file {
            let text = std::fs::read_to_string(path).map_err(|cause| {
                Failure::mistake(format!("'{}' cannot be read: {cause}", path.display()))
            })?;
            resolved.file(path, &text)?;
        }
        resolved.variables(&around.variables)?;
        for (name, place, text) in given {
            resolved.text(place, &text, &Origin::Argument(name.to_owned()))?;
        }
        for assignment in &args.set {
            let Some((place, text)) = assignment.split_once('=') else {
                return Err(Failure::mistake(format!(
                    "--set '{assignment}': write a setting, = and a value, such as worker.idle_timeout=10m"
                )));
            };
            let origin = Origin::Argument(format!("--set {}", place.trim()));
            resolved.text(place.trim(), text, &origin)?;
        }
        if resolved.get("server.data_dir").is_none() {
            let folder = around.data_folder()?;
            let folder = folder.to_string_lossy();
            resolved.text("server.data_dir", &folder, &Origin::Default)?;
        }
        Settings::of(resolved)
    }

    /// What the parent resolved.
    ///
    /// # Errors
    /// When the two are not of one version.
    pub(crate) fn from_parent(document: &Value) -> Result<Settings, Failure> {
        Settings::of(Resolved::from_parent(document)?)
    }

    fn of(mut resolved: Resolved) -> Result<Settings, Failure> {
        let data_dir = PathBuf::from(text(&resolved, "server.data_dir"));
        if resolved.get("server.store").is_none() {
            let file = data_dir.join("lowtide.db");
            resolved.text("server.store", &file.to_string_lossy(), &Origin::Default)?;
        }
        if resolved.get("server.files_dir").is_none() {
            let folder = data_dir.to_string_lossy().into_owned();
            resolved.text("server.files_dir", &folder, &Origin::Default)?;
        }
        let store = store_of(&resolved)?;
        let files_bucket = BucketSettings::of(&resolved)?;
        Ok(Settings {
            server: ServerSettings {
                host: text(&resolved, "server.host"),
                port: count(&resolved, "server.port") as u16,
                data_dir,
                files_dir: PathBuf::from(text(&resolved, "server.files_dir")),
                files_bucket,
                store,
                worker: flag(&resolved, "server.worker"),
                panel: flag(&resolved, "server.panel"),
                openai: flag(&resolved, "server.openai"),
                sdapi: flag(&resolved, "server.sdapi"),
                comfyui: flag(&resolved, "server.comfyui"),
                access: match text(&resolved, "server.access").as_str() {
                    "keys" => AccessMode::Keys,
                    "open" => AccessMode::Open,
                    _ => AccessMode::Auto,
                },
                origins: texts(&resolved, "server.origins"),
                hosts: texts(&resolved, "server.hosts"),
                body_max: Bytes(count(&resolved, "server.body_max")),
                input_max: Bytes(count(&resolved, "server.input_max")),
                connections_max: count(&resolved, "server.connections_max") as usize,
            },
            device: DeviceSettings::of(&resolved),
            worker: WorkerSettings::of(&resolved),
            queue: QueueSettings::of(&resolved),
            models: ModelsSettings::of(&resolved),
            webhooks: WebhookSettings::of(&resolved)?,
            presets: tables(&resolved, "presets"),
            kinds: texts(&resolved, "kinds.enabled"),
            traces: resolved
                .get("log.traces")
                .and_then(Value::as_str)
                .filter(|text| !text.is_empty())
                .map(str::to_owned),
            log: LogSettings {
                json: text(&resolved, "log.format") == "json",
                debug: text(&resolved, "log.level") == "debug",
                quiet: text(&resolved, "log.level") == "quiet",
            },
            resolved,
        })
    }
}

impl DeviceSettings {
    fn of(resolved: &Resolved) -> DeviceSettings {
        let reserve = resolved.get("device.reserve").map(|value| {
            let percent = value.as_str().and_then(|text| text.strip_suffix('%'));
            match percent.and_then(|percent| percent.parse::<f64>().ok()) {
                Some(percent) => Reserve::Share(percent / 100.0),
                None => Reserve::Bytes(Bytes(value.as_u64().unwrap_or_default())),
            }
        });
        DeviceSettings {
            // The settings let nothing else through.
            name: text(resolved, "device.name").parse().unwrap_or_default(),
            budget: resolved
                .get("device.budget")
                .and_then(Value::as_u64)
                .map(Bytes),
            reserve,
            threads: resolved
                .get("device.threads")
                .and_then(Value::as_u64)
                .map(|threads| threads as usize),
            // Nor here.
            precision: PrecisionChoice::named(&text(resolved, "device.precision"))
                .unwrap_or_default(),
            offload: text(resolved, "device.offload"),
        }
    }
}

impl WorkerSettings {
    fn of(resolved: &Resolved) -> WorkerSettings {
        WorkerSettings {
            max_concurrent_jobs: count(resolved, "worker.max_concurrent_jobs") as usize,
            keep_alive: resolved.get("worker.keep_alive").and_then(keep_alive),
            after_job: resolved
                .get("worker.after_job")
                .and_then(after_job)
                .unwrap_or_default(),
            idle: resolved.get("worker.idle_timeout").and_then(time),
            preload: texts(resolved, "worker.preload"),
            prompt_cache: Bytes(count(resolved, "worker.prompt_cache")),
            batch_max: count(resolved, "worker.batch_max") as usize,
            lease: duration(resolved, "worker.lease"),
            heartbeat: duration(resolved, "worker.heartbeat"),
            checkpoint_every: duration(resolved, "worker.checkpoint_every"),
            previews: flag(resolved, "worker.previews"),
        }
    }
}

impl QueueSettings {
    fn of(resolved: &Resolved) -> QueueSettings {
        let priority = resolved.below(&["queue", "priority"]);
        let priority = priority.filter_map(|(rest, value)| {
            Some((rest.first()?.clone(), value.as_str()?.parse().ok()?))
        });
        QueueSettings {
            waiting_max: count(resolved, "queue.waiting_max"),
            retries: count(resolved, "queue.retries") as u32,
            retention_age: resolved.get("queue.retention_age").and_then(time),
            retention_bytes: Bytes(count(resolved, "queue.retention_bytes")),
            inputs_bytes: Bytes(count(resolved, "queue.inputs_bytes")),
            retention_jobs: count(resolved, "queue.retention_jobs"),
            durable: text(resolved, "queue.durability") == "full",
            priority: priority.collect(),
        }
    }
}

impl ModelsSettings {
    fn of(resolved: &Resolved) -> ModelsSettings {
        let aliases = resolved.below(&["models", "aliases"]);
        let aliases = aliases
            .filter_map(|(rest, value)| Some((rest.first()?.clone(), value.as_str()?.to_owned())));
        let mut options: BTreeMap<String, ModelSettings> = BTreeMap::new();
        for (rest, value) in resolved.below(&["models", "options"]) {
            let [model, setting] = rest else {
                continue;
            };
            let model = options.entry(model.clone()).or_default();
            match setting.as_str() {
                "keep_alive" => model.keep_alive = keep_alive(value),
                "after_job" => model.after_job = after_job(value),
                _ => model.idle = Some(time(value)),
            }
        }
        let (programs, elsewhere) = (
            paths(resolved, "models.programs"),
            flag(resolved, "models.elsewhere"),
        );
        let others = match elsewhere {
            true => crate::models::programs_of(&Surroundings::of_process()),
            false => Vec::new(),
        };
        let others = [programs.clone(), others].concat();
        ModelsSettings {
            dirs: paths(resolved, "models.dirs"),
            programs,
            elsewhere,
            download: flag(resolved, "models.download"),
            places: Places {
                loras: paths(resolved, "models.loras"),
                embeddings: paths(resolved, "models.embeddings"),
                detectors: paths(resolved, "models.detectors"),
                others_detectors: detectors_of(&others),
            },
            aliases: aliases.collect(),
            options,
        }
    }
}

fn store_of(resolved: &Resolved) -> Result<Place, Failure> {
    let file = |place| {
        let path = resolved.get(place).and_then(Value::as_str);
        path.map(PathBuf::from)
    };
    let identity = match (file("server.store_cert"), file("server.store_key")) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        _ => {
            return Err(Failure::mistake(
                "server.store_cert and server.store_key belong together: a certificate and its key",
            ));
        }
    };
    let tls = TlsFiles {
        authority: file("server.store_ca"),
        identity,
    };
    let queue = text(resolved, "server.store_queue");
    Place::of(&text(resolved, "server.store"), &queue, tls)
}

/// Whether only this machine reaches such an address.
pub(crate) fn is_local(host: &str) -> bool {
    host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

fn text(resolved: &Resolved, place: &str) -> String {
    let value = resolved.get(place).and_then(Value::as_str);
    value.unwrap_or_default().to_owned()
}

fn texts(resolved: &Resolved, place: &str) -> Vec<String> {
    let items = resolved.get(place).and_then(Value::as_array);
    let items = items.into_iter().flatten().filter_map(Value::as_str);
    items.map(str::to_owned).collect()
}

fn paths(resolved: &Resolved, place: &str) -> Vec<PathBuf> {
    texts(resolved, place).iter().map(PathBuf::from).collect()
}

fn count(resolved: &Resolved, place: &str) -> u64 {
    resolved
        .get(place)
        .and_then(Value::as_u64)
        .unwrap_or_default()
}

fn flag(resolved: &Resolved, place: &str) -> bool {
    resolved
        .get(place)
        .and_then(Value::as_bool)
        .unwrap_or_default()
}

fn duration(resolved: &Resolved, place: &str) -> Duration {
    resolved.get(place).and_then(time).unwrap_or_default()
}

fn keep_alive(value: &Value) -> Option<KeepAlive> {
    value.as_str()?.parse().ok()
}

fn after_job(value: &Value) -> Option<AfterJob> {
    match value.as_str()? {
        "offload" => Some(AfterJob::Offload),
        "release" => Some(AfterJob::Release),
        _ => Some(AfterJob::Keep),
    }
}

fn tables(resolved: &Resolved, table: &str) -> BTreeMap<String, Map<String, Value>> {
    let mut found: BTreeMap<String, Map<String, Value>> = BTreeMap::new();
    for (rest, value) in resolved.below(&[table]) {
        if let [name, field] = rest {
            let fields = found.entry(name.clone()).or_default();
            fields.insert(field.clone(), value.clone());
        }
    }
    found
}

/// Everything with its origin, for people.
pub(crate) fn shown(settings: &Settings) -> String {
    let mut table = crate::console::Table::new(&[]);
    for (place, key, given) in settings.resolved.all() {
        let (value, origin) = match given {
            Some(given) => (key.kind.show(&given.value), given.origin.to_string()),
            None => (format!("({})", key.otherwise), "default".to_owned()),
        };
        table.row([super::keys::written(&place), value, origin]);
    }
    table.text()
}

/// Everything with its origin, for programs.
pub(crate) fn shown_json(settings: &Settings) -> Value {
    let all = settings
        .resolved
        .all()
        .into_iter()
        .map(|(place, key, given)| {
            let (value, origin) = match given {
                Some(given) => (key.kind.told(&given.value), given.origin.to_string()),
                None => (Value::Null, "default".to_owned()),
            };
            json!({ "setting": super::keys::written(&place), "value": value, "origin": origin })
        });
    json!({ "settings": all.collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// The settings of a file with this text.
    pub(super) fn from_text(text: &str) -> Result<Settings, Failure> {
        let mut resolved = Resolved::defaults();
        resolved.text("server.data_dir", "data", &Origin::Default)?;
        resolved.file(Path::new("lowtide.toml"), text)?;
        Settings::of(resolved)
    }

    #[test]
    fn what_is_written_is_what_is_meant() {
        let settings = from_text(
            "[device]\nreserve = \"10%\"\n[worker]\nkeep_alive = \"auto\"\nidle_timeout = \"never\"\n\
             [queue.priority]\nno-op = \"batch\"\n\
             [models.options.demo]\nafter_job = \"release\"\nidle_timeout = \"never\"\n\
             [presets.fast]\nguidance = 0",
        )
        .unwrap();
        assert_eq!(settings.device.reserve, Some(Reserve::Share(0.1)));
        assert_eq!(settings.worker.keep_alive, Some(KeepAlive::Auto));
        assert_eq!(settings.worker.idle, None);
        assert_eq!(settings.queue.priority["no-op"], Priority::Batch);
        let demo = ModelSettings {
            after_job: Some(AfterJob::Release),
            idle: Some(None),
            keep_alive: None,
        };
        assert_eq!(settings.models.options["demo"], demo);
        assert_eq!(
            Value::Object(settings.presets["fast"].clone()),
            json!({ "guidance": 0, "steps": 20 })
        );
        assert_eq!(
            settings.kinds,
            ["text-to-image", "noise", "upscale", "detail", "detect"]
        );
        assert_eq!(
            settings.server.store,
            Place::File(PathBuf::from("data/lowtide.db"))
        );
        assert_eq!(settings.server.files_dir, Path::new("data"));
    }

    #[test]
    fn a_password_is_not_shown() {
        let settings = from_text(
            "[server]\nstore = \"rediss://me:hunter2@host\"\nstore_queue = \"studio\"\nfiles_dir = \"shared\"",
        )
        .unwrap();
        assert_eq!(settings.server.files_dir, Path::new("shared"));
        assert!(settings.server.store.to_string().starts_with("studio of"));
        for told in [shown(&settings), shown_json(&settings).to_string()] {
            assert!(told.contains("rediss://me:***@host"), "{told}");
            assert!(!told.contains("hunter2"), "{told}");
        }
        assert!(!format!("{:?}", settings.server).contains("hunter2"));
        // A worker that is started beside it has to know it.
        assert!(settings.resolved.document().to_string().contains("hunter2"));
        let half = from_text("[server]\nstore_cert = \"a.pem\"").unwrap_err();
        assert!(half.to_string().contains("server.store_key"), "{half}");
    }

    #[test]
    fn every_setting_is_shown_with_its_origin() {
        let settings = from_text("[server]\nport = 1").unwrap();
        let text = shown(&settings);
        let line = |start: &str| {
            text.lines()
                .find(|line| line.contains(start))
                .unwrap()
                .to_owned()
        };
        assert!(line("server.port").ends_with("lowtide.toml"));
        assert!(line("device.budget").contains("free memory"));
        assert!(line("presets.fast.steps").ends_with("default"));
        let json = shown_json(&settings);
        assert!(
            json["settings"].as_array().unwrap().contains(
                &json!({ "setting": "server.port", "value": 1, "origin": "lowtide.toml" })
            )
        );
    }
}
