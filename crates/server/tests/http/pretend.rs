//! A door without an engine and a worker without a model: real store, real files, real leases; only the pictures are made
//! up. Shared by the tests and by the example of a server to try clients on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lowtide_core::job::Moment;
use lowtide_core::{Budget, Bytes};
use lowtide_jobs::report::{
    Cards, DeviceCard, Explanation, Hints, HolderBytes, Memory, ModelStatus, SessionStatus, Status,
    WorkerState,
};
use lowtide_jobs::{
    Acknowledgement, ArtifactStore, Claimed, Directive, Heartbeat, JobStore, Order, Outcome,
    Preview, Progress, Result, WorkerId,
};
use lowtide_server::{Checked, Door, Extra, Kind, ModelEntry, Planned, Refused};
use serde_json::{Map, Value, json};

/// A picture of one transparent point.
pub(crate) const PNG: &[u8] = &[
    0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a, 0x00, 0x00, 0x00, 0x0d, 0x49, 0x48, 0x44, 0x52,
    0x00, 0x00, 0x00, 0x01, 0x00, 0x00, 0x00, 0x01, 0x08, 0x06, 0x00, 0x00, 0x00, 0x1f, 0x15, 0xc4,
    0x89, 0x00, 0x00, 0x00, 0x0b, 0x49, 0x44, 0x41, 0x54, 0x78, 0x9c, 0x63, 0x60, 0x00, 0x02, 0x00,
    0x00, 0x05, 0x00, 0x01, 0x7a, 0x5e, 0xab, 0x3f, 0x00, 0x00, 0x00, 0x00, 0x49, 0x45, 0x4e, 0x44,
    0xae, 0x42, 0x60, 0x82,
];

/// What stands for a mask.
pub(crate) const MASK: &[u8] = b"\x89PNG\r\n\x1a\nmask";

/// Seconds a step is predicted to take.
const STEP_S: f64 = 0.1;

/// The system's clock.
pub(crate) fn now() -> Moment {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    Moment(since.map_or(0, |since| since.as_millis() as u64))
}

/// Knows pictures of the model `demo`, which needs 4 MiB.
#[derive(Default)]
pub(crate) struct PretendDoor;

const WHOLE: [(&str, u64, u64, u64); 5] = [
    ("width", 16, 2048, 128),
    ("height", 16, 2048, 128),
    ("steps", 1, 100, 4),
    ("count", 1, 10, 1),
    ("seed", 0, u64::MAX, 7),
];

impl PretendDoor {
    fn schema() -> Value {
        let mut properties = Map::new();
        properties.insert(
            "prompt".to_owned(),
            json!({ "type": "string", "maxLength": 2000 }),
        );
        properties.insert(
            "negative".to_owned(),
            json!({ "type": "string", "maxLength": 2000 }),
        );
        for (name, from, to, default) in WHOLE {
            properties.insert(
                name.to_owned(),
                json!({ "type": "integer", "minimum": from, "maximum": to, "default": default }),
            );
        }
        properties.insert(
            "guidance".to_owned(),
            json!({ "type": "number", "minimum": 0, "maximum": 30 }),
        );
        for word in ["sampler", "schedule"] {
            properties.insert(
                word.to_owned(),
                json!({ "type": "string", "maxLength": 64 }),
            );
        }
        for picture in ["image", "mask"] {
            properties.insert(
                picture.to_owned(),
                json!({ "type": "string", "maxLength": 256, "format": "input-picture" }),
            );
        }
        properties.insert(
            "strength".to_owned(),
            json!({ "type": "number", "minimum": 0, "maximum": 1 }),
        );
        properties.insert(
            "quality".to_owned(),
            json!({ "type": "string", "enum": ["auto", "exact"] }),
        );
        properties.insert(
            "output_format".to_owned(),
            json!({ "type": "string", "enum": ["png"] }),
        );
        json!({
            "type": "object", "required": ["prompt"], "properties": properties, "additionalProperties": false,
        })
    }

