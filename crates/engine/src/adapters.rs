//! LoRAs: read once, kept for the next job, added to layers by the models.
//!
//! Nothing is ever merged into a weight. What a job adds is a list of LoRAs with strengths; another job's list is another
//! list, and what was read stays in a cache of bounded size, so that going back and forth costs nothing but a look at
//! whether the files are still the same.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lowtide_core::{Bytes, ComponentLayout};
use lowtide_kernels::memory::Buffer;
use lowtide_models::adapters::{Adapters, Factor, LowRank, Pair};
use lowtide_models::device::{self, Allocation, Memory};
use lowtide_weights::{Checkpoint, FileIdentity, TensorEntry};
use sha2::{Digest as _, Sha256};

use crate::device::ground;
use crate::{Error, Result};

/// Where factors begin in their buffer: a cache line.
const FACTOR_ALIGNMENT: usize = 64;

/// A SHA-256.
pub type Digest = [u8; 32];

/// One layer that a LoRA adds to.
#[derive(Clone, Debug)]
pub struct Target {
    /// The component, as the model's folder names it: `unet`, `text_encoder`.
    pub component: String,
    /// The layer's full name in the component's checkpoint, without `.weight`.
    pub module: String,
    /// See [`Pair::down`].
    pub down: TensorEntry,
    /// See [`Pair::mid`].
    pub mid: Option<TensorEntry>,
    /// See [`Pair::up`].
    pub up: TensorEntry,
    /// See [`Pair::scale`].
    pub scale: f32,
}

impl Target {
    fn factors(&self) -> impl Iterator<Item = &TensorEntry> {
        [Some(&self.down), self.mid.as_ref(), Some(&self.up)]
            .into_iter()
            .flatten()
    }
}

/// File, first byte and length of a tensor.
type Place = (usize, u64, u64);

fn place(entry: &TensorEntry) -> Place {
    (entry.source, entry.offset, entry.bytes)
}

/// Whether a component's output depends on text alone.
fn encodes_text(component: &str) -> bool {
    component.starts_with("text_encoder")
}

/// What one LoRA adds to one component, and a digest of it.
#[derive(Debug)]
struct Part {
    low_rank: Arc<LowRank>,
    digest: Digest,
}

/// A LoRA in memory.
#[derive(Debug)]
pub struct Lora {
    name: String,
    parts: BTreeMap<String, Part>,
    /// Names in its file that mean no layer of the model.
    unused: Vec<String>,
}

impl Lora {
    /// Bytes that [`Lora::read`] of these targets will hold.
    pub fn bytes_needed<'t>(targets: impl IntoIterator<Item = &'t Target>) -> Bytes {
        let factors = targets.into_iter().flat_map(Target::factors);
        // Layers may share a matrix.
        let places: BTreeSet<Place> = factors.map(place).collect();
        places
            .into_iter()
            .map(|(_, _, bytes)| Bytes(bytes).align_up(FACTOR_ALIGNMENT as u64))
            .sum()
    }

    /// Reads what `targets` name from `checkpoint`, as stored.
    ///
    /// # Errors
    /// When the file cannot be read, matrices do not go together, or memory is refused.
    pub fn read(name: &str, checkpoint: &Checkpoint, targets: &[Target]) -> Result<Lora> {
        let mut components: BTreeMap<&str, Vec<&Target>> = BTreeMap::new();
        for target in targets {
            components
                .entry(&target.component)
                .or_default()
                .push(target);
        }
        let mut parts = BTreeMap::new();
        for (component, targets) in components {
            let part = Part::read(name, checkpoint, targets)?;
            parts.insert(component.to_owned(), part);
        }
        Ok(Lora {
            name: name.to_owned(),
            parts,
            unused: Vec::new(),
        })
    }

    /// The same, with the names in its file that mean no layer of the model.
    pub fn with_unused(mut self, names: Vec<String>) -> Lora {
        self.unused = names;
        self
    }

    /// Names in its file that mean no layer of the model.
    pub fn unused(&self) -> &[String] {
        &self.unused
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Bytes it holds.
    pub fn bytes(&self) -> Bytes {
        self.parts.values().map(|part| part.low_rank.bytes()).sum()
    }

    /// The components it adds to.
    pub fn components(&self) -> impl Iterator<Item = &str> {
        self.parts.keys().map(String::as_str)
    }

    /// Compares it with the components of a model, before anything is computed. Returns the layers that the model does
    /// not have, as `component: layer`; they have no effect, which the user should be told.
    ///
    /// # Errors
    /// [`Error::Lora`] when a layer has another shape, or the model has none of the layers.
    pub fn check(&self, components: &[&ComponentLayout]) -> Result<Vec<String>> {
        let (mut unknown, mut layers) = (Vec::new(), 0);
        for (component, part) in &self.parts {
            let layouts: Vec<&ComponentLayout> = components
                .iter()
                .filter(|layout| layout.name == *component)
                .copied()
                .collect();
            layers += part.low_rank.layers();
            let missing = part.low_rank.check(&layouts).map_err(Error::Lora)?;
            unknown.extend(missing.iter().map(|layer| format!("{component}: {layer}")));
        }
        if unknown.len() == layers {
            let first = unknown.first().map_or("nothing", String::as_str);
            let name = &self.name;
            return Err(Error::request(
                format!("LoRA '{name}'"),
                format!(
                    "adds to no layer of this model (the first of its {layers} is {first}); it was made for another kind of model"
                ),
            ));
        }
        Ok(unknown)
    }
}

