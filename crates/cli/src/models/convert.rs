//! `lowtide models convert`: a smaller variant of a model, its large matrices in fewer bits.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use lowtide_core::{Bytes, Dtype, TensorLayout};
use lowtide_weights::quantise::{self, Q8_BLOCK};
use lowtide_weights::{Checkpoint, Component, ModelFolder, ShardedWriter, TensorEntry};
use serde_json::{Value, json};

use crate::args::SmallerArg;
use crate::console;
use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::pull::Meter;

/// What a model says about itself beside its `model_index.json`.
const OWN: &str = "lowtide.json";
/// Bytes of a shard of what is written.
const SHARD_BYTES: Bytes = Bytes::gib(5);
/// Bytes of a tensor read at a time; a multiple of every number's, and of a block's.
const READ_BYTES: u64 = 8 << 20;
/// A matrix with a smaller side is no large one.
const SIDE_MIN: usize = 64;
/// Parts of names whose tensors stay: they are small, and much depends on them.
const KEPT: [&str; 7] = [
    "norm",
    "embed",
    "shared.",
    "lm_head",
    "final_layer",
    "proj_out",
    "conv_out",
];
/// Components that stay: a VAE shows every bit, the others are not run.
const KEPT_COMPONENTS: [&str; 3] = ["vae", "safety_checker", "image_encoder"];
/// Endings of weights, which are not copied.
const WEIGHTS: [&str; 10] = [
    ".safetensors",
    ".bin",
    ".ckpt",
    ".pt",
    ".pth",
    ".msgpack",
    ".h5",
    ".onnx",
    ".onnx_data",
    ".gguf",
];
/// The largest other file that is copied, and the deepest.
const COPY_BYTES_MAX: u64 = 256 << 20;
const COPY_DEPTH_MAX: usize = 4;

/// Writes the variant.
pub(super) fn run(to: SmallerArg, name: &str, target: &Path) -> Result<(), Failure> {
    let interrupt = Interrupt::install()?;
    let model = super::find(name)?;
    let folder = model.open()?;
    let source = model.path().map(Path::to_owned);
    if source.as_deref().is_some_and(Path::is_file) {
        return Err(Failure::mistake(format!(
            "'{name}' is a single file; convert takes a folder in diffusers layout"
        )));
    }
    let job = Job {
        folder: &folder,
        source,
        to,
        dtype: match to {
            SmallerArg::Bf16 => Dtype::Bf16,
            SmallerArg::Fp8 => Dtype::F8E4M3,
            SmallerArg::Q8 => Dtype::I8,
        },
        word: match to {
            SmallerArg::Bf16 => "bf16",
            SmallerArg::Fp8 => "fp8",
            SmallerArg::Q8 => "q8_0",
        },
        meter: Meter::on_terminal(true),
        interrupt: &interrupt,
    };
    let components = job.components()?;
    let (before, after) = job.sizes(&components);
    if after == before {
        return Err(Failure::mistake(format!(
            "'{name}' has no large matrices in more bits than {}; there is nothing to make smaller",
            job.word
        )));
    }
    let staged = Staged::begin(target)?;
    check_room(target, after)?;
    job.meter.plan(before.0, 0);
    let written = job.write(&components, &staged.folder);
    job.meter.finish();
    written.map_err(|failure| full(failure, target))?;
    staged.publish(target)?;
    console::note(&format!(
        "{before} became {after}: a {} variant of {}",
        job.word, folder.name
    ));
    Ok(console::print(&format!("{}\n", target.display()))?)
}