    fn filled(request: &Value) -> std::result::Result<Value, Refused> {
        let invalid = |field: &str, problem: String| Refused::Invalid {
            field: field.to_owned(),
            problem,
        };
        let fields = request
            .as_object()
            .ok_or_else(|| invalid("request", "an object is needed".to_owned()))?;
        let schema = PretendDoor::schema();
        for (name, value) in fields {
            let Some(kind) = schema["properties"][name]["type"].as_str() else {
                return Err(invalid(name, "there is no such field".to_owned()));
            };
            let fits = match kind {
                "string" => {
                    let text = value.as_str();
                    let choices = schema["properties"][name]["enum"].as_array();
                    text.is_some_and(|text| {
                        text.chars().count() <= 2000
                            && choices.is_none_or(|all| all.iter().any(|one| one == text))
                    })
                }
                "number" => value
                    .as_f64()
                    .zip(schema["properties"][name]["maximum"].as_f64())
                    .is_some_and(|(number, most)| (0.0..=most).contains(&number)),
                _ => {
                    let (_, from, to, _) = WHOLE
                        .iter()
                        .find(|(whole, ..)| whole == name)
                        .expect("it is one of the list");
                    let float = value.as_f64().filter(|float| float.fract() == 0.0);
                    let whole = value.as_u64().or(float
                        .filter(|float| (0.0..9e15).contains(float))
                        .map(|float| float as u64));
                    whole.is_some_and(|whole| (*from..=*to).contains(&whole))
                }
            };
            if !fits {
                return Err(invalid(
                    name,
                    format!("{value} does not fit {}", schema["properties"][name]),
                ));
            }
        }
        if !fields.contains_key("prompt") {
            return Err(invalid("prompt", "a text is needed".to_owned()));
        }
        let mut filled = fields.clone();
        for (name, _, _, default) in WHOLE {
            filled.entry(name).or_insert(json!(default));
        }
        Ok(Value::Object(filled))
    }
}

impl Door for PretendDoor {
    fn kinds(&self) -> Vec<Kind> {
        vec![Kind {
            name: "text-to-image".to_owned(),
            about: "Pretends to make a picture.".to_owned(),
            schema: PretendDoor::schema(),
            model_default: Some("demo".to_owned()),
        }]
    }

    fn models(&self) -> Vec<ModelEntry> {
        vec![ModelEntry {
            name: "demo".to_owned(),
            aliases: vec!["dall-e-3".to_owned()],
            kinds: vec!["text-to-image".to_owned()],
            bytes: Bytes::mib(3),
            defaults: json!({ "width": 128, "height": 128, "steps": 4 }),
        }]
    }

    fn check(
        &self,
        kind: &str,
        model: Option<&str>,
        request: Value,
        budget: Option<Budget>,
    ) -> std::result::Result<Checked, Refused> {
        if kind != "text-to-image" {
            return Err(Refused::UnknownKind {
                kind: kind.to_owned(),
                known: vec!["text-to-image".to_owned()],
            });
        }
        match model {
            None | Some("demo" | "dall-e-3") => {}
            Some(other) => {
                return Err(Refused::UnknownModel {
                    model: other.to_owned(),
                    known: vec!["demo".to_owned()],
                });
            }
        }
        let request = PretendDoor::filled(&request)?;
        let needed = Bytes::mib(4);
        if let Some(budget) = budget.filter(|budget| budget.available() < needed) {
            return Err(Refused::DoesNotFit {
                sentence: format!("it needs {needed} and {} are free", budget.available()),
                needed,
                budget: budget.available(),
                smallest: needed,
            });
        }
        // Memory buys time here as it does elsewhere.
        let hurry = budget.map_or(1.0, |budget| {
            (Bytes::mib(64).as_f64() / budget.available().as_f64()).clamp(0.25, 1.0)
        });
        let steps = request["steps"].as_f64().unwrap_or(1.0);
        let hints = Hints {
            seconds: steps * STEP_S * hurry,
            peak: needed.0,
            batch: None,
            steps: Vec::new(),
        };
        Ok(Checked {
            model: "demo".to_owned(),
            request,
            hints,
        })
    }

    fn plan(
        &self,
        kind: &str,
        model: Option<&str>,
        request: Value,
        budget: Option<Budget>,
    ) -> std::result::Result<Planned, Refused> {
        Ok(Planned {
            checked: self.check(kind, model, request, budget)?,
            plan: json!({ "phases": [] }),
            reasons: vec!["All of it is pretended.".to_owned()],
            approximate: Vec::new(),
        })
    }

    /// The one picture that can be seen through here is [`PNG`]; its mask is a white point.
    fn mask_of(&self, picture: &[u8]) -> std::result::Result<Option<Vec<u8>>, Refused> {
        Ok((picture == PNG).then(|| MASK.to_vec()))
    }

    fn inverted(&self, mask: &[u8]) -> std::result::Result<Vec<u8>, Refused> {
        Ok([mask, b" turned"].concat())
    }

