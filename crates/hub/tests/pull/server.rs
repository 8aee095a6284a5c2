//! A server that speaks the hub's API, as far as a pull needs it, with planned faults; and beside it, on another port,
//! the storage it sends large files from.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

use lowtide_hub::{Checksum, Hasher};
use serde_json::{Value, json};

/// The commit that is served.
pub(crate) const COMMIT: &str = "c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00";

/// A file that is served.
#[derive(Clone, Debug)]
pub(crate) struct Served {
    pub(crate) bytes: Vec<u8>,
    /// Whether it is in large file storage, and so on another host.
    pub(crate) large: bool,
}

/// What goes wrong, by path; `api` is the description.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// An answer without a file: status, headers, so many times.
    Status(u16, Vec<(&'static str, String)>, usize),
    /// The connection ends after so many bytes of a body, so many times.
    Cut(usize, usize),
    /// One byte is another.
    Wrong,
    /// The body goes on and on after the file's end, in chunks.
    Endless,
    /// The body stops after so many bytes until [`Hub::release`].
    Gate(usize),
    /// Headers of the answer that replace the right ones.
    Headers(Vec<(&'static str, String)>),
    /// Ranges are not known.
    NoRanges,
}

/// A request that came.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) range: Option<String>,
    pub(crate) token: Option<String>,
    /// Whether it came to the storage.
    pub(crate) storage: bool,
    /// Bytes of a body that were sent, as far as the system took them.
    pub(crate) sent: usize,
}

#[derive(Debug, Default)]
struct State {
    files: BTreeMap<String, Served>,
    faults: BTreeMap<String, Vec<Fault>>,
    listing: Option<String>,
    asked: Vec<Asked>,
    /// How many of them are forgotten; requests in progress keep their number.
    forgotten: usize,
    released: bool,
    storage: Option<SocketAddr>,
}

/// The hub.
#[derive(Clone, Debug)]
pub(crate) struct Hub {
    state: Arc<(Mutex<State>, Condvar)>,
    address: SocketAddr,
}

impl Hub {
    /// Serves these files of `org/name`.
    pub(crate) fn serve(files: BTreeMap<String, Served>) -> Hub {
        let hub = TcpListener::bind("127.0.0.1:0").unwrap();
        let storage = TcpListener::bind("127.0.0.1:0").unwrap();
        let state = State {
            files,
            storage: Some(storage.local_addr().unwrap()),
            ..State::default()
        };
        let served = Hub {
            state: Arc::new((Mutex::new(state), Condvar::new())),
            address: hub.local_addr().unwrap(),
        };
        for (listener, is_storage) in [(hub, false), (storage, true)] {
            let hub = served.clone();
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let hub = hub.clone();
                    // A client that goes away is what some tests are about.
                    thread::spawn(move || drop(hub.answer(stream, is_storage)));
                }
            });
        }
        served
    }

    /// Its address.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn fault(&self, path: &str, fault: Fault) {
        let mut state = self.state.0.lock().unwrap();
        state.faults.entry(path.to_owned()).or_default().push(fault);
    }

    pub(crate) fn heal(&self) {
        self.state.0.lock().unwrap().faults.clear();
    }

    pub(crate) fn set_listing(&self, text: String) {
        self.state.0.lock().unwrap().listing = Some(text);
    }

    pub(crate) fn release(&self) {
        self.state.0.lock().unwrap().released = true;
        self.state.1.notify_all();
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        let state = self.state.0.lock().unwrap();
        state.asked[state.forgotten..].to_vec()
    }

    pub(crate) fn forget(&self) {
        let mut state = self.state.0.lock().unwrap();
        state.forgotten = state.asked.len();
    }

    /// The description it gives unless told otherwise.
    pub(crate) fn description(&self) -> Value {
        let state = self.state.0.lock().unwrap();
        let siblings: Vec<Value> = state
            .files
            .iter()
            .map(|(path, file)| {
                let (git, sha) = (sum(&file.bytes, false), sum(&file.bytes, true));
                let size = file.bytes.len();
                match file.large {
                    true => json!({ "rfilename": path, "size": size, "blobId": git,
                        "lfs": { "sha256": sha, "size": size, "pointerSize": 130 } }),
                    false => json!({ "rfilename": path, "size": size, "blobId": git }),
                }
            })
            .collect();
        json!({ "id": "org/name", "sha": COMMIT, "gated": false, "private": false, "siblings": siblings })
    }

    fn answer(&self, stream: TcpStream, storage: bool) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let mut words = line.split_whitespace();
        let (method, target) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
        let mut headers = BTreeMap::new();
        loop {
            let mut header = String::new();
            if reader.read_line(&mut header)? <= 2 {
                break;
            }
            if let Some((name, value)) = header.split_once(':') {
                headers.insert(name.trim().to_lowercase(), value.trim().to_owned());
            }
        }
        let path = target.split('?').next().unwrap_or("").to_owned();
        let number = {
            let mut state = self.state.0.lock().unwrap();
            state.asked.push(Asked {
                method: method.to_owned(),
                path: path.clone(),
                range: headers.get("range").cloned(),
                token: headers.get("authorization").cloned(),
                storage,
                sent: 0,
            });
            state.asked.len() - 1
        };
        let mut out = Out {
            hub: self,
            stream,
            number,
            head: method == "HEAD",
        };
        if path.starts_with("/api/models/") {
            return self.describe(&mut out, &path);
        }
        let begin = match storage {
            true => "/storage/".to_owned(),
            false => format!("/org/name/resolve/{COMMIT}/"),
        };
        match path.strip_prefix(&begin) {
            Some(file) => self.file(&mut out, file, &headers, storage),
            None => out.plain(404, &[("x-error-code", "RepoNotFound".to_owned())]),
        }
    }

    fn describe(&self, out: &mut Out<'_>, path: &str) -> std::io::Result<()> {
        if let Some((status, headers)) = self.status("api") {
            return out.plain(status, &headers);
        }
        let revision = path.strip_prefix("/api/models/org/name/revision/");
        match revision {
            None => out.plain(401, &[("x-error-code", "RepoNotFound".to_owned())]),
            Some(revision) if !["main", "refs%2Fpr%2F1", COMMIT].contains(&revision) => {
                out.plain(404, &[("x-error-code", "RevisionNotFound".to_owned())])
            }
            Some(_) => {
                let text = self.state.0.lock().unwrap().listing.clone();
                let text = text.unwrap_or_else(|| self.description().to_string());
                let length = ("content-length", text.len().to_string());
                out.head(200, &[length])?;
                out.body(text.as_bytes())
            }
        }
    }

    fn file(
        &self,
        out: &mut Out<'_>,
        path: &str,
        headers: &BTreeMap<String, String>,
        storage: bool,
    ) -> std::io::Result<()> {
        let key = if storage {
            format!("storage/{path}")
        } else {
            path.to_owned()
        };
        if let Some((status, headers)) = self.status(&key) {
            return out.plain(status, &headers);
        }
        let (file, faults, to) = {
            let state = self.state.0.lock().unwrap();
            let faults = state.faults.get(path).cloned().unwrap_or_default();
            (state.files.get(path).cloned(), faults, state.storage)
        };
        let Some(mut file) = file else {
            let headers = [
                ("x-error-code", "EntryNotFound".to_owned()),
                ("x-repo-commit", COMMIT.to_owned()),
            ];
            return out.plain(404, &headers);
        };
        let mut answer = vec![
            ("x-repo-commit", COMMIT.to_owned()),
            ("accept-ranges", "bytes".to_owned()),
        ];
        let etag = format!("\"{}\"", sum(&file.bytes, file.large));
        let size = file.bytes.len();
        for fault in &faults {
            if let Fault::Headers(wrong) = fault {
                answer.retain(|(name, _)| !wrong.iter().any(|(other, _)| other == name));
                answer.extend(wrong.clone());
            }
        }
        let has =
            |answer: &[(&str, String)], name: &str| answer.iter().any(|(known, _)| *known == name);
        if file.large && !storage {
            for (name, value) in [("x-linked-etag", etag), ("x-linked-size", size.to_string())] {
                if !has(&answer, name) {
                    answer.push((name, value));
                }
            }
            let to = to.unwrap();
            answer.push(("location", format!("http://{to}/storage/{path}")));
            return out.plain(302, &answer);
        }
        if !has(&answer, "etag") {
            answer.push(("etag", etag));
        }
        if faults.iter().any(|fault| matches!(fault, Fault::Wrong)) {
            file.bytes[size / 2] ^= 1;
        }
        let ranges = !faults.iter().any(|fault| matches!(fault, Fault::NoRanges));
        let from = headers.get("range").filter(|_| ranges).and_then(|range| {
            range
                .strip_prefix("bytes=")?
                .strip_suffix('-')?
                .parse::<usize>()
                .ok()
        });
        if let Some(from) = from {
            if from >= size {
                return out.plain(416, &answer);
            }
            answer.push(("content-range", format!("bytes {from}-{}/{size}", size - 1)));
        }
        let status = if from.is_some() { 206 } else { 200 };
        let bytes = &file.bytes[from.unwrap_or(0)..];
        if faults.iter().any(|fault| matches!(fault, Fault::Endless)) {
            answer.push(("transfer-encoding", "chunked".to_owned()));
            out.head(status, &answer)?;
            return out.endless(bytes);
        }
        answer.push(("content-length", bytes.len().to_string()));
        out.head(status, &answer)?;
        if out.head {
            return Ok(());
        }
        if let Some(after) = self.cut(path) {
            return out.body(&bytes[..after.min(bytes.len())]);
        }
        for fault in &faults {
            if let Fault::Gate(after) = fault {
                let after = (*after).min(bytes.len());
                out.body(&bytes[..after])?;
                let mut state = self.state.0.lock().unwrap();
                while !state.released {
                    state = self.state.1.wait(state).unwrap();
                }
                drop(state);
                return out.body(&bytes[after..]);
            }
        }
        out.body(bytes)
    }

    fn status(&self, key: &str) -> Option<(u16, Vec<(&'static str, String)>)> {
        let mut state = self.state.0.lock().unwrap();
        state
            .faults
            .get_mut(key)?
            .iter_mut()
            .find_map(|fault| match fault {
                Fault::Status(status, headers, times) if *times > 0 => {
                    *times -= 1;
                    Some((*status, headers.clone()))
                }
                _ => None,
            })
    }

    fn cut(&self, key: &str) -> Option<usize> {
        let mut state = self.state.0.lock().unwrap();
        state
            .faults
            .get_mut(key)?
            .iter_mut()
            .find_map(|fault| match fault {
                Fault::Cut(after, times) if *times > 0 => {
                    *times -= 1;
                    Some(*after)
                }
                _ => None,
            })
    }
}

