//! The real program, started, killed and revived.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use lowtide_core::job::Moment;
use lowtide_jobs::report::Status;
use lowtide_jobs::{JobStore, SqliteOptions, SqliteStore};
use serde_json::Value;

use crate::ordeal::{kill, lose_a_job, print_end, wait};

/// How long leases last here: short, so that a stopped worker loses its own within the test.
const LEASE: Duration = Duration::from_millis(1500);

const CONFIGURATION: &str = "\
[worker]
lease = \"1500ms\"
heartbeat = \"200ms\"
checkpoint_every = \"50ms\"
[queue]
retries = 20
[kinds]
enabled = [\"noise\"]
";

fn now() -> Moment {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    Moment(since.unwrap().as_millis() as u64)
}

pub(crate) struct Service {
    folder: tempfile::TempDir,
    server: Mutex<Option<Child>>,
    store: Arc<SqliteStore>,
    agent: ureq::Agent,
}

impl Service {
    pub(crate) fn new() -> Service {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("lowtide.toml"), CONFIGURATION).unwrap();
        let store = folder.path().join("lowtide.db");
        let agent = ureq::Agent::config_builder()
            .timeout_global(Some(Duration::from_secs(10)))
            .build();
        Service {
            store: Arc::new(SqliteStore::open(&store, SqliteOptions::default()).unwrap()),
            folder,
            server: Mutex::new(None),
            agent: agent.into(),
        }
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Everything the processes said.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log.txt")).unwrap_or_default()
    }

    pub(crate) fn store(&self) -> Arc<SqliteStore> {
        self.store.clone()
    }

    fn program(&self, verb: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lowtide"));
        let file = |name: &str| -> PathBuf { self.folder.path().join(name) };
        command
            .arg(verb)
            .arg("--data-dir")
            .arg(self.folder.path())
            .arg("--config")
            .arg(file("lowtide.toml"))
            .env("HOME", self.folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let log = std::fs::File::options()
            .append(true)
            .create(true)
            .open(file("log.txt"));
        command.stderr(log.unwrap());
        command
    }

    /// Starts the server and waits until it listens.
    pub(crate) fn start(&self) {
        self.revive();
        wait("the server to listen", Duration::from_secs(30), || {
            self.url()
        });
    }

    /// Starts the server where it is dead.
    pub(crate) fn revive(&self) {
        let mut server = self.server.lock().unwrap();
        let dead = match server.as_mut() {
            Some(child) => child.try_wait().unwrap().is_some(),
            None => true,
        };
        if dead {
            let child = self.program("serve").args(["--port", "0"]).spawn();
            *server = Some(child.expect("the program can be started"));
        }
    }

    /// Where the server listens, if it does.
    fn url(&self) -> Option<String> {
        let told = std::fs::read_to_string(self.folder.path().join("server.json")).ok()?;
        let told: Value = serde_json::from_str(&told).ok()?;
        let pid = self.server.lock().unwrap().as_ref()?.id();
        (told["pid"] == pid).then(|| told["url"].as_str().map(str::to_owned))?
    }

    /// The answer, if there is one and it is a success.
    pub(crate) fn post(&self, path: &str, body: &Value, key: Option<&str>) -> Option<Value> {
        let mut request = self.agent.post(format!("{}{path}", self.url()?));
        if let Some(key) = key {
            request = request.header("Idempotency-Key", key);
        }
        let mut answer = request.send_json(body).ok()?;
        answer.body_mut().read_json().ok()
    }

    /// Processes of workers that say they live.
    fn workers(&self) -> Vec<u32> {
        let workers = self.store.workers().unwrap_or_default();
        let alive = workers.into_iter().filter(|worker| worker.is_alive(now()));
        let pid = |status: String| serde_json::from_str::<Status>(&status).ok().map(|s| s.pid);
        alive
            .filter_map(|worker| pid(worker.status))
            .filter(|&pid| is_ours(pid))
            .collect()
    }

    pub(crate) fn kill_server(&self) -> u64 {
        let mut server = self.server.lock().unwrap();
        let Some(child) = server.as_mut() else {
            return 0;
        };
        let killed = child.kill().is_ok();
        child.wait().unwrap();
        u64::from(killed)
    }

    pub(crate) fn kill_worker(&self) -> u64 {
        let killed = self.workers().into_iter().filter(|&pid| kill(pid, "KILL"));
        killed.count() as u64
    }

    pub(crate) fn kill_all(&self) -> u64 {
        self.kill_worker() + self.kill_server()
    }

    /// Stops a worker that runs a job until somebody else has the job, then lets it go on: what it writes comes too
    /// late. Returns whether it came to that.
    pub(crate) fn stop_a_worker_past_its_lease(&self) -> bool {
        let Some(pid) = self.workers().into_iter().next() else {
            return false;
        };
        let mut other = None;
        let start = || {
            let other = self.program("worker").args(["--id", "other"]).spawn();
            other.expect("the program can be started")
        };
        let since = Instant::now();
        let stop = || {
            other = kill(pid, "STOP").then(start);
            other.is_some()
        };
        let moved = lose_a_job(
            &*self.store,
            |_| true,
            stop,
            || {
                kill(pid, "CONT");
            },
        );
        assert!(!moved || since.elapsed() + Duration::from_millis(100) >= LEASE / 3);
        // The second one ends politely.
        if let Some(mut other) = other {
            kill(other.id(), "TERM");
            other.wait().unwrap();
        }
        kill(pid, "CONT");
        moved
    }

    pub(crate) fn stop(&self) {
        let mut server = self.server.lock().unwrap();
        if let Some(child) = server.as_mut() {
            kill(child.id(), "TERM");
            child.wait().unwrap();
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.kill_all();
        if std::thread::panicking() {
            print_end(&self.log());
        }
    }
}

/// Whether a process is one of this program: a number may be used again.
fn is_ours(pid: u32) -> bool {
    match std::fs::read_to_string(format!("/proc/{pid}/cmdline")) {
        Ok(line) => line.contains("lowtide"),
        // Where there is no such file, the number has to do.
        Err(_) => !Path::new("/proc").exists(),
    }
}
