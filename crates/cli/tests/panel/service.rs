//! The built program, serving from a folder that vanishes.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

const START_MAX: Duration = Duration::from_secs(30);
const END_MAX: Duration = Duration::from_secs(20);
const LOOK_AGAIN: Duration = Duration::from_millis(10);

pub(crate) struct Service {
    /// Where it listens.
    pub(crate) url: String,
    process: Child,
    folder: tempfile::TempDir,
}

impl Service {
    pub(crate) fn start() -> Service {
        Service::start_with(&[], &[])
    }

    /// With these arguments and variables.
    pub(crate) fn start_with(arguments: &[&str], variables: &[(&str, String)]) -> Service {
        let folder = tempfile::tempdir().unwrap();
        let log = File::create(folder.path().join("serve.log")).unwrap();
        let mut process = Command::new(env!("CARGO_BIN_EXE_lowtide"))
            .args(["serve", "--port", "0", "--data-dir"])
            .arg(folder.path().join("data"))
            .args(arguments)
            .current_dir(folder.path())
            .env("HOME", folder.path())
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .env_remove("LOWTIDE_MODELS")
            .env_remove("LOWTIDE_SERVER")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let told = folder.path().join("data/server.json");
        let deadline = Instant::now() + START_MAX;
        loop {
            if let Some(url) = address(&told) {
                return Service {
                    url,
                    process,
                    folder,
                };
            }
            let ended = process.try_wait().unwrap();
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "the service did not come up ({ended:?}):\n{}",
                log_of(folder.path())
            );
            std::thread::park_timeout(LOOK_AGAIN);
        }
    }
}

impl Service {
    /// A new key to it.
    pub(crate) fn key(&self, name: &str) -> String {
        let made = Command::new(env!("CARGO_BIN_EXE_lowtide"))
            .args(["keys", "create", "--name", name, "--admin", "--data-dir"])
            .arg(self.folder.path().join("data"))
            .current_dir(self.folder.path())
            .env("HOME", self.folder.path())
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        String::from_utf8(made.stdout).unwrap().trim().to_owned()
    }
}

fn address(told: &Path) -> Option<String> {
    let told: Value = serde_json::from_str(&std::fs::read_to_string(told).ok()?).ok()?;
    Some(told["url"].as_str()?.to_owned())
}

fn log_of(folder: &Path) -> String {
    std::fs::read_to_string(folder.join("serve.log")).unwrap_or_default()
}

impl Drop for Service {
    /// As a person ends it; by force only if that does not help, so that no worker is left behind.
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the service said:\n{}", log_of(self.folder.path()));
        }
        let asked = Command::new("sh")
            .args(["-c", &format!("kill -TERM {}", self.process.id())])
            .status();
        let deadline = Instant::now() + END_MAX;
        while asked.is_ok() && Instant::now() < deadline {
            if matches!(self.process.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::park_timeout(LOOK_AGAIN);
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
