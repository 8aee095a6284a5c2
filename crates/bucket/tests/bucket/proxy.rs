//! A network that can be cut: passes connections on to a server until it is told not to.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How long a reader of either side waits before it looks whether the network is whole.
const LOOK_EVERY: Duration = Duration::from_millis(20);

#[derive(Default)]
struct State {
    /// Nothing passes, and nobody is told: connections stay open.
    cut: AtomicBool,
    over: AtomicBool,
    /// Answers break off after so many bytes; 0: they do not.
    answer_max: AtomicUsize,
    /// Connections that broke off.
    broken: AtomicUsize,
    /// Open connections, both ends.
    open: Mutex<Vec<TcpStream>>,
}

/// A network of one cable.
pub(crate) struct Proxy {
    pub(crate) port: u16,
    state: Arc<State>,
}

impl Proxy {
    /// Leads to this port of this machine.
    pub(crate) fn to(port: u16) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let own = listener.local_addr().unwrap().port();
        let state = Arc::new(State::default());
        let theirs = state.clone();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                if theirs.over.load(Ordering::SeqCst) {
                    return;
                }
                let (Ok(client), Ok(server)) = (client, TcpStream::connect(("127.0.0.1", port)))
                else {
                    continue;
                };
                pair(&theirs, client, server);
            }
        });
        Proxy { port: own, state }
    }

    /// Lets nothing through any more, or everything again. What was under way while it was cut is lost with its
    /// connection, as after a long outage.
    pub(crate) fn cut(&self, cut: bool) {
        self.state.cut.store(cut, Ordering::SeqCst);
        if !cut {
            self.hang_up();
        }
    }

    /// Lets answers break off after so many bytes.
    pub(crate) fn break_answers_after(&self, bytes: usize) {
        self.state.answer_max.store(bytes, Ordering::SeqCst);
    }

    /// How many answers broke off.
    pub(crate) fn broken(&self) -> usize {
        self.state.broken.load(Ordering::SeqCst)
    }

    fn hang_up(&self) {
        let mut open = self
            .state
            .open
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for end in open.drain(..) {
            // One that is closed already is as good.
            let _ = end.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state.over.store(true, Ordering::SeqCst);
        self.hang_up();
        // The listener looks once more, and sees that it is over.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn pair(state: &Arc<State>, client: TcpStream, server: TcpStream) {
    let ends = [&client, &server].map(|end| end.try_clone().unwrap());
    let mut open = state.open.lock().unwrap_or_else(PoisonError::into_inner);
    open.extend(ends);
    drop(open);
    let back = (server.try_clone().unwrap(), client.try_clone().unwrap());
    for (from, to, answers) in [(client, server, false), (back.0, back.1, true)] {
        let state = state.clone();
        std::thread::spawn(move || pass(&state, from, to, answers));
    }
}

fn pass(state: &State, mut from: TcpStream, mut to: TcpStream, answers: bool) {
    from.set_read_timeout(Some(LOOK_EVERY)).unwrap();
    let mut chunk = vec![0; 16 << 10];
    let mut passed = 0;
    while !state.over.load(Ordering::SeqCst) {
        if state.cut.load(Ordering::SeqCst) {
            std::thread::park_timeout(LOOK_EVERY);
            continue;
        }
        let len = match from.read(&mut chunk) {
            Ok(0) => break,
            Ok(len) => len,
            Err(error) => match error.kind() {
                std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut => continue,
                _ => break,
            },
        };
        passed += len;
        // Cut between the read and the write: these bytes wait, too.
        while state.cut.load(Ordering::SeqCst) && !state.over.load(Ordering::SeqCst) {
            std::thread::park_timeout(LOOK_EVERY);
        }
        if to.write_all(&chunk[..len]).is_err() {
            break;
        }
        let max = state.answer_max.load(Ordering::SeqCst);
        if answers && max > 0 && passed >= max {
            state.broken.fetch_add(1, Ordering::SeqCst);
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
