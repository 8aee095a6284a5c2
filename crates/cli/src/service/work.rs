//! `lowtide worker`: joins settings, queue and processors to one worker, alone or under a supervisor.

use std::io::{BufRead, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use lowtide_core::{Bytes, Offload};
use lowtide_engine::device::memory::Memory;
use lowtide_engine::processor::{Files, Processor};
use lowtide_engine::{Options, processors};
use lowtide_jobs::{InputStore, JobStore, Listen, WorkerId};
use lowtide_weights::ModelFolder;
use lowtide_worker::{Folders, ModelOptions, Setup, Stop, Worker, WorkerOptions};
use serde_json::Value;

use super::catalog::Catalog;
use super::folders::Surroundings;
use super::log::{Level, Logger};
use super::settings::{Reserve, Settings};
use super::store;
use super::traces;
use crate::args::WorkerArgs;
use crate::failure::Failure;
use crate::gpu;
use crate::interrupt::Interrupt;
use crate::named_files::{NamedFiles, Sent};

/// How often a worker that runs alone looks whether somebody asked it to end.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Runs until it is asked to end.
pub(crate) fn run(args: &WorkerArgs) -> Result<(), Failure> {
    match args.supervised {
        true => supervised(),
        false => alone(args),
    }
}

fn alone(args: &WorkerArgs) -> Result<(), Failure> {
    let settings = Settings::read(
        &args.settings,
        args.settings.given(),
        &Surroundings::of_process(),
    )?;
    let log = Logger::new(settings.log);
    let interrupt = Interrupt::install()?;
    let id = match &args.id {
        Some(id) => id
            .parse()
            .map_err(|wrong| Failure::mistake(format!("--id '{id}': {wrong}")))?,
        None => own_id(),
    };
    std::fs::create_dir_all(&settings.server.data_dir).map_err(|cause| {
        Failure::mistake(format!(
            "the data folder '{}' cannot be used: {cause}; name another with --data-dir",
            settings.server.data_dir.display()
        ))
    })?;
    let store = store::open(&settings, Listen::Queue)?;
    log.info(&format!(
        "worker {id} on the queue {}; Ctrl-C lets it park and save what runs",
        settings.server.store
    ));
    let stop = Stop::new();
    let over = Arc::new(AtomicBool::new(false));
    let (asked, bell, ended) = (stop.clone(), store.clone(), over.clone());
    let watch = std::thread::Builder::new()
        .name("interrupt".to_owned())
        .spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                if interrupt.check().is_err() {
                    asked.ask();
                    bell.nudge();
                    return;
                }
                std::thread::park_timeout(LOOK_EVERY);
            }
        })
        .context("no thread to watch for Ctrl-C")?;
    let result = work(&settings, id, store, &stop, &log);
    over.store(true, Ordering::Relaxed);
    watch.thread().unpark();
    result
}

fn supervised() -> Result<(), Failure> {
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    let document: Value = serde_json::from_str(&line).map_err(|_| {
        Failure::mistake(
            "--supervised is for 'lowtide serve', which writes the settings to standard input",
        )
    })?;
    let settings = Settings::from_parent(&document)?;
    let log = Logger::for_parent(settings.log);
    let store = store::open(&settings, Listen::Queue)?;
    let stop = Stop::new();
    let (asked, bell) = (stop.clone(), store.clone());
    std::thread::Builder::new()
        .name("parent".to_owned())
        .spawn(move || {
            let mut bytes = [0; 64];
            // Whatever comes means that something changed; the end means that the parent is gone.
            while std::io::stdin()
                .lock()
                .read(&mut bytes)
                .is_ok_and(|count| count > 0)
            {
                bell.nudge();
            }
            asked.ask();
            bell.nudge();
        })
        .context("no thread to listen to the parent")?;
    work(&settings, own_id(), store, &stop, &log)
}

fn work(
    settings: &Settings,
    id: WorkerId,
    store: Arc<dyn JobStore>,
    stop: &Stop,
    log: &Logger,
) -> Result<(), Failure> {
    gpu::check_precision(settings.device.name.first(), settings.device.precision)
        .map_err(|problem| Failure::mistake(format!("device.precision {problem}")))?;
    let lines = log.clone();
    let options_of_device = device(settings, gpu::total(settings.device.name.first()));
    let memory = (options_of_device.budget, options_of_device.reserve);
    gpu::put(settings.device.name.first(), memory)?;
    let around = Surroundings::of_process();
    let folders = Arc::new(Catalog::new(&settings.models, &around)?);
    let tracer = traces::start(settings, id.as_str(), &around, log)?;
    let kept = store::open_files(settings, &around)?;
    let setup = Setup {
        store,
        artifacts: kept.artifacts,
        id,
        sessions: settings.server.files_dir.join("sessions"),
        shared_sessions: kept.sessions,
        processors: enabled(&settings.kinds)?,
        folders: folders.clone(),
        device: options_of_device,
        files: files(settings, kept.inputs, folders),
        options: options(settings),
        tracer,
        log: lowtide_worker::Log::new(move |line| {
            let level = match line.level {
                lowtide_worker::Level::Debug => Level::Debug,
                lowtide_worker::Level::Info => Level::Info,
                lowtide_worker::Level::Warn => Level::Warn,
                lowtide_worker::Level::Error => Level::Error,
            };
            lines.say_with(level, &line.text, line.fields);
        }),
    };
    let worker = Worker::open(setup).map_err(anyhow::Error::new)?;
    Ok(worker.run(stop).map_err(anyhow::Error::new)?)
}

