//! The built program, as a user meets it: what it prints, what it writes, how it ends.
#![allow(
    clippy::unwrap_used,
    reason = "a test that meets an error should say where"
)]

mod help;
mod interruption;
mod models;
mod pictures;
mod pulling;
mod steps;
mod upscale;
mod wrong_input;

use serde_json::Value;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A folder that vanishes, and the program run in it.
struct Place {
    folder: tempfile::TempDir,
}

/// How a run ended.
struct Ended {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Place {
    fn new() -> Place {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        Place { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The program with this folder as its own, none of our variables set, and nobody's server to be found.
    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lowtide"));
        command
            .current_dir(self.folder.path())
            .env("XDG_DATA_HOME", self.folder.path().join("data"))
            .env("XDG_CONFIG_HOME", self.folder.path().join("config"))
            .env("HOME", self.folder.path())
            .env_remove("LOWTIDE_SERVER")
            .env_remove("LOWTIDE_MODELS")
            .env_remove("LOWTIDE_ISA");
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy().into_owned();
            if text.starts_with("HF_") || text == "XDG_CACHE_HOME" || text == "LOWTIDE_MODEL_DIRS" {
                command.env_remove(name);
            }
        }
        command
    }

    fn run<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Ended {
        Ended::of(
            self.command()
                .args(arguments)
                .output()
                .expect("the program was built for this test"),
        )
    }

    /// The words of `line`, split at blanks.
    fn line(&self, line: &str) -> Ended {
        self.run(line.split_whitespace())
    }

    /// Names of everything in the folder.
    fn names(&self) -> BTreeSet<String> {
        let entries = std::fs::read_dir(self.folder.path()).expect("the folder is ours");
        entries
            .map(|entry| {
                entry
                    .expect("the folder is ours")
                    .file_name()
                    .to_string_lossy()
                    .into_owned()
            })
            .collect()
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().expect("a file lies in a folder"))
            .expect("the folder is ours");
        std::fs::write(path, text).expect("the folder is ours");
    }

    /// A copy of the demo model under `name`.
    fn copy_demo(&self, name: &str) -> PathBuf {
        let copy = self.path(name);
        copy_folder(&demo_folder(), &copy);
        copy
    }

    /// The pixels of a picture in the folder.
    fn pixels(&self, name: &str) -> Vec<u8> {
        image::open(self.path(name))
            .expect("a whole picture")
            .to_rgb8()
            .into_raw()
    }
}

impl Ended {
    fn of(output: Output) -> Ended {
        let text = |bytes| String::from_utf8(bytes).expect("the program writes UTF-8");
        Ended {
            code: output.status.code(),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }

    /// Asserts success and gives standard output.
    #[track_caller]
    fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{}", self.stderr);
        self.stdout
    }

    /// Asserts success and gives the last line of standard output, which is JSON.
    #[track_caller]
    fn json(self) -> Value {
        let stdout = self.ok();
        let last = stdout.lines().last().expect("a line of JSON");
        serde_json::from_str(last).expect("JSON")
    }

    /// Asserts the exit code and one clear line, and gives the line.
    #[track_caller]
    fn error(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "{}{}", self.stdout, self.stderr);
        let errors: Vec<&str> = self
            .stderr
            .lines()
            .filter(|line| line.starts_with("error: "))
            .collect();
        assert_eq!(errors.len(), 1, "{}", self.stderr);
        assert_eq!(
            self.stderr.lines().last(),
            Some(errors[0]),
            "the error comes last"
        );
        errors[0].to_owned()
    }
}

fn demo_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("demo")
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("the folder is ours");
    for entry in std::fs::read_dir(from).expect("the demo can be read") {
        let entry = entry.expect("the demo can be read");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("the folder is ours");
        }
    }
}
