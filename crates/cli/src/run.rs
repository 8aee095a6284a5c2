//! `lowtide generate` and `lowtide plan`: from arguments to a session, from its outcome to files.

use crate::args::{GenerateArgs, PrecisionArg, QualityArg};
use crate::config::{Config, Destination, Size, check_early};
use crate::failure::Failure;
use crate::gpu::DeviceChoice;
use crate::interrupt::Interrupt;
use crate::named_files::Places;
use crate::output::Staged;
use crate::progress::{Look, Progress};
use crate::request::{LocalFiles, option_of, request};
use crate::service::{Surroundings, models_settings};
use crate::tensor_files::{self, Tensor};
use crate::{chain, console, gpu, models, plan_view};
use anyhow::Context;
use lowtide_engine::device::cpu;
use lowtide_engine::processors::{Prepared, Refiner};
use lowtide_engine::{
    Defaults, Engine, Error, MadeBy, Options, Outcome, PrecisionChoice, Session, Step,
};
use lowtide_kernels as kernels;
use lowtide_media::{Format, Pixels};
use serde_json::{Map, Value, json};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// The kind of job.
pub(crate) const KIND: &str = "text-to-image";

/// Plans and prints.
pub(crate) fn plan(args: &GenerateArgs) -> Result<(), Failure> {
    if args.steps_after.any() {
        return chain::plan(args);
    }
    let (_, plan) = fitting(args, |job| job.prepared.plan(&job.engine))?;
    let text = if args.json {
        format!(
            "{}\n",
            json!({ "plan": plan_view::json(&plan), "reasons": plan_view::reasons(&plan) })
        )
    } else if args.quiet {
        String::new()
    } else {
        plan_view::text(&plan)
    };
    Ok(console::print(&text)?)
}

/// Makes the pictures.
pub(crate) fn generate(args: &GenerateArgs) -> Result<(), Failure> {
    if args.steps_after.any() {
        return chain::generate(args);
    }
    let started = Instant::now();
    let interrupt = Interrupt::install()?;
    check_early(args)?;
    let keep_values = args.dump.is_some();
    let start = |job: &Job| {
        let keep_values = keep_values || job.prepared.refiner.is_some();
        job.engine.start(job.prepared.request.clone(), keep_values)
    };
    let (job, session) = fitting(args, start)?;
    let destination = Destination::new(args, &job.config)?;
    let refiner = job.prepared.refiner.as_deref();
    let load_seconds = started.elapsed().as_secs_f64();
    let progress = || match args.json || args.quiet {
        true => Progress::silent(),
        false => Progress::on_stderr(),
    };
    let mut outcome = drive(session, progress(), &interrupt)?;
    if let Some(refiner) = refiner {
        let first = (&job.engine, std::slice::from_ref(&job.prepared.request));
        let session = refiner.go_on(first, &outcome, keep_values);
        let second = drive(session.map_err(in_options)?, progress(), &interrupt)?;
        let report = second.report.clone().after(outcome.report);
        outcome = Outcome { report, ..second };
    }
    let writing = Instant::now();
    write(&outcome, &job, &destination, &interrupt)?;
    if args.json {
        let mut seconds = Map::from_iter([("load".to_owned(), Value::from(load_seconds))]);
        for phase in &outcome.report.plan.phases {
            let spent = outcome.report.seconds.get(phase.name.as_str()).copied();
            seconds.insert(phase.name.clone(), Value::from(spent.unwrap_or_default()));
        }
        seconds.insert(
            "write".to_owned(),
            Value::from(writing.elapsed().as_secs_f64()),
        );
        seconds.insert(
            "total".to_owned(),
            Value::from(started.elapsed().as_secs_f64()),
        );
        let line = result_json(&outcome, &job, &destination, seconds);
        console::print(&format!("{line}\n"))?;
    } else if !args.quiet {
        for note in &outcome.report.notes {
            console::note(&format!("note: {note}"));
        }
        console::note(&summary(&outcome, &job, started.elapsed().as_secs_f64()));
        for path in &destination.pictures {
            console::print(&format!("{}\n", path.display()))?;
        }
    }
    Ok(())
}

/// The job of these arguments, and what `attempt` makes of it; of a smaller variant of the model where the model itself
/// fits in no way and approximate means are allowed.
fn fitting<T>(
    args: &GenerateArgs,
    attempt: impl Fn(&Job) -> Result<T, Error>,
) -> Result<(Job, T), Failure> {
    let job = Job::open(args)?;
    let unfit = match attempt(&job) {
        Ok(made) => return Ok((job, made)),
        Err(unfit) => unfit,
    };
    if matches!(unfit, Error::DoesNotFit(_)) && args.quality == QualityArg::Auto {
        for model in models::smaller(&job.model)? {
            let of_variant = GenerateArgs {
                model,
                ..args.clone()
            };
            let smaller = Job::open(&of_variant)?;
            match attempt(&smaller) {
                Ok(made) => return Ok((smaller, made)),
                Err(Error::DoesNotFit(_)) => {}
                Err(other) => return Err(in_options(other)),
            }
        }
    }
    Err(in_options(unfit))
}

