//! Pulls from a local server that speaks the hub's API, and goes wrong in every way one does.
#![allow(
    clippy::unwrap_used,
    reason = "a test that meets an error should say where"
)]

mod faults;
mod hostile;
mod promises;
mod server;

use lowtide_hub::{Cache, Choice, Error, Event, Order, Pulled, Settings, Stop, Wanted, pull};
use server::{Fault, Hub, Served, noise};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// The large file of the model that is served.
const WEIGHTS: &str = "unet/diffusion_pytorch_model.safetensors";
/// Its bytes.
const WEIGHTS_BYTES: usize = 3_000_000;

/// A pipeline with files it needs, and others that it does not.
fn model() -> BTreeMap<String, Served> {
    let index = r#"{"_class_name": "XPipeline", "unet": ["diffusers", "UNet"], "scheduler": ["diffusers", "S"]}"#;
    let small = |text: &str| Served {
        bytes: text.as_bytes().to_vec(),
        large: false,
    };
    let large = |seed, count| Served {
        bytes: noise(seed, count),
        large: true,
    };
    [
        ("model_index.json", small(index)),
        ("README.md", small("words")),
        ("whole.safetensors", large(9, 1000)),
        ("scheduler/scheduler_config.json", small("{}")),
        ("unet/config.json", small("{\"a\": 1}")),
        (WEIGHTS, large(1, WEIGHTS_BYTES)),
        (
            "unet/diffusion_pytorch_model.fp16.safetensors",
            large(2, 500_000),
        ),
        ("unet/diffusion_pytorch_model.bin", large(3, 1000)),
    ]
    .map(|(path, served)| (path.to_owned(), served))
    .into()
}

/// What the pipeline needs of it.
const NEEDED: [&str; 4] = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    "unet/config.json",
    WEIGHTS,
];

/// A cache that vanishes, and a hub.
struct Place {
    folder: tempfile::TempDir,
    hub: Hub,
    settings: Settings,
    events: Mutex<Vec<Event>>,
}

impl Place {
    fn new() -> Place {
        let hub = Hub::serve(model());
        let folder = tempfile::tempdir().unwrap();
        let settings = settings(folder.path(), &hub);
        Place {
            folder,
            hub,
            settings,
            events: Mutex::new(Vec::new()),
        }
    }

    fn pull(&self) -> Result<Pulled, Error> {
        self.pull_as("org/name", Choice::default())
    }

    fn pull_as(&self, wanted: &str, choice: Choice) -> Result<Pulled, Error> {
        pull(
            &self.settings,
            &order(wanted, choice),
            &Stop::default(),
            &|event| {
                self.events.lock().unwrap().push(event);
            },
        )
    }

    fn repo(&self) -> PathBuf {
        self.folder.path().join("hub/models--org--name")
    }

    fn blob(&self, path: &str) -> PathBuf {
        let served = &model()[path];
        self.repo()
            .join("blobs")
            .join(server::sum(&served.bytes, served.large))
    }

    fn incomplete(&self, path: &str) -> PathBuf {
        let blob = self.blob(path);
        blob.with_file_name(format!(
            "{}.incomplete",
            blob.file_name().unwrap().to_string_lossy()
        ))
    }

    fn tree(&self) -> PathBuf {
        self.repo().join("snapshots").join(server::COMMIT)
    }

    /// Asserts that the whole model is there and right, and nothing half-done beside it.
    #[track_caller]
    fn assert_whole(&self) {
        for path in NEEDED {
            assert_eq!(
                std::fs::read(self.tree().join(path)).unwrap(),
                model()[path].bytes,
                "{path}"
            );
        }
        let installed = self.cache().installed().unwrap();
        assert_eq!((installed.len(), installed[0].partial.0), (1, 0));
        assert_eq!(installed[0].revisions[0].files, NEEDED.len());
        assert!(installed[0].revisions[0].broken.is_empty());
    }

    /// Asserts that nothing in the cache could be taken for a model.
    #[track_caller]
    fn assert_no_model(&self) {
        assert!(!self.tree().join("model_index.json").exists());
        assert!(
            self.cache()
                .snapshot(&"org/name".parse().unwrap())
                .is_none()
        );
        assert!(!self.blob(WEIGHTS).exists());
    }

    fn cache(&self) -> Cache {
        Cache::new(&self.settings)
    }

    fn notes(&self) -> Vec<String> {
        let events = self.events.lock().unwrap();
        let notes = events.iter().filter_map(|event| match event {
            Event::Note(text) => Some(text.clone()),
            _ => None,
        });
        notes.collect()
    }

    /// Bytes that were told of as there, less those that were lost again.
    fn told(&self) -> i64 {
        let events = self.events.lock().unwrap();
        let count = |event: &Event| match event {
            Event::Bytes(bytes) => *bytes as i64,
            Event::Lost(bytes) => -(*bytes as i64),
            _ => 0,
        };
        events.iter().map(count).sum()
    }
}

fn settings(folder: &Path, hub: &Hub) -> Settings {
    let (home, url) = (folder.to_string_lossy().into_owned(), hub.url());
    Settings::from_variables(|name| match name {
        "HF_HOME" => Some(home.clone()),
        "HF_ENDPOINT" => Some(url.clone()),
        "HF_TOKEN" => Some("hf_secret".to_owned()),
        _ => None,
    })
    .unwrap()
}

fn order(wanted: &str, choice: Choice) -> Order {
    Order {
        wanted: wanted.parse::<Wanted>().unwrap(),
        choice,
        parallel: 4,
    }
}
