//! `no-op`: a job that does nothing, for measuring everything around it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use lowtide_core::{Budget, Bytes};
use lowtide_weights::ModelFolder;
use serde_json::{Value, json};

use super::fields::Fields;
use crate::processor::{
    BatchForecast, BatchKey, Card, Forecast, Opened, Order, Processor, Product, Run, Setup, Stepped,
};
use crate::{Error, Progress, Result};

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
                "steps": { "type": ["integer", "null"], "minimum": 1, "maximum": STEPS_MAX, "default": 1, "title": "Steps" },
                "step_ms": { "type": ["integer", "null"], "minimum": 0, "maximum": STEP_MS_MAX, "default": 0,
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

    fn open(&self, _: &str, _: Option<ModelFolder>, _: Setup) -> Result<Arc<dyn Opened>> {
        Ok(Arc::new(Nothing))
    }
}

#[derive(Clone, Copy, Debug)]
struct Request {
    steps: u32,
    step_ms: u64,
}

impl Request {
    fn read(request: &Value) -> Result<Request> {
        let mut fields = Fields::of(request)?;
        let steps = fields.whole("steps", 1..=u64::from(STEPS_MAX))?;
        let step_ms = fields.whole("step_ms", 0..=STEP_MS_MAX)?;
        fields.done()?;
        Ok(Request {
            steps: steps.map_or(1, |steps| steps as u32),
            step_ms: step_ms.unwrap_or(0),
        })
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
        Ok(json!({ "steps": request.steps, "step_ms": request.step_ms }))
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

    fn save(&self, _: usize, _: &Path) -> Result<bool> {
        Ok(false)
    }

    fn drop_member(&mut self, member: usize) {
        self.wanted[member] = false;
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

    fn peak(&self) -> Bytes {
        Bytes::ZERO
    }
}
