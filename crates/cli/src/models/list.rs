//! `lowtide models list`: every model, its size, and the smallest budget it runs in.

use std::path::Path;
use std::sync::Arc;

use lowtide_core::{Budget, Bytes, Plan};
use lowtide_engine::detector::Detector;
use lowtide_engine::processor::{Opened, Processor};
use lowtide_engine::{Error, Options, processors};
use lowtide_kernels::memory;
use lowtide_weights::ModelSummary;
use serde_json::{Value, json};

use super::{Library, Model, Place};
use crate::console::{self, Table};
use crate::failure::{Failure, one_line};
use crate::named_files::Found;
use crate::service::{Surroundings, models_settings};

/// A prompt of usual length, for the plan.
const PROMPT: &str = "a lighthouse on a rock at dusk, waves, long exposure, photograph";

/// One line of the list: a model, or why what looks like one is none.
struct Listed {
    model: Model,
    summary: Result<ModelSummary, String>,
    /// What it needs at least, or why it does not run; `None` where nobody asked.
    least: Option<Result<Least, String>>,
}

/// A detector, which steps of the kinds `detect` and `detail` name.
struct Looks {
    found: Found,
    /// Its architecture, its bytes and what it looks for; or why it is none.
    opened: Result<(String, Bytes, Vec<String>), String>,
}

impl Looks {
    fn of(found: Found) -> Looks {
        let opened = match Detector::open(&found.path) {
            Ok(opened) => {
                let labels = opened.labels().to_vec();
                Ok((opened.architecture(), opened.bytes(), labels))
            }
            Err(cause) => Err(one_line(&cause.to_string())),
        };
        Looks { found, opened }
    }

    fn json(&self) -> Value {
        let mut shown = json!({
            "name": self.found.name, "place": self.found.path.display().to_string(), "kinds": ["detect", "detail"],
        });
        match &self.opened {
            Ok((class, bytes, labels)) => {
                shown["class"] = json!(class);
                shown["bytes"] = json!(bytes.0);
                shown["labels"] = json!(labels);
            }
            Err(why) => shown["error"] = json!(why),
        }
        shown
    }
}

/// The smallest budget and how it would run in it.
struct Least {
    /// At its native size.
    size: String,
    budget: Bytes,
    plan: Plan,
}

/// Prints the list.
pub(super) fn run(dir: Option<&Path>, as_json: bool, plans: bool) -> Result<(), Failure> {
    let (library, detectors) = match dir {
        Some(dir) => {
            std::fs::read_dir(dir).map_err(|cause| {
                Failure::mistake(format!(
                    "'{}' cannot be listed: {cause}; name a folder of models",
                    dir.display()
                ))
            })?;
            (Library::of_dirs(vec![dir.to_owned()]), Vec::new())
        }
        None => {
            let around = Surroundings::of_process();
            let settings = models_settings(&around)?;
            let detectors = settings.places.detectors();
            (Library::new(&settings, &around)?, detectors)
        }
    };
    let detectors: Vec<Looks> = detectors.into_iter().map(Looks::of).collect();
    let processors = processors::all();
    let look = |model: Model| Listed::look(model, plans.then_some(&processors[..]));
    let listed: Vec<Listed> = library.all().into_iter().map(look).collect();
    let text = if as_json {
        let models: Vec<Value> = listed.iter().map(Listed::json).collect();
        let detectors: Vec<Value> = detectors.iter().map(Looks::json).collect();
        format!("{}\n", json!({ "models": models, "detectors": detectors }))
    } else {
        text(&listed, &detectors)
    };
    Ok(console::print(&text)?)
}

impl Listed {
    fn look(model: Model, processors: Option<&[Arc<dyn Processor>]>) -> Listed {
        let opened = model.open().and_then(|folder| {
            let summary = folder.summary()?;
            Ok((folder, summary))
        });
        match opened {
            Ok((folder, summary)) => {
                let least = processors.map(|processors| {
                    let runs = processors.iter().find(|one| one.runs(&folder));
                    let processor = runs.ok_or_else(|| {
                        format!("no pipeline of this program runs a {}", folder.class_name)
                    })?;
                    let opened =
                        processor.open(&model.name, Some(folder), Options::default().into());
                    least(&*opened.map_err(|cause| one_line(&cause.to_string()))?)
                });
                Listed {
                    model,
                    summary: Ok(summary),
                    least,
                }
            }
            Err(cause) => Listed {
                model,
                summary: Err(one_line(&cause.to_string())),
                least: None,
            },
        }
    }

