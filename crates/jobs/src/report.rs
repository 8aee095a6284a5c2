//! What a worker says of itself, and what is predicted of a job: the JSON that a store carries without looking into it,
//! typed for those who write and read it.
//!
//! Bytes are whole bytes and moments milliseconds since the Unix epoch, as everywhere; a figure that nobody could
//! measure is left out rather than 0.

use serde::{Deserialize, Serialize};

/// What is predicted of a job when it is accepted: a submission's `hints`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Hints {
    /// Seconds with the model on the device.
    pub seconds: f64,
    /// Peak on the device, the model's weights included, what other jobs and models hold not.
    pub peak: u64,
    /// What it can share a batch with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<BatchHints>,
    /// Of a job of several steps, the kind and model of each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<StepHints>,
}

/// A step of a job of several.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StepHints {
    /// What kind of job it is.
    pub kind: String,
    /// Its model.
    pub model: String,
}

/// How a job can share a batch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BatchHints {
    /// Width and height of the result.
    pub size: [u32; 2],
    /// A digest of every other setting that has to be the same, as text: JSON numbers hold only 53 bits.
    pub settings: String,
    /// Bytes each further job adds to the peak.
    pub more: u64,
    /// Seconds each further job adds.
    pub more_seconds: f64,
}

/// A worker's device, kinds of jobs and models: the `cards` of its heartbeat.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cards {
    /// What it computes on.
    pub device: DeviceCard,
    /// Kinds of jobs it does.
    pub kinds: Vec<String>,
    /// Models it can run, loaded or not.
    pub models: Vec<ModelCard>,
}

/// What a worker computes on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DeviceCard {
    /// `cpu`, `cuda:0`.
    pub name: String,
    /// For people: the processor or the graphics card.
    pub description: String,
    /// Bytes a second from where a streamed block lives into its slot.
    pub link_bytes_per_s: f64,
    /// Bytes a second of a block's first read.
    pub cold_bytes_per_s: f64,
    /// Operations a second the models reach.
    pub flops_per_s: f64,
    /// Threads that compute.
    pub threads: usize,
    /// `f32` or `bf16`.
    pub precision: String,
}

/// A model a worker can run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ModelCard {
    /// Its name.
    pub name: String,
    /// Kinds of jobs it can be used for.
    pub kinds: Vec<String>,
    /// Bytes of all its weights.
    pub bytes: u64,
    /// Its networks.
    pub components: Vec<ComponentCard>,
    /// What a request leaves out: width, height, steps, guidance.
    pub defaults: serde_json::Value,
}

/// One network of a model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ComponentCard {
    /// `text_encoder`, `transformer`, `vae`.
    pub name: String,
    /// Number of its blocks.
    pub blocks: usize,
    /// Bytes of them together.
    pub bytes: u64,
}

/// How a worker is now: the `status` of its heartbeat.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// What it does.
    pub state: WorkerState,
    /// The process.
    pub pid: u32,
    /// When it began.
    pub started_ms: u64,
    /// Who holds which byte of the device.
    pub memory: Memory,
    /// How busy the device is.
    pub utilisation: Utilisation,
    /// Watts, where the device tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power_w: Option<f64>,
    /// Every model it can run.
    pub models: Vec<ModelStatus>,
    /// Open sessions, the one that steps first.
    pub sessions: Vec<SessionStatus>,
    /// The cache of prompt embeddings.
    pub prompt_cache: CacheStatus,
    /// The latest decision, as a sentence.
    pub decision: String,
    /// Why things are as they are, the most important first.
    pub explanations: Vec<Explanation>,
    /// Jobs since it began.
    pub counts: WorkerCounts,
}

/// What a worker does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkerState {
    /// It opens its models and preloads; it claims nothing yet.
    #[default]
    Starting,
    /// It waits for jobs.
    Idle,
    /// It moves a model.
    Loading,
    /// It steps a session.
    Busy,
    /// A hand paused it.
    Paused,
    /// It ends as soon as what runs is parked and saved.
    Draining,
}

/// Bytes of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Memory {
    /// What the worker may ever use.
    pub budget: u64,
    /// Bytes the worker has asked for and not given back: weights, activations, everything else.
    pub allocated: u64,
    /// Bytes taken from the device or the system: allocated, and what is kept for reuse.
    pub reserved: u64,
    /// Built into the device.
    pub total: u64,
    /// What others could still have without anybody being short.
    pub available: u64,
    /// The most that was allocated since the worker began.
    pub peak: u64,
    /// The most that was allocated during the latest job.
    pub job_peak: u64,
    /// Who holds what, largest first; together no more than `allocated`.
    pub holders: Vec<HolderBytes>,
}

/// What one holder has of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HolderBytes {
    /// A model's name, a job's id, or `prompt cache`.
    pub name: String,
    /// `model`, `job`, `cache`.
    pub kind: String,
    /// How many.
    pub bytes: u64,
}

/// How busy the device was: the share of time in which something was computed, 0 to 1.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Utilisation {
    /// Over the last second.
    pub now: f64,
    /// Over the running job, or the latest one.
    pub job_average: f64,
    /// The busiest second of that job.
    pub job_peak: f64,
}

