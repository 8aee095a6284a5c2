//! `generate` and `plan` with further steps, in this process: several models under one budget.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use lowtide_engine::chain::{Chain, Handed, Models, Outlook};
use lowtide_engine::processor::{Opened, Order, Processor, Product, Run, Setup, Stepped};
use lowtide_engine::{Defaults, Error, Options, processors};
use lowtide_kernels as kernels;
use serde_json::{Map, Value, json};

use crate::args::{GenerateArgs, StepsArgs};
use crate::config::{Config, Destination};
use crate::failure::Failure;
use crate::gpu;
use crate::interrupt::Interrupt;
use crate::output::Staged;
use crate::progress::{Look, Progress};
use crate::request::{LocalFiles, put_sampling, request};
use crate::run::{self, KIND};
use crate::{console, detail, models, plan_view};

/// The models of a chain in this process.
struct Here<'a> {
    args: &'a GenerateArgs,
    options: Options,
    handed: Arc<Handed>,
    processors: Vec<Arc<dyn Processor>>,
    opened: Mutex<BTreeMap<(String, String), Arc<dyn Opened>>>,
}

impl Models for Here<'_> {
    fn schema(&self, kind: &str) -> Option<Value> {
        self.processor(kind).map(|one| one.schema())
    }

    fn open(
        &self,
        kind: &str,
        model: Option<&str>,
    ) -> lowtide_engine::Result<(String, Arc<dyn Opened>)> {
        let no_kind = || Error::request("kind", format!("'{kind}' is no kind of job here"));
        let processor = self.processor(kind).ok_or_else(no_kind)?;
        let own = processor.own_models();
        let name = match (model, own.first()) {
            (Some(model), _) => model,
            (None, Some(own)) => own,
            (None, None) if kind == KIND => &self.args.model,
            (None, None) => {
                return Err(Error::request(
                    "model",
                    "is missing: name one that 'models list' shows",
                ));
            }
        };
        let place = (kind.to_owned(), name.to_owned());
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = opened.get(&place) {
            return Ok((place.1, known.clone()));
        }
        let folder = match own.contains(&name) {
            true => None,
            false => Some(self.folder(name)?),
        };
        let setup = Setup {
            options: self.options,
            files: self.handed.clone(),
        };
        // As a job of this model alone calls it, also where it was named by its path.
        let called = folder.as_ref().map(|folder| folder.name.clone());
        let fresh = processor.open(called.as_deref().unwrap_or(name), folder, setup)?;
        opened.insert(place.clone(), fresh.clone());
        Ok((place.1, fresh))
    }
}

impl Here<'_> {
    fn processor(&self, kind: &str) -> Option<&Arc<dyn Processor>> {
        self.processors.iter().find(|one| one.kind() == kind)
    }

    fn folder(&self, name: &str) -> lowtide_engine::Result<lowtide_weights::ModelFolder> {
        let quiet = self.args.quiet || self.args.json;
        let found = models::open_or_fetch(name, self.args.download, quiet);
        found.map_err(|failure| Error::request("model", failure.to_string()))
    }
}

/// A chain as the arguments ask for it.
struct Asked {
    chain: Chain,
    config: Config,
}

fn open(args: &GenerateArgs) -> Result<Asked, Failure> {
    // A wrong word in the environment is the user's to mend, and is said before the kernels trip over it.
    kernels::isa_from_env().map_err(Failure::Mistake)?;
    let device = args.device.unwrap_or_default();
    run::check_precision(args.precision, device)?;
    let config = Config::new(args, Defaults::default())?;
    gpu::put(device, (config.budget, config.reserve))?;
    let files = Arc::new(LocalFiles::read(args, run::places(args)?)?);
    let format = Destination::new(args, &config)?.format;
    let first = request(args, &config, format, &files.pictures());
    let mut steps = vec![json!({ "kind": KIND, "model": args.model, "request": first })];
    steps.extend(after(args, &config)?);
    // The file's ending decides about the format of what comes out at the end.
    end_in(&mut steps, format.name());
    let options = Options {
        // What a step leaves may be what a later one needs.
        keep_weights: true,
        ..run::options(&config)
    };
    let handed = Handed::new(files);
    let here = Here {
        args,
        options,
        handed: handed.clone(),
        processors: processors::all(),
        opened: Mutex::default(),
    };
    let chain = Chain::open(&json!({ "steps": steps }), &here, handed, options);
    let chain = chain.map_err(run::in_options)?;
    Ok(Asked { chain, config })
}

