//! A running server with a real store, real files and real sockets, and plain HTTP to talk to it.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lowtide_core::Bytes;
use lowtide_jobs::{
    ArtifactStore, FolderArtifacts, FolderInputs, JobStore, Policy, SqliteOptions, SqliteStore,
};
use lowtide_server::{Door, End, Options, Server, end_signal};
use serde_json::Value;

use super::pretend::{self, Knobs, PretendDoor, PretendWorker};

/// Nothing here takes this long unless it is broken.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A server until dropped.
pub(crate) struct World {
    pub(crate) address: SocketAddr,
    pub(crate) store: Arc<dyn JobStore>,
    pub(crate) worker: Option<PretendWorker>,
    artifacts: Arc<dyn ArtifactStore>,
    door: Arc<dyn Door>,
    end: Option<End>,
    thread: Option<JoinHandle<std::io::Result<()>>>,
    folder: tempfile::TempDir,
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    }

    /// The code of the error, which has to have a sentence, too.
    pub(crate) fn code(&self) -> String {
        let error = &self.json()["error"];
        assert!(
            error["message"]
                .as_str()
                .is_some_and(|text| text.len() > 10),
            "{self:?}"
        );
        error["code"].as_str().unwrap_or_default().to_owned()
    }
}

impl World {
    /// One with a worker and plain settings.
    pub(crate) fn new() -> World {
        World::with(
            Options::default(),
            Policy::default(),
            Some(Knobs::default()),
        )
    }

    /// One without a worker.
    pub(crate) fn idle() -> World {
        World::with(Options::default(), Policy::default(), None)
    }

    pub(crate) fn with(options: Options, policy: Policy, worker: Option<Knobs>) -> World {
        World::with_door(options, policy, worker, Arc::new(PretendDoor))
    }

    /// One that offers what this door knows.
    pub(crate) fn with_door(
        options: Options,
        policy: Policy,
        worker: Option<Knobs>,
        door: Arc<dyn Door>,
    ) -> World {
        let folder = tempfile::tempdir().unwrap();
        let sqlite = SqliteOptions {
            policy,
            ..SqliteOptions::default()
        };
        let store: Arc<dyn JobStore> =
            Arc::new(SqliteStore::open(&folder.path().join("jobs.sqlite"), sqlite).unwrap());
        let artifacts: Arc<dyn ArtifactStore> =
            Arc::new(FolderArtifacts::open(&folder.path().join("artifacts")).unwrap());
        let worker = worker
            .map(|knobs| PretendWorker::start(Arc::clone(&store), Arc::clone(&artifacts), knobs));
        let mut world = World {
            address: ([127, 0, 0, 1], 0).into(),
            store,
            worker,
            artifacts,
            door,
            end: None,
            thread: None,
            folder,
        };
        world.start(options);
        world
    }