    fn place(&self) -> String {
        match &self.model.place {
            Place::Demo => "(comes with the program)".to_owned(),
            Place::Own(path) | Place::Foreign(path) => path.display().to_string(),
            Place::Cached(_, snapshot) => format!("(cache) {}", snapshot.commit),
        }
    }

    fn json(&self) -> Value {
        let place = match self.model.path() {
            Some(path) => path.display().to_string(),
            None => self.place(),
        };
        let mut shown = json!({ "name": self.model.name, "place": place });
        match &self.summary {
            Ok(summary) => {
                shown["class"] = json!(summary.class_name);
                shown["bytes"] = json!(summary.bytes().0);
                shown["parameters"] = json!(summary.parameters());
            }
            Err(why) => shown["error"] = json!(why),
        }
        match &self.least {
            Some(Ok(least)) => {
                shown["smallest_budget"] = json!(least.budget.0);
                shown["plan"] = json!(least.sentence());
            }
            Some(Err(why)) => shown["does_not_run"] = json!(why),
            None => {}
        }
        shown
    }
}

/// Plans a job of the model's own size in a budget of nothing, and then in what that says is the smallest.
fn least(opened: &dyn Opened) -> Result<Least, String> {
    let said = |cause: Error| one_line(&cause.to_string());
    let in_use = Bytes(memory::live());
    let within = |total| Budget { total, in_use };
    // Kinds whose requests name files have a sample of their own.
    let cost = |total| match opened.sample(within(total)) {
        Some(sample) => sample,
        None => {
            // A variant has no exact pictures.
            let request = opened
                .check(&json!({ "prompt": PROMPT, "quality": "exact" }))
                .or_else(|_| opened.check(&json!({ "prompt": PROMPT })))?;
            let side = |name: &str| request[name].as_u64().unwrap_or_default();
            let size = format!("{}x{}", side("width"), side("height"));
            Ok((size, opened.forecast(&request, Some(within(total)))?))
        }
    };
    let smallest = match cost(Bytes::ZERO) {
        Err(Error::DoesNotFit(numbers)) => numbers.smallest,
        Err(cause) => return Err(said(cause)),
        Ok(_) => in_use,
    };
    let (size, forecast) = cost(smallest).map_err(said)?;
    Ok(Least {
        size,
        budget: smallest,
        plan: forecast.plan.ok_or("it needs no plan")?,
    })
}

impl Least {
    /// How it would run, phase by phase.
    fn sentence(&self) -> String {
        let phases: Vec<String> = self
            .plan
            .phases
            .iter()
            .map(|phase| {
                let (stay, all) = (phase.reason.resident_blocks, phase.reason.blocks);
                format!("{} {stay}/{all}", phase.name)
            })
            .collect();
        format!(
            "runs from {} at {}, about {:.1} s; blocks that stay: {}",
            self.budget.to_string_up(),
            self.size,
            self.plan.seconds,
            phases.join(", ")
        )
    }
}

fn text(listed: &[Listed], detectors: &[Looks]) -> String {
    let mut table = Table::new(&[2, 3]);
    for one in listed {
        let (class, bytes) = match &one.summary {
            Ok(summary) => (summary.class_name.clone(), summary.bytes().to_string()),
            Err(_) => ("unusable".to_owned(), "-".to_owned()),
        };
        let budget = match &one.least {
            Some(Ok(least)) => format!("from {}", least.budget.to_string_up()),
            Some(Err(_)) | None => "-".to_owned(),
        };
        table.row([one.model.name.clone(), class, bytes, budget, one.place()]);
    }
    for one in detectors {
        let (class, bytes) = match &one.opened {
            Ok((class, bytes, _)) => (format!("{class} detector"), bytes.to_string()),
            Err(_) => ("unusable".to_owned(), "-".to_owned()),
        };
        let place = one.found.path.display().to_string();
        table.row([one.found.name.clone(), class, bytes, "-".to_owned(), place]);
    }
    let mut text = table.text();
    let mut about =
        |name: &str, sentence: &str| text.push_str(&format!("\n  {name}: {sentence}\n"));
    for one in listed {
        match (&one.summary, &one.least) {
            (Err(why), _) => about(&one.model.name, why),
            (_, Some(Ok(least))) => about(&one.model.name, &least.sentence()),
            (_, Some(Err(why))) => about(&one.model.name, &format!("does not run: {why}")),
            (_, None) => {}
        }
    }
    for one in detectors {
        if let Err(why) = &one.opened {
            about(&one.found.name, why);
        }
    }
    text
}
