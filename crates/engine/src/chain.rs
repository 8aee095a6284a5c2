//! Chains: one job of several steps, each of a kind and with a model of its own. Every step but the first gets what the
//! one before made as its picture.
//!
//! A chain is planned as a whole before it starts: each step under the budget, then which weights stay between steps,
//! and which are read while an earlier step works ([`lowtide_core::plan_chain`]). Carried out it is a [`Run`] like any
//! other, which steps, parks, is saved and goes on; what it drives are the runs of its steps.
//!
//! A step gets its picture as it would from a client: as a file that its request names. [`Handed`] stands before the
//! files of whoever opens models, and has those pictures.

mod ahead;
mod going;
mod handed;
mod look;
mod report;
mod request;
mod saved;

use std::sync::Arc;

use lowtide_core::{Budget, Bytes, ChainPlan};
use serde_json::{Map, Value, json};

use crate::processor::{Card, Forecast, Opened, Order, Run};
use crate::shared::Counted;
use crate::{Error, Options, Result};
pub use handed::Handed;
pub use request::{STEPS_MAX, models_of};

/// The kind of job.
pub const KIND: &str = "chain";

/// One sentence for people.
pub const ABOUT: &str =
    "Does several jobs one after the other, each with the picture of the one before";

/// The JSON Schema of a request.
pub fn schema() -> Value {
    let step = json!({
        "type": "object",
        "additionalProperties": false,
        "required": ["kind"],
        "properties": {
            "kind": { "type": "string", "title": "Kind", "description": "Of the job that this step is" },
            "model": { "type": ["string", "null"], "title": "Model" },
            "request": {
                "type": ["object", "null"], "title": "Request",
                "description": "As of a job of that kind. In every step but the first 'image' is what the step before made; a prompt that is left out is the first step's"
            },
        }
    });
    json!({
        "type": "object",
        "additionalProperties": false,
        "required": ["steps"],
        "properties": {
            "steps": { "type": "array", "format": "job-steps", "minItems": 1, "maxItems": STEPS_MAX, "items": step, "title": "Steps" },
        }
    })
}

/// Kinds and models that steps can name.
pub trait Models {
    /// The schema of a kind's requests; `None` where there is no such kind.
    fn schema(&self, kind: &str) -> Option<Value>;

    /// The request of a step as jobs of its kind have it, presets and the like filled in.
    ///
    /// # Errors
    /// [`Error::Request`] with the field.
    fn complete(&self, kind: &str, request: Map<String, Value>) -> Result<Value> {
        let _ = kind;
        Ok(Value::Object(request))
    }

    /// The model's own name, and the model as jobs of this kind use it. Without a name the one that is meant then.
    ///
    /// # Errors
    /// [`Error::Request`] with the field `model` where there is none of that name.
    fn open(&self, kind: &str, model: Option<&str>) -> Result<(String, Arc<dyn Opened>)>;
}

/// A step, checked, with its model opened.
struct Link {
    kind: String,
    model: String,
    opened: Arc<dyn Opened>,
    /// Complete, but for the picture of the step before.
    request: Value,
    /// Which of the chain's models it uses.
    uses: usize,
    /// Width and height of the pictures it is given.
    given: Option<[u32; 2]>,
    /// Pictures it is given; the first step is given none, and counts as one.
    pictures: usize,
    /// Pictures it makes of each.
    each: usize,
}

/// The field in which a step gets its picture.
const IMAGE: &str = "image";

/// A chain whose models are opened.
#[derive(Clone)]
pub struct Chain(Arc<Makings>);

/// What a chain is made of.
struct Makings {
    links: Vec<Link>,
    /// Its models, each once, in order of use.
    names: Vec<String>,
    handed: Arc<Handed>,
    options: Options,
}

/// What a chain will cost, step by step.
pub struct Outlook {
    /// All of it together, as of any job; phases are named by their steps.
    pub forecast: Forecast,
    /// What stays, what arrives, what is waited for.
    pub chain: ChainPlan,
    /// The chain's models, as `chain` counts them.
    pub names: Vec<String>,
    /// Kind and model of each step.
    pub steps: Vec<(String, String)>,
}

impl Outlook {
    /// One sentence a step.
    pub fn sentences(&self) -> Vec<String> {
        let steps = self.steps.iter().zip(&self.chain.steps).enumerate();
        steps
            .map(|(k, ((kind, model), plan))| {
                let text = plan.sentence(&self.chain.steps, &self.names);
                format!("step {}, {kind} with {model}: {text}", k + 1)
            })
            .collect()
    }

    /// For programs: sizes in bytes.
    pub fn json(&self) -> Value {
        let steps = self.steps.iter().zip(&self.chain.steps);
        let steps = steps
            .map(|((kind, model), plan)| report::planned((kind, model), (0, plan), &self.names));
        json!({
            "steps": steps.collect::<Vec<_>>(),
            "peak": self.chain.peak.0,
            "seconds": self.chain.seconds,
            "loading_seconds": self.chain.loading_s,
            "waiting_seconds": self.chain.waiting_s,
            "bytes_read": self.chain.reads.0,
        })
    }
}