/// One answer.
struct Out<'a> {
    hub: &'a Hub,
    stream: TcpStream,
    number: usize,
    head: bool,
}

impl Out<'_> {
    fn head(&mut self, status: u16, headers: &[(&str, String)]) -> std::io::Result<()> {
        let mut text = format!("HTTP/1.1 {status} Because\r\nconnection: close\r\n");
        for (name, value) in headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        self.stream.write_all(format!("{text}\r\n").as_bytes())
    }

    fn plain(&mut self, status: u16, headers: &[(&str, String)]) -> std::io::Result<()> {
        let length = ("content-length", "0".to_owned());
        let headers: Vec<(&str, String)> = headers.iter().cloned().chain([length]).collect();
        self.head(status, &headers)
    }

    fn body(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        if self.head {
            return Ok(());
        }
        for part in bytes.chunks(64 << 10) {
            self.stream.write_all(part)?;
            self.hub.state.0.lock().unwrap().asked[self.number].sent += part.len();
        }
        self.stream.flush()
    }

    fn endless(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        if self.head {
            return Ok(());
        }
        let mut bytes = bytes.to_vec();
        loop {
            self.stream
                .write_all(format!("{:x}\r\n", bytes.len()).as_bytes())?;
            self.body(&bytes)?;
            self.stream.write_all(b"\r\n")?;
            bytes = vec![7; 64 << 10];
        }
    }
}

/// A file's sum, as hexadecimal digits: SHA-256, or git's.
pub(crate) fn sum(bytes: &[u8], large: bool) -> String {
    let digits = if large { 64 } else { 40 };
    let kind = Checksum::from_hex(&"0".repeat(digits)).unwrap();
    let mut hasher = Hasher::new(&kind, bytes.len() as u64);
    hasher.update(bytes);
    hasher.finish().to_string()
}

/// Bytes that look like nothing in particular, always the same for a seed.
pub(crate) fn noise(seed: u64, count: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let step = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let words = std::iter::repeat_with(step).flatten();
    words.take(count).collect()
}