/// The whole job in one line.
fn summary(outcome: &Outcome, job: &Job, seconds: f64) -> String {
    let report = &outcome.report;
    let peak = report.peak.values().copied().max().unwrap_or_default();
    let mut line = format!(
        "seed {}, {seconds:.2} s in all, at most {peak} of {} in use (planned {})",
        job.config.seed, report.plan.budget.total, report.plan.peak
    );
    if !report.plan.approximate.is_empty() {
        line.push_str(&format!(
            ", approximate: {}",
            report.plan.approximate.join(", ")
        ));
    }
    line
}

/// An opened model, and what is asked of it.
struct Job {
    config: Config,
    prepared: Prepared,
    engine: Engine,
    /// The model's name, for the picture.
    model: String,
}

impl Job {
    fn open(args: &GenerateArgs) -> Result<Job, Failure> {
        // A wrong word in the environment is the user's to mend, and is said before the kernels trip over it.
        kernels::isa_from_env().map_err(Failure::Mistake)?;
        check_precision(args.precision, args.device.unwrap_or_default())?;
        let folder = models::open_or_fetch(&args.model, args.download, args.quiet || args.json)?;
        let defaults = Defaults::of(&folder)?;
        let config = Config::new(args, defaults)?;
        let memory = (config.budget, config.reserve);
        gpu::put(args.device.unwrap_or_default(), memory)?;
        let files = Arc::new(LocalFiles::read(args, places(args)?)?);
        let model = folder.name.clone();
        let engine = Engine::with_files(folder, options(&config), files.clone())?;
        // The file's ending decides about the format.
        let request = request(args, &config, Format::Png, &files.pictures());
        let prepared = Prepared::read(&engine, &defaults, &*files, &request);
        let mut prepared = prepared.map_err(in_options)?;
        if let Some(path) = &args.noise {
            let size = Size {
                width: prepared.request.width,
                height: prepared.request.height,
            };
            let noise = tensor_files::read_noise(path, size, config.count)?;
            prepared.request.noise = Some(noise);
        }
        Ok(Job {
            config,
            prepared,
            engine,
            model,
        })
    }
}

/// Where LoRAs and textual inversions are. Wrong settings stop only who names a LoRA.
pub(crate) fn places(args: &GenerateArgs) -> Result<Places, Failure> {
    match models_settings(&Surroundings::of_process()) {
        Ok(settings) => Ok(settings.places),
        Err(wrong) if !args.sampling.lora.is_empty() || args.prompt.contains("<lora:") => {
            Err(wrong)
        }
        Err(wrong) => {
            if !args.quiet && !args.json {
                console::note(&format!("without textual inversions: {wrong}"));
            }
            Ok(Places::default())
        }
    }
}

/// A field that is wrong was written as an option.
pub(crate) fn in_options(error: Error) -> Failure {
    match error {
        Error::Request { what, problem } => match option_of(&what) {
            Some(option) => Failure::mistake(format!("{option}: {problem}")),
            None if what == "prompt" => Failure::mistake(format!("the {what} {problem}")),
            None => Failure::mistake(format!("{what} {problem}")),
        },
        other => other.into(),
    }
}

/// Refuses `--precision` where it cannot be had, before anything is fetched or read.
pub(crate) fn check_precision(
    precision: Option<PrecisionArg>,
    device: DeviceChoice,
) -> Result<(), Failure> {
    let choice = precision.map_or(PrecisionChoice::Auto, PrecisionArg::choice);
    gpu::check_precision(device, choice)
        .map_err(|problem| Failure::mistake(format!("--precision {problem}")))
}

pub(crate) fn options(config: &Config) -> Options {
    Options {
        budget: config.budget,
        reserve: config.reserve,
        threads: config.threads,
        precision: config.precision.choice(),
        // One job a process: there is no next one to keep weights for.
        keep_weights: false,
        ..Options::default()
    }
}

/// Steps until the session is finished or somebody asks to stop.
fn drive(
    mut session: Session,
    mut progress: Progress,
    interrupt: &Interrupt,
) -> Result<Outcome, Failure> {
    let budget = session.plan().budget.total;
    loop {
        if let Err(stop) = interrupt.check() {
            progress.abandon();
            return Err(stop);
        }
        match session.step() {
            Ok(Step::Progress(step)) => progress.show(Look {
                phase: step.phase,
                done: step.done,
                total: step.total,
                seconds: step.elapsed.as_secs_f64(),
                memory: Some((step.memory, budget)),
            }),
            Ok(Step::Finished(outcome)) => {
                progress.show(last_look(&outcome, progress.phase_seconds()));
                return Ok(*outcome);
            }
            Err(failure) => {
                progress.abandon();
                return Err(failure.into());
            }
        }
    }
}