impl Chain {
    /// Reads a request, opens the models it names and checks every step with what it will be given. `handed` stands
    /// before the files that the models were opened with; `options` are theirs.
    ///
    /// # Errors
    /// [`Error::Request`] with the step and the field.
    pub fn open(
        request: &Value,
        models: &dyn Models,
        handed: Arc<Handed>,
        options: Options,
    ) -> Result<Chain> {
        let links = request::open(request, models)?;
        let mut names: Vec<String> = Vec::new();
        let links = links.into_iter().map(|mut link| {
            let known = names.iter().position(|name| *name == link.model);
            link.uses = known.unwrap_or_else(|| {
                names.push(link.model.clone());
                names.len() - 1
            });
            link
        });
        let links = links.collect();
        Ok(Chain(Arc::new(Makings {
            links,
            names,
            handed,
            options,
        })))
    }

    /// The request with nothing left out.
    pub fn request(&self) -> Value {
        let step = |link: &Link| json!({ "kind": link.kind, "model": link.model, "request": link.request });
        json!({ "steps": self.0.links.iter().map(step).collect::<Vec<_>>() })
    }

    /// The model of the first step, which the job is filed under.
    pub fn model(&self) -> &str {
        &self.0.links[0].model
    }

    /// Files it gives.
    pub fn pictures(&self) -> usize {
        self.0
            .links
            .last()
            .map_or(0, |last| last.pictures * last.each)
    }

    /// Its models, each once, in order of use.
    pub fn models(&self) -> &[String] {
        &self.0.names
    }

    /// What it will cost. `budget`: what the device allows, without what the chain's own models hold; `None`: as things
    /// are in this process.
    ///
    /// # Errors
    /// [`Error::DoesNotFit`], which names the step that needs the most.
    pub fn outlook(&self, budget: Option<Budget>) -> Result<Outlook> {
        let look = look::Look::new(&self.0, budget)?;
        Ok(look.outlook(&self.0))
    }
}

impl Makings {
    /// The opened models of one of the chain's models: one for each kind that uses it.
    fn of_model(&self, model: usize) -> impl Iterator<Item = &Arc<dyn Opened>> {
        let mut kinds: Vec<&str> = Vec::new();
        let links = self.links.iter().filter(move |link| link.uses == model);
        links
            .filter(move |link| {
                let new = !kinds.contains(&&link.kind[..]);
                kinds.push(&link.kind);
                new
            })
            .map(|link| &link.opened)
    }

    /// Bytes of each model's weights in memory; what several have in common counts at the first.
    fn there(&self) -> Vec<Bytes> {
        let mut counted = Counted::default();
        let of = |model| -> Bytes {
            let all = self.of_model(model);
            all.map(|opened| opened.held_beside(&mut counted)).sum()
        };
        (0..self.names.len()).map(of).collect()
    }

    /// Lets weights of a model go until it holds at most `most` bytes.
    fn shrink(&self, model: usize, most: Bytes) -> Bytes {
        self.of_model(model).map(|opened| opened.shrink(most)).sum()
    }

    /// What errors and plans call a step.
    fn called(&self, step: usize) -> String {
        let Link { kind, model, .. } = &self.links[step];
        format!("step {} ({kind} with {model})", step + 1)
    }
}

impl Opened for Chain {
    fn card(&self) -> Card {
        let cards = (0..self.0.names.len()).filter_map(|model| {
            let first = self.0.of_model(model).next()?;
            Some((&self.0.names[model], first.card()))
        });
        let (mut bytes, mut components) = (Bytes::ZERO, Vec::new());
        for (name, card) in cards {
            bytes += card.bytes;
            let named = card.components.into_iter();
            components.extend(named.map(|(part, blocks, bytes)| {
                let part = format!("{name}/{part}");
                (part, blocks, bytes)
            }));
        }
        Card {
            bytes,
            components,
            defaults: json!({}),
        }
    }

    /// It was checked when it was opened; another request is another chain.
    fn check(&self, _: &Value) -> Result<Value> {
        Ok(self.request())
    }

    fn forecast(&self, _: &Value, budget: Option<Budget>) -> Result<Forecast> {
        Ok(self.outlook(budget)?.forecast)
    }

    fn start(&self, orders: Vec<Order<'_>>) -> Result<Box<dyn Run>> {
        let [order] = &orders[..] else {
            return Err(Error::request(
                "orders",
                "of chains share no session (this is a bug)",
            ));
        };
        let going = going::Going::start(self.0.clone(), self.request(), order.resume)?;
        Ok(Box::new(going))
    }

    fn held(&self) -> Bytes {
        self.0.there().into_iter().sum()
    }

    fn forget(&self) -> Bytes {
        let models = 0..self.0.names.len();
        let all = models.flat_map(|model| self.0.of_model(model));
        all.map(|opened| opened.forget()).sum()
    }
}