    /// Starts a server on what is there, after [`World::end`] at the latest.
    pub(crate) fn start(&mut self, options: Options) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        self.address = listener.local_addr().unwrap();
        let (end, ended) = end_signal();
        let options = Options {
            clock: pretend::now,
            grace: Duration::from_secs(1),
            ..options
        };
        let inputs = self.folder.path().join("inputs");
        let server = Server::new(
            Arc::clone(&self.store),
            Arc::clone(&self.artifacts),
            Arc::new(FolderInputs::open(&inputs, Bytes::mib(8)).unwrap()),
            Arc::clone(&self.door),
            options,
        );
        self.end = Some(end);
        self.thread = Some(std::thread::spawn(move || server.serve(listener, ended)));
    }

    /// Ends the server and waits for it.
    pub(crate) fn end(&mut self) {
        if let Some(end) = self.end.take() {
            end.now();
        }
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap().unwrap();
        }
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }

    /// Sends these bytes as they are and reads one answer.
    pub(crate) fn raw(&self, request: &[u8]) -> Answer {
        let mut stream = self.connect();
        stream.write_all(request).unwrap();
        read_answer(&mut BufReader::new(stream))
    }

    pub(crate) fn ask(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&str>,
    ) -> Answer {
        self.raw(self.request(method, path, headers, body).as_bytes())
    }

    /// The text of a request.
    pub(crate) fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&str>,
    ) -> String {
        let mut text = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\n");
        if !headers
            .iter()
            .any(|(name, _)| name.eq_ignore_ascii_case("host"))
        {
            text.push_str(&format!("host: {}\r\n", self.address));
        }
        for (name, value) in headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        if let Some(body) = body {
            if !headers
                .iter()
                .any(|(name, _)| name.eq_ignore_ascii_case("content-type"))
            {
                text.push_str("content-type: application/json\r\n");
            }
            text.push_str(&format!("content-length: {}\r\n", body.len()));
        }
        text + "\r\n" + body.unwrap_or_default()
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &[], None)
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Answer {
        self.ask("POST", path, &[], Some(&body.to_string()))
    }

    pub(crate) fn delete(&self, path: &str) -> Answer {
        self.ask("DELETE", path, &[], None)
    }

    /// Submits a plain job and returns its id.
    pub(crate) fn submit(&self, more: &Value) -> String {
        let mut body = serde_json::json!({ "request": { "prompt": "a red heart" } });
        for (name, value) in more.as_object().unwrap() {
            body[name] = value.clone();
        }
        let answer = self.post("/v1/jobs", &body);
        assert_eq!(answer.status, 202, "{answer:?}");
        answer.json()["id"].as_str().unwrap().to_owned()
    }

    /// Waits until the job is in this state.
    pub(crate) fn until(&self, id: &str, state: &str) -> Value {
        let began = Instant::now();
        let mut seen = 0;
        loop {
            let job = self.get(&format!("/v1/jobs/{id}")).json();
            if job["state"] == state {
                return job;
            }
            assert!(
                began.elapsed() < PATIENCE,
                "the job never was {state}: {job}"
            );
            seen = self
                .store
                .wait_change(seen, Duration::from_millis(100))
                .unwrap();
        }
    }

    /// Opens a stream of events.
    pub(crate) fn events(&self, path: &str, headers: &[(&str, &str)]) -> Events {
        let mut reader = BufReader::new(self.connect());
        let request = self
            .request("GET", path, headers, None)
            .replace("connection: close\r\n", "");
        reader.get_mut().write_all(request.as_bytes()).unwrap();
        let head = read_head(&mut reader);
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        assert!(head.contains("text/event-stream"), "{head}");
        Events {
            reader,
            text: String::new(),
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        drop(self.worker.take());
        self.end();
    }
}

/// A stream of events.
pub(crate) struct Events {
    reader: BufReader<TcpStream>,
    text: String,
}

/// One event.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) id: Option<u64>,
    pub(crate) name: String,
    pub(crate) data: Value,
}

impl Events {
    /// The next one; `None` at the end.
    pub(crate) fn next(&mut self) -> Option<Event> {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name));
                let parsed = field("event: ").map(|name| Event {
                    id: field("id: ").map(|id| id.parse().unwrap()),
                    name: name.to_owned(),
                    data: serde_json::from_str(field("data: ").unwrap()).unwrap(),
                });
                self.text = rest.to_owned();
                match parsed {
                    Some(parsed) => return Some(parsed),
                    None => continue,
                }
            }
            let chunk = read_chunk(&mut self.reader);
            if chunk.is_empty() {
                return None;
            }
            self.text.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }

    /// The next one of this name.
    pub(crate) fn until(&mut self, name: &str) -> Event {
        loop {
            let event = self
                .next()
                .unwrap_or_else(|| panic!("the stream ended before {name}"));
            if event.name == name {
                return event;
            }
        }
    }

    /// All that are left.
    pub(crate) fn rest(mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.next()).collect()
    }
}

fn read_head(reader: &mut impl BufRead) -> String {
    let mut head = String::new();
    loop {
        let before = head.len();
        let read = reader.read_line(&mut head).unwrap();
        if read == 0 || head[before..] == *"\r\n" {
            return head;
        }
    }
}

fn read_chunk(reader: &mut impl BufRead) -> Vec<u8> {
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    let len = usize::from_str_radix(line.trim(), 16).unwrap_or(0);
    let mut chunk = vec![0; len + 2];
    if reader.read_exact(&mut chunk).is_err() {
        return Vec::new();
    }
    chunk.truncate(len);
    chunk
}

/// Reads one answer, however its body is framed.
pub(crate) fn read_answer(reader: &mut impl BufRead) -> Answer {
    let head = read_head(reader);
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .unwrap_or(0);
    let mut answer = Answer {
        status,
        head,
        body: Vec::new(),
    };
    if answer.header("transfer-encoding").is_some() {
        loop {
            let chunk = read_chunk(reader);
            if chunk.is_empty() {
                break;
            }
            answer.body.extend(chunk);
        }
    } else if let Some(len) = answer
        .header("content-length")
        .and_then(|len| len.parse().ok())
    {
        answer.body = vec![0; len];
        reader.read_exact(&mut answer.body).unwrap();
    }
    answer
}
