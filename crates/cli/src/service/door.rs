//! What the server asks about jobs, answered by the processors: from configurations and headers, never from weights.

mod coming;
mod pictures;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lowtide_core::{Budget, Bytes};
use lowtide_engine::chain::{self, Handed};
use lowtide_engine::processor::{Forecast, Opened, Processor, Setup};
use lowtide_engine::{Error, Options};
use lowtide_jobs::report::{BatchHints, Hints};
use lowtide_server::{Checked, Door, Downloads, Extra, Kind, ModelEntry, Planned, Refused};
use serde_json::{Map, Value, json};

use coming::Looked;

use super::catalog::Catalog;
use super::downloads::Fetcher;
use super::known::{Known, Memory, Stamp};
use super::settings::Settings;
use crate::failure::one_line;
use crate::models::Model;
use crate::named_files::{Found, Places};
use crate::plan_view;

/// Opened models kept; each is some hundred kilobytes of headers and a tokenizer.
const OPENED_MAX: usize = 16;

/// Which model is meant by none is looked for in the folders no more often than this.
const DEFAULT_KEPT: Duration = Duration::from_secs(5);

/// The field of a request that names a preset.
const PRESET: &str = "preset";

/// The alias that is meant where a request names no model.
const DEFAULT: &str = "default";

/// The door of a service.
pub(crate) struct Desk {
    processors: Vec<Arc<dyn Processor>>,
    catalog: Arc<Catalog>,
    aliases: BTreeMap<String, String>,
    presets: BTreeMap<String, Map<String, Value>>,
    setup: Setup,
    /// The files of `setup`, and what passes between the steps of a chain.
    handed: Arc<Handed>,
    places: Places,
    fetcher: Arc<Fetcher>,
    known: Memory,
    opened: Mutex<Vec<Kept>>,
    defaults: Mutex<BTreeMap<&'static str, (Instant, Option<String>)>>,
}

/// An opened model, the one used latest last.
struct Kept {
    kind: &'static str,
    model: String,
    opened: Arc<dyn Opened>,
}

impl Desk {
    /// One for these kinds and models.
    pub(crate) fn new(
        processors: Vec<Arc<dyn Processor>>,
        catalog: Arc<Catalog>,
        settings: &Settings,
        (setup, fetcher): (Setup, Arc<Fetcher>),
    ) -> Desk {
        let handed = Handed::new(setup.files);
        let setup = Setup {
            files: handed.clone(),
            ..setup
        };
        Desk {
            handed,
            processors,
            catalog,
            aliases: settings.models.aliases.clone(),
            presets: settings.presets.clone(),
            setup,
            fetcher,
            known: Memory::default(),
            places: settings.models.places.clone(),
            opened: Mutex::new(Vec::new()),
            defaults: Mutex::new(BTreeMap::new()),
        }
    }

    pub(super) fn handed(&self) -> Arc<Handed> {
        self.handed.clone()
    }

    pub(super) fn options(&self) -> Options {
        self.setup.options
    }

    pub(super) fn processor(&self, kind: &str) -> Result<&Arc<dyn Processor>, Refused> {
        let found = self.processors.iter().find(|one| one.kind() == kind);
        found.ok_or_else(|| Refused::UnknownKind {
            kind: kind.to_owned(),
            known: self
                .processors
                .iter()
                .map(|one| one.kind().to_owned())
                .collect(),
        })
    }

    /// Names of the models a kind can use, its own first.
    fn models_of(&self, processor: &dyn Processor) -> Vec<String> {
        let own = processor.own_models().iter().map(|name| (*name).to_owned());
        let mut names: Vec<String> = own.collect();
        for model in self.catalog.models() {
            let runs = self.kinds_of(&model).0.kinds.contains(&processor.kind());
            if runs && !names.contains(&model.name) {
                names.push(model.name);
            }
        }
        names
    }

    /// What is known of a model; its files are opened only where they changed.
    fn kinds_of(&self, model: &Model) -> (Known, Stamp) {
        let stamp = Stamp::of(model);
        if let Some(known) = self.known.of(&model.name, &stamp) {
            return (known, stamp);
        }
        let mut known = Known::default();
        if let Ok(folder) = model.open() {
            let runs = self.processors.iter().filter(|one| one.runs(&folder));
            known.kinds = runs.map(|one| one.kind()).collect();
        }
        self.known.keep(&model.name, stamp.clone(), known.clone());
        (known, stamp)
    }

    /// The same, with what it shows of itself.
    fn shown(&self, model: &Model) -> Known {
        let (mut known, stamp) = self.kinds_of(model);
        if known.shown {
            return known;
        }
        let runs = |one: &&Arc<dyn Processor>| known.kinds.contains(&one.kind());
        for processor in self.processors.iter().filter(runs) {
            // One that cannot be opened is told of when somebody names it.
            if let Ok(opened) = self.opened(processor.as_ref(), &model.name) {
                let card = opened.card();
                known
                    .cards
                    .insert(processor.kind(), (card.bytes, card.defaults));
            }
        }
        known.shown = true;
        self.known.keep(&model.name, stamp, known.clone());
        known
    }

