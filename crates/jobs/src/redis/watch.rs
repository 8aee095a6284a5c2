//! Noticing that something changed: at once for this process's own writes, by the server's messages for those of
//! others. Nothing is asked for meanwhile.

use std::io::ErrorKind;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::connect::{Connection, Hangup};
use super::link::Target;
use super::wire::{Command, Reply};
use crate::{Result, StoreError};

/// After so much silence it is asked whether the server is still there.
const SILENCE_MAX: Duration = Duration::from_secs(5);

/// The pause before the server is tried again.
const PAUSE: Duration = Duration::from_millis(250);

/// Which news a process wants to be woken by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Listen {
    /// All of them: what a server tells its clients.
    #[default]
    All,
    /// What may be begun, and wishes of people: progress of others does not wake a worker.
    Queue,
}

/// A counter of changes, and those who wait for it to move.
#[derive(Default)]
pub(super) struct Mark {
    state: Mutex<State>,
    moved: Condvar,
}

#[derive(Default)]
struct State {
    mark: u64,
    ends: bool,
    hangup: Option<Hangup>,
}

impl Mark {
    /// Something changed, or there is another reason to look.
    pub(super) fn changed(&self) {
        self.lock().mark += 1;
        self.moved.notify_all();
    }

    /// The counter now.
    pub(super) fn now(&self) -> u64 {
        self.lock().mark
    }

    /// The counter, as soon as it is not `seen`, or after `timeout`.
    pub(super) fn wait(&self, seen: u64, timeout: Duration) -> u64 {
        let end = Instant::now() + timeout;
        let mut state = self.lock();
        while state.mark == seen {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let waited = self.moved.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.mark
    }

    /// A std mutex: it is held for microseconds, and nothing panics while it is.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread that listens.
pub(super) struct Ear {
    mark: Arc<Mark>,
    thread: Option<JoinHandle<()>>,
}

impl Ear {
    /// Begins to listen: what happens after this returns is heard.
    ///
    /// # Errors
    /// As [`Target::connect`].
    pub(super) fn open(
        target: Target,
        mark: Arc<Mark>,
        sender: String,
        listen: Listen,
    ) -> Result<Ear> {
        let path = target.address.to_string();
        let mut listener = Listener {
            channel: format!("{}news", target.prefix),
            target,
            mark: Arc::clone(&mark),
            sender,
            listen,
        };
        let first = listener.subscribe()?;
        let thread = std::thread::Builder::new()
            .name("job-ear".to_owned())
            .spawn(move || listener.run(first))
            .map_err(|error| StoreError::io("start a thread for", path.as_ref(), &error))?;
        Ok(Ear {
            mark,
            thread: Some(thread),
        })
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        {
            let mut state = self.mark.lock();
            state.ends = true;
            if let Some(hangup) = &state.hangup {
                hangup.hang_up();
            }
        }
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // One that panicked has said so already.
            let _ = thread.join();
        }
    }
}

struct Listener {
    target: Target,
    channel: String,
    mark: Arc<Mark>,
    /// Whose messages are known already.
    sender: String,
    listen: Listen,
}

impl Listener {
    fn run(&mut self, first: Connection) {
        let mut next = Some(first);
        loop {
            if let Some(mut connection) = next.take() {
                // Why it ended does not matter: the links say what is wrong with a server.
                let _ = self.hear(&mut connection);
            }
            if self.mark.lock().ends {
                return;
            }
            std::thread::park_timeout(PAUSE);
            if self.mark.lock().ends {
                return;
            }
            if let Ok(connection) = self.subscribe() {
                next = Some(connection);
                // Whatever was said meanwhile was missed.
                self.mark.changed();
            }
        }
    }

    fn subscribe(&mut self) -> Result<Connection> {
        let lost = |error: std::io::Error| self.target.unreachable(&error);
        let (mut connection, _) = self.target.connect()?;
        let subscribe = Command::new("SUBSCRIBE").arg(&self.channel);
        let replies = connection.ask(&[subscribe]).map_err(lost)?;
        if let [Reply::Error(reason)] = &replies[..] {
            return Err(StoreError::Denied {
                store: self.target.address.to_string(),
                reason: format!(
                    "{reason}; this user has to be allowed the channel {}",
                    self.channel
                ),
            });
        }
        connection.patience(SILENCE_MAX).map_err(lost)?;
        let hangup = connection.hangup().map_err(lost)?;
        self.mark.lock().hangup = Some(hangup);
        Ok(connection)
    }

    /// Until the connection ends.
    fn hear(&self, connection: &mut Connection) -> std::io::Result<()> {
        let mut asked = false;
        loop {
            if self.mark.lock().ends {
                return Ok(());
            }
            match connection.await_some() {
                Ok(()) => {
                    asked = false;
                    let message = connection.hear()?.list();
                    let text = message.get(2).map(Reply::text).unwrap_or_default();
                    if message.first().map(Reply::text).as_deref() == Some("message")
                        && self.concerns(&text)
                    {
                        self.mark.changed();
                    }
                }
                Err(error)
                    if !asked
                        && matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
                {
                    asked = true;
                    connection.say(&[Command::new("PING")])?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether a message is of another process and about something wanted.
    fn concerns(&self, text: &str) -> bool {
        let (what, sender) = text.split_once(' ').unwrap_or((text, ""));
        sender != self.sender && (self.listen == Listen::All || what == "queue")
    }
}
