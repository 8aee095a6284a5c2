//! From the LoRAs that a request names to what is added to each component.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use lowtide_core::Bytes;
use lowtide_weights::lora::{self, modules};

use crate::adapters::{Active, Chosen, Lora, LoraCache, Target};
use crate::pipeline::Pipeline;
use crate::processor::Files;
use crate::request::{ImageRequest, LoraUse};
use crate::{Error, Result};

/// LoRAs that were read are kept up to so many bytes, for jobs that go back and forth between them.
const CACHE_BYTES: Bytes = Bytes::mib(512);

/// Finds, reads and keeps LoRAs.
pub(crate) struct LoraFiles {
    files: Arc<dyn Files>,
    cache: LoraCache,
}

/// What LoRAs cost.
#[derive(Clone, Debug, Default)]
pub(crate) struct Added {
    /// Bytes of them.
    pub(crate) bytes: Bytes,
    /// By component, bytes that adding them takes.
    pub(crate) scratch: BTreeMap<String, Bytes>,
}

impl LoraFiles {
    /// Where they come from.
    pub(crate) fn files(&self) -> &Arc<dyn Files> {
        &self.files
    }

    pub(crate) fn new(files: Arc<dyn Files>) -> LoraFiles {
        LoraFiles {
            files,
            cache: LoraCache::new(CACHE_BYTES),
        }
    }

    /// Bytes kept for later jobs.
    pub(crate) fn kept(&self) -> Bytes {
        self.cache.bytes()
    }

    /// Forgets what is kept; returns the bytes.
    pub(crate) fn forget(&self) -> Bytes {
        self.cache.shrink(Bytes::ZERO)
    }

    /// Reads what a request names; `None` where it names nothing.
    ///
    /// # Errors
    /// [`Error::Request`] where there is no such file, [`Error::Lora`] where it does not go with the model.
    pub(crate) fn active(
        &self,
        model: &dyn Pipeline,
        request: &ImageRequest,
    ) -> Result<Option<Arc<Active>>> {
        if request.loras.is_empty() {
            return Ok(None);
        }
        let chosen = request.loras.iter().map(|wanted| {
            let path = self.path(wanted)?;
            let lora = self.cache.get(&path, || read(model, &wanted.name, &path))?;
            Ok(Chosen {
                lora,
                strength: wanted.strength,
                text_strength: wanted.text_strength,
            })
        });
        let chosen = chosen.collect::<Result<Vec<_>>>()?;
        let layouts: Vec<_> = model.parts().into_iter().map(|part| &part.layout).collect();
        let mut notes = Vec::new();
        for chosen in &chosen {
            let mut unused = chosen.lora.check(&layouts)?;
            unused.extend_from_slice(chosen.lora.unused());
            notes.extend(note(chosen.lora.name(), &unused));
        }
        notes.dedup();
        Ok(Some(Arc::new(Active::new(&chosen).with_notes(notes))))
    }

    fn path(&self, wanted: &LoraUse) -> Result<std::path::PathBuf> {
        let found = self.files.lora(&wanted.name);
        found.map_err(|problem| Error::request("loras", format!("'{}': {problem}", wanted.name)))
    }

    /// What a request's LoRAs cost, from the headers of their files.
    ///
    /// # Errors
    /// As [`LoraFiles::active`].
    pub(crate) fn forecast(
        &self,
        model: &dyn Pipeline,
        request: &ImageRequest,
        pixels: usize,
    ) -> Result<Added> {
        let mut added = Added::default();
        for wanted in &request.loras {
            let (_, targets) = open(model, &self.path(wanted)?)?;
            added.bytes += Lora::bytes_needed(&targets);
            for target in &targets {
                // A product of as many columns as the rank, and for convolutions one more.
                let rank = target.down.shape.first().copied().unwrap_or(0);
                let most = Bytes::from(2 * rank * pixels * size_of::<f32>());
                let scratch = added.scratch.entry(target.component.clone()).or_default();
                *scratch = (*scratch).max(most);
            }
        }
        Ok(added)
    }
}

/// Characters of a key that are told.
const KEY_CHARS_MAX: usize = 120;

/// What the user should be told of a LoRA of which `unused` means no layer of the model.
fn note(name: &str, unused: &[String]) -> Option<String> {
    // The key of a stranger's file goes to a terminal.
    let first: String = unused.first()?.chars().take(KEY_CHARS_MAX).collect();
    let first = first.escape_debug();
    let what = match unused.len() {
        1 => format!("'{first}' of it is"),
        many => format!("{many} parts of it, '{first}' the first, are"),
    };
    Some(format!(
        "LoRA '{name}': {what} for layers that this model does not have, and had no effect"
    ))
}

/// What these LoRAs cost on maps or sequences of up to `pixels`.
pub(crate) fn cost(model: &dyn Pipeline, active: Option<&Active>, pixels: usize) -> Added {
    let Some(active) = active else {
        return Added::default();
    };
    let scratch = model.checkpoints().into_iter();
    let scratch = scratch.map(|(component, _)| {
        let bytes = active.scratch_bytes(component, pixels);
        (component.to_owned(), bytes)
    });
    Added {
        bytes: active.bytes(),
        scratch: scratch.collect(),
    }
}

/// Reads a file's headers and what they add to.
fn open(model: &dyn Pipeline, path: &Path) -> Result<(lora::Lora, Vec<Target>)> {
    let components = model.checkpoints().into_iter();
    let components = components.map(|(component, file)| (component, modules(file)));
    let file = lora::Lora::open(path, &components.collect::<Vec<_>>())?;
    let target = |target: &lora::Target| Target {
        component: target.component.clone(),
        module: target.module.clone(),
        down: target.down.clone(),
        mid: target.mid.clone(),
        up: target.up.clone(),
        scale: target.scale(),
    };
    let targets = file.targets.iter().map(target).collect();
    Ok((file, targets))
}

fn read(model: &dyn Pipeline, name: &str, path: &Path) -> Result<Lora> {
    let (file, targets) = open(model, path)?;
    let lora = Lora::read(name, &file.checkpoint, &targets)?;
    Ok(lora.with_unused(file.unmatched))
}