    /// The model where a request names none: the one with the alias `default`, else the first.
    fn default_of(&self, processor: &dyn Processor) -> Option<String> {
        let kind = processor.kind();
        let mut defaults = self.defaults.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((found, model)) = defaults.get(kind)
            && found.elapsed() < DEFAULT_KEPT
        {
            return model.clone();
        }
        let models = self.models_of(processor);
        let wanted = self.aliases.get(DEFAULT);
        let wanted = wanted.filter(|name| models.contains(name)).cloned();
        let model = wanted.or_else(|| models.into_iter().next());
        defaults.insert(kind, (Instant::now(), model.clone()));
        model
    }

    /// The model's own name.
    pub(super) fn name_of(
        &self,
        processor: &dyn Processor,
        asked: Option<&str>,
    ) -> Result<String, Refused> {
        let unknown = |model: &str| Refused::UnknownModel {
            model: model.to_owned(),
            known: self.models_of(processor),
        };
        let Some(asked) = asked else {
            return self.default_of(processor).ok_or_else(|| unknown(DEFAULT));
        };
        if let Some(kept) = self.kept(processor.kind(), asked) {
            return Ok(kept);
        }
        let name = self.aliases.get(asked).map_or(asked, String::as_str);
        let own = processor.own_models().contains(&name);
        // Only the one that is asked for is opened: there may be hundreds.
        let runs = |name| {
            self.catalog
                .open(name)
                .is_ok_and(|folder| processor.runs(&folder))
        };
        match own || runs(name) {
            true => Ok(name.to_owned()),
            false => Err(unknown(asked)),
        }
    }

