//! Whoever opens models for chains in tests: the demo model, another like it, networks and detectors that were recorded.

#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "each test uses some of it; an unwrap in a test is an assertion"
)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lowtide_core::Bytes;
use lowtide_engine::chain::{Chain, Handed, Models};
use lowtide_engine::processor::{Files, Opened, Order, Product, Run, Setup, Stepped};
use lowtide_engine::{Error, Options, PrecisionChoice, Result, processors};
use lowtide_weights::ModelFolder;
use serde_json::Value;

/// Live bytes and budgets belong to the process: one test at a time.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &target),
            // Written anew rather than copied: fixtures may be read-only.
            false => fs::write(target, fs::read(entry.path()).unwrap()).unwrap(),
        }
    }
}

/// A model like `from` of which no byte of any network is the same.
pub(crate) fn another(from: &Path, to: &Path) {
    copy(from, to);
    let mut folders = vec![to.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "safetensors") {
                let mut bytes = fs::read(&path).unwrap();
                let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
                // The lowest bits of every number: it stays nearly what it was.
                bytes[8 + header..]
                    .iter_mut()
                    .step_by(2)
                    .for_each(|byte| *byte ^= 2);
                fs::write(path, bytes).unwrap();
            }
        }
    }
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// The demo model, another like it, and a network that makes pictures larger.
pub(crate) struct Files2 {
    _folder: tempfile::TempDir,
    pub(crate) models: BTreeMap<&'static str, PathBuf>,
}

pub(crate) fn models() -> Files2 {
    let folder = tempfile::tempdir().unwrap();
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cli/demo");
    let other = folder.path().join("other");
    another(&demo, &other);
    let upscaler = fixtures().join("upscale/dense-4.pth");
    let models = BTreeMap::from([("demo", demo), ("other", other), ("dense", upscaler)]);
    Files2 {
        _folder: folder,
        models,
    }
}

/// Whoever opens models.
pub(crate) struct House<'a> {
    pub(crate) models: &'a BTreeMap<&'static str, PathBuf>,
    pub(crate) options: Options,
    pub(crate) handed: Arc<Handed>,
    /// Pictures that requests can name.
    pub(crate) sent: Arc<Sent>,
    pub(crate) opened: Mutex<BTreeMap<(String, String), Arc<dyn Opened>>>,
}

impl House<'_> {
    pub(crate) fn new(files: &Files2, budget: Option<Bytes>) -> House<'_> {
        let sent = Arc::new(Sent(Mutex::default()));
        House {
            models: &files.models,
            options: Options {
                precision: PrecisionChoice::F32,
                threads: Some(2),
                budget,
                keep_weights: true,
                prompt_cache: Some(Bytes::ZERO),
                ..Options::default()
            },
            handed: Handed::new(sent.clone()),
            sent,
            opened: Mutex::default(),
        }
    }

    pub(crate) fn chain(&self, request: &Value) -> Result<Chain> {
        Chain::open(request, self, self.handed.clone(), self.options)
    }

    pub(crate) fn opened(&self, model: &str) -> Arc<dyn Opened> {
        self.open("text-to-image", Some(model)).unwrap().1
    }
}

impl Models for House<'_> {
    fn schema(&self, kind: &str) -> Option<Value> {
        let all = processors::all();
        all.iter()
            .find(|one| one.kind() == kind)
            .map(|one| one.schema())
    }

    fn open(&self, kind: &str, model: Option<&str>) -> Result<(String, Arc<dyn Opened>)> {
        let all = processors::all();
        let processor = all.iter().find(|one| one.kind() == kind).unwrap();
        let own = processor.own_models().first().copied();
        let name = model.or(own).unwrap_or("demo").to_owned();
        let mut opened = self.opened.lock().unwrap();
        let known = opened.get(&(kind.to_owned(), name.clone()));
        if let Some(known) = known {
            return Ok((name, known.clone()));
        }
        let folder = match own {
            Some(_) => None,
            None => {
                let path = self.models.get(&name[..]);
                let path = path.ok_or_else(|| Error::request("model", "is not there"))?;
                Some(ModelFolder::open(path)?)
            }
        };
        let setup = Setup {
            options: self.options,
            files: self.handed.clone(),
        };
        let fresh = processor.open(&name, folder, setup)?;
        opened.insert((kind.to_owned(), name.clone()), fresh.clone());
        Ok((name, fresh))
    }
}

pub(crate) fn start(chain: &Chain, resume: Option<&Path>) -> Result<Box<dyn Run>> {
    let request = chain.request();
    chain.start(vec![Order { request, resume }])
}

pub(crate) fn finish(run: &mut dyn Run) -> Product {
    loop {
        if let Stepped::Finished(mut products) = run.step().unwrap() {
            return products.remove(0).unwrap();
        }
    }
}

pub(crate) fn done(chain: &Chain) -> Product {
    finish(&mut *start(chain, None).unwrap())
}

/// Files by name, as a client sends them.
pub(crate) struct Sent(pub(crate) Mutex<BTreeMap<String, Vec<u8>>>);

impl Sent {
    pub(crate) fn put(&self, name: &str, picture: Vec<u8>) {
        self.0.lock().unwrap().insert(name.to_owned(), picture);
    }
}

/// A recorded detector, and no other files.
impl Files for Sent {
    fn input(&self, name: &str, _: u64) -> std::result::Result<Vec<u8>, String> {
        self.0
            .lock()
            .unwrap()
            .get(name)
            .cloned()
            .ok_or_else(|| "none".to_owned())
    }

    fn lora(&self, _: &str) -> std::result::Result<PathBuf, String> {
        Err("none".to_owned())
    }

    fn embeddings(&self) -> Vec<(String, PathBuf)> {
        Vec::new()
    }

    fn detector(&self, name: &str) -> std::result::Result<PathBuf, String> {
        match name {
            "things" => Ok(fixtures().join("yolov8/detect/model.safetensors")),
            _ => Err("there is no such detector".to_owned()),
        }
    }
}

pub(crate) fn run_one(opened: &dyn Opened, request: Value) -> Product {
    let request = opened.check(&request).unwrap();
    let order = Order {
        request,
        resume: None,
    };
    finish(&mut *opened.start(vec![order]).unwrap())
}

pub(crate) fn number(report: &Value, path: &str) -> u64 {
    report
        .pointer(path)
        .and_then(Value::as_u64)
        .unwrap_or_else(|| panic!("{path} of {report}"))
}

/// Bytes a chain read of the model of a step, itself or ahead.
pub(crate) fn read_of(report: &Value, step: usize) -> u64 {
    ["bytes_read", "bytes_ahead"]
        .map(|field| number(report, &format!("/chain/steps/{step}/{field}")))
        .into_iter()
        .sum()
}
