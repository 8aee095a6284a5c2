//! The way to a server: what many callers want at once goes in one round trip; what was lost with a connection is said
//! again on the next one.
//!
//! Saying something twice does no harm: a job's write bears a version that nobody else gives, and is known again.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustls::ClientConfig;

use super::address::{Address, Place};
use super::connect::Connection;
use super::guard::{self, Sureness};
use super::scripts;
use super::wire::{Command, Reply};
use crate::{Result, StoreError, words};

/// Most calls in one round trip: bounds how long the first of them waits for the last.
const BATCH_MAX: usize = 256;

/// Most calls that wait; further callers wait to be let in.
const CALLS_MAX: usize = 1_024;

/// A server that does not answer for this part of a call's patience is asked anew, on another connection.
const ANSWER_PART: u32 = 2;

/// The pause before a server is tried again: doubled each time, and a random part less, so that a fleet does not come at
/// once.
const PAUSE_MIN: Duration = Duration::from_millis(25);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// How long the disk of a server may take that is asked for it.
const DISK_MAX_MS: u32 = 4_000;

/// How often a cluster may send us on.
const MOVES_MAX: u32 = 4;

/// How often a server may say that it does not know a script before that is an error.
const UNKNOWN_MAX: u32 = 3;

/// What every connection is made with.
#[derive(Clone)]
pub(super) struct Target {
    pub(super) address: Address,
    pub(super) tls: Option<Arc<ClientConfig>>,
    /// The beginning of every key.
    pub(super) prefix: String,
    /// Nothing waits for a disk.
    pub(super) relaxed: bool,
    /// So long a call waits for a server that cannot be reached.
    pub(super) patience: Duration,
}

impl Target {
    /// A connection on which everything was checked, in a cluster to where the queue is.
    ///
    /// # Errors
    /// `Unreachable`, or why the server will not do.
    pub(super) fn connect(&self) -> Result<(Connection, Sureness)> {
        let mut target = self.clone();
        for _ in 0..MOVES_MAX {
            match target.connect_there()? {
                Ok(connected) => return Ok(connected),
                Err(place) => target.address.place = self.same_way(place),
            }
        }
        Err(StoreError::Unreachable {
            store: self.address.to_string(),
            reason: "its cluster sends us from one server to the next".to_owned(),
        })
    }

    /// As [`Target::connect`], or where to go instead.
    fn connect_there(&self) -> Result<std::result::Result<(Connection, Sureness), Place>> {
        let unreachable = |error: io::Error| self.unreachable(&error);
        let mut connection =
            Connection::open(&self.address, self.tls.as_ref()).map_err(unreachable)?;
        let greeted = connection.greet(&self.address).map_err(unreachable)?;
        if let Err(complaint) = greeted {
            return Err(self.complained(&complaint));
        }
        let questions = guard::questions(&self.prefix);
        let answers = connection.ask(&questions).map_err(unreachable)?;
        for answer in &answers {
            let Reply::Error(error) = answer else {
                continue;
            };
            match complaint(error) {
                Complaint::Elsewhere(place) => return Ok(Err(place)),
                Complaint::Later => return Err(self.complained(error)),
                // Some of it may be forbidden; what that means is judged with the rest.
                Complaint::NoScript
                | Complaint::NotAllowed
                | Complaint::NoRoom
                | Complaint::Wrong => {}
            }
        }
        let sureness = guard::judge(&answers, &self.address, self.relaxed)?;
        connection
            .patience(self.patience / ANSWER_PART)
            .map_err(unreachable)?;
        Ok(Ok((connection, sureness)))
    }

    /// A place of a cluster, reached with or without TLS as the first one was.
    fn same_way(&self, place: Place) -> Place {
        match (place, &self.address.place) {
            (Place::Host { host, port, .. }, Place::Host { tls, .. }) => Place::Host {
                host,
                port,
                tls: *tls,
            },
            (place, _) => place,
        }
    }

