//! `lowtide generate` through a running server: hands the job over, shows its progress, fetches the pictures.

use lowtide_engine::Defaults;
use std::io::BufRead;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::Context;
use lowtide_hub::Wanted;
use lowtide_media::Format;
use serde_json::{Value, json};

use super::{Http, find};
use crate::args::{GenerateArgs, GenerateVerb, GivenArgs, HandOverArgs};
use crate::chain;
use crate::config::{Config, Destination};
use crate::console;
use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::output::Staged;
use crate::progress::{Look, Progress};
use crate::request::{Pictures, read_picture, request};
use crate::run::{self, KIND};

/// How often it is looked whether somebody asked to stop.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Makes the pictures: through a running server where there is one and nothing is asked that only this process can do.
pub(crate) fn generate(verb: &GenerateVerb) -> Result<(), Failure> {
    let GenerateVerb { args, hand_over } = verb;
    let quiet = args.quiet || args.json;
    let option = first_given(&[
        ("--dump", args.dump.is_some()),
        ("--noise", args.noise.is_some()),
        ("--budget", args.budget.is_some()),
        ("--reserve", args.reserve.is_some()),
        ("--threads", args.threads.is_some()),
        ("--precision", args.precision.is_some()),
        ("--device", args.device.is_some()),
    ]);
    let Some(server) = server_for(hand_over, option, Some(&args.model), quiet)? else {
        return run::generate(args);
    };
    if !quiet {
        console::note(&format!("handed over to the server at {}", server.url()));
    }
    through(&server, verb)
}