/// The steps after the first, in order: repairs, as the picture was drawn, the larger picture, then whatever else is
/// named.
///
/// # Errors
/// When more prompts than repairs are given, or something that is about one picture of this process.
pub(crate) fn after(args: &GenerateArgs, config: &Config) -> Result<Vec<Value>, Failure> {
    let StepsArgs {
        repair,
        upscale,
        upscale_model,
        then,
    } = &args.steps_after;
    let mut rest: Vec<Value> = Vec::new();
    if let Some(factor) = upscale {
        let request = json!({ "scale": factor });
        rest.push(json!({ "kind": "upscale", "model": upscale_model, "request": request }));
    }
    rest.extend(then.iter().cloned());
    if !repair.any() {
        return Ok(rest);
    }
    for (option, given) in [("--dump", &args.dump), ("--noise", &args.noise)] {
        if given.is_some() {
            let sentence = format!("{option} cannot be used with --detail");
            return Err(Failure::mistake(sentence));
        }
    }
    let mut fields = Map::new();
    let mut put = |name: &str, value: Value| {
        if !value.is_null() {
            fields.insert(name.to_owned(), value);
        }
    };
    put("passes", json!(repair.passes().map_err(Failure::mistake)?));
    put("steps", json!(args.steps));
    put("guidance", json!(args.guidance));
    put("seed", json!(config.seed));
    put_sampling(&args.sampling, &mut put);
    let first = json!({ "kind": detail::KIND, "model": args.model, "request": fields });
    Ok(std::iter::once(first).chain(rest).collect())
}

/// Says what format the last step writes, where it does not say so itself.
pub(crate) fn end_in(steps: &mut [Value], format: &str) {
    if let Some(last) = steps.last_mut()
        && last["request"]["output_format"].is_null()
        && let Some(last) = last.as_object_mut()
    {
        let request = last.entry("request").or_insert_with(|| json!({}));
        if request.is_null() {
            *request = json!({});
        }
        if let Some(request) = request.as_object_mut() {
            request.insert("output_format".to_owned(), format.into());
        }
    }
}

/// Plans and prints.
pub(crate) fn plan(args: &GenerateArgs) -> Result<(), Failure> {
    let asked = open(args)?;
    let outlook = asked.chain.outlook(None).map_err(run::in_options)?;
    let plan = outlook.forecast.plan.as_ref();
    let text = if args.json {
        let plan_json = plan.map_or(Value::Null, plan_view::json);
        let reasons = plan.map(plan_view::reasons).unwrap_or_default();
        let line = json!({ "plan": plan_json, "chain": outlook.json(), "reasons": reasons, "steps": outlook.sentences() });
        format!("{line}\n")
    } else if args.quiet {
        String::new()
    } else {
        text(&outlook)
    };
    Ok(console::print(&text)?)
}

/// A plan for people: the steps together, then every phase.
fn text(outlook: &Outlook) -> String {
    let mut text = String::new();
    for sentence in outlook.sentences() {
        text.push_str(&format!("{sentence}\n"));
    }
    text.push('\n');
    if let Some(plan) = &outlook.forecast.plan {
        text.push_str(&plan_view::text(plan));
    }
    let chain = &outlook.chain;
    text.push_str(&format!(
        "\n  {} of weights read in {:.1} s, {:.1} s of which nothing else goes on\n",
        chain.reads, chain.loading_s, chain.waiting_s
    ));
    text
}

