//! Somebody who is told: a plain HTTP server that answers as it was told to, and remembers what it was sent.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver as Queue, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::Value;

use super::server::PATIENCE;

/// How it answers.
#[derive(Clone, Debug)]
pub(crate) enum Manner {
    /// With this status.
    Status(u16),
    /// With a redirect to there.
    Redirect(String),
    /// Not at all, and the line stays open.
    Hang,
    /// With a head that never ends.
    Babble,
}

/// A request as it came.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Told {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

/// Listens until dropped.
pub(crate) struct Receiver {
    pub(crate) address: SocketAddr,
    told: Queue<Told>,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Receiver {
    /// One that answers so, one manner after the other, and then always with 200.
    pub(crate) fn new(manners: impl IntoIterator<Item = Manner>) -> Receiver {
        Receiver::at(([127, 0, 0, 1], 0).into(), manners)
    }

    /// One at this address.
    pub(crate) fn at(address: SocketAddr, manners: impl IntoIterator<Item = Manner>) -> Receiver {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let manners = Arc::new(Mutex::new(manners.into_iter().collect::<VecDeque<_>>()));
        let ends = Arc::new(AtomicBool::new(false));
        let (send, told) = channel();
        let thread = std::thread::spawn({
            let ends = Arc::clone(&ends);
            move || {
                let mut open = Vec::new();
                for stream in listener.incoming() {
                    if ends.load(Ordering::SeqCst) {
                        return;
                    }
                    open.extend(answer(stream.unwrap(), &manners, &send));
                }
            }
        });
        Receiver {
            address,
            told,
            ends,
            thread: Some(thread),
        }
    }

    /// An address of it, with a part that nobody else should see.
    pub(crate) fn url(&self) -> String {
        format!(
            "http://{}/hook/hidden-path?token=hidden-token",
            self.address
        )
    }

    /// The next request.
    pub(crate) fn next(&self) -> Told {
        let next = self.told.recv_timeout(PATIENCE);
        next.expect("nobody called")
    }

    /// Whether nobody called within this time.
    pub(crate) fn is_quiet_for(&self, time: Duration) -> bool {
        matches!(self.told.recv_timeout(time), Err(RecvTimeoutError::Timeout))
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Reads a request and answers it; gives the stream back where it stays open.
fn answer(
    stream: TcpStream,
    manners: &Mutex<VecDeque<Manner>>,
    send: &Sender<Told>,
) -> Option<TcpStream> {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).unwrap_or(0) == 0 {
            return None;
        }
    }
    let mut told = Told {
        head,
        body: String::new(),
    };
    let len = told.header("content-length").unwrap_or("0");
    let len: u64 = len.parse().unwrap();
    reader
        .by_ref()
        .take(len)
        .read_to_string(&mut told.body)
        .unwrap();
    let manner = manners.lock().unwrap().pop_front();
    send.send(told).ok()?;
    let mut stream = reader.into_inner();
    // Whoever called may be gone by now.
    let _ = match manner.unwrap_or(Manner::Status(200)) {
        Manner::Status(status) => {
            write!(stream, "HTTP/1.1 {status} So\r\ncontent-length: 0\r\n\r\n")
        }
        Manner::Redirect(to) => {
            write!(
                stream,
                "HTTP/1.1 302 There\r\nlocation: {to}\r\ncontent-length: 0\r\n\r\n"
            )
        }
        Manner::Hang => return Some(stream),
        Manner::Babble => {
            let endless = format!("HTTP/1.1 200 So\r\nx-more: {}", "a".repeat(1 << 20));
            stream.write_all(endless.as_bytes())
        }
    };
    None
}