/// The first option that was given.
pub(super) fn first_given(options: &[(&'static str, bool)]) -> Option<&'static str> {
    let given = options.iter().find(|(_, given)| *given);
    given.map(|(name, _)| *name)
}

/// The server that a verb goes through; `None` where it runs in this process, and why is said unless `quiet`. `option`:
/// one that only means something in this process; `model`: the one a server has to have, `None` where the server has its
/// own idea of which is meant.
pub(super) fn server_for(
    hand_over: &HandOverArgs,
    option: Option<&str>,
    model: Option<&str>,
    quiet: bool,
) -> Result<Option<Http>, Failure> {
    let here = |why: String| {
        if !quiet {
            console::note(&format!("runs here: {why}"));
        }
        Ok(None)
    };
    let asked = explicit(hand_over);
    if let Some(option) = option {
        if let Some(asked) = asked {
            return Err(Failure::mistake(format!(
                "{option} is for a run in this process; leave it out, or {asked}"
            )));
        }
        if hand_over.local {
            return Ok(None);
        }
        return here(format!("{option} is for this process"));
    }
    if hand_over.local {
        return Ok(None);
    }
    let Some(server) = find(&hand_over.server)? else {
        return match asked {
            Some(asked) => Err(Failure::mistake(format!(
                "no server is running; start one with 'lowtide serve', or {asked}"
            ))),
            None => here("no server is running".to_owned()),
        };
    };
    if let Some(model) = model
        && asked.is_none()
        && !offers(&server, model)?
    {
        let url = server.url();
        return here(format!("the server at {url} has no model '{model}'"));
    }
    Ok(Some(server))
}

/// What shows that a server is meant, as something to leave out.
fn explicit(hand_over: &HandOverArgs) -> Option<&'static str> {
    if hand_over.server.server.is_some() {
        Some("leave --server out")
    } else if hand_over.no_wait {
        Some("leave --no-wait out")
    } else {
        hand_over.priority.map(|_| "leave --priority out")
    }
}

/// Whether the server has a model of this name or alias, or fetches such a one.
fn offers(server: &Http, model: &str) -> Result<bool, Failure> {
    let list = server.get("/v1/models")?;
    let fetches = list["downloads"]["allowed"] == true;
    let path = std::path::Path::new(model).exists();
    if fetches && !path && model.contains('/') && model.parse::<Wanted>().is_ok() {
        return Ok(true);
    }
    let mut models = list["data"].as_array().into_iter().flatten();
    Ok(models.any(|entry| {
        let aliases = entry["lowtide"]["aliases"].as_array().into_iter().flatten();
        entry["id"] == model || aliases.into_iter().any(|alias| alias == model)
    }))
}

fn through(server: &Http, verb: &GenerateVerb) -> Result<(), Failure> {
    let GenerateVerb { args, hand_over } = verb;
    let started = Instant::now();
    let interrupt = Interrupt::install()?;
    // Checked here first, so that what cannot be is said before anything is sent.
    let config = Config::new(args, Defaults::default())?;
    let destination = match hand_over.no_wait {
        true => None,
        false => Some(Destination::new(args, &config)?),
    };
    let format = destination
        .as_ref()
        .map_or(Format::Png, |there| there.format);
    let pictures = send(server, &args.given)?;
    let request = request(args, &config, format, &pictures);
    let mut body = json!({ "kind": KIND, "model": args.model, "request": request });
    let mut after = chain::after(args, &config)?;
    if !after.is_empty() {
        chain::end_in(&mut after, format.name());
        body["then"] = after.into();
    }
    if let Some(priority) = hand_over.priority {
        body["priority"] = json!(priority.name());
    }
    let accepted = server.post("/v1/jobs", &body)?;
    let id = accepted["id"]
        .as_str()
        .context("the server's answer names no job")?;
    let Some(destination) = destination else {
        let line = if args.json {
            accepted.to_string()
        } else {
            id.to_owned()
        };
        return Ok(console::print(&format!("{line}\n"))?);
    };
    let job = wait(server, id, args.json || args.quiet, &interrupt)?;
    // How many pictures several steps make is known when they are made.
    let made = job["artifacts"].as_array().map_or(0, Vec::len);
    let destination = match made == config.count || made == 0 {
        true => destination,
        false => Destination::new(
            args,
            &Config {
                count: made,
                ..config.clone()
            },
        )?,
    };
    fetch(server, &job, &destination.pictures)?;
    tell(args, &config, &destination, (server, &job, started))
}

/// Sends the pictures that a request names, which are files here, and gives their names there.
fn send(server: &Http, given: &GivenArgs) -> Result<Pictures, Failure> {
    let send = |option: &str, path: &Option<PathBuf>| {
        let Some(path) = path else {
            return Ok(None);
        };
        // What is there already needs no sending.
        let name = path.to_str().filter(|name| is_there(name));
        if let Some(name) = name.filter(|_| !path.exists()) {
            return Ok(Some(name.to_owned()));
        }
        let file = read_picture(option, path)?;
        let media_type = lowtide_media::format_of(&file).map_or("image/png", Format::media_type);
        let told = server.upload("/v1/inputs", media_type, &file)?;
        let name = told["input"].as_str();
        let name = name.context("the server's answer names no input")?;
        Ok::<_, Failure>(Some(name.to_owned()))
    };
    Ok(Pictures {
        image: send("--image", &given.image)?,
        mask: send("--mask", &given.mask)?,
    })
}

/// Whether this is how a server names a picture that it has.
fn is_there(name: &str) -> bool {
    name.starts_with("artifact:") || name.starts_with("sha256:")
}

/// Shows how far the job is until it is over, and gives its record. Ctrl-C cancels it.
pub(super) fn wait(
    server: &Http,
    id: &str,
    silent: bool,
    interrupt: &Interrupt,
) -> Result<Value, Failure> {
    let mut progress = match silent {
        true => Progress::silent(),
        false => Progress::on_stderr(),
    };
    let path = format!("/v1/jobs/{id}");
    loop {
        let events = listen(server, &format!("{path}/events"))?;
        let mut last = Instant::now();
        loop {
            if let Err(stop) = interrupt.check() {
                progress.abandon();
                // Nobody waits for it any more; where that cannot be said, the server does it in vain.
                let _ = server.delete(&path);
                return Err(stop);
            }
            match events.recv_timeout(LOOK_EVERY) {
                Ok(data) => {
                    show(&mut progress, &data, last.elapsed().as_secs_f64());
                    last = Instant::now();
                }
                Err(RecvTimeoutError::Timeout) => {}
                // The stream ends when the job is over, or with the connection.
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        let job = server.get(&format!("{path}?wait_s=1"))?;
        match job["state"].as_str() {
            Some("done") => return Ok(job),
            Some("failed") => {
                progress.abandon();
                let why = job["error"].as_str().unwrap_or("no reason is known");
                return Err(Failure::Other(anyhow::anyhow!("job {id} failed: {why}")));
            }
            Some("cancelled") => {
                progress.abandon();
                return Err(Failure::Other(anyhow::anyhow!("job {id} was cancelled")));
            }
            _ => {}
        }
    }
}

/// The data of a stream of events, one text each, until it ends.
pub(super) fn listen(server: &Http, path: &str) -> Result<Receiver<Value>, Failure> {
    let lines = server.lines(path)?;
    let (sender, receiver) = channel();
    std::thread::Builder::new()
        .name("events".to_owned())
        .spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                let data = line.strip_prefix("data:").map(str::trim);
                let data = data.and_then(|data| serde_json::from_str(data).ok());
                if let Some(data) = data
                    && sender.send(data).is_err()
                {
                    return;
                }
            }
        })
        .context("no thread for events")?;
    Ok(receiver)
}

/// One event that says how far the job is, or its model on its way.
fn show(progress: &mut Progress, data: &Value, seconds: f64) {
    if data["event"] == "download" {
        return show_download(progress, data, seconds);
    }
    let told = match data["progress"].is_object() {
        true => &data["progress"],
        false => data,
    };
    let (Some(phase), Some(done), Some(total)) = (
        told["phase"].as_str(),
        told["step"].as_u64(),
        told["steps"].as_u64(),
    ) else {
        return;
    };
    progress.show(Look {
        phase,
        done: done as usize,
        total: (total as usize).max(1),
        seconds,
        memory: None,
    });
}

/// In kilobytes: a step each.
fn show_download(progress: &mut Progress, data: &Value, seconds: f64) {
    let (Some(bytes), Some(there)) = (data["bytes"].as_u64(), data["there"].as_u64()) else {
        return;
    };
    let total = (bytes >> 10).max(1);
    let done = match data["state"] == "done" {
        true => total,
        // The last bytes are not the end: they are verified, and get their place.
        false => (there >> 10).min(total - 1),
    };
    progress.show(Look {
        phase: "download (KiB)",
        done: done as usize,
        total: total as usize,
        seconds,
        memory: None,
    });
}

/// Writes everything under temporary names first, so that a failure leaves none of it.
pub(super) fn fetch(server: &Http, job: &Value, paths: &[PathBuf]) -> Result<(), Failure> {
    let artifacts = job["artifacts"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    if artifacts.len() != paths.len() {
        return Err(Failure::Other(anyhow::anyhow!(
            "the server made {} pictures instead of {}",
            artifacts.len(),
            paths.len()
        )));
    }
    let mut staged = Vec::new();
    for (artifact, path) in artifacts.iter().zip(paths) {
        let id = artifact["id"]
            .as_str()
            .context("an artifact without an id")?;
        let file = server.file(&format!("/v1/artifacts/{id}"))?;
        if artifact["bytes"]
            .as_u64()
            .is_some_and(|bytes| bytes != file.len() as u64)
        {
            return Err(Failure::Other(anyhow::anyhow!(
                "artifact {id} came incomplete"
            )));
        }
        staged.push(Staged::write(path, &file).map_err(|cause| run::not_written(path, cause))?);
    }
    for (file, path) in staged.into_iter().zip(paths) {
        file.publish()
            .map_err(|cause| run::not_written(path, cause))?;
    }
    Ok(())
}

/// The whole job in a line, and where the pictures are.
fn tell(
    args: &GenerateArgs,
    config: &Config,
    destination: &Destination,
    (server, job, started): (&Http, &Value, Instant),
) -> Result<(), Failure> {
    let paths: Vec<String> = destination
        .pictures
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    let seconds = started.elapsed().as_secs_f64();
    if args.json {
        let line = json!({
            "seed": config.seed, "outputs": paths, "seconds": { "total": seconds },
            "server": server.url(), "job": job["id"], "report": job["report"],
        });
        return Ok(console::print(&format!("{line}\n"))?);
    }
    if !args.quiet {
        let notes = job["report"]["notes"].as_array().into_iter().flatten();
        for note in notes.filter_map(Value::as_str) {
            console::note(&format!("note: {note}"));
        }
        console::note(&match job["report"]["chain"].is_object() {
            true => chain::summary(&job["report"], config.seed, seconds),
            false => format!("seed {}, {seconds:.2} s in all", config.seed),
        });
        for path in paths {
            console::print(&format!("{path}\n"))?;
        }
    }
    Ok(())
}
