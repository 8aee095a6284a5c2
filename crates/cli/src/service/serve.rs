//! `lowtide serve`: the queue, the HTTP server and one supervised worker, until somebody asks to end.

use std::collections::BTreeMap;
use std::net::{IpAddr, TcpListener, ToSocketAddrs};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use lowtide_core::Bytes;
use lowtide_core::job::JobState;
use lowtide_engine::device::cpu;
use lowtide_engine::device::memory::Memory;
use lowtide_engine::processor;
use lowtide_engine::{Options, PrecisionChoice};
use lowtide_jobs::{JobStore, Listen};
use lowtide_server::AccessMode;
use serde_json::json;

use super::catalog::Catalog;
use super::door::Desk;
use super::downloads::{Fetcher, Keeper};
use super::folders::Surroundings;
use super::instance::Instance;
use super::layers::Origin;
use super::log::{Level, Logger, now};
use super::net::{Net, Subjects};
use super::settings::{ServerSettings, Settings};
use super::store;
use super::supervisor::{Plan, Supervisor};
use super::traces;
use super::work;
use crate::args::ServeArgs;
use crate::failure::{Failure, one_line};
use crate::gpu::{self, DeviceChoice};
use crate::interrupt::Interrupt;

/// How often it is looked whether somebody asked to end.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Runs until somebody asks to end.
pub(crate) fn run(args: &ServeArgs) -> Result<(), Failure> {
    let settings = Settings::read(&args.settings, args.given(), &Surroundings::of_process())?;
    let log = Logger::new(settings.log);
    let interrupt = Interrupt::install()?;
    // What the worker would trip over is said before it is started.
    lowtide_kernels::isa_from_env().map_err(Failure::Mistake)?;
    cpu::settle_allocator();
    let processors = work::enabled(&settings.kinds)?;
    check_precision(&settings)?;
    let instance = Instance::take(&settings.server.data_dir)?;
    let store = store::open(&settings, Listen::All)?;
    let files = store::open_files(&settings, &Surroundings::of_process())?;
    let catalog = Arc::new(Catalog::new(&settings.models, &Surroundings::of_process())?);
    say_missing(&settings, &catalog, &log);
    let setup = processor::Setup {
        // This process opens models to look at requests and multiplies nothing; its workers may have what it has not.
        options: Options {
            precision: PrecisionChoice::Auto,
            ..work::device(&settings, None)
        },
        files: work::files(&settings, files.inputs.clone(), catalog.clone()),
    };
    let around = Surroundings::of_process();
    let fetcher = Fetcher::new(&settings.models, &around, (catalog.clone(), store.clone()));
    let desk = Desk::new(
        processors,
        catalog.clone(),
        &settings,
        (setup, fetcher.clone()),
    );
    let desk = Arc::new(desk);
    if let Some(sentence) = desk.strangers(&settings).into_iter().next() {
        return Err(Failure::Mistake(sentence));
    }
    let listener = listen(&settings.server)?;
    let address = listener.local_addr()?;
    let subjects = Subjects {
        store: store.clone(),
        artifacts: files.artifacts,
        inputs: files.inputs,
        door: desk.clone(),
        tracer: traces::start(&settings, "server", &around, &log)?,
    };
    let net = Net::start(listener, subjects, (&settings, &log))?;
    let url = format!("http://{}", reachable(address));
    instance.tell(&url)?;
    let named = (&url[..], &files.place[..]);
    say_start((&settings, store.as_ref()), &log, named, &catalog.names());
    let supervisors = match settings.server.worker {
        true => workers(&settings, &store, &log)?,
        false => Vec::new(),
    };
    let downloads = Keeper::start(fetcher, desk, log.clone())?;
    while interrupt.check().is_ok() && !net.is_over() {
        std::thread::park_timeout(LOOK_EVERY);
    }
    log.info("ends: what runs is parked and saved; a second Ctrl-C ends at once");
    drop(downloads);
    let spoke = net.stop();
    Supervisor::stop_all(supervisors);
    let left = waiting(store.as_ref());
    if left > 0 {
        log.info(&format!("{left} jobs go on after the next start"));
    }
    spoke
}

/// Refuses a precision that a worker of this service will not have; one beside this program may find a GPU where this one
/// finds none, and says so itself.
fn check_precision(settings: &Settings) -> Result<(), Failure> {
    let device = &settings.device;
    if !settings.server.worker {
        return Ok(());
    }
    let own = std::env::current_exe().context("this program's own file is not known")?;
    let elsewhere = device.name.sibling(&own).is_some();
    for one in device.name.all() {
        if elsewhere && *one == DeviceChoice::Auto {
            continue;
        }
        gpu::check_precision(*one, device.precision)
            .map_err(|problem| Failure::mistake(format!("device.precision {problem}")))?;
    }
    Ok(())
}

/// Folders that are named and not there.
fn say_missing(settings: &Settings, catalog: &Catalog, log: &Logger) {
    for dir in catalog.missing() {
        log.say(
            Level::Warn,
            &format!("models.dirs: there is no folder '{dir}'"),
        );
    }
    for dir in settings.models.places.missing() {
        log.say(Level::Warn, &format!("there is no folder '{dir}'"));
    }
}

/// Jobs that are not over.
fn waiting(store: &dyn JobStore) -> u64 {
    let stats = store.stats(now()).unwrap_or_default();
    let open = JobState::ALL.into_iter().filter(|state| !state.is_final());
    open.map(|state| stats.in_state(state)).sum()
}