/// Makes the pictures.
pub(crate) fn generate(args: &GenerateArgs) -> Result<(), Failure> {
    let started = Instant::now();
    let interrupt = Interrupt::install()?;
    let Asked { chain, mut config } = open(args)?;
    config.count = chain.pictures();
    let destination = Destination::new(args, &config)?;
    let order = Order {
        request: chain.request(),
        resume: None,
    };
    let run = chain.start(vec![order]).map_err(run::in_options)?;
    let progress = match args.json || args.quiet {
        true => Progress::silent(),
        false => Progress::on_stderr(),
    };
    let product = drive(run, progress, &interrupt)?;
    write(&product, &destination, &interrupt)?;
    let seconds = started.elapsed().as_secs_f64();
    if args.json {
        let outputs: Vec<String> = paths(&destination);
        let report = &product.report;
        let line = json!({
            "seed": config.seed, "outputs": outputs, "seconds": { "total": seconds },
            "chain": report["chain"], "memory": report["memory"], "bytes_read": report["bytes_read"],
            "quality": report["quality"], "report": report,
        });
        console::print(&format!("{line}\n"))?;
    } else if !args.quiet {
        console::note(&summary(&product.report, config.seed, seconds));
        for path in paths(&destination) {
            console::print(&format!("{path}\n"))?;
        }
    }
    Ok(())
}

fn paths(destination: &Destination) -> Vec<String> {
    let paths = destination.pictures.iter();
    paths.map(|path| path.display().to_string()).collect()
}

/// The whole job in a few lines: where the time went.
pub(crate) fn summary(report: &Value, seed: u64, seconds: f64) -> String {
    let second = |seconds: &Value, of: &str| seconds[of].as_f64().unwrap_or(0.0);
    let line = |name: &str, seconds: &Value| {
        format!(
            "{name}: {:.2} s of work, {:.2} s of loading, {:.2} s of waiting for weights",
            second(seconds, "work"),
            second(seconds, "loading"),
            second(seconds, "waiting"),
        )
    };
    let steps = report["chain"]["steps"].as_array().into_iter().flatten();
    let mut lines: Vec<String> = steps
        .map(|step| {
            let name = |field: &str| step[field].as_str().unwrap_or_default().to_owned();
            let name = format!(
                "step {}, {} with {}",
                step["step"],
                name("kind"),
                name("model")
            );
            line(&name, &step["seconds"])
        })
        .collect();
    lines.push(line(
        &format!("seed {seed}, {seconds:.2} s in all"),
        &report["chain"]["seconds"],
    ));
    lines.join("\n")
}

/// Steps until the chain is finished or somebody asks to stop.
fn drive(
    mut run: Box<dyn Run>,
    mut progress: Progress,
    interrupt: &Interrupt,
) -> Result<Product, Failure> {
    loop {
        if let Err(stop) = interrupt.check() {
            progress.abandon();
            return Err(stop);
        }
        let stage = run.stage();
        match run.step() {
            Ok(Stepped::Progress(step)) => {
                let phase = match stage {
                    Some(stage) => format!("{}/{} {}", stage.step, stage.steps, step.phase),
                    None => step.phase.to_owned(),
                };
                progress.show(Look {
                    phase: &phase,
                    done: step.done,
                    total: step.total,
                    seconds: step.elapsed.as_secs_f64(),
                    memory: run.plan().map(|plan| (step.memory, plan.budget.total)),
                });
            }
            Ok(Stepped::Finished(products)) => {
                let product = products.into_iter().flatten().next();
                let nothing =
                    || Failure::Other(anyhow::anyhow!("the chain made nothing (this is a bug)"));
                return product.ok_or_else(nothing);
            }
            Err(failure) => {
                progress.abandon();
                return Err(failure.into());
            }
        }
    }
}

/// Writes everything under temporary names first, so that a failure leaves none of it.
fn write(
    product: &Product,
    destination: &Destination,
    interrupt: &Interrupt,
) -> Result<(), Failure> {
    if product.files.len() != destination.pictures.len() {
        let made = product.files.len();
        return Err(Failure::Other(anyhow::anyhow!(
            "{made} files were made instead of {}",
            destination.pictures.len()
        )));
    }
    let mut staged = Vec::new();
    for (file, path) in product.files.iter().zip(&destination.pictures) {
        interrupt.check()?;
        let written = Staged::write(path, &file.content);
        staged.push(written.map_err(|cause| run::not_written(path, cause))?);
    }
    for (file, path) in staged.into_iter().zip(&destination.pictures) {
        file.publish()
            .map_err(|cause| run::not_written(path, cause))?;
    }
    Ok(())
}