impl Part {
    fn read(name: &str, checkpoint: &Checkpoint, mut targets: Vec<&Target>) -> Result<Part> {
        // In the order of the file, which is the quickest to read, and an order that the digest can rely on.
        targets.sort_by(|a, b| a.module.cmp(&b.module));
        let mut entries: Vec<&TensorEntry> = targets.iter().flat_map(|t| t.factors()).collect();
        entries.sort_by_key(|entry| place(entry));
        entries.dedup_by_key(|entry| place(entry));
        let bytes = Lora::bytes_needed(targets.iter().copied()).as_usize();
        let mut buffer = Buffer::new(bytes).map_err(|refused| Error::Lora(refused.into()))?;
        let mut places: BTreeMap<Place, usize> = BTreeMap::new();
        let mut at = 0;
        for entry in entries {
            let end = at + entry.bytes as usize;
            checkpoint.read(entry, &mut buffer.bytes_mut()[at..end])?;
            places.insert(place(entry), at);
            at = end.next_multiple_of(FACTOR_ALIGNMENT);
        }
        let mut digest = Sha256::new();
        let factor = |entry: &TensorEntry, digest: &mut Sha256| {
            let at = places[&place(entry)];
            digest.update(format!("{} {:?} ", entry.dtype, entry.shape));
            digest.update(&buffer.bytes()[at..at + entry.bytes as usize]);
            let tensor = entry.layout();
            Factor { tensor, at }
        };
        let mut pairs = Vec::with_capacity(targets.len());
        for target in targets {
            digest.update(format!("{} {} ", target.module, target.scale.to_bits()));
            let pair = Pair {
                down: factor(&target.down, &mut digest),
                mid: target.mid.as_ref().map(|mid| factor(mid, &mut digest)),
                up: factor(&target.up, &mut digest),
                scale: target.scale,
            };
            pairs.push((target.module.clone(), pair));
        }
        let there = brought(buffer).map_err(Error::Lora)?;
        let low_rank = LowRank::new(name, there, pairs).map_err(Error::Lora)?;
        Ok(Part {
            low_rank: Arc::new(low_rank),
            digest: digest.finalize().into(),
        })
    }
}

/// The factors where pipelines compute.
fn brought(buffer: Buffer) -> lowtide_models::Result<Memory> {
    match ground::place() {
        device::Place::Host => Ok(buffer.into()),
        device::Place::Device(device) => {
            let memory = Allocation::new(&device, buffer.len())?;
            device.upload(memory.span(), buffer.bytes())?;
            Ok(Memory::Device(memory))
        }
    }
}

/// A LoRA and how strongly it is added.
#[derive(Clone, Debug)]
pub struct Chosen {
    /// The LoRA.
    pub lora: Arc<Lora>,
    /// For what draws.
    pub strength: f32,
    /// For text encoders.
    pub text_strength: f32,
}

/// What one job adds to each component.
#[derive(Clone, Debug, Default)]
pub struct Active {
    components: BTreeMap<String, (Arc<Adapters>, Digest)>,
    bytes: Bytes,
    /// What the user should be told.
    notes: Vec<String>,
}

impl Active {
    /// These LoRAs, added in this order.
    pub fn new(chosen: &[Chosen]) -> Active {
        let mut parts: BTreeMap<&str, (Vec<_>, Sha256)> = BTreeMap::new();
        for Chosen {
            lora,
            strength,
            text_strength,
        } in chosen
        {
            for (component, part) in &lora.parts {
                let strength = if encodes_text(component) {
                    *text_strength
                } else {
                    *strength
                };
                if strength == 0.0 {
                    continue;
                }
                let (list, digest) = parts.entry(component).or_default();
                list.push((part.low_rank.clone(), strength));
                digest.update(part.digest);
                digest.update(strength.to_bits().to_le_bytes());
            }
        }
        let components = parts.into_iter().map(|(component, (list, digest))| {
            let adapters = Arc::new(Adapters::new(list));
            (component.to_owned(), (adapters, digest.finalize().into()))
        });
        // A LoRA named twice is in memory once.
        let mut held: Vec<&Arc<Lora>> = Vec::new();
        for chosen in chosen {
            if !held.iter().any(|lora| Arc::ptr_eq(lora, &chosen.lora)) {
                held.push(&chosen.lora);
            }
        }
        Active {
            components: components.collect(),
            bytes: held.iter().map(|lora| lora.bytes()).sum(),
            notes: Vec::new(),
        }
    }