fn listen(server: &ServerSettings) -> Result<TcpListener, Failure> {
    let place = format!("{}:{}", server.host, server.port);
    let addresses = (server.host.as_str(), server.port)
        .to_socket_addrs()
        .map_err(|cause| {
            Failure::mistake(format!("--host '{}' is no address: {cause}", server.host))
        })?;
    let addresses: Vec<_> = addresses.collect();
    TcpListener::bind(addresses.as_slice()).map_err(|cause| {
        let way_out = match cause.kind() {
            std::io::ErrorKind::AddrInUse => "something else listens there; --port chooses another",
            std::io::ErrorKind::PermissionDenied => {
                "ports below 1024 are for the system; --port chooses another"
            }
            _ => "--host and --port choose another",
        };
        Failure::mistake(format!(
            "{place} cannot be listened on ({cause}): {way_out}"
        ))
    })
}

/// An address that can be gone to: nobody can go to "all of them".
fn reachable(address: std::net::SocketAddr) -> std::net::SocketAddr {
    let mut reachable = address;
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => {
            reachable.set_ip(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST));
        }
        IpAddr::V6(ip) if ip.is_unspecified() => {
            reachable.set_ip(IpAddr::V6(std::net::Ipv6Addr::LOCALHOST));
        }
        IpAddr::V4(_) | IpAddr::V6(_) => {}
    }
    reachable
}

/// One worker a device.
fn workers(
    settings: &Settings,
    store: &Arc<dyn JobStore>,
    log: &Logger,
) -> Result<Vec<Supervisor>, Failure> {
    let devices = settings.device.name.workers();
    let alone = devices.len() == 1;
    let start = |device: String| {
        let name = match alone {
            true => "worker".to_owned(),
            false => format!("worker {device}"),
        };
        let mut document = settings.resolved.document();
        document["device"]["name"] = device.into();
        let plan = Plan {
            command: worker_command(settings)?,
            settings: document,
            log: log.named(&name),
        };
        Supervisor::start(plan, store.clone())
    };
    devices.into_iter().map(start).collect()
}

/// This program, or the one beside it that knows GPUs, as a worker.
fn worker_command(settings: &Settings) -> Result<Command, Failure> {
    let own = std::env::current_exe().context("this program's own file is not known")?;
    let program = settings.device.name.sibling(&own).unwrap_or(own);
    let mut command = Command::new(program);
    command.args(["worker", "--supervised"]);
    Ok(command)
}

/// What a person wants to know at the start: where, how much memory, which models; and which settings are not the
/// defaults.
fn say_start(
    (settings, store): (&Settings, &dyn JobStore),
    log: &Logger,
    (url, files): (&str, &str),
    models: &[String],
) {
    let fields = json!({ "url": url, "pid": std::process::id() });
    log.say_with(
        Level::Info,
        &format!("listens on {url}"),
        fields.as_object().cloned().unwrap_or_default(),
    );
    let server = &settings.server;
    let guarded = match server.access {
        AccessMode::Keys => true,
        AccessMode::Auto => store.access_keys().is_ok_and(|keys| !keys.is_empty()),
        AccessMode::Open => false,
    };
    match guarded {
        true => log.info("a key is needed: 'lowtide keys' lists, makes and revokes them"),
        false if super::settings::is_local(&server.host) => {}
        false => log.say(
            Level::Warn,
            "anybody who reaches this address can use it: 'lowtide keys create --name NAME --admin' makes the first key, from \
             which on one is needed",
        ),
    }
    log.info(&format!("queue {}, pictures in {files}", server.store));
    log.info(&budget(settings));
    log.info(&format!(
        "kinds of jobs: {}; models: {}",
        settings.kinds.join(", "),
        models.join(", ")
    ));
    let mut changed: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (place, key, given) in settings.resolved.all() {
        if let Some(given) = given.filter(|given| given.origin != Origin::Default) {
            let setting = format!(
                "{} = {}",
                super::keys::written(&place),
                key.kind.show(&given.value)
            );
            changed
                .entry(given.origin.to_string())
                .or_default()
                .push(setting);
        }
    }
    for (origin, settings) in changed {
        log.info(&one_line(&format!(
            "from {origin}: {}",
            settings.join(", ")
        )));
    }
}

fn budget(settings: &Settings) -> String {
    let device = &settings.device;
    let on = match device.name.is_processor() {
        true => format!("the cpu ({})", cpu::name()),
        // Workers know them, this process does not.
        false => device.name.to_string(),
    };
    let reserve = work::device(settings, None).reserve;
    let total = Memory::read().map(|memory| (memory.free(), memory.reserve_default()));
    match (device.budget, total) {
        (Some(budget), _) => format!("budget {budget} on {on}"),
        (None, _) if !device.name.is_processor() => match reserve {
            Some(reserve) => format!("budget: what is free less {reserve} on {on}"),
            None => format!("budget: what is free less a reserve on {on}"),
        },
        (None, Some((free, default))) => {
            let reserve: Bytes = reserve.unwrap_or(default);
            let now = free.saturating_sub(reserve);
            format!("budget: free memory less {reserve}, now {now} on {on}")
        }
        (None, None) => "budget: free memory is unknown on this system; give --budget".to_owned(),
    }
}
