//! A real S3 server of a test's own: on a port that was free, with a folder that vanishes.

use std::ffi::OsString;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lowtide_bucket::{BucketKeys, BucketOptions};

/// The bucket.
pub(crate) const BUCKET: &str = "studio";

/// The key that is let in, and its secret.
const KEY: (&str, &str) = ("LOWTIDETEST", "not/a+secret");

/// How long a server may take to listen.
const START_MAX: Duration = Duration::from_secs(20);

/// Its process, its folder, its port.
pub(crate) struct S3 {
    program: OsString,
    child: Option<Child>,
    folder: tempfile::TempDir,
    pub(crate) port: u16,
}

impl S3 {
    /// Starts one. `None`, and a line in the file of skipped tests, where there is no such program.
    pub(crate) fn start(test: &str) -> Option<S3> {
        let program = std::env::var_os("LOWTIDE_S3").unwrap_or_else(|| "s3s-fs".into());
        let there = Command::new(&program)
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if !there.is_ok_and(|status| status.success()) {
            skip(test, "s3s-fs is not installed, and LOWTIDE_S3 names none");
            return None;
        }
        // A port is free until somebody else takes it: then another one is.
        for _ in 0..5 {
            let folder = tempfile::tempdir().unwrap();
            std::fs::create_dir(folder.path().join(BUCKET)).unwrap();
            let free = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = free.local_addr().unwrap().port();
            drop(free);
            let mut server = S3 {
                program: program.clone(),
                child: None,
                folder,
                port,
            };
            if server.restart() {
                return Some(server);
            }
        }
        panic!("no server could be started");
    }

    /// Starts it again on its port, with what is in its folder. Whether it came up.
    pub(crate) fn restart(&mut self) -> bool {
        let port = self.port.to_string();
        let child = Command::new(&self.program)
            .args(["--host", "127.0.0.1", "--port", &port])
            .args(["--access-key", KEY.0, "--secret-key", KEY.1])
            .arg(self.folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        self.child = Some(child);
        let began = Instant::now();
        while began.elapsed() < START_MAX {
            if let Some(child) = &mut self.child
                && child.try_wait().unwrap().is_some()
            {
                return false;
            }
            if TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
                return true;
            }
            std::thread::park_timeout(Duration::from_millis(10));
        }
        false
    }

    /// Kills it at once.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Where it listens.
    pub(crate) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// How a folder of its bucket is reached.
    pub(crate) fn options(&self, folder: &str) -> BucketOptions {
        let keys = BucketKeys {
            id: KEY.0.to_owned(),
            secret: KEY.1.to_owned(),
            token: None,
        };
        BucketOptions {
            endpoint: Some(self.endpoint()),
            ..BucketOptions::new(&format!("s3://{BUCKET}/{folder}"), keys)
        }
    }

    /// The file in which it keeps the content of the object with this name and length.
    pub(crate) fn file(&self, name: &str, bytes: u64) -> PathBuf {
        let mut folders = vec![self.folder.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if is_content(&path, name) && path.metadata().unwrap().len() == bytes {
                    return path;
                }
            }
        }
        panic!("no file of {bytes} bytes is named after {name}");
    }
}

fn is_content(path: &Path, name: &str) -> bool {
    let last = path.file_name().unwrap().to_string_lossy();
    last == name
}

impl Drop for S3 {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // One that is gone already is as good.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Says that a test could not run.
fn skip(test: &str, reason: &str) {
    let line = format!("{test}: {reason}\n");
    eprint!("skipped: {line}");
    if let Some(file) = std::env::var_os("LOWTIDE_TEST_SKIPS") {
        let file = std::fs::File::options()
            .create(true)
            .append(true)
            .open(file);
        file.unwrap().write_all(line.as_bytes()).unwrap();
    }
}
