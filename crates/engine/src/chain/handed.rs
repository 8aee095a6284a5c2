//! Pictures on their way from one step to the next, as files that requests name.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lowtide_media::{Format, Pixels, encode};
use lowtide_weights::ModelFolder;

use crate::SIDE_MAX;
use crate::processor::Files;

/// Names that begin so are pictures of steps; no client's name does.
const SCHEME: &str = "step:";

/// Names of empty pictures go on so: then width, x and height.
const BLANK: &str = "blank:";

/// Files of whoever opens models, and before them the pictures of chains that run.
pub struct Handed {
    files: Arc<dyn Files>,
    pictures: Mutex<HashMap<String, Arc<[u8]>>>,
    last: AtomicU64,
}

/// A picture that can be named as long as this lives.
pub(super) struct Named {
    handed: Arc<Handed>,
    pub(super) name: String,
}

impl Handed {
    /// In front of `files`.
    pub fn new(files: Arc<dyn Files>) -> Arc<Handed> {
        Arc::new(Handed {
            files,
            pictures: Mutex::new(HashMap::new()),
            last: AtomicU64::new(0),
        })
    }

    fn pictures(&self) -> MutexGuard<'_, HashMap<String, Arc<[u8]>>> {
        // Every change is one insertion or removal, so a panic elsewhere leaves it valid.
        self.pictures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a picture a name.
    pub(super) fn name(self: &Arc<Handed>, picture: Arc<[u8]>) -> Named {
        let number = self.last.fetch_add(1, Ordering::Relaxed);
        let name = format!("{SCHEME}{number}");
        self.pictures().insert(name.clone(), picture);
        Named {
            handed: self.clone(),
            name,
        }
    }

    /// What an empty picture of this size is called: it stands for one that is not made yet.
    pub(super) fn blank([width, height]: [u32; 2]) -> String {
        format!("{SCHEME}{BLANK}{width}x{height}")
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        self.handed.pictures().remove(&self.name);
    }
}

/// An empty picture.
fn blank(size: &str) -> Result<Vec<u8>, String> {
    let sides = size.split_once('x');
    let side = |text: &str| {
        let side = text.parse::<u32>().ok();
        side.filter(|side| (1..=SIDE_MAX as u32).contains(side))
    };
    let sides = sides.and_then(|(width, height)| Some((side(width)?, side(height)?)));
    let (width, height) = sides.ok_or("is no size")?;
    let rgb = &vec![0; width as usize * height as usize * 3];
    let pixels = Pixels { width, height, rgb };
    encode(pixels, Format::Png, "").map_err(|error| error.to_string())
}

impl Files for Handed {
    fn input(&self, name: &str, bytes_max: u64) -> Result<Vec<u8>, String> {
        let Some(ours) = name.strip_prefix(SCHEME) else {
            return self.files.input(name, bytes_max);
        };
        if let Some(size) = ours.strip_prefix(BLANK) {
            return blank(size);
        }
        let picture = self.pictures().get(name).cloned();
        let picture = picture.ok_or("the step before it made no such picture")?;
        match picture.len() as u64 > bytes_max {
            true => Err(format!("it has more than {bytes_max} bytes")),
            false => Ok(picture.to_vec()),
        }
    }

    fn lora(&self, name: &str) -> Result<PathBuf, String> {
        self.files.lora(name)
    }

    fn embeddings(&self) -> Vec<(String, PathBuf)> {
        self.files.embeddings()
    }

    fn model(&self, name: &str) -> Result<ModelFolder, String> {
        self.files.model(name)
    }

    fn detector(&self, name: &str) -> Result<PathBuf, String> {
        self.files.detector(name)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "an unwrap in a test is an assertion")]

    use super::*;
    use crate::processor::NoFiles;

    #[test]
    fn a_picture_has_its_name_as_long_as_somebody_holds_it() {
        let handed = Handed::new(Arc::new(NoFiles));
        let first = handed.name(Arc::from(&b"one"[..]));
        let second = handed.name(Arc::from(&b"two"[..]));
        assert_ne!(first.name, second.name);
        assert_eq!(handed.input(&second.name, 3).unwrap(), b"two");
        assert!(
            handed
                .input(&second.name, 2)
                .unwrap_err()
                .contains("2 bytes")
        );
        let name = first.name.clone();
        drop(first);
        assert!(handed.input(&name, 3).unwrap_err().contains("no such"));
        // What is not of a step is asked of the files behind.
        let behind = handed.input("sha256:7", 3).unwrap_err();
        assert_eq!(behind, NoFiles.input("sha256:7", 3).unwrap_err());
    }

    #[test]
    fn an_empty_picture_has_the_size_of_its_name() {
        let handed = Handed::new(Arc::new(NoFiles));
        let file = handed.input(&Handed::blank([48, 16]), 1 << 20).unwrap();
        let decoded = lowtide_media::decode(&file, &Default::default()).unwrap();
        let picture = decoded.picture;
        assert_eq!((picture.width(), picture.height()), (48, 16));
        for wrong in ["step:blank:0x5", "step:blank:5", "step:blank:5x99999"] {
            assert!(handed.input(wrong, 1 << 20).is_err(), "{wrong}");
        }
    }
}