    /// Every picture but [`PNG`] says what it was made with.
    fn parameters_of(&self, picture: &[u8]) -> std::result::Result<Option<String>, Refused> {
        let text = "a red heart\nNegative prompt: blue\nSteps: 4, Sampler: Euler, Size: 128x128";
        Ok((picture != PNG).then(|| text.to_owned()))
    }

    fn size_of(&self, _: &[u8]) -> std::result::Result<[u32; 2], Refused> {
        Ok([1, 1])
    }

    fn loras(&self) -> Vec<Extra> {
        vec![Extra {
            name: "styles/ink".to_owned(),
            bytes: Bytes(100),
        }]
    }

    fn embeddings(&self) -> Vec<Extra> {
        Vec::new()
    }
}

/// How the pretended worker behaves; tests turn these while it runs.
#[derive(Debug, Default)]
pub(crate) struct Knobs {
    /// It does no step while this is set.
    pub(crate) stuck: AtomicBool,
    /// It fails every job.
    pub(crate) fails: AtomicBool,
    /// Milliseconds a step takes.
    pub(crate) step_ms: AtomicU64,
    /// Steps done in all.
    pub(crate) steps: AtomicU64,
    /// It stops.
    pub(crate) ends: AtomicBool,
}

/// A worker that claims, steps and finishes jobs, on a thread of its own until dropped.
pub(crate) struct PretendWorker {
    /// How it behaves.
    pub(crate) knobs: Arc<Knobs>,
    store: Arc<dyn JobStore>,
    thread: Option<JoinHandle<()>>,
}

impl PretendWorker {
    /// Starts it.
    pub(crate) fn start(
        store: Arc<dyn JobStore>,
        artifacts: Arc<dyn ArtifactStore>,
        knobs: Knobs,
    ) -> PretendWorker {
        let knobs = Arc::new(knobs);
        let mut body = Body {
            store: Arc::clone(&store),
            artifacts,
            knobs: Arc::clone(&knobs),
            id: "pretend-1".parse().expect("a plain name"),
            status: status(),
        };
        body.beat();
        let thread = std::thread::spawn(move || {
            if let Err(error) = body.run() {
                eprintln!("the pretended worker ends: {error}");
            }
        });
        PretendWorker {
            knobs,
            store,
            thread: Some(thread),
        }
    }
}