    pub(super) fn unreachable(&self, error: &io::Error) -> StoreError {
        let reason = match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "it does not answer".to_owned(),
            io::ErrorKind::UnexpectedEof => "it closed the connection".to_owned(),
            _ => error.to_string(),
        };
        StoreError::Unreachable {
            store: self.address.to_string(),
            reason,
        }
    }

    /// What a server said, as our error.
    fn complained(&self, error: &str) -> StoreError {
        let (store, reason) = (self.address.to_string(), error.to_owned());
        match complaint(error) {
            Complaint::Later | Complaint::Elsewhere(_) | Complaint::NoScript => {
                StoreError::Unreachable { store, reason }
            }
            Complaint::NotAllowed => StoreError::Denied { store, reason },
            Complaint::NoRoom => StoreError::NoRoom { path: store.into() },
            Complaint::Wrong => StoreError::Database {
                path: store.into(),
                reason,
            },
        }
    }
}

/// What kind of error a server tells.
#[derive(Debug, PartialEq, Eq)]
enum Complaint {
    /// It starts, or is no longer the one that is written to.
    Later,
    /// The queue's slot is there.
    Elsewhere(Place),
    /// It was never sent that script, or has lost it.
    NoScript,
    NotAllowed,
    NoRoom,
    /// It does not understand us.
    Wrong,
}

fn complaint(error: &str) -> Complaint {
    match error.split(' ').next().unwrap_or_default() {
        "LOADING" | "READONLY" | "CLUSTERDOWN" | "TRYAGAIN" | "MASTERDOWN" | "BUSY"
        | "NOREPLICAS" => Complaint::Later,
        "MOVED" => match error.split(' ').nth(2).and_then(|at| at.rsplit_once(':')) {
            Some((host, port)) if !host.is_empty() => match port.parse() {
                Ok(port) => Complaint::Elsewhere(Place::Host {
                    host: host.to_owned(),
                    port,
                    tls: false,
                }),
                Err(_) => Complaint::Wrong,
            },
            _ => Complaint::Wrong,
        },
        "NOSCRIPT" => Complaint::NoScript,
        "NOAUTH" | "WRONGPASS" | "NOPERM" => Complaint::NotAllowed,
        "OOM" | "MISCONF" => Complaint::NoRoom,
        _ if error.contains("invalid password") || error.contains("without any password") => {
            Complaint::NotAllowed
        }
        _ => Complaint::Wrong,
    }
}

/// Something to say, and the caller to tell.
struct Call {
    commands: Vec<Command>,
    /// It has to be on the disk before the caller is told.
    durable: bool,
    /// Until when it may wait.
    until: Instant,
    answer: SyncSender<Result<Vec<Reply>>>,
}

/// What is wrong with the connection now, if anything.
#[derive(Default)]
struct Health(Mutex<Option<StoreError>>);

impl Health {
    fn set(&self, trouble: Option<StoreError>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }

    fn get(&self) -> Option<StoreError> {
        let trouble = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        trouble.clone()
    }
}

/// The way to the server: a thread with a connection.
pub(super) struct Link {
    calls: Option<SyncSender<Call>>,
    thread: Option<JoinHandle<()>>,
    health: Arc<Health>,
    patience: Duration,
}

impl Link {
    /// Starts the thread. The first connection was made by the caller, who thereby knows that it can be.
    ///
    /// # Errors
    /// `Io`, where there is no thread.
    pub(super) fn start(name: &str, target: Target, first: (Connection, Sureness)) -> Result<Link> {
        let (calls, inbox) = sync_channel(CALLS_MAX);
        let health = Arc::new(Health::default());
        let path = target.address.to_string();
        let patience = target.patience;
        let mut line = Line {
            target,
            connection: Some(first),
            health: Arc::clone(&health),
            pause: PAUSE_MIN,
        };
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || line.run(&inbox))
            .map_err(|error| StoreError::io("start a thread for", path.as_ref(), &error))?;
        Ok(Link {
            calls: Some(calls),
            thread: Some(thread),
            health,
            patience,
        })
    }

    /// Has commands carried out and waits for the answers.
    ///
    /// # Errors
    /// `Unreachable` where the server was not for some seconds, or what it complains about.
    pub(super) fn call(&self, commands: Vec<Command>, durable: bool) -> Result<Vec<Reply>> {
        let (answer, answered) = sync_channel(1);
        let call = Call {
            commands,
            durable,
            until: Instant::now() + self.patience,
            answer,
        };
        let calls = self.calls.as_ref().ok_or(StoreError::Closed)?;
        calls.send(call).map_err(|_| StoreError::Closed)?;
        answered.recv().map_err(|_| StoreError::Closed)?
    }

    /// As [`Link::call`], with one command.
    ///
    /// # Errors
    /// As [`Link::call`].
    pub(super) fn one(&self, command: Command, durable: bool) -> Result<Reply> {
        let mut replies = self.call(vec![command], durable)?;
        Ok(replies.pop().expect("each command is answered"))
    }

    /// Why nothing can be said now, if so.
    pub(super) fn trouble(&self) -> Option<StoreError> {
        self.health.get()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.calls = None;
        if let Some(thread) = self.thread.take() {
            // A panic there was already seen as `Closed` by whoever called.
            let _ = thread.join();
        }
    }
}

