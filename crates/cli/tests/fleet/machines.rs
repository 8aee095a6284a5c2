//! Three machines and a Redis: started, killed, stopped and revived.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lowtide_bucket::Bucket;
use lowtide_jobs::{ArtifactStore, FolderArtifacts, Job, RedisOptions, RedisStore};
use serde_json::Value;

use crate::bucket::S3;
use crate::ordeal::{kill, lose_a_job, print_end, wait};
use crate::proxy::Proxy;
use crate::server::{DURABLE, Server};

/// How long leases last here: short, so that a stopped worker loses its own within the test.
pub(crate) const LEASE: Duration = Duration::from_millis(1500);

/// Workers on machines of their own, beside the server's.
const WORKERS: usize = 2;

/// The machine that is cut off at times: what it sends goes over cables that can be.
const CUT_OFF: usize = 1;

/// The folder in the bucket.
const BUCKET_FOLDER: &str = "fleet";

const CONFIGURATION: &str = "\
[server]
SHARED
[worker]
lease = \"1500ms\"
heartbeat = \"200ms\"
checkpoint_every = \"50ms\"
[queue]
retries = 20
[kinds]
enabled = [\"noise\", \"no-op\"]
";

/// Where finished files, inputs and saved sessions are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Files {
    /// In a folder that all machines see.
    Folder,
    /// In a bucket; no machine sees a folder of another one.
    Bucket,
}

/// All of it.
pub(crate) struct Machines {
    folder: tempfile::TempDir,
    redis: Mutex<Server>,
    s3: Option<S3>,
    /// To Redis, and to the S3 server where there is one.
    cables: Vec<Proxy>,
    server: Mutex<Option<Child>>,
    workers: Mutex<Vec<Option<Child>>>,
    agent: ureq::Agent,
    store: Arc<RedisStore>,
}

impl Machines {
    /// A Redis, and folders; nothing of ours runs yet. `None` where there is no Redis.
    pub(crate) fn new(test: &str, files: Files) -> Option<Machines> {
        let redis = Server::start(test, DURABLE)?;
        let s3 = match files {
            Files::Folder => None,
            Files::Bucket => Some(S3::start(test)?),
        };
        let folder = tempfile::tempdir().unwrap();
        let shared = folder.path().join("shared");
        for name in ["shared", "server", "worker-0", "worker-1"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        let place = match &s3 {
            None => format!("files_dir = \"{}\"", shared.display()),
            Some(s3) => format!("files_bucket = \"{}\"", s3.options(BUCKET_FOLDER).url),
        };
        let text = CONFIGURATION.replace("SHARED", &place);
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
            cables: std::iter::once(redis.port)
                .chain(s3.as_ref().map(|s3| s3.port))
                .map(Proxy::to)
                .collect(),
            s3,
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

    fn program(&self, verb: &str, machine: &str) -> Command {
        let folder = self.folder.path().join(machine);
        let mut command = Command::new(env!("CARGO_BIN_EXE_lowtide"));
        command
            .arg(verb)
            .arg("--data-dir")
            .arg(&folder)
            .arg("--config")
            .arg(self.folder.path().join("lowtide.toml"))
            .env("LOWTIDE_SERVER_STORE", self.redis.lock().unwrap().url())
            .env("HOME", &folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        if let Some(s3) = &self.s3 {
            let options = s3.options(BUCKET_FOLDER);
            command
                .env("AWS_ENDPOINT_URL_S3", s3.endpoint())
                .env("AWS_ACCESS_KEY_ID", options.keys.id)
                .env("AWS_SECRET_ACCESS_KEY", options.keys.secret);
        }
        let log = std::fs::File::options()
            .append(true)
            .create(true)
            .open(self.folder.path().join("log.txt"));
        command.stderr(log.unwrap());
        command
    }

    fn worker_program(&self, worker: usize) -> Command {
        let mut command = self.program("worker", &format!("worker-{worker}"));
        if worker == CUT_OFF {
            let port = |cable: usize| self.cables[cable].port;
            let store = format!("redis://127.0.0.1:{}/0", port(0));
            command.env("LOWTIDE_SERVER_STORE", store);
            if self.s3.is_some() {
                let endpoint = format!("http://127.0.0.1:{}", port(1));
                command.env("AWS_ENDPOINT_URL_S3", endpoint);
            }
        }
        command
    }

    /// Starts all of them and waits until the server listens.
    pub(crate) fn start(&self) {
        self.revive();
        wait("the server to listen", Duration::from_secs(30), || {
            self.address()
        });
    }

    /// Starts a server without a worker, and waits until it listens.
    pub(crate) fn start_server_alone(&self) {
        let mut server = self.program("serve", "server");
        let server = server.args(["--port", "0", "--set", "server.worker=false"]);
        let child = server.spawn().expect("the program can be started");
        *self.server.lock().unwrap() = Some(child);
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
                let child = self.worker_program(number).spawn();
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
        let Some(pid) = self.pid(0) else { return false };
        lose_a_job(
            &*self.store,
            |job| is_of(job, pid),
            || kill(pid, "STOP"),
            || {
                kill(pid, "CONT");
            },
        )
    }

    /// Cuts the other machine off from Redis and S3 while its worker runs a job, until somebody else has the job.
    pub(crate) fn cut_a_worker_off_past_its_lease(&self) -> bool {
        let Some(pid) = self.pid(CUT_OFF) else {
            return false;
        };
        let cut = |cut| self.cables.iter().for_each(|cable| cable.cut(cut));
        lose_a_job(
            &*self.store,
            |job| is_of(job, pid),
            || {
                cut(true);
                true
            },
            || cut(false),
        )
    }

    fn pid(&self, worker: usize) -> Option<u32> {
        self.workers.lock().unwrap()[worker].as_ref().map(Child::id)
    }

    /// Asks a machine's worker to end, as a rolling upgrade does, and waits until it has.
    pub(crate) fn end_worker(&self, worker: usize) {
        let child = self.workers.lock().unwrap()[worker].take();
        let mut child = child.expect("it runs");
        assert!(kill(child.id(), "TERM"));
        assert!(child.wait().unwrap().success(), "it ends politely");
    }

    /// Starts this machine's worker alone.
    pub(crate) fn start_worker(&self, worker: usize) {
        let child = self.worker_program(worker).spawn();
        let child = child.expect("the program can be started");
        self.workers.lock().unwrap()[worker] = Some(child);
    }

    /// Where the finished files are.
    pub(crate) fn artifacts(&self) -> Box<dyn ArtifactStore> {
        match &self.s3 {
            None => {
                let folder = self.folder.path().join("shared/artifacts");
                Box::new(FolderArtifacts::open(&folder).unwrap())
            }
            Some(s3) => Box::new(
                Bucket::open(&s3.options(BUCKET_FOLDER))
                    .unwrap()
                    .artifacts(),
            ),
        }
    }

    /// Everything the processes said.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log.txt")).unwrap_or_default()
    }

    /// How often a job went on from a saved session.
    pub(crate) fn resumed(&self) -> usize {
        self.log()
            .matches("goes on from where it was saved")
            .count()
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

/// Whether a job runs on the worker that is this process.
fn is_of(job: &Job, pid: u32) -> bool {
    let own = format!("-worker-{pid}");
    let holder = job.holder.as_ref();
    holder.is_some_and(|holder| holder.worker.as_str().ends_with(&own))
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
            print_end(&self.log());
        }
    }
}

/// Where the test's files are, for messages.
impl AsRef<Path> for Machines {
    fn as_ref(&self) -> &Path {
        self.folder.path()
    }
}