/// The step that finished the job, which reports its outcome instead of itself.
fn last_look(outcome: &Outcome, shown_seconds: f64) -> Look<'static> {
    const PHASE: &str = "decode";
    let report = &outcome.report;
    if outcome.images.is_empty() {
        // The last step of a way that another model goes on with.
        let steps = report
            .plan
            .phases
            .last()
            .map_or(1, |phase| phase.visits.max(1));
        let spent = report.seconds.get("denoise").copied().unwrap_or_default();
        let peak = report.peak.get("denoise").copied().unwrap_or_default();
        return Look {
            phase: "denoise",
            done: steps as usize,
            total: steps as usize,
            seconds: spent - shown_seconds,
            memory: Some((peak, report.plan.budget.total)),
        };
    }
    let spent = report.seconds.get(PHASE).copied().unwrap_or_default();
    Look {
        phase: PHASE,
        done: outcome.images.len(),
        total: outcome.images.len(),
        seconds: spent - shown_seconds,
        memory: Some((
            report.peak.get(PHASE).copied().unwrap_or_default(),
            report.plan.budget.total,
        )),
    }
}

/// Writes everything under temporary names first, so that a failure leaves none of it.
fn write(
    outcome: &Outcome,
    job: &Job,
    destination: &Destination,
    interrupt: &Interrupt,
) -> Result<(), Failure> {
    let made = MadeBy {
        model: &job.model,
        precision: job.engine.precision(),
        approximate: &outcome.report.plan.approximate,
        refiner: job.prepared.refiner.as_deref().map(Refiner::name),
    };
    let mut staged = Vec::new();
    for (image, path) in outcome.images.iter().zip(&destination.pictures) {
        interrupt.check()?;
        let image = job.prepared.over(image.clone())?;
        let text = made.parameters(&job.prepared.request, &image);
        let side = |side: usize| u32::try_from(side).context("a side beyond 2^32 pixels");
        let pixels = Pixels {
            width: side(image.width)?,
            height: side(image.height)?,
            rgb: &image.rgb,
        };
        let file = lowtide_media::encode(pixels, destination.format, &text)
            .with_context(|| format!("'{}' could not be written", path.display()))?;
        staged.push(Staged::write(path, &file).map_err(|cause| not_written(path, cause))?);
    }
    interrupt.check()?;
    if let Some(path) = &destination.dump {
        dump(path, outcome)?;
    }
    for (file, path) in staged.into_iter().zip(&destination.pictures) {
        file.publish().map_err(|cause| not_written(path, cause))?;
    }
    Ok(())
}

pub(crate) fn not_written(path: &Path, cause: std::io::Error) -> Failure {
    Failure::Other(
        anyhow::Error::new(cause).context(format!("'{}' could not be written", path.display())),
    )
}

fn dump(path: &Path, outcome: &Outcome) -> Result<(), Failure> {
    let (width, height) = outcome
        .images
        .first()
        .map_or((0, 0), |image| (image.width, image.height));
    tensor_files::write(
        path,
        &[
            Tensor {
                name: "latents",
                shape: outcome.latents_shape.to_vec(),
                data: &outcome.latents,
            },
            Tensor {
                name: "image",
                shape: vec![outcome.images.len(), 3, height, width],
                data: &outcome.values,
            },
        ],
    )
}

fn result_json(
    outcome: &Outcome,
    job: &Job,
    destination: &Destination,
    seconds: Map<String, Value>,
) -> Value {
    let report = &outcome.report;
    let plan = &report.plan;
    let predicted: Map<String, Value> = plan
        .phases
        .iter()
        .map(|phase| (phase.name.clone(), Value::from(phase.peak.0)))
        .collect();
    let measured: Map<String, Value> = report
        .peak
        .iter()
        .map(|(phase, peak)| ((*phase).to_owned(), Value::from(peak.0)))
        .collect();
    let outputs: Vec<String> = destination
        .pictures
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    json!({
        "seed": job.config.seed,
        "outputs": outputs,
        "seconds": seconds,
        "waited_seconds": report.waited,
        "memory": {
            "budget": plan.budget.total.0,
            "in_use_before": plan.budget.in_use.0,
            "predicted_peak": predicted,
            "measured_peak": measured,
        },
        "bytes_read": report.bytes_read,
        "rungs_taken": report.rungs_taken,
        "precision": cpu::precision_word(job.engine.precision()),
        "quality": if plan.approximate.is_empty() { "exact" } else { "approximate" },
        "approximate": plan.approximate,
        "notes": report.notes,
        "reasons": plan_view::reasons(plan),
        "plan": plan_view::json(plan),
    })
}