    /// The same, with what the user should be told of it.
    pub(crate) fn with_notes(mut self, notes: Vec<String>) -> Active {
        self.notes = notes;
        self
    }

    /// What the user should be told: layers of a LoRA that the model does not have.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// What is added to `component`; `None` where nothing is.
    pub fn component(&self, component: &str) -> Option<Arc<Adapters>> {
        let (adapters, _) = self.components.get(component)?;
        Some(adapters.clone())
    }

    /// Bytes of all of it, held as long as the job runs.
    pub fn bytes(&self) -> Bytes {
        self.bytes
    }

    /// The most bytes that applying it takes in `component`, for maps (or sequences) of up to `pixels`.
    pub fn scratch_bytes(&self, component: &str, pixels: usize) -> Bytes {
        let found = self.components.get(component);
        found.map_or(Bytes::ZERO, |(adapters, _)| adapters.scratch_bytes(pixels))
    }

    /// What is added to text encoders, as a part of what names an encoded prompt; `None` where nothing is.
    pub fn text_digest(&self) -> Option<Digest> {
        self.digest_of(encodes_text)
    }

    /// All that is added, by content, for what has to be made with the same; `None` where nothing is.
    pub fn digest(&self) -> Option<Digest> {
        self.digest_of(|_| true)
    }

    fn digest_of(&self, counts: impl Fn(&str) -> bool) -> Option<Digest> {
        let mut whole = Sha256::new();
        let mut any = false;
        for (component, (_, digest)) in self.components.iter().filter(|(name, _)| counts(name)) {
            whole.update(format!("{component} "));
            whole.update(digest);
            any = true;
        }
        any.then(|| whole.finalize().into())
    }
}

/// LoRAs that were read, by file. The one that was used longest ago goes first.
pub struct LoraCache {
    bytes_max: Bytes,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    entries: Vec<Entry>,
    /// Counts uses.
    clock: u64,
    reads: u64,
}

struct Entry {
    file: FileIdentity,
    lora: Arc<Lora>,
    used: u64,
}

impl Inner {
    fn bytes(&self) -> Bytes {
        self.entries.iter().map(|entry| entry.lora.bytes()).sum()
    }

    /// Forgets until `most` bytes are left; one that a job uses stays in memory with it, but is no longer counted here.
    fn shrink(&mut self, most: Bytes) {
        while self.bytes() > most {
            let oldest = (0..self.entries.len()).min_by_key(|&i| self.entries[i].used);
            let Some(oldest) = oldest else { return };
            self.entries.swap_remove(oldest);
        }
    }
}

impl LoraCache {
    /// A cache of at most so many bytes; none at all turns it off.
    pub fn new(bytes_max: Bytes) -> LoraCache {
        LoraCache {
            bytes_max,
            inner: Mutex::default(),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // A panic between two changes can only leave an entry too many or too few.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The LoRA in the file `path`: kept from before if the file is still the one it was, else as `read` reads it.
    ///
    /// # Errors
    /// When the system does not tell about the file, and those of `read`.
    pub fn get(&self, path: &Path, read: impl FnOnce() -> Result<Lora>) -> Result<Arc<Lora>> {
        let file = identity(path)?;
        {
            let mut inner = self.inner();
            inner.clock += 1;
            let now = inner.clock;
            if let Some(entry) = inner.entries.iter_mut().find(|entry| entry.file == file) {
                entry.used = now;
                return Ok(entry.lora.clone());
            }
            inner.entries.retain(|entry| entry.file.path != file.path);
        }
        let lora = Arc::new(read()?);
        let mut inner = self.inner();
        inner.reads += 1;
        if lora.bytes() <= self.bytes_max {
            inner.shrink(self.bytes_max - lora.bytes());
            let used = inner.clock;
            let lora = lora.clone();
            inner.entries.push(Entry { file, lora, used });
        }
        Ok(lora)
    }

    /// Forgets, oldest first, until at most `most` bytes are kept; returns the bytes forgotten.
    pub fn shrink(&self, most: Bytes) -> Bytes {
        let mut inner = self.inner();
        let had = inner.bytes();
        inner.shrink(most);
        had - inner.bytes()
    }

    /// Bytes kept.
    pub fn bytes(&self) -> Bytes {
        self.inner().bytes()
    }

    /// How many times a file was read.
    pub fn reads(&self) -> u64 {
        self.inner().reads
    }
}

/// What the file is now, without opening it.
fn identity(path: &Path) -> Result<FileIdentity> {
    let metadata = path.metadata().map_err(|e| {
        let lora = path.display();
        Error::request(format!("LoRA {lora}"), format!("cannot be opened: {e}"))
    })?;
    Ok(FileIdentity {
        path: path.to_owned(),
        bytes: metadata.len(),
        modified: metadata.modified().ok(),
    })
}