/// The disk's refusal, said as such. What was written is gone by then.
fn full(failure: Failure, target: &Path) -> Failure {
    let is_full = match &failure {
        Failure::Other(cause) => cause.chain().any(|cause| {
            let io = cause.downcast_ref::<std::io::Error>();
            io.is_some_and(|io| {
                matches!(io.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
            })
        }),
        _ => false,
    };
    match is_full {
        true => Failure::Other(anyhow::anyhow!(
            "the disk of '{}' is full; what was written is removed again",
            target.display()
        )),
        false => failure,
    }
}

fn check_room(target: &Path, needed: Bytes) -> Result<(), Failure> {
    match lowtide_hub::free_bytes(target) {
        Some(free) if free < needed => Err(Failure::Other(anyhow::anyhow!(
            "the disk of '{}' has {free} free, and {needed} are needed; make room or name another place",
            target.display()
        ))),
        _ => Ok(()),
    }
}

/// A folder that gets its name when it is whole, and vanishes otherwise.
struct Staged {
    folder: PathBuf,
    published: bool,
}

impl Staged {
    fn begin(target: &Path) -> Result<Staged, Failure> {
        let refused = |why: String| Failure::mistake(format!("'{}' {why}", target.display()));
        if target.symlink_metadata().is_ok() {
            return Err(refused(
                "is already there; name a folder that is not".to_owned(),
            ));
        }
        let name = target
            .file_name()
            .ok_or_else(|| refused("is no name of a folder".to_owned()))?;
        let name = format!(".{}.{}.part", name.to_string_lossy(), std::process::id());
        let folder = target.with_file_name(name);
        fs::create_dir(&folder).map_err(|cause| refused(format!("cannot be made: {cause}")))?;
        Ok(Staged {
            folder,
            published: false,
        })
    }

    fn publish(mut self, target: &Path) -> Result<(), Failure> {
        fs::rename(&self.folder, target)?;
        self.published = true;
        Ok(())
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.published {
            // What cannot be removed has a name that says what it is.
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

struct Job<'a> {
    folder: &'a ModelFolder,
    /// `None`: the model is in the program.
    source: Option<PathBuf>,
    to: SmallerArg,
    dtype: Dtype,
    word: &'static str,
    meter: Meter,
    interrupt: &'a Interrupt,
}

impl Job<'_> {
    fn components(&self) -> Result<Vec<(&Component, Checkpoint)>, Failure> {
        let with_weights = self.folder.components.iter().filter(|one| one.has_weights);
        with_weights
            .map(|one| Ok((one, self.folder.checkpoint(&one.name)?)))
            .collect()
    }

    /// Whether a tensor is written in fewer bits.
    fn shrinks(&self, component: &str, tensor: &TensorEntry) -> bool {
        let name = tensor.name.to_lowercase();
        let kept =
            KEPT.iter().any(|part| name.contains(part)) || KEPT_COMPONENTS.contains(&component);
        let matrix = matches!(tensor.shape.len(), 2 | 4)
            && tensor.shape[..2].iter().all(|&side| side >= SIDE_MIN);
        let smaller = tensor.dtype.is_float() && tensor.dtype.size() > self.dtype.size();
        let blocks = self.to != SmallerArg::Q8 || columns(tensor).is_multiple_of(Q8_BLOCK);
        !kept && matrix && smaller && blocks && tensor.name.ends_with("weight")
    }

    /// What is written for a tensor: itself, and its scales behind it where it has some.
    fn written(&self, component: &str, tensor: &TensorEntry) -> Vec<TensorLayout> {
        if !self.shrinks(component, tensor) {
            return vec![tensor.layout()];
        }
        let weight = TensorLayout {
            dtype: self.dtype,
            ..tensor.layout()
        };
        let scale = |dtype, shape| TensorLayout {
            name: scale_name(tensor),
            dtype,
            shape,
        };
        match self.to {
            SmallerArg::Bf16 => vec![weight],
            SmallerArg::Fp8 => vec![weight, scale(Dtype::F32, Vec::new())],
            SmallerArg::Q8 => {
                let blocks = columns(tensor) / Q8_BLOCK;
                vec![weight, scale(Dtype::F16, vec![tensor.shape[0], blocks])]
            }
        }
    }

    fn layouts(&self, component: &Component, checkpoint: &Checkpoint) -> Vec<TensorLayout> {
        let written = |tensor| self.written(&component.name, tensor);
        checkpoint.tensors().flat_map(written).collect()
    }

    /// Bytes of the weights before and after.
    fn sizes(&self, components: &[(&Component, Checkpoint)]) -> (Bytes, Bytes) {
        let before = components
            .iter()
            .map(|(_, checkpoint)| checkpoint.bytes())
            .sum();
        let layouts = components
            .iter()
            .flat_map(|(one, checkpoint)| self.layouts(one, checkpoint));
        (before, layouts.map(|layout| layout.bytes()).sum())
    }

    fn write(&self, components: &[(&Component, Checkpoint)], to: &Path) -> Result<(), Failure> {
        self.copy(to)?;
        for (component, checkpoint) in components {
            let folder = to.join(&component.name);
            fs::create_dir_all(&folder)?;
            self.convert(component, checkpoint, &folder)?;
        }
        let own = self.folder.read_text(OWN)?;
        let mut own: Value = match own {
            Some(text) => serde_json::from_str(&text).map_err(|cause| {
                Failure::mistake(format!("'{}': {OWN}: {cause}", self.folder.location()))
            })?,
            None => json!({}),
        };
        own["variant"] = json!({ "type": self.word, "of": self.folder.name });
        fs::write(to.join(OWN), format!("{own:#}\n"))?;
        Ok(())
    }

    fn convert(
        &self,
        component: &Component,
        checkpoint: &Checkpoint,
        to: &Path,
    ) -> Result<(), Failure> {
        let base = match component.library.as_str() {
            "transformers" => "model",
            _ => "diffusion_pytorch_model",
        };
        let layouts = self.layouts(component, checkpoint);
        let note = format!("{} variant of {}", self.word, self.folder.name);
        let note = [("lowtide.variant", note.as_str())];
        let mut writer = ShardedWriter::with_metadata(to, base, (&layouts, SHARD_BYTES), &note)?;
        for tensor in checkpoint.tensors() {
            let from = (checkpoint, tensor);
            if self.shrinks(&component.name, tensor) {
                self.shrink(from, &mut writer)?;
            } else {
                self.pieces(from, |bytes| {
                    self.meter.add(bytes.len() as u64);
                    Ok(writer.write(&tensor.name, bytes)?)
                })?;
            }
        }
        Ok(writer.finish()?)
    }

    /// Reads a tensor a piece at a time.
    fn pieces(
        &self,
        (checkpoint, tensor): (&Checkpoint, &TensorEntry),
        mut take: impl FnMut(&[u8]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let (mut bytes, mut offset) = (Vec::new(), 0);
        while offset < tensor.bytes {
            self.interrupt.check()?;
            let count = (tensor.bytes - offset).min(READ_BYTES);
            bytes.resize(count as usize, 0);
            checkpoint.read_range(tensor, offset, &mut bytes)?;
            take(&bytes)?;
            offset += count;
        }
        Ok(())
    }

    /// Writes a tensor in fewer bits, and its scales behind it.
    fn shrink(
        &self,
        from: (&Checkpoint, &TensorEntry),
        writer: &mut ShardedWriter,
    ) -> Result<(), Failure> {
        let tensor = from.1;
        let mut numbers = Vec::new();
        let mut widened = |bytes: &[u8], take: &mut dyn FnMut(&[f32]) -> Result<(), Failure>| {
            numbers.clear();
            let known = quantise::widen(tensor.dtype, bytes, &mut numbers);
            assert!(known, "only floats are made smaller");
            take(&numbers)
        };
        let mut largest = 0f32;
        if self.to == SmallerArg::Fp8 {
            // One scale for all of it, so that all of it is looked at first.
            self.pieces(from, |bytes| {
                widened(bytes, &mut |numbers| {
                    largest = largest.max(quantise::largest(numbers));
                    Ok(())
                })
            })?;
        }
        let scale = quantise::fp8_scale(largest);
        let (mut smaller, mut scales) = (Vec::new(), Vec::new());
        self.pieces(from, |bytes| {
            self.meter.add(bytes.len() as u64);
            widened(bytes, &mut |numbers| {
                smaller.clear();
                match self.to {
                    SmallerArg::Bf16 => quantise::to_bf16(numbers, &mut smaller),
                    SmallerArg::Fp8 => quantise::fp8(numbers, scale, &mut smaller),
                    SmallerArg::Q8 => quantise::q8_0(numbers, &mut smaller, &mut scales),
                }
                Ok(writer.write(&tensor.name, &smaller)?)
            })
        })?;
        if self.to == SmallerArg::Fp8 {
            scales.extend(scale.to_le_bytes());
        }
        Ok(writer.write(&scale_name(tensor), &scales)?)
    }

    /// Copies everything but weights.
    fn copy(&self, to: &Path) -> Result<(), Failure> {
        match &self.source {
            Some(source) => copy_folder(source, to, COPY_DEPTH_MAX),
            None => {
                let files = self.folder.embedded_files().iter();
                for (path, bytes) in files.filter(|(path, _)| !is_weights(path)) {
                    let target = to.join(path);
                    fs::create_dir_all(target.parent().expect("it lies in the new folder"))?;
                    fs::write(target, bytes)?;
                }
                Ok(())
            }
        }
    }
}

/// What the scales of a weight are called.
fn scale_name(tensor: &TensorEntry) -> String {
    format!("{}_scale", tensor.name)
}

/// Numbers of a row.
fn columns(tensor: &TensorEntry) -> usize {
    tensor.shape[1..].iter().product()
}

fn is_weights(name: &str) -> bool {
    let index = name.contains(".index.") && name.ends_with(".json");
    index || WEIGHTS.iter().any(|ending| name.ends_with(ending))
}

fn copy_folder(from: &Path, to: &Path, depth: usize) -> Result<(), Failure> {
    for entry in fs::read_dir(from)? {
        let path = entry?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
            continue;
        };
        // Links are followed: files of the hub's cache are links.
        let Ok(metadata) = path.metadata() else {
            continue;
        };
        if metadata.is_dir() && depth > 0 && !name.starts_with('.') {
            let target = to.join(name);
            fs::create_dir_all(&target)?;
            copy_folder(&path, &target, depth - 1)?;
        } else if metadata.is_file() && metadata.len() <= COPY_BYTES_MAX && !is_weights(name) {
            fs::copy(&path, to.join(name))?;
        }
    }
    Ok(())
}