/// The thread's side.
struct Line {
    target: Target,
    connection: Option<(Connection, Sureness)>,
    health: Arc<Health>,
    pause: Duration,
}

/// Why a round trip did not come about.
enum Failed {
    /// It is tried again.
    Again(StoreError),
    /// It would not help.
    ForGood(StoreError),
}

impl Line {
    fn run(&mut self, inbox: &Receiver<Call>) {
        let mut calls: Vec<Call> = Vec::new();
        loop {
            if calls.is_empty() {
                match inbox.recv() {
                    Ok(call) => calls.push(call),
                    Err(_) => return,
                }
            }
            let room = BATCH_MAX.saturating_sub(calls.len());
            calls.extend(inbox.try_iter().take(room));
            match self.trip(&mut calls) {
                Ok(()) => {
                    self.pause = PAUSE_MIN;
                    self.health.set(None);
                }
                Err(failed) => {
                    self.connection = None;
                    self.rest(failed, &mut calls, inbox);
                }
            }
        }
    }

    /// Tells those who waited long enough, and waits a little before the next try.
    fn rest(&mut self, failed: Failed, calls: &mut Vec<Call>, inbox: &Receiver<Call>) {
        let (trouble, tell_all) = match failed {
            Failed::Again(trouble) => (trouble, false),
            Failed::ForGood(trouble) => (trouble, true),
        };
        self.health.set(Some(trouble.clone()));
        let end = Instant::now() + self.pause.mul_f64(1.0 - 0.5 * fraction());
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        loop {
            let now = Instant::now();
            calls.retain(|call| {
                let waits = !tell_all && now < call.until;
                if !waits {
                    // A caller that is gone needs no answer.
                    let _ = call.answer.send(Err(trouble.clone()));
                }
                waits
            });
            if now >= end {
                return;
            }
            match inbox.recv_timeout(end - now) {
                Ok(call) => calls.push(call),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) if calls.is_empty() => return,
                Err(RecvTimeoutError::Disconnected) => std::thread::sleep(end - now),
            }
        }
    }

    /// One round trip: those that were answered are told and taken out.
    fn trip(&mut self, calls: &mut Vec<Call>) -> std::result::Result<(), Failed> {
        let (mut connection, sureness) = match self.connection.take() {
            Some(connection) => connection,
            None => self.connect()?,
        };
        let lost = |error: io::Error, target: &Target| Failed::Again(target.unreachable(&error));
        let all = calls.iter().flat_map(|call| &call.commands);
        let disk = Command::new("WAITAOF")
            .number(1u32)
            .number(0u32)
            .number(DISK_MAX_MS);
        let asks = sureness == Sureness::Asked && calls.iter().any(|call| call.durable);
        connection
            .say(all.chain(asks.then_some(&disk)))
            .map_err(|error| lost(error, &self.target))?;
        let mut answers = Vec::with_capacity(calls.len());
        for call in calls.iter() {
            let mut replies = Vec::with_capacity(call.commands.len());
            for command in &call.commands {
                let reply = connection
                    .hear()
                    .map_err(|error| lost(error, &self.target))?;
                replies.push((command, reply));
            }
            answers.push(replies);
        }
        if asks {
            let reply = connection
                .hear()
                .map_err(|error| lost(error, &self.target))?;
            self.on_the_disk(&reply)?;
        }
        let settle = |replies| self.settle(&mut connection, replies);
        let settled = answers.into_iter().map(settle).collect::<Vec<_>>();
        // Where one of them has to be said again, all are.
        let settled = settled
            .into_iter()
            .collect::<std::result::Result<Vec<_>, Failed>>()?;
        for (call, answer) in calls.drain(..).zip(settled) {
            // A caller that is gone needs no answer.
            let _ = call.answer.send(answer);
        }
        self.connection = Some((connection, sureness));
        Ok(())
    }

    fn connect(&self) -> std::result::Result<(Connection, Sureness), Failed> {
        self.target
            .connect()
            .map_err(|error| match error.is_retryable() {
                true => Failed::Again(error),
                false => Failed::ForGood(error),
            })
    }

    fn on_the_disk(&self, reply: &Reply) -> std::result::Result<(), Failed> {
        let disks = reply.clone().list();
        match disks.first() {
            Some(Reply::Int(1..)) => Ok(()),
            _ => Err(Failed::Again(StoreError::Unreachable {
                store: self.target.address.to_string(),
                reason: format!("its disk did not answer within {DISK_MAX_MS} ms"),
            })),
        }
    }

    /// The answers of one call, once none of them is about the way they took.
    fn settle(
        &self,
        connection: &mut Connection,
        replies: Vec<(&Command, Reply)>,
    ) -> std::result::Result<Result<Vec<Reply>>, Failed> {
        let mut settled = Vec::with_capacity(replies.len());
        for (command, mut reply) in replies {
            for _ in 0..UNKNOWN_MAX {
                let Reply::Error(error) = &reply else { break };
                if complaint(error) != Complaint::NoScript {
                    break;
                }
                reply = self
                    .teach(connection, command)
                    .map_err(|error| Failed::Again(self.target.unreachable(&error)))?;
            }
            let Reply::Error(error) = &reply else {
                settled.push(reply);
                continue;
            };
            match complaint(error) {
                // On the next connection, which goes to where the queue is now.
                Complaint::Later | Complaint::Elsewhere(_) => {
                    return Err(Failed::Again(self.target.complained(error)));
                }
                Complaint::NoScript
                | Complaint::NotAllowed
                | Complaint::NoRoom
                | Complaint::Wrong => return Ok(Err(self.target.complained(error))),
            }
        }
        Ok(Ok(settled))
    }

    /// Sends all scripts, and says it again.
    fn teach(&self, connection: &mut Connection, command: &Command) -> io::Result<Reply> {
        let load = |script: &&scripts::Script| Command::new("SCRIPT").arg("LOAD").arg(&script.text);
        let mut commands: Vec<Command> = scripts::all().iter().map(load).collect();
        commands.push(command.clone());
        let mut replies = connection.ask(&commands)?;
        let refused = replies[..replies.len() - 1]
            .iter()
            .find(|reply| matches!(reply, Reply::Error(_)));
        match refused {
            Some(error) => Ok(error.clone()),
            None => Ok(replies.pop().expect("each command is answered")),
        }
    }
}

/// A random number from 0 to 1.
fn fraction() -> f64 {
    // 32 random bits are more than a pause needs.
    f64::from(words::random() as u32) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_says_tells_whether_to_ask_again() {
        for (error, expected) in [
            (
                "LOADING Redis is loading the dataset in memory",
                Complaint::Later,
            ),
            (
                "READONLY You can't write against a read only replica.",
                Complaint::Later,
            ),
            ("NOSCRIPT No matching script.", Complaint::NoScript),
            (
                "WRONGPASS invalid username-password pair",
                Complaint::NotAllowed,
            ),
            ("ERR invalid password", Complaint::NotAllowed),
            ("OOM command not allowed", Complaint::NoRoom),
            ("ERR unknown command", Complaint::Wrong),
            ("MOVED 1 nowhere", Complaint::Wrong),
        ] {
            assert_eq!(complaint(error), expected, "{error}");
        }
        let Complaint::Elsewhere(Place::Host { host, port, .. }) = complaint("MOVED 9 ::1:7001")
        else {
            panic!("it names a place");
        };
        assert_eq!((host.as_str(), port), ("::1", 7001));
    }
}
