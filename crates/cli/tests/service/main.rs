//! The service as a user meets it: real processes, a real port, a real queue.
#![cfg(unix)]
#![allow(
    clippy::unwrap_used,
    reason = "a test that meets an error should say where"
)]

mod backup;
mod downloads;
mod hand_over;
mod keys;
mod serving;
mod settings;
mod traces;
mod upscaling;
mod verbs;

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Far longer than anything here takes on a busy machine.
const LONG: Duration = Duration::from_secs(60);

/// A folder that vanishes, with a user's folders in it.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let folder = tempfile::tempdir().unwrap();
        Place { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The program with nobody's settings but these.
    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lowtide"));
        command.current_dir(self.folder.path());
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            if [
                "LOWTIDE_",
                "GPU_",
                "MODEL_CACHE_DIR",
                "PORT",
                "AWS_",
                "OTEL_",
                "HF_",
                "XDG_CACHE_HOME",
            ]
            .iter()
            .any(|start| name.starts_with(start))
            {
                command.env_remove(name);
            }
        }
        command
            .env("HOME", self.folder.path())
            .env("XDG_DATA_HOME", self.path("data"))
            .env("XDG_CONFIG_HOME", self.path("config"))
            .args(line.split_whitespace());
        command
    }

    fn run(&self, line: &str) -> Output {
        self.command(line).output().unwrap()
    }

    /// Asserts success and gives standard output.
    #[track_caller]
    fn ok(&self, line: &str) -> String {
        let output = self.run(line);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{line}: {stderr}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Asserts the exit code and one line that says all of this.
    #[track_caller]
    fn refused(&self, line: &str, code: i32, says: &[&str]) {
        expect_refusal(line, &self.run(line), code, says);
    }
}

#[track_caller]
fn expect_refusal(line: &str, output: &Output, code: i32, says: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{line}: {stderr}");
    let last = stderr.lines().last().unwrap_or_default();
    assert!(last.starts_with("error: "), "{line}: {stderr}");
    for part in says {
        assert!(last.contains(part), "{line}: '{part}' is not in: {last}");
    }
}

/// A process whose lines are read as they come; killed where a test forgets it.
struct Process {
    child: Child,
    lines: Receiver<String>,
    told: Vec<String>,
}

impl Process {
    fn spawn(mut command: Command) -> Process {
        let mut child = command
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let from = BufReader::new(child.stderr.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in from.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Process {
            child,
            lines,
            told: Vec::new(),
        }
    }

    /// The next line with this in it, and what follows that on the line.
    #[track_caller]
    fn after(&mut self, part: &str) -> String {
        let deadline = Instant::now() + LONG;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    self.told.push(line.clone());
                    if let Some((_, rest)) = line.split_once(part) {
                        return rest.to_owned();
                    }
                }
                Err(RecvTimeoutError::Timeout) => panic!("'{part}' was not said: {:#?}", self.told),
                Err(RecvTimeoutError::Disconnected) => {
                    panic!("it ended without '{part}': {:#?}", self.told)
                }
            }
        }
    }

    /// Waits for its end.
    #[track_caller]
    fn end(&mut self) -> ExitStatus {
        let deadline = Instant::now() + LONG;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => self.told.push(line),
                Err(RecvTimeoutError::Disconnected) => return self.child.wait().unwrap(),
                Err(RecvTimeoutError::Timeout) => panic!("it does not end: {:#?}", self.told),
            }
        }
    }

    fn signal(&self, name: &str) {
        signal(name, self.child.id());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Most have ended by now.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn signal(name: &str, pid: u32) {
    let sent = Command::new("kill")
        .args([format!("-{name}"), pid.to_string()])
        .status();
    assert!(sent.unwrap().success(), "signal {name} to {pid}");
}

/// A running server.
struct Server {
    process: Process,
    url: String,
    worker: u32,
}

impl Server {
    /// Starts one on a free port and waits until its worker runs.
    #[track_caller]
    fn start(place: &Place, more: &str) -> Server {
        Server::start_with(place, more, &[])
    }

    /// As [`Server::start`], with these variables.
    #[track_caller]
    fn start_with(place: &Place, more: &str, variables: &[(&str, String)]) -> Server {
        let line = format!("serve --port 0 --set kinds.enabled=text-to-image,noise,no-op {more}");
        let mut command = place.command(&line);
        command.envs(variables.iter().map(|(name, value)| (name, value)));
        let mut process = Process::spawn(command);
        let url = process.after("listens on ");
        let worker = process.after("worker  started, process ");
        Server {
            process,
            url,
            worker: worker.parse().unwrap(),
        }
    }

    #[track_caller]
    fn get(&self, path: &str) -> Value {
        let mut answer = ureq::get(format!("{}{path}", self.url)).call().unwrap();
        answer.body_mut().read_json().unwrap()
    }

    #[track_caller]
    fn post(&self, path: &str, body: Value) -> Value {
        let mut answer = ureq::post(format!("{}{path}", self.url))
            .send_json(body)
            .unwrap();
        answer.body_mut().read_json().unwrap()
    }

    /// Waits until a job is over.
    #[track_caller]
    fn over(&self, id: &str) -> Value {
        let deadline = Instant::now() + LONG;
        loop {
            let job = self.get(&format!("/v1/jobs/{id}?wait_s=5"));
            if ["done", "failed", "cancelled"]
                .iter()
                .any(|state| job["state"] == *state)
            {
                return job;
            }
            assert!(Instant::now() < deadline, "{job}");
        }
    }

    /// Asks it to end and expects that it does well.
    #[track_caller]
    fn stop(mut self) {
        self.process.signal("TERM");
        let status = self.process.end();
        assert_eq!(status.code(), Some(0), "{:#?}", self.process.told);
    }
}