impl Drop for PretendWorker {
    fn drop(&mut self) {
        self.knobs.ends.store(true, Ordering::SeqCst);
        self.store.nudge();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn status() -> Status {
    Status {
        state: WorkerState::Idle,
        memory: Memory {
            budget: 64 << 20,
            allocated: 5_000_000,
            reserved: 6_000_000,
            total: 256 << 20,
            holders: vec![HolderBytes {
                name: "demo".to_owned(),
                kind: "model".to_owned(),
                bytes: 3 << 20,
            }],
            ..Memory::default()
        },
        models: vec![ModelStatus {
            name: "demo".to_owned(),
            residency: "device".to_owned(),
            bytes: 3 << 20,
            ..ModelStatus::default()
        }],
        explanations: vec![Explanation {
            code: "all_resident".to_owned(),
            text: "Everything is on the device: 3.0 MiB.".to_owned(),
            values: Map::from_iter([("bytes".to_owned(), json!(3 << 20))]),
        }],
        ..Status::default()
    }
}

struct Body {
    store: Arc<dyn JobStore>,
    artifacts: Arc<dyn ArtifactStore>,
    knobs: Arc<Knobs>,
    id: WorkerId,
    status: Status,
}

impl Body {
    fn ends(&self) -> bool {
        self.knobs.ends.load(Ordering::SeqCst)
    }

    fn beat(&mut self) {
        let cards = Cards {
            device: DeviceCard {
                name: "pretend".to_owned(),
                ..DeviceCard::default()
            },
            ..Cards::default()
        };
        let heartbeat = Heartbeat {
            worker: self.id.clone(),
            ttl: Duration::from_secs(30),
            cards: serde_json::to_string(&cards).ok(),
            status: serde_json::to_string(&self.status).expect("a status has JSON"),
        };
        self.store
            .heartbeat(heartbeat, now())
            .expect("the store takes a heartbeat");
    }

    fn run(&mut self) -> Result<()> {
        while !self.ends() {
            let seen = self.store.change_mark()?;
            self.obey()?;
            let found = self.store.candidates(1, now())?;
            let next = found
                .jobs
                .first()
                .filter(|_| !found.held && self.status.state == WorkerState::Idle);
            match next {
                Some(job) => {
                    match self
                        .store
                        .claim(job.id, &self.id, Duration::from_secs(30), now())
                    {
                        Ok(claimed) => self.work(&claimed)?,
                        // Somebody cancelled it in between.
                        Err(
                            lowtide_jobs::StoreError::NotClaimable { .. }
                            | lowtide_jobs::StoreError::NotFound { .. },
                        ) => {}
                        Err(error) => return Err(error),
                    }
                }
                None => {
                    self.store.wait_change(seen, Duration::from_millis(500))?;
                    if now().0 % 5_000 < 500 {
                        self.beat();
                    }
                }
            }
        }
        self.store.forget_worker(&self.id)
    }

    fn obey(&mut self) -> Result<()> {
        for command in self.store.commands(&self.id, now())? {
            let residency = &mut self.status.models[0].residency;
            let message = match &command.order {
                Order::Load { .. } => {
                    *residency = "device".to_owned();
                    "it is on the device"
                }
                Order::Offload { .. } => {
                    *residency = "host".to_owned();
                    "it is in host memory"
                }
                Order::Release { .. } => {
                    *residency = "unloaded".to_owned();
                    "its memory was given back"
                }
                Order::Pause { job: None } => {
                    self.status.state = WorkerState::Paused;
                    "no jobs are begun"
                }
                Order::Resume | Order::Drain => {
                    self.status.state = WorkerState::Idle;
                    "jobs are begun"
                }
                Order::Cancel { .. } | Order::Pause { job: Some(_) } => "it will be looked at",
            };
            self.beat();
            let answer = Acknowledgement {
                at: now(),
                ok: true,
                message: message.to_owned(),
            };
            self.store.acknowledge(&self.id, command.id, answer)?;
        }
        Ok(())
    }

    fn work(&mut self, claimed: &Claimed) -> Result<()> {
        let request: Value = serde_json::from_str(&claimed.job.request).unwrap_or_default();
        let number = |name: &str| request[name].as_u64().unwrap_or(1);
        let steps = number("steps") as u32;
        self.status.sessions = vec![SessionStatus {
            jobs: vec![claimed.job.id.to_string()],
            model: "demo".to_owned(),
            state: "active".to_owned(),
            remaining_s: f64::from(steps) * STEP_S,
            ..SessionStatus::default()
        }];
        self.beat();
        let mut step = 0;
        while step < steps {
            let seen = self.store.change_mark()?;
            self.obey()?;
            let directive = match self.knobs.stuck.load(Ordering::SeqCst) {
                true => self
                    .store
                    .renew(&claimed.lease, Duration::from_secs(30), now())?,
                false => {
                    step += 1;
                    self.knobs.steps.fetch_add(1, Ordering::SeqCst);
                    self.step(claimed, (step, steps))?
                }
            };
            if directive.cancel || directive.pause || self.ends() {
                return self.leave(claimed, directive);
            }
            if self.knobs.stuck.load(Ordering::SeqCst) {
                self.store.wait_change(seen, Duration::from_millis(20))?;
            } else {
                std::thread::park_timeout(Duration::from_millis(
                    self.knobs.step_ms.load(Ordering::SeqCst),
                ));
            }
        }
        self.status.sessions.clear();
        if self.knobs.fails.load(Ordering::SeqCst) {
            self.store
                .fail(&claimed.lease, "it was told to fail", false, now())?;
        } else {
            let made = (0..number("count")).map(|_| self.artifacts.put("image/png", PNG, now()));
            let artifacts = made.collect::<Result<Vec<_>>>()?;
            let report = Some(json!({ "seed": request["seed"] }).to_string());
            self.store
                .complete(&claimed.lease, Outcome { artifacts, report }, now())?;
        }
        self.beat();
        Ok(())
    }

    fn step(&self, claimed: &Claimed, (step, steps): (u32, u32)) -> Result<Directive> {
        let progress = Progress {
            phase: "denoise".to_owned(),
            step,
            steps,
            eta_ms: Some(u64::from(steps - step) * (STEP_S * 1e3) as u64),
        };
        // No two previews are the same, as in life.
        let preview = Preview {
            media_type: "image/png".to_owned(),
            content: [PNG, &step.to_be_bytes()].concat(),
        };
        self.store
            .progress(&claimed.lease, progress, Some(preview), now())
    }

    fn leave(&mut self, claimed: &Claimed, directive: Directive) -> Result<()> {
        self.status.sessions.clear();
        if directive.cancel {
            self.store.stopped(&claimed.lease, now())?;
        } else {
            self.store.give_back(&claimed.lease, None, now())?;
        }
        self.beat();
        Ok(())
    }
}
