//! A real Redis server of a test's own: on a port that was free, with a folder that vanishes.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// What a server needs so that what it accepts survives a power cut.
pub(crate) const DURABLE: &str = "appendonly yes\nappendfsync always\n";

/// How long a server may take to answer.
const START_MAX: Duration = Duration::from_secs(20);

/// Its process, its folder, its port.
pub(crate) struct Server {
    child: Option<Child>,
    folder: tempfile::TempDir,
    pub(crate) port: u16,
}

impl Server {
    /// Starts one with these lines of configuration. `None`, and a line in the file of skipped tests, where there is
    /// no such program.
    pub(crate) fn start(test: &str, settings: &str) -> Option<Server> {
        let program = std::env::var("LOWTIDE_REDIS").unwrap_or_else(|_| "redis-server".to_owned());
        let there = Command::new(&program)
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if !there.is_ok_and(|status| status.success()) {
            skip(test, "redis-server is not installed");
            return None;
        }
        // A port is free until somebody else takes it: then another one is.
        for _ in 0..5 {
            let folder = tempfile::tempdir().unwrap();
            let free = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = free.local_addr().unwrap().port();
            drop(free);
            let all = format!(
                "port {port}\nbind 127.0.0.1\nsave \"\"\ndir {folder}\nlogfile {folder}/redis.log\n\
                 unixsocket {folder}/socket\n{settings}",
                folder = folder.path().display()
            )
            .replace("FOLDER", &folder.path().display().to_string());
            std::fs::write(folder.path().join("redis.conf"), all).unwrap();
            let mut server = Server {
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
        let program = std::env::var("LOWTIDE_REDIS").unwrap_or_else(|_| "redis-server".to_owned());
        let child = Command::new(program)
            .arg(self.folder.path().join("redis.conf"))
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
            // One that wants a password is up as well.
            let answer = self.ask("PING");
            if answer.is_some_and(|answer| answer == "+PONG" || answer.starts_with("-NOAUTH")) {
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

    /// Sends it a signal.
    #[cfg(unix)]
    pub(crate) fn signal(&self, name: &str) {
        let child = self.child.as_ref().unwrap();
        let sent = Command::new("kill")
            .args([format!("-{name}"), child.id().to_string()])
            .status();
        assert!(sent.unwrap().success());
    }

    /// The first line of the answer to a command; `None` where it does not answer.
    pub(crate) fn ask(&self, command: &str) -> Option<String> {
        let mut net = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        net.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
        net.write_all(format!("{command}\r\n").as_bytes()).ok()?;
        let mut line = String::new();
        BufReader::new(net).read_line(&mut line).ok()?;
        Some(line.trim_end().to_owned()).filter(|line| !line.is_empty())
    }

    /// Where it is.
    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    /// Its folder.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // One that is gone already is as good.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Says that a test could not run.
pub(crate) fn skip(test: &str, reason: &str) {
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