fn is_zero(bytes: &u64) -> bool {
    *bytes == 0
}

/// A model on a worker.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ModelStatus {
    /// Its name.
    pub name: String,
    /// `unloaded`, `host`, `device`.
    pub residency: String,
    /// Where it is on its way to, while it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moving_to: Option<String>,
    /// Bytes of its weights on the device; what several models share is counted at one of them.
    pub device_bytes: u64,
    /// Further bytes of its weights on the device, counted at another model that has the same.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub shared_bytes: u64,
    /// Bytes of ours that it holds in host memory.
    pub host_bytes: u64,
    /// Bytes of all its weights.
    pub bytes: u64,
    /// Jobs that use it now.
    pub in_flight: u32,
    /// Seconds without a job; left out while one uses it, and before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_s: Option<f64>,
    /// Seconds until the timer moves it, if nothing else happens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leaves_in_s: Option<f64>,
    /// How long it stays, in words: `600s`, `forever`, `auto`.
    pub keep_alive: String,
    /// Seconds of the latest load.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_load_s: Option<f64>,
    /// Moves by kind.
    pub moves: Moves,
    /// Jobs that found it on the device, and jobs that did not.
    pub hits: u64,
    /// See `hits`.
    pub misses: u64,
}

/// Moves of a model since the worker began.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Moves {
    /// From its files to the device.
    pub loads: MoveTally,
    /// From host memory to the device.
    pub restores: MoveTally,
    /// To host memory.
    pub offloads: MoveTally,
    /// Out.
    pub releases: MoveTally,
    /// Moves that failed.
    pub failed: MoveTally,
}

/// Moves of one kind.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MoveTally {
    /// How many.
    pub count: u64,
    /// Seconds of all of them.
    pub seconds: f64,
    /// Seconds of the latest.
    pub last_s: f64,
}

/// An open session.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SessionStatus {
    /// Its jobs; several where they share a batch.
    pub jobs: Vec<String>,
    /// The model.
    pub model: String,
    /// `active`, `parked`, `held`.
    pub state: String,
    /// What it does.
    pub phase: String,
    /// Steps done of the phase.
    pub step: u32,
    /// Steps of the phase.
    pub steps: u32,
    /// Predicted seconds that remain.
    pub remaining_s: f64,
    /// Bytes it holds on the device, the model's weights not included.
    pub holds: u64,
    /// The plan's sentences.
    pub reasons: Vec<String>,
    /// Rungs taken after memory was refused.
    pub rungs_taken: usize,
}

/// A cache.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CacheStatus {
    /// What is in it.
    pub entries: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Its bound.
    pub bytes_max: u64,
    /// Looked for and found.
    pub hits: u64,
    /// Looked for in vain.
    pub misses: u64,
}

/// Jobs of a worker since it began.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkerCounts {
    /// Attempts begun.
    pub started: u64,
    /// Jobs done.
    pub done: u64,
    /// Attempts that failed.
    pub failed: u64,
    /// Jobs stopped because nobody wanted them any more.
    pub cancelled: u64,
    /// Times a session was parked for another.
    pub parked: u64,
    /// Times memory was refused and a rung was taken.
    pub rungs: u64,
    /// Bytes of weights read.
    pub bytes_read: u64,
    /// Seconds spent computing.
    pub busy_s: f64,
}

/// A sentence with its numbers, so that a panel can say it in other languages.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Explanation {
    /// What it is about, such as `idle`, `streaming`, `all_resident`, `loading`, `budget`, `no_room`.
    pub code: String,
    /// The sentence in English.
    pub text: String,
    /// The numbers in it, by name: bytes, seconds, counts, and names.
    #[serde(default)]
    pub values: serde_json::Map<String, serde_json::Value>,
}

impl Explanation {
    /// One whose numbers are the members of a JSON object.
    pub fn new(code: &str, text: String, values: serde_json::Value) -> Explanation {
        let values = match values {
            serde_json::Value::Object(values) => values,
            _ => serde_json::Map::new(),
        };
        Explanation {
            code: code.to_owned(),
            text,
            values,
        }
    }
}

impl Hints {
    /// As text for a submission.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("numbers and texts have JSON")
    }

    /// From a record's text; `None` where it is something else.
    pub fn from_json(text: &str) -> Option<Hints> {
        serde_json::from_str(text).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_survives_its_text_and_an_older_one_is_read() {
        let status = Status {
            pid: 7,
            models: vec![ModelStatus {
                name: "demo".to_owned(),
                ..ModelStatus::default()
            }],
            ..Status::default()
        };
        let text = serde_json::to_string(&status).unwrap();
        assert_eq!(serde_json::from_str::<Status>(&text).unwrap(), status);
        assert!(
            !text.contains("idle_s"),
            "what nobody knows is left out: {text}"
        );
    }

    #[test]
    fn hints_are_numbers_or_nothing() {
        let hints = Hints {
            seconds: 1.5,
            peak: 3,
            batch: None,
            steps: vec![StepHints {
                kind: "upscale".to_owned(),
                model: "x4".to_owned(),
            }],
        };
        assert_eq!(Hints::from_json(&hints.to_json()), Some(hints));
        assert_eq!(Hints::from_json("7"), None);
    }
}
