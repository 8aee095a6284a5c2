//! Keeps one worker running: starts it, tells it of changes, passes its lines on, starts it again when it dies.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use lowtide_jobs::JobStore;
use serde_json::{Value, json};

use super::log::{Level, Logger, now};
use super::work::worker_id;
use crate::failure::Failure;

/// The wait before the first new start; each further one doubles it.
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
/// The longest wait.
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// A worker that lived so long had a good start: the next wait is the first again.
const LIVED_WELL: Duration = Duration::from_secs(60);
/// A worker gets so long to park, save and give back what runs, before it is killed.
const DRAIN_MAX: Duration = Duration::from_secs(30);
/// Changes within this time are one nudge.
const NUDGE_EVERY: Duration = Duration::from_millis(2);
/// How often a thread that waits for changes looks whether it should end.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What happens to a worker, in the supervisor's ears.
enum News {
    /// It closed its standard error: it ended.
    Ended,
    /// The service ends.
    Stop,
}

/// Supervises one worker.
#[derive(Debug)]
pub(crate) struct Supervisor {
    news: Sender<News>,
    thread: Option<JoinHandle<()>>,
    nudges: Arc<Nudges>,
}

/// How to start a worker.
pub(crate) struct Plan {
    /// Program and arguments.
    pub(crate) command: Command,
    /// The first line it reads.
    pub(crate) settings: Value,
    /// In whose name its lines are passed on.
    pub(crate) log: Logger,
}

impl Supervisor {
    /// Starts a worker and keeps it.
    ///
    /// # Errors
    /// When the first one cannot be started.
    pub(crate) fn start(plan: Plan, store: Arc<dyn JobStore>) -> Result<Supervisor, Failure> {
        let (news, ears) = channel();
        let nudges = Arc::new(Nudges::default());
        let mut nest = Nest {
            plan,
            news: news.clone(),
            nudges: Arc::clone(&nudges),
            store: Arc::clone(&store),
        };
        let first = nest.start().context("the worker could not be started")?;
        let thread = std::thread::Builder::new()
            .name("supervisor".to_owned())
            .spawn(move || nest.keep(first, &ears))
            .context("no thread for the supervisor")?;
        let bell = Arc::clone(&nudges);
        std::thread::Builder::new()
            .name("nudger".to_owned())
            .spawn(move || bell.ring(store.as_ref()))
            .context("no thread for nudges")?;
        Ok(Supervisor {
            news,
            thread: Some(thread),
            nudges,
        })
    }

    /// Lets the workers park and save what they do, all at once, and waits for their ends.
    pub(crate) fn stop_all(mut supervisors: Vec<Supervisor>) {
        for supervisor in &supervisors {
            supervisor.nudges.close();
            // Where the supervisor is gone already, there is nobody to tell.
            let _ = supervisor.news.send(News::Stop);
        }
        for supervisor in &mut supervisors {
            if let Some(thread) = supervisor.thread.take() {
                let _ = thread.join();
            }
        }
    }
}

/// The pipe to the worker.
#[derive(Debug, Default)]
struct Nudges {
    pipe: Mutex<Pipe>,
}

#[derive(Debug, Default)]
struct Pipe {
    to: Option<ChildStdin>,
    closed: bool,
}

impl Nudges {
    fn lock(&self) -> std::sync::MutexGuard<'_, Pipe> {
        self.pipe.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connect(&self, to: ChildStdin) {
        let mut pipe = self.lock();
        pipe.to = match pipe.closed {
            true => None,
            false => Some(to),
        };
    }

    /// The worker reads the end of its input.
    fn close(&self) {
        let mut pipe = self.lock();
        pipe.to = None;
        pipe.closed = true;
    }

    /// Tells the worker of every change, until the end.
    fn ring(&self, store: &dyn JobStore) {
        let mut seen = 0;
        loop {
            let mark = match store.wait_change(seen, LOOK_EVERY) {
                Ok(mark) => mark,
                // The worker notices changes by itself, a little later.
                Err(_) => return,
            };
            let mut pipe = self.lock();
            if pipe.closed {
                return;
            }
            if mark == seen {
                continue;
            }
            seen = mark;
            // A worker that ended is the supervisor's business.
            if let Some(to) = pipe.to.as_mut() {
                let _ = to.write_all(b"\n").and_then(|()| to.flush());
            }
            drop(pipe);
            std::thread::sleep(NUDGE_EVERY);
        }
    }
}

/// Where workers are started.
struct Nest {
    plan: Plan,
    news: Sender<News>,
    nudges: Arc<Nudges>,
    store: Arc<dyn JobStore>,
}