impl Folders for Catalog {
    fn names(&self) -> Vec<String> {
        Catalog::names(self)
    }

    fn open(&self, name: &str) -> Result<ModelFolder, String> {
        Catalog::open(self, name)
    }
}

/// The processors of these kinds.
///
/// # Errors
/// When one is not there.
pub(crate) fn enabled(kinds: &[String]) -> Result<Vec<Arc<dyn Processor>>, Failure> {
    let all = processors::all();
    let pick = |kind: &String| {
        let found = all.iter().find(|one| one.kind() == kind.as_str());
        found.cloned().ok_or_else(|| {
            let known: Vec<&str> = all.iter().map(|one| one.kind()).collect();
            Failure::mistake(format!(
                "kinds.enabled: there is no kind of job '{kind}'; there are {}",
                known.join(", ")
            ))
        })
    };
    kinds.iter().map(pick).collect()
}

/// How the engine is to use its device, which has `total` bytes where it is none of the processor's. Weights stay between
/// jobs: that is what a service is for.
pub(crate) fn device(settings: &Settings, total: Option<Bytes>) -> Options {
    let (worker, settings) = (&settings.worker, &settings.device);
    let reserve = settings.reserve.and_then(|reserve| match reserve {
        Reserve::Bytes(bytes) => Some(bytes),
        Reserve::Share(share) => total
            .or_else(|| Memory::read().map(|memory| memory.total))
            .map(|total| Bytes((total.as_f64() * share) as u64)),
    });
    Options {
        budget: settings.budget,
        reserve,
        threads: settings.threads,
        precision: settings.precision,
        keep_weights: true,
        prompt_cache: Some(worker.prompt_cache),
        // The settings only let the planner's words through.
        offload: Offload::named(&settings.offload).unwrap_or_default(),
    }
}

fn options(settings: &Settings) -> WorkerOptions {
    let worker = &settings.worker;
    let aliases = &settings.models.aliases;
    let own_name = |name: &String| aliases.get(name).unwrap_or(name).clone();
    let models = settings.models.options.iter().map(|(name, model)| {
        let options = ModelOptions {
            keep_alive: model.keep_alive,
            after_job: model.after_job,
            idle: model.idle,
        };
        (own_name(name), options)
    });
    WorkerOptions {
        max_concurrent_jobs: worker.max_concurrent_jobs,
        keep_alive: worker.keep_alive,
        after_job: worker.after_job,
        idle: worker.idle,
        models: models.collect(),
        preload: worker.preload.iter().map(own_name).collect(),
        batch_max: worker.batch_max,
        lease: worker.lease,
        heartbeat: worker.heartbeat,
        previews: worker.previews,
        checkpoint_every: worker.checkpoint_every,
    }
}

/// The files that requests name.
pub(crate) fn files(
    settings: &Settings,
    inputs: Arc<dyn InputStore>,
    models: Arc<dyn Folders>,
) -> Arc<dyn Files> {
    let places = settings.models.places.clone();
    Arc::new(NamedFiles::new(places, Box::new(Sent(inputs)), models))
}

fn own_id() -> WorkerId {
    worker_id(std::process::id())
}

/// The name of the worker that is this process of this machine; no other one has it.
pub(super) fn worker_id(pid: u32) -> WorkerId {
    format!("{}-worker-{pid}", host())
        .parse()
        .expect("letters, digits and hyphens, at most 64")
}

/// The machine's name, as far as it is letters, digits and dashes.
pub(super) fn host() -> String {
    const HOST_LEN_MAX: usize = 40;
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname")
        .ok()
        .or_else(|| std::env::var("COMPUTERNAME").ok())
        .or_else(|| std::env::var("HOSTNAME").ok())
        .unwrap_or_default();
    let plain = |c: &char| c.is_ascii_alphanumeric() || *c == '-';
    let host: String = host
        .trim()
        .chars()
        .filter(plain)
        .take(HOST_LEN_MAX)
        .collect();
    match host.is_empty() {
        true => "host".to_owned(),
        false => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_has_a_name_of_its_own() {
        assert!(
            own_id()
                .as_str()
                .ends_with(&format!("-worker-{}", std::process::id()))
        );
    }

    #[test]
    fn kinds_are_those_named() {
        let named = enabled(&["no-op".to_owned()]).unwrap();
        assert_eq!(named.len(), 1);
        assert_eq!(named[0].kind(), "no-op");
        let failure = enabled(&["no-up".to_owned()]).err().unwrap().to_string();
        assert!(
            failure.contains("'no-up'") && failure.contains("no-op"),
            "{failure}"
        );
    }
}
