//! `no-op`: a job that does nothing, for measuring everything around it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use lowtide_core::{Budget, Bytes, Plan};
use lowtide_weights::ModelFolder;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::processor::{
    BatchForecast, BatchKey, CacheFigures, Card, File, Forecast, Opened, Order, Processor, Product,
    Run, Stepped,
};
use crate::{Error, Options, Progress, Result};

const MODEL: &str = "no-op";

/// Longest pause of a step, milliseconds.
const STEP_MS_MAX: u64 = 60_000;

/// Most steps.
const STEPS_MAX: u32 = 10_000;

/// The kind.
pub(super) struct NoOp;

impl Processor for NoOp {
    fn kind(&self) -> &'static str {
        "no-op"
    }

    fn about(&self) -> &'static str {
        "Does nothing, as often and as slowly as asked; for measuring the queue"
    }

    fn schema(&self) -> Value {
        json!({
            "type": "object",
            "additionalProperties": false,
            "properties": {
                "steps": { "type": "integer", "minimum": 1, "maximum": STEPS_MAX, "default": 1, "title": "Steps" },
                "step_ms": { "type": "integer", "minimum": 0, "maximum": STEP_MS_MAX, "default": 0,
                             "title": "Milliseconds a step sleeps" },
            }
        })
    }

    fn own_models(&self) -> &'static [&'static str] {
        &[MODEL]
    }

    fn runs(&self, _: &ModelFolder) -> bool {
        false
    }

    fn open(&self, _: &str, _: Option<ModelFolder>, _: Options) -> Result<Arc<dyn Opened>> {
        Ok(Arc::new(Nothing))
    }
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    #[serde(default = "one")]
    steps: u32,
    #[serde(default)]
    step_ms: u64,
}

fn one() -> u32 {
    1
}

impl Request {
    fn read(request: &Value) -> Result<Request> {
        let request: Request = serde_json::from_value(request.clone())
            .map_err(|cause| Error::request("request", format!("is not understood: {cause}")))?;
        if !(1..=STEPS_MAX).contains(&request.steps) {
            let problem = format!("is {}; it must be between 1 and {STEPS_MAX}", request.steps);
            return Err(Error::request("steps", problem));
        }
        if request.step_ms > STEP_MS_MAX {
            let problem = format!("is {}; at most {STEP_MS_MAX} are slept", request.step_ms);
            return Err(Error::request("step_ms", problem));
        }
        Ok(request)
    }

    fn seconds(self) -> f64 {
        f64::from(self.steps) * self.step_ms as f64 / 1e3
    }
}

struct Nothing;

impl Opened for Nothing {
    fn card(&self) -> Card {
        Card {
            bytes: Bytes::ZERO,
            components: Vec::new(),
            defaults: json!({ "steps": 1, "step_ms": 0 }),
        }
    }

    fn check(&self, request: &Value) -> Result<Value> {
        let request = Request::read(request)?;
        Ok(serde_json::to_value(request).expect("two numbers"))
    }

    fn forecast(&self, request: &Value, _: Option<Budget>) -> Result<Forecast> {
        let request = Request::read(request)?;
        let settings = u64::from(request.steps) << 32 | request.step_ms;
        Ok(Forecast {
            plan: None,
            seconds: request.seconds(),
            peak: Bytes::ZERO,
            batch: Some(BatchForecast {
                key: BatchKey {
                    size: [0, 0],
                    settings,
                },
                more: Bytes::ZERO,
                more_seconds: 0.0,
            }),
        })
    }

    fn start(&self, orders: Vec<Order<'_>>) -> Result<Box<dyn Run>> {
        let first = orders
            .first()
            .ok_or_else(|| Error::request("orders", "are none: this is a bug"))?;
        let request = Request::read(&first.request)?;
        Ok(Box::new(Idling {
            request,
            done: 0,
            wanted: vec![true; orders.len()],
        }))
    }

    fn held(&self) -> Bytes {
        Bytes::ZERO
    }

    fn load(&self) -> Result<Bytes> {
        Ok(Bytes::ZERO)
    }

    fn forget(&self) -> Bytes {
        Bytes::ZERO
    }

    fn prompt_cache(&self) -> CacheFigures {
        CacheFigures::default()
    }
}

struct Idling {
    request: Request,
    done: u32,
    wanted: Vec<bool>,
}

impl Run for Idling {
    fn step(&mut self) -> Result<Stepped> {
        let pause = Duration::from_millis(self.request.step_ms);
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
        self.done += 1;
        if self.done >= self.request.steps {
            let product = || Product {
                files: Vec::new(),
                report: json!({ "steps": self.done }),
            };
            let products = self.wanted.iter().map(|&wanted| wanted.then(product));
            return Ok(Stepped::Finished(products.collect()));
        }
        Ok(Stepped::Progress(Progress {
            phase: "idle",
            done: self.done as usize,
            total: self.request.steps as usize,
            elapsed: pause,
            memory: Bytes::ZERO,
        }))
    }

    fn park(&mut self) {}

    fn save(&self, _: usize, _: &Path) -> Result<bool> {
        Ok(false)
    }

    fn drop_member(&mut self, member: usize) {
        self.wanted[member] = false;
    }

    fn preview(&self, _: usize) -> Option<File> {
        None
    }

    fn plan(&self) -> Option<&Plan> {
        None
    }

    fn remaining_s(&self) -> f64 {
        let left = Request {
            steps: self.request.steps.saturating_sub(self.done),
            ..self.request
        };
        left.seconds()
    }

    fn holds(&self) -> Bytes {
        Bytes::ZERO
    }

    fn keeps(&self) -> Bytes {
        Bytes::ZERO
    }

    fn peak(&self) -> Bytes {
        Bytes::ZERO
    }

    fn rungs_taken(&self) -> usize {
        0
    }
}