impl Nest {
    /// Starts one, tells it its settings, and passes its lines on.
    fn start(&mut self) -> std::io::Result<Child> {
        let command = &mut self.plan.command;
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        own_group(command);
        let mut child = command.spawn()?;
        let mut to = child.stdin.take().expect("its input is a pipe");
        let from = child.stderr.take().expect("its error output is a pipe");
        let settings = format!("{}\n", self.plan.settings);
        if let Err(cause) = to.write_all(settings.as_bytes()) {
            // It died before it read a line; how, is said when its end is noticed.
            self.plan.log.say(
                Level::Debug,
                &format!("its settings were not read: {cause}"),
            );
        }
        self.nudges.connect(to);
        let (log, news) = (self.plan.log.clone(), self.news.clone());
        std::thread::Builder::new()
            .name("worker lines".to_owned())
            .spawn(move || {
                for line in BufReader::new(from).lines() {
                    match line {
                        Ok(line) => log.pass_on(&line),
                        Err(cause) if cause.kind() == std::io::ErrorKind::InvalidData => {}
                        Err(_) => break,
                    }
                }
                let _ = news.send(News::Ended);
            })?;
        let pid = child.id();
        let fields = json!({ "pid": pid });
        self.plan.log.say_with(
            Level::Info,
            &format!("started, process {pid}"),
            fields.as_object().cloned().unwrap_or_default(),
        );
        Ok(child)
    }

    /// Until the service ends.
    fn keep(mut self, first: Child, ears: &Receiver<News>) {
        let mut child = first;
        let mut backoff = BACKOFF_FIRST;
        loop {
            let born = Instant::now();
            match ears.recv() {
                Ok(News::Stop) | Err(_) => return self.end(child, ears),
                Ok(News::Ended) => {}
            }
            if born.elapsed() >= LIVED_WELL {
                backoff = BACKOFF_FIRST;
            }
            self.say_end(child.wait());
            self.bury(child.id());
            loop {
                let log = &self.plan.log;
                log.info(&format!("starts again in {:.1} s", backoff.as_secs_f64()));
                match ears.recv_timeout(backoff) {
                    Ok(News::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                    Ok(News::Ended) | Err(RecvTimeoutError::Timeout) => {}
                }
                backoff = (backoff * 2).min(BACKOFF_MAX);
                match self.start() {
                    Ok(next) => {
                        child = next;
                        break;
                    }
                    Err(cause) => self
                        .plan
                        .log
                        .say(Level::Error, &format!("could not be started: {cause}")),
                }
            }
        }
    }

    /// What the dead worker had goes back to the queue: nobody waits for its leases to end.
    fn bury(&self, pid: u32) {
        let log = &self.plan.log;
        match self.store.bury(&worker_id(pid), now()) {
            Ok(0) => {}
            Ok(1) => log.info("the job it had is tried again"),
            Ok(jobs) => log.info(&format!("the {jobs} jobs it had are tried again")),
            Err(error) => log.say(
                Level::Warn,
                &format!("its jobs are tried again only when their leases end: {error}"),
            ),
        }
    }

    fn say_end(&self, status: std::io::Result<ExitStatus>) {
        let how = status.map_or_else(|cause| format!("ended; how is unknown: {cause}"), ended);
        self.plan.log.say(Level::Warn, &how);
    }

    /// The worker read the end of its input and has some time to finish.
    fn end(&self, mut child: Child, ears: &Receiver<News>) {
        let log = &self.plan.log;
        match ears.recv_timeout(DRAIN_MAX) {
            Ok(_) => {}
            Err(_) => {
                let waited = DRAIN_MAX.as_secs();
                log.say(
                    Level::Warn,
                    &format!("did not end within {waited} s and is killed; its jobs go on after the next start"),
                );
                // It may have ended at this very moment.
                let _ = child.kill();
            }
        }
        match child.wait() {
            Ok(status) if status.success() => log.info("ended"),
            status => {
                self.say_end(status);
                self.bury(child.id());
            }
        }
    }
}

/// How it ended, in words.
fn ended(status: ExitStatus) -> String {
    #[cfg(unix)]
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
        let name = match signal {
            4 => " (SIGILL)",
            6 => " (SIGABRT)",
            7 => " (SIGBUS)",
            9 => " (SIGKILL; the system does that, too, when memory runs out)",
            11 => " (SIGSEGV)",
            15 => " (SIGTERM)",
            _ => "",
        };
        return format!("was killed by signal {signal}{name}");
    }
    match status.code() {
        Some(0) => "ended as it was told to".to_owned(),
        Some(code) => format!("ended with exit code {code}"),
        None => "ended".to_owned(),
    }
}

/// Ctrl-C in a terminal goes to a whole group of processes; the worker is to end when its parent says so.
#[cfg(unix)]
fn own_group(command: &mut Command) {
    std::os::unix::process::CommandExt::process_group(command, 0);
}

/// A new group, for which Ctrl-C is switched off.
#[cfg(windows)]
fn own_group(command: &mut Command) {
    const CREATE_NEW_PROCESS_GROUP: u32 = 0x200;
    std::os::windows::process::CommandExt::creation_flags(command, CREATE_NEW_PROCESS_GROUP);
}

#[cfg(not(any(unix, windows)))]
fn own_group(_: &mut Command) {}