    /// The name, if it is one of a model that is open: then there is nothing to look for.
    fn kept(&self, kind: &str, asked: &str) -> Option<String> {
        let name = self.aliases.get(asked).map_or(asked, String::as_str);
        let opened = self.lock();
        let found = opened
            .iter()
            .find(|kept| kept.kind == kind && kept.model == name);
        found.map(|kept| kept.model.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Kept>> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn opened(
        &self,
        processor: &dyn Processor,
        model: &str,
    ) -> Result<Arc<dyn Opened>, Refused> {
        let kind = processor.kind();
        let mut opened = self.lock();
        let at = opened
            .iter()
            .position(|kept| kept.kind == kind && kept.model == model);
        if let Some(at) = at {
            let kept = opened.remove(at);
            let found = Arc::clone(&kept.opened);
            opened.push(kept);
            return Ok(found);
        }
        let folder = match processor.own_models().contains(&model) {
            true => None,
            false => Some(
                self.catalog
                    .open(model)
                    .map_err(|sentence| Refused::Broken { sentence })?,
            ),
        };
        let fresh = processor
            .open(model, folder, self.setup.clone())
            .map_err(refused)?;
        if opened.len() >= OPENED_MAX {
            opened.remove(0);
        }
        opened.push(Kept {
            kind,
            model: model.to_owned(),
            opened: Arc::clone(&fresh),
        });
        Ok(fresh)
    }

    /// Names of the presets that say something to requests of this schema.
    fn presets_for(&self, schema: &Value) -> Vec<&str> {
        let speaks = |fields: &Map<String, Value>| fields.keys().any(|field| has(schema, field));
        let presets = self.presets.iter().filter(|(_, fields)| speaks(fields));
        presets.map(|(name, _)| name.as_str()).collect()
    }

    /// The request with its preset's fields where it has none of its own.
    pub(super) fn with_preset(&self, schema: &Value, mut request: Value) -> Result<Value, Refused> {
        let Some(fields) = request.as_object_mut().filter(|_| !has(schema, PRESET)) else {
            return Ok(request);
        };
        let Some(named) = fields.remove(PRESET) else {
            return Ok(request);
        };
        let known = self.presets_for(schema);
        let name = named.as_str().filter(|name| known.contains(name));
        let Some(preset) = name.and_then(|name| self.presets.get(name)) else {
            let there = match known.is_empty() {
                true => "there are none for this kind of job".to_owned(),
                false => format!("there are {}", known.join(", ")),
            };
            return Err(Refused::Invalid {
                field: PRESET.to_owned(),
                problem: format!("{named} is no preset; {there}"),
            });
        };
        for (field, value) in preset.iter().filter(|(field, _)| has(schema, field)) {
            if fields.get(field).is_none_or(Value::is_null) {
                fields.insert(field.clone(), value.clone());
            }
        }
        Ok(request)
    }

    fn look(
        &self,
        kind: &str,
        model: Option<&str>,
        request: Value,
        budget: Option<Budget>,
    ) -> Result<Looked, Refused> {
        let processor = self.processor(kind)?;
        let model = match self.name_of(processor.as_ref(), model) {
            Ok(model) => model,
            Err(refused) => match self.coming(processor.as_ref(), model)? {
                Some(model) => return self.unseen(processor.as_ref(), model, request),
                None => return Err(refused),
            },
        };
        let request = self.with_preset(&processor.schema(), request)?;
        let opened = self.opened(processor.as_ref(), &model)?;
        let request = opened.check(&request).map_err(refused)?;
        self.find_loras(&request)?;
        let (model, request, forecast) = match opened.forecast(&request, budget) {
            Ok(forecast) => (model, request, forecast),
            Err(unfit) => self
                .smaller(processor.as_ref(), &model, (&request, budget), &unfit)
                .ok_or_else(|| refused(unfit))?,
        };
        let hints = hints(&forecast);
        let checked = Checked {
            model,
            request,
            hints,
        };
        Ok(Looked::Here(Box::new((checked, forecast))))
    }
}

impl Desk {
    /// The largest variant of a model that fits where the model itself does not, if the request takes what is approximate.
    fn smaller(
        &self,
        processor: &dyn Processor,
        model: &str,
        (request, budget): (&Value, Option<Budget>),
        unfit: &Error,
    ) -> Option<(String, Value, Forecast)> {
        if !matches!(unfit, Error::DoesNotFit(_)) || request["quality"] != "auto" {
            return None;
        }
        self.catalog
            .variants_of(model)
            .into_iter()
            .find_map(|name| {
                let opened = self.opened(processor, &name).ok()?;
                let request = opened.check(request).ok()?;
                let forecast = opened.forecast(&request, budget).ok()?;
                Some((name, request, forecast))
            })
    }
}

impl Door for Desk {
    fn kinds(&self) -> Vec<Kind> {
        let kind = |processor: &Arc<dyn Processor>| {
            let mut schema = processor.schema();
            let presets: Vec<String> = self
                .presets_for(&schema)
                .into_iter()
                .map(str::to_owned)
                .collect();
            let properties = schema.get_mut("properties").and_then(Value::as_object_mut);
            if let Some(properties) = properties.filter(|_| !presets.is_empty()) {
                let about = "Fills in what the request leaves out";
                properties.entry(PRESET).or_insert_with(|| {
                    json!({ "type": "string", "enum": presets, "title": "Preset", "description": about })
                });
            }
            Kind {
                name: processor.kind().to_owned(),
                about: processor.about().to_owned(),
                schema,
                model_default: self.default_of(processor.as_ref()),
            }
        };
        let one = self.processors.iter().map(kind);
        one.chain([self.chain_kind()]).collect()
    }

    fn models(&self) -> Vec<ModelEntry> {
        let mut entries: BTreeMap<String, ModelEntry> = BTreeMap::new();
        let mut add = |name: &str, kind: &str, (bytes, defaults): (Bytes, Value)| {
            let entry = entries.entry(name.to_owned());
            let entry = entry.or_insert_with(|| ModelEntry {
                name: name.to_owned(),
                aliases: self.aliases_of(name),
                kinds: Vec::new(),
                bytes,
                defaults,
            });
            entry.kinds.push(kind.to_owned());
        };
        for processor in &self.processors {
            for name in processor.own_models() {
                if let Ok(opened) = self.opened(processor.as_ref(), name) {
                    let card = opened.card();
                    add(name, processor.kind(), (card.bytes, card.defaults));
                }
            }
        }
        for model in self.catalog.models() {
            for (kind, card) in self.shown(&model).cards {
                add(&model.name, kind, card);
            }
        }
        entries.into_values().collect()
    }

    fn check(
        &self,
        kind: &str,
        model: Option<&str>,
        request: Value,
        budget: Option<Budget>,
    ) -> Result<Checked, Refused> {
        if kind == chain::KIND {
            return Ok(self.look_at_chain(model, request, budget)?.0);
        }
        match self.look(kind, model, request, budget)? {
            Looked::Here(here) => Ok(here.0),
            Looked::Coming(checked) => Ok(checked),
        }
    }

    fn plan(
        &self,
        kind: &str,
        model: Option<&str>,
        request: Value,
        budget: Option<Budget>,
    ) -> Result<Planned, Refused> {
        if kind == chain::KIND {
            return self.plan_of_chain(model, request, budget);
        }
        let (checked, forecast) = match self.look(kind, model, request, budget)? {
            Looked::Here(here) => *here,
            Looked::Coming(checked) => {
                return Err(Refused::NotHere {
                    model: checked.model,
                    problem:
                        "it is fetched when a job needs it, and can be planned with once it came"
                            .to_owned(),
                });
            }
        };
        let plan = forecast.plan.as_ref();
        Ok(Planned {
            checked,
            plan: plan.map_or(Value::Null, plan_view::json),
            reasons: plan.map(plan_view::reasons).unwrap_or_default(),
            approximate: plan.map_or_else(Vec::new, |plan| plan.approximate.clone()),
        })
    }

    fn mask_of(&self, picture: &[u8]) -> Result<Option<Vec<u8>>, Refused> {
        pictures::mask_of(picture)
    }

    fn inverted(&self, mask: &[u8]) -> Result<Vec<u8>, Refused> {
        pictures::inverted(mask)
    }

    fn parameters_of(&self, picture: &[u8]) -> Result<Option<String>, Refused> {
        pictures::parameters_of(picture)
    }

    fn size_of(&self, picture: &[u8]) -> Result<[u32; 2], Refused> {
        pictures::size_of(picture)
    }

    fn loras(&self) -> Vec<Extra> {
        extras(self.places.loras())
    }

    fn embeddings(&self) -> Vec<Extra> {
        extras(self.places.embeddings())
    }

    fn downloads(&self) -> Option<&dyn Downloads> {
        Some(&*self.fetcher)
    }
}

fn extras(found: Vec<Found>) -> Vec<Extra> {
    let extra = |found: Found| Extra {
        name: found.name,
        bytes: Bytes(found.bytes),
    };
    found.into_iter().map(extra).collect()
}

impl Desk {
    /// Whether every LoRA that a checked request names is there: better said now than by a failed job.
    pub(super) fn find_loras(&self, request: &Value) -> Result<(), Refused> {
        let loras = request["loras"].as_array().into_iter().flatten();
        for name in loras.filter_map(|lora| lora["name"].as_str()) {
            let shown: String = name.chars().take(80).collect();
            self.setup
                .files
                .lora(name)
                .map_err(|problem| Refused::Invalid {
                    field: "loras".to_owned(),
                    problem: format!("'{shown}': {problem}"),
                })?;
        }
        Ok(())
    }

    fn aliases_of(&self, model: &str) -> Vec<String> {
        let aliases = self.aliases.iter().filter(|(_, target)| *target == model);
        aliases.map(|(alias, _)| alias.clone()).collect()
    }

    /// What is named in the settings and is not there, in sentences.
    pub(crate) fn strangers(&self, settings: &Settings) -> Vec<String> {
        let mut known: BTreeSet<String> = BTreeSet::new();
        for processor in &self.processors {
            known.extend(self.models_of(processor.as_ref()));
        }
        let there = known.iter().cloned().collect::<Vec<_>>().join(", ");
        let mut sentences = Vec::new();
        let fetches = self.fetcher.forbidden().is_none();
        let coming = |name: &String| fetches && Fetcher::wanted(name).is_some();
        for (alias, target) in &self.aliases {
            if !known.contains(target) && !coming(target) {
                sentences.push(format!(
                    "models.aliases.{alias}: there is no model '{target}'; there are {there}"
                ));
            }
        }
        for name in &settings.worker.preload {
            let target = self.aliases.get(name).unwrap_or(name);
            if !known.contains(target) {
                sentences.push(format!(
                    "worker.preload: there is no model '{name}'; there are {there}"
                ));
            }
        }
        sentences
    }
}

/// Whether requests of this schema have a field.
fn has(schema: &Value, field: &str) -> bool {
    schema["properties"].get(field).is_some()
}

pub(super) fn hints(forecast: &Forecast) -> Hints {
    let batch = forecast.batch.as_ref().map(|batch| BatchHints {
        size: batch.key.size,
        settings: format!("{:016x}", batch.key.settings),
        more: batch.more.0,
        more_seconds: batch.more_seconds,
    });
    Hints {
        seconds: forecast.seconds,
        peak: forecast.peak.0,
        batch,
        steps: Vec::new(),
    }
}

pub(super) fn refused(error: Error) -> Refused {
    match error {
        Error::Request { what, problem } => Refused::Invalid {
            field: what.to_owned(),
            problem,
        },
        Error::DoesNotFit(numbers) => Refused::DoesNotFit {
            sentence: one_line(&numbers.to_string()),
            needed: numbers.needed,
            budget: numbers.budget,
            smallest: smallest(&numbers),
        },
        other => match other.beyond_model() {
            Some(field) => Refused::Invalid {
                field: field.to_owned(),
                problem: one_line(&other.to_string()),
            },
            None => Refused::Broken {
                sentence: one_line(&other.to_string()),
            },
        },
    }
}

/// The smallest budget that would do, approximations included where they were not refused.
fn smallest(numbers: &lowtide_core::DoesNotFit) -> Bytes {
    match numbers.exact_only {
        true => numbers.smallest,
        false => numbers.smallest_approximate.unwrap_or(numbers.smallest),
    }
}
