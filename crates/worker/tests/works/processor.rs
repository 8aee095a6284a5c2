//! A kind of job that does what its request says: counts, holds memory, fails, panics, waits for a sign.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use lowtide_core::{Budget, Bytes, Plan};
use lowtide_engine::processor::{
    BatchForecast, BatchKey, CacheFigures, Card, File, Forecast, Opened, Order, Processor, Product,
    Run, Setup, Stepped,
};
use lowtide_engine::{Error, Progress, Result};
use lowtide_weights::ModelFolder;
use serde_json::{Value, json};

/// Bytes of each model's weights.
pub(crate) const WEIGHTS: Bytes = Bytes::mib(1);

/// What a test sees of the runs, and how it steers them.
#[derive(Default)]
pub(crate) struct Stage {
    play: Mutex<Play>,
    moved: Condvar,
    /// Sizes of the batches started.
    pub(crate) batches: Mutex<Vec<usize>>,
    /// Times a session was parked.
    pub(crate) parked: AtomicU64,
    /// Steps computed in all, over all runs.
    pub(crate) computed: AtomicU64,
}

#[derive(Default)]
struct Play {
    /// Steps done, by what the request calls itself.
    steps: BTreeMap<String, u32>,
    /// Names whose runs wait after each step until they are let go.
    barred: Vec<String>,
    /// Whose steps they were, in the order in which they were computed.
    order: Vec<String>,
}

impl Stage {
    /// Runs of this name wait after each step.
    pub(crate) fn bar(&self, name: &str) {
        self.play.lock().unwrap().barred.push(name.to_owned());
    }

    pub(crate) fn let_go(&self, name: &str) {
        self.play
            .lock()
            .unwrap()
            .barred
            .retain(|barred| barred != name);
        self.moved.notify_all();
    }

    /// Waits until a run of this name has done so many steps.
    pub(crate) fn wait_for_steps(&self, name: &str, steps: u32) {
        self.wait(&format!("{steps} steps of '{name}'"), |play| {
            play.steps.get(name).copied().unwrap_or_default() >= steps
        });
    }

    /// Whose steps were computed, in order.
    pub(crate) fn order(&self) -> Vec<String> {
        self.play.lock().unwrap().order.clone()
    }

    fn step(&self, name: &str, step: u32) {
        self.computed.fetch_add(1, Ordering::SeqCst);
        {
            let mut play = self.play.lock().unwrap();
            play.steps.insert(name.to_owned(), step);
            play.order.push(name.to_owned());
        }
        self.moved.notify_all();
        self.wait(&format!("'{name}' to be let go"), |play| {
            !play.barred.iter().any(|barred| barred == name)
        });
    }

    fn wait(&self, what: &str, until: impl Fn(&Play) -> bool) {
        let play = self.play.lock().unwrap();
        let limit = Duration::from_secs(30);
        let waited = self
            .moved
            .wait_timeout_while(play, limit, |play| !until(play));
        assert!(!waited.unwrap().1.timed_out(), "waited in vain for {what}");
    }
}

pub(crate) struct Acts(pub(crate) Arc<Stage>);

impl Processor for Acts {
    fn kind(&self) -> &'static str {
        "act"
    }

    fn about(&self) -> &'static str {
        "does what its request says"
    }

    fn schema(&self) -> Value {
        json!({ "type": "object", "properties": { "image": { "type": "string" } } })
    }

    fn own_models(&self) -> &'static [&'static str] {
        &["one", "two"]
    }

    fn runs(&self, _: &ModelFolder) -> bool {
        false
    }

    fn open(&self, _: &str, _: Option<ModelFolder>, _: Setup) -> Result<Arc<dyn Opened>> {
        Ok(Arc::new(Model {
            stage: self.0.clone(),
            held: Arc::new(AtomicU64::new(0)),
        }))
    }
}

struct Model {
    stage: Arc<Stage>,
    held: Arc<AtomicU64>,
}

impl Opened for Model {
    fn card(&self) -> Card {
        Card {
            bytes: WEIGHTS,
            components: vec![("act".to_owned(), 1, WEIGHTS)],
            defaults: json!({}),
        }
    }

    fn check(&self, request: &Value) -> Result<Value> {
        Ok(request.clone())
    }

