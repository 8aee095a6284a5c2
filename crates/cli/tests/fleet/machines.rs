//! Three machines and a Redis: started, killed, stopped and revived.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use lowtide_core::job::JobState;
use lowtide_jobs::{JobStore, RedisOptions, RedisStore};
use serde_json::Value;

use crate::server::{DURABLE, Server};

/// How long leases last here: short, so that a stopped worker loses its own within the test.
pub(crate) const LEASE: Duration = Duration::from_millis(1500);

/// Workers on machines of their own, beside the server's.
const WORKERS: usize = 2;

const CONFIGURATION: &str = "\
[server]
files_dir = \"SHARED\"
[worker]
lease = \"1500ms\"
heartbeat = \"200ms\"
checkpoint_every = \"50ms\"
[queue]
retries = 20
[kinds]
enabled = [\"noise\", \"no-op\"]
";

/// A small generator; its quality does not matter, its seed does.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// A number from `low` to `high`, both included.
    pub(crate) fn between(&mut self, low: u64, high: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        low + self.0 % (high - low + 1)
    }
}

/// Asks until there is an answer.
pub(crate) fn wait<T>(what: &str, limit: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(start.elapsed() < limit, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Sends a signal; returns whether there was such a process.
pub(crate) fn kill(pid: u32, signal: &str) -> bool {
    let sent = Command::new("kill")
        .args([format!("-{signal}"), pid.to_string()])
        .stderr(Stdio::null())
        .status();
    sent.is_ok_and(|status| status.success())
}

/// All of it.
pub(crate) struct Machines {
    folder: tempfile::TempDir,
    redis: Mutex<Server>,
    url: String,
    server: Mutex<Option<Child>>,
    workers: Mutex<Vec<Option<Child>>>,
    agent: ureq::Agent,
    store: Arc<RedisStore>,
}

impl Machines {
    /// A Redis, and folders; nothing of ours runs yet. `None` where there is no Redis.
    pub(crate) fn new(test: &str) -> Option<Machines> {
        let redis = Server::start(test, DURABLE)?;
        let folder = tempfile::tempdir().unwrap();
        let shared = folder.path().join("shared");
        for name in ["shared", "server", "worker-0", "worker-1"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        let text = CONFIGURATION.replace("SHARED", &shared.display().to_string());
        std::fs::write(folder.path().join("lowtide.toml"), text).unwrap();
        let agent = ureq::Agent::config_builder()
            .timeout_global(Some(Duration::from_secs(15)))
            .build();
        let options = RedisOptions {
            patience: Duration::from_secs(60),
            ..RedisOptions::new(&redis.url())
        };
        Some(Machines {
            store: Arc::new(RedisStore::open(options).unwrap()),
            url: redis.url(),
            redis: Mutex::new(redis),
            folder,
            server: Mutex::new(None),
            workers: Mutex::new((0..WORKERS).map(|_| None).collect()),
            agent: agent.into(),
        })
    }

    pub(crate) fn store(&self) -> Arc<RedisStore> {
        self.store.clone()
    }

    pub(crate) fn shared(&self) -> PathBuf {
        self.folder.path().join("shared")
    }

    fn program(&self, verb: &str, machine: &str) -> Command {
        let folder = self.folder.path().join(machine);
        let mut command = Command::new(env!("CARGO_BIN_EXE_lowtide"));
        command
            .arg(verb)
            .arg("--data-dir")
            .arg(&folder)
            .arg("--config")
            .arg(self.folder.path().join("lowtide.toml"))
            .env("LOWTIDE_SERVER_STORE", &self.url)
            .env("HOME", &folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let log = std::fs::File::options()
            .append(true)
            .create(true)
            .open(self.folder.path().join("log.txt"));
        command.stderr(log.unwrap());
        command
    }

    /// Starts all of them and waits until the server listens.
    pub(crate) fn start(&self) {
        self.revive();
        wait("the server to listen", Duration::from_secs(30), || {
            self.address()
        });
    }

    /// Starts what is dead.
    pub(crate) fn revive(&self) {
        let dead = |child: &mut Option<Child>| match child {
            Some(child) => child.try_wait().unwrap().is_some(),
            None => true,
        };
        let mut server = self.server.lock().unwrap();
        if dead(&mut server) {
            let child = self
                .program("serve", "server")
                .args(["--port", "0"])
                .spawn();
            *server = Some(child.expect("the program can be started"));
        }
        let mut workers = self.workers.lock().unwrap();
        for (number, worker) in workers.iter_mut().enumerate() {
            if dead(worker) {
                let machine = format!("worker-{number}");
                let child = self.program("worker", &machine).spawn();
                *worker = Some(child.expect("the program can be started"));
            }
        }
    }

    /// Where the server listens, if it does.
    fn address(&self) -> Option<String> {
        let told = self.folder.path().join("server/server.json");
        let told: Value = serde_json::from_str(&std::fs::read_to_string(told).ok()?).ok()?;
        let pid = self.server.lock().unwrap().as_ref()?.id();
        (told["pid"] == pid).then(|| told["url"].as_str().map(str::to_owned))?
    }

    /// The answer, if there is one and it is a success.
    pub(crate) fn post(&self, path: &str, body: &Value, key: Option<&str>) -> Option<Value> {
        let mut request = self.agent.post(format!("{}{path}", self.address()?));
        if let Some(key) = key {
            request = request.header("Idempotency-Key", key);
        }
        let mut answer = request.send_json(body).ok()?;
        answer.body_mut().read_json().ok()
    }

    /// The status and the answer, whatever it is.
    pub(crate) fn get(&self, path: &str) -> Option<(u16, Value)> {
        let config = self.agent.get(format!("{}{path}", self.address()?));
        let config = config.config().http_status_as_error(false).build();
        let mut answer = config.call().ok()?;
        let status = answer.status().as_u16();
        Some((status, answer.body_mut().read_json().ok()?))
    }

    /// What a verb of the command line prints.
    pub(crate) fn verb(&self, verb: &str) -> String {
        let folder = self.folder.path().join("server");
        let mut command = Command::new(env!("CARGO_BIN_EXE_lowtide"));
        command.arg(verb).arg("--data-dir").arg(&folder);
        let output = command.env("HOME", &folder).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub(crate) fn kill_server(&self) -> u64 {
        killed(&mut self.server.lock().unwrap())
    }

    /// Kills one of the machines' workers, or all: the last number is the server's own, which its supervisor revives.
    pub(crate) fn kill_workers(&self, which: Option<usize>) -> u64 {
        let mut workers = self.workers.lock().unwrap();
        match which {
            Some(number) if number < WORKERS => killed(&mut workers[number]),
            Some(_) => {
                let pids = self.children_of_the_server();
                pids.into_iter().filter(|&pid| kill(pid, "KILL")).count() as u64
            }
            None => workers.iter_mut().map(killed).sum(),
        }
    }

    fn children_of_the_server(&self) -> Vec<u32> {
        let server = self.server.lock().unwrap().as_ref().map(Child::id);
        let Some(server) = server else {
            return Vec::new();
        };
        // Each thread has children of its own; where the system does not tell, none is found.
        let threads = std::fs::read_dir(format!("/proc/{server}/task"));
        let threads = threads.into_iter().flatten().filter_map(Result::ok);
        let children = threads.filter_map(|thread| {
            let text = std::fs::read_to_string(thread.path().join("children")).ok()?;
            let pids = text.split_whitespace().filter_map(|pid| pid.parse().ok());
            Some(pids.collect::<Vec<u32>>())
        });
        children.flatten().collect()
    }

    /// Kills Redis and starts it again.
    pub(crate) fn kill_the_store(&self) {
        let mut redis = self.redis.lock().unwrap();
        redis.kill();
        assert!(redis.restart(), "Redis comes back with what it has");
    }

    /// Redis answers nobody for so long.
    pub(crate) fn stall_the_store(&self, time: Duration) {
        let redis = self.redis.lock().unwrap();
        redis.signal("STOP");
        std::thread::sleep(time);
        redis.signal("CONT");
    }

    /// For what Redis itself is to be stopped, killed or started for.
    pub(crate) fn redis(&self) -> std::sync::MutexGuard<'_, Server> {
        self.redis.lock().unwrap()
    }

    /// Stops a machine's worker that runs a job until somebody else has the job, then lets it go on: what it writes
    /// comes too late. Returns whether it came to that.
    pub(crate) fn stop_a_worker_past_its_lease(&self) -> bool {
        let pid = self.workers.lock().unwrap()[0].as_ref().map(Child::id);
        let Some(pid) = pid else { return false };
        let own = format!("-cpu-{pid}");
        let running = || {
            let listing = lowtide_jobs::Listing {
                states: vec![JobState::Running],
                limit: 10,
                ..Default::default()
            };
            let jobs = self.store.list(&listing).ok()?;
            jobs.into_iter().find(|job| {
                let holder = job.holder.as_ref();
                holder.is_some_and(|holder| holder.worker.as_str().ends_with(&own))
            })
        };
        let limit = Duration::from_secs(20);
        let deadline = Instant::now() + limit;
        let job = loop {
            if let Some(job) = running() {
                break job;
            }
            if Instant::now() > deadline {
                return false;
            }
            std::thread::yield_now();
        };
        if !kill(pid, "STOP") {
            return false;
        }
        // The job may have been done in the moment between.
        let caught = self
            .store
            .job(job.id)
            .is_ok_and(|now| now.attempt == job.attempt && now.state == JobState::Running);
        let since = Instant::now();
        let mut moved = false;
        while caught && !moved && since.elapsed() < limit {
            moved = self
                .store
                .job(job.id)
                .is_ok_and(|now| now.attempt > job.attempt);
            std::thread::sleep(Duration::from_millis(20));
        }
        kill(pid, "CONT");
        // Both work for a while.
        std::thread::sleep(Duration::from_millis(500));
        moved
    }

    pub(crate) fn stop(&self) {
        let mut server = self.server.lock().unwrap();
        let mut workers = self.workers.lock().unwrap();
        let all = workers.iter_mut().chain(std::iter::once(&mut *server));
        for child in all.flatten() {
            kill(child.id(), "TERM");
            child.wait().unwrap();
        }
    }
}

fn killed(child: &mut Option<Child>) -> u64 {
    let Some(child) = child else { return 0 };
    let killed = child.kill().is_ok();
    child.wait().unwrap();
    u64::from(killed)
}

impl Drop for Machines {
    fn drop(&mut self) {
        self.kill_workers(None);
        self.kill_server();
        if std::thread::panicking() {
            let log = self.folder.path().join("log.txt");
            let log = std::fs::read_to_string(log).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let last = lines.len().saturating_sub(80);
            println!("the last lines of all:\n{}", lines[last..].join("\n"));
        }
    }
}

/// Where the test's files are, for messages.
impl AsRef<Path> for Machines {
    fn as_ref(&self) -> &Path {
        self.folder.path()
    }
}