    fn forecast(&self, _: &Value, _: Option<Budget>) -> Result<Forecast> {
        Ok(Forecast {
            plan: None,
            seconds: 1.0,
            peak: WEIGHTS,
            batch: Some(BatchForecast {
                key: BatchKey {
                    size: [1, 1],
                    settings: 1,
                },
                more: Bytes::kib(1),
                more_seconds: 0.1,
            }),
        })
    }

    fn start(&self, orders: Vec<Order<'_>>) -> Result<Box<dyn Run>> {
        let text = |key: &str| orders[0].request[key].as_str().map(str::to_owned);
        if orders.len() > 1
            && orders
                .iter()
                .any(|order| order.request["alone"] == json!(true))
        {
            return Err(Error::request("batch", "one of them wants to be alone"));
        }
        self.stage.batches.lock().unwrap().push(orders.len());
        let done = match orders[0].resume {
            Some(file) => std::fs::read_to_string(file).unwrap().parse().unwrap(),
            None => 0,
        };
        Ok(Box::new(Acting {
            stage: self.stage.clone(),
            held: self.held.clone(),
            names: orders
                .iter()
                .map(|order| order.request["name"].as_str().unwrap_or("act").to_owned())
                .collect(),
            steps: orders[0].request["steps"].as_u64().unwrap_or(3) as u32,
            fails: text("fails"),
            done,
            resumed_at: done,
            wanted: vec![true; orders.len()],
        }))
    }

    fn held(&self) -> Bytes {
        Bytes(self.held.load(Ordering::SeqCst))
    }

    fn load(&self) -> Result<Bytes> {
        self.held.store(WEIGHTS.0, Ordering::SeqCst);
        Ok(WEIGHTS)
    }

    fn forget(&self) -> Bytes {
        Bytes(self.held.swap(0, Ordering::SeqCst))
    }

    fn prompt_cache(&self) -> CacheFigures {
        CacheFigures::default()
    }
}

struct Acting {
    stage: Arc<Stage>,
    held: Arc<AtomicU64>,
    names: Vec<String>,
    steps: u32,
    fails: Option<String>,
    done: u32,
    resumed_at: u32,
    wanted: Vec<bool>,
}

impl Run for Acting {
    fn step(&mut self) -> Result<Stepped> {
        self.held.store(WEIGHTS.0, Ordering::SeqCst);
        match self.fails.as_deref() {
            Some("request") => return Err(Error::request("name", "is wrong")),
            Some("later") => return Err(Error::LoaderStopped),
            Some("panics") => panic!("as it was told"),
            _ => {}
        }
        self.done += 1;
        self.stage.step(&self.names[0], self.done);
        if self.done < self.steps {
            return Ok(Stepped::Progress(Progress {
                phase: "act",
                done: self.done as usize,
                total: self.steps as usize,
                elapsed: Duration::ZERO,
                memory: Bytes::ZERO,
            }));
        }
        let product = |(name, &wanted): (&String, &bool)| {
            wanted.then(|| Product {
                files: vec![File {
                    media_type: "text/plain".to_owned(),
                    content: format!("{name} {}", self.steps).into_bytes(),
                }],
                report: json!({ "resumed_at": self.resumed_at }),
            })
        };
        let products = self.names.iter().zip(&self.wanted).map(product);
        Ok(Stepped::Finished(products.collect()))
    }

    fn park(&mut self) {
        self.stage.parked.fetch_add(1, Ordering::SeqCst);
    }

    fn save(&self, _: usize, file: &Path) -> Result<bool> {
        std::fs::write(file, self.done.to_string()).unwrap();
        Ok(true)
    }

    fn drop_member(&mut self, member: usize) {
        self.wanted[member] = false;
    }

    fn preview(&self, _: usize) -> Option<File> {
        Some(File {
            media_type: "image/png".to_owned(),
            content: vec![1, 2, 3],
        })
    }

    fn plan(&self) -> Option<&Plan> {
        None
    }

    fn remaining_s(&self) -> f64 {
        f64::from(self.steps - self.done)
    }

    fn holds(&self) -> Bytes {
        Bytes::kib(64)
    }

    fn keeps(&self) -> Bytes {
        Bytes::kib(1)
    }

    fn peak(&self) -> Bytes {
        WEIGHTS + Bytes::kib(64)
    }

    fn rungs_taken(&self) -> usize {
        0
    }
}
