//! A session on a disk: what a job has reached, in one safetensors file of a few MB, so that it can go on in another
//! process, to the same bytes.

use std::path::Path;

use lowtide_core::{Dtype, Quality, TensorLayout};
use lowtide_models::{Compute, Precision, Tensor};
use lowtide_weights::{Checkpoint, SafetensorsWriter};
use serde::{Deserialize, Serialize};

use crate::pipeline::z_image::ZImage;
use crate::request::{Image, TextToImage};
use crate::session::denoise::Denoise;
use crate::session::{Session, Stage};
use crate::{Error, Result};

/// Key of the state in the file's free text.
const STATE_KEY: &str = "lowtide_session";

/// Changes when older files cannot be read any more.
const VERSION: u32 = 1;

/// Everything about a session that is not a tensor.
#[derive(Debug, Serialize, Deserialize)]
struct State {
    version: u32,
    model: String,
    /// Bytes of the transformer's weights, which tells models of one name apart.
    weights: u64,
    precision: String,
    stage: String,
    prompt: String,
    negative: Option<String>,
    width: usize,
    height: usize,
    steps: usize,
    guidance: f32,
    cfg_normalization: Option<f32>,
    cfg_truncation: f32,
    seed: u64,
    count: usize,
    exact: bool,
    keep_values: bool,
    prompts: Vec<Vec<u32>>,
    /// Pictures done, steps done of the round, pictures of the round.
    reached: (usize, usize, usize),
    /// Tensors of the stage: hidden states or captions, latents, finished pictures.
    tensors: (usize, usize, usize),
    noise: bool,
}

fn precision_name(precision: Precision) -> &'static str {
    match precision {
        Precision::F32 => "f32",
        Precision::Bf16 => "bf16",
    }
}

/// One tensor on its way into the file.
struct Entry<'a> {
    layout: TensorLayout,
    bytes: std::borrow::Cow<'a, [u8]>,
}

fn f32_entry(name: String, shape: &[usize], values: &[f32]) -> Entry<'static> {
    let bytes: Vec<u8> = values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    let layout = TensorLayout {
        name,
        dtype: Dtype::F32,
        shape: shape.to_vec(),
    };
    Entry {
        layout,
        bytes: bytes.into(),
    }
}

/// What a session has got so far.
struct Reached<'a> {
    stage: &'static str,
    /// Hidden states or refined captions.
    texts: &'a [Tensor],
    latents: &'a [Tensor],
    images: &'a [Image],
    values: &'a [f32],
    /// Pictures done, steps done of the round, pictures of the round.
    counts: (usize, usize, usize),
}

impl Session {
    /// Writes what the job has reached to `file`, whole or not at all. The session can go on afterwards.
    ///
    /// # Errors
    /// When the session is over or the file cannot be written.
    pub fn save(&self, file: &Path) -> Result<()> {
        let Some(Reached {
            stage,
            texts,
            latents,
            images,
            values,
            counts,
        }) = self.reached()
        else {
            let problem = "is over; there is nothing to save";
            return Err(Error::request("session", problem));
        };
        let mut entries = Vec::new();
        for (prefix, tensors) in [("text", texts), ("latent", latents)] {
            for (i, tensor) in tensors.iter().enumerate() {
                entries.push(f32_entry(
                    format!("{prefix}.{i}"),
                    tensor.shape(),
                    tensor.data(),
                ));
            }
        }
        for (i, image) in images.iter().enumerate() {
            let shape = vec![image.height, image.width, 3];
            let layout = TensorLayout {
                name: format!("image.{i}"),
                dtype: Dtype::U8,
                shape,
            };
            entries.push(Entry {
                layout,
                bytes: (&image.rgb[..]).into(),
            });
        }
        if !values.is_empty() {
            entries.push(f32_entry("values".to_owned(), &[values.len()], values));
        }
        // Given noise is in the latents once denoising has begun.
        let noise = self
            .context
            .job
            .request
            .noise
            .as_ref()
            .filter(|_| matches!(stage, "encode" | "refine"));
        if let Some(noise) = noise {
            entries.push(f32_entry("noise".to_owned(), &[noise.len()], noise));
        }
        let state = self.state(
            stage,
            counts,
            (texts.len(), latents.len(), images.len()),
            noise.is_some(),
        );
        write(file, &state, &entries)
    }

    fn reached(&self) -> Option<Reached<'_>> {
        let nothing = Reached {
            stage: "encode",
            texts: &[],
            latents: &[],
            images: &[],
            values: &[],
            counts: (0, 0, 0),
        };
        match &self.stage {
            Stage::Encode => Some(nothing),
            Stage::Refine { states } => Some(Reached {
                stage: "refine",
                texts: states,
                ..nothing
            }),
            Stage::Denoise(denoise) => {
                let (texts, latents, counts) = denoise.saved();
                Some(Reached {
                    stage: "denoise",
                    texts,
                    latents,
                    counts,
                    ..nothing
                })
            }
            Stage::Decode {
                latents,
                images,
                values,
            } => Some(Reached {
                stage: "decode",
                latents,
                images,
                values,
                ..nothing
            }),
            Stage::Over => None,
        }
    }

    fn state(
        &self,
        stage: &str,
        reached: (usize, usize, usize),
        tensors: (usize, usize, usize),
        noise: bool,
    ) -> State {
        let (job, model) = (&self.context.job, &self.context.model);
        let request = &job.request;
        State {
            version: VERSION,
            model: model.name.clone(),
            weights: model.transformer.layout.bytes().0,
            precision: precision_name(self.context.compute.precision).to_owned(),
            stage: stage.to_owned(),
            prompt: request.prompt.clone(),
            negative: request.negative.clone(),
            width: request.width,
            height: request.height,
            steps: request.steps,
            guidance: request.guidance,
            cfg_normalization: request.cfg_normalization,
            cfg_truncation: request.cfg_truncation,
            seed: request.seed,
            count: request.count,
            exact: request.quality == Quality::Exact,
            keep_values: job.shape.keep_values,
            prompts: job.prompts.clone(),
            reached,
            tensors,
            noise,
        }
    }
}

fn write(file: &Path, state: &State, entries: &[Entry<'_>]) -> Result<()> {
    let text = serde_json::to_string(state).expect("a state has only plain fields");
    let layouts: Vec<TensorLayout> = entries.iter().map(|entry| entry.layout.clone()).collect();
    let mut writer = SafetensorsWriter::with_metadata(file, &layouts, &[(STATE_KEY, &text)])?;
    for entry in entries {
        writer.write(&entry.layout.name, &entry.bytes)?;
    }
    writer.finish()?;
    Ok(())
}

/// A session's file, opened and checked against the model that is to go on with it.
pub(crate) struct Saved {
    file: Checkpoint,
    state: State,
    noise: Option<Vec<f32>>,
}

impl Saved {
    pub(crate) fn open(path: &Path, model: &ZImage, compute: Compute) -> Result<Saved> {
        let file = Checkpoint::open(path)?;
        let wrong =
            |problem: String| Error::request("session", format!("{}: {problem}", path.display()));
        let text = file
            .metadata(STATE_KEY)
            .ok_or_else(|| wrong("is not a saved session".to_owned()))?;
        let state: State =
            serde_json::from_str(text).map_err(|e| wrong(format!("its state is damaged: {e}")))?;
        if state.version != VERSION {
            return Err(wrong(format!(
                "has version {}, this program reads {VERSION}",
                state.version
            )));
        }
        if state.model != model.name || state.weights != model.transformer.layout.bytes().0 {
            return Err(wrong(format!(
                "belongs to the model {}, not to {}",
                state.model, model.name
            )));
        }
        let precision = precision_name(compute.precision);
        if state.precision != precision {
            return Err(wrong(format!(
                "was computed in {}, not in {precision}",
                state.precision
            )));
        }
        if state.prompts.is_empty() || state.prompts.iter().any(Vec::is_empty) {
            return Err(wrong(
                "its state is damaged: a prompt without tokens".to_owned(),
            ));
        }
        let noise = if state.noise {
            Some(values(&file, "noise")?)
        } else {
            None
        };
        Ok(Saved { file, state, noise })
    }

    pub(crate) fn request(&self) -> TextToImage {
        let state = &self.state;
        TextToImage {
            prompt: state.prompt.clone(),
            negative: state.negative.clone(),
            width: state.width,
            height: state.height,
            steps: state.steps,
            guidance: state.guidance,
            cfg_normalization: state.cfg_normalization,
            cfg_truncation: state.cfg_truncation,
            seed: state.seed,
            count: state.count,
            noise: self.noise.clone(),
            quality: if state.exact {
                Quality::Exact
            } else {
                Quality::Auto
            },
        }
    }

    pub(crate) fn prompts(&self) -> Vec<Vec<u32>> {
        self.state.prompts.clone()
    }

    pub(crate) fn keep_values(&self) -> bool {
        self.state.keep_values
    }

    /// Puts `session`, which is at its beginning, where the file says.
    pub(crate) fn restore(self, mut session: Session) -> Result<Session> {
        let (texts, latents, images) = self.state.tensors;
        let context = &session.context;
        let config = &context.model.transformer_config;
        let (h, w) = context.job.shape.latent;
        let sequences = self.state.prompts.len();
        let text = |width: usize, padded: bool| {
            let rows = |i: usize| {
                let tokens = self.state.prompts.get(i).map_or(0, Vec::len);
                if padded {
                    lowtide_models::z_image::padded(tokens)
                } else {
                    tokens
                }
            };
            (0..texts)
                .map(|i| self.tensor(&format!("text.{i}"), &[rows(i), width]))
                .collect::<Result<Vec<_>>>()
        };
        let latent = || {
            (0..latents)
                .map(|i| self.tensor(&format!("latent.{i}"), &[config.channels, h, w]))
                .collect::<Result<Vec<_>>>()
        };
        let damaged =
            || Error::request("session", "its state is damaged: counts that do not agree");
        let stage = match self.state.stage.as_str() {
            "encode" => Stage::Encode,
            "refine" if texts == sequences => Stage::Refine {
                states: text(config.caption_dim, false)?,
            },
            "denoise" if texts == sequences && latents == self.state.count => {
                let (first, step, pictures) = self.state.reached;
                if first + pictures > latents
                    || step >= self.state.steps
                    || (pictures == 0 && step > 0)
                {
                    return Err(damaged());
                }
                let tensors = (text(config.dim, true)?, latent()?);
                Stage::Denoise(Box::new(Denoise::resumed(
                    &context.model,
                    &context.job,
                    tensors,
                    self.state.reached,
                )?))
            }
            "decode" if latents == self.state.count && images < latents => {
                let images = (0..images)
                    .map(|i| self.image(i))
                    .collect::<Result<Vec<_>>>()?;
                let values = if self.state.keep_values && !images.is_empty() {
                    values(&self.file, "values")?
                } else {
                    Vec::new()
                };
                Stage::Decode {
                    latents: latent()?,
                    images,
                    values,
                }
            }
            _ => return Err(damaged()),
        };
        session.stage = stage;
        let phase = session.phase();
        session.context.enter(phase);
        Ok(session)
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.file.require(name, shape)?;
        let wrap = |source| Error::Model {
            model: self.state.model.clone(),
            component: "session",
            source,
        };
        Tensor::from_slice(shape, &values(&self.file, name)?).map_err(wrap)
    }

    fn image(&self, index: usize) -> Result<Image> {
        let (width, height) = (self.state.width, self.state.height);
        let entry = self.file.get(&format!("image.{index}"));
        let entry =
            entry.filter(|entry| entry.dtype == Dtype::U8 && entry.shape == [height, width, 3]);
        let entry = entry.ok_or_else(|| {
            Error::request("session", format!("its state is damaged: picture {index}"))
        })?;
        let mut rgb = vec![0; entry.bytes as usize];
        self.file.read(entry, &mut rgb)?;
        Ok(Image {
            width,
            height,
            rgb,
            seed: self.state.seed.wrapping_add(index as u64),
        })
    }
}

/// All values of an f32 tensor of the file.
fn values(file: &Checkpoint, name: &str) -> Result<Vec<f32>> {
    let entry = file.get(name).filter(|entry| entry.dtype == Dtype::F32);
    let entry = entry.ok_or_else(|| {
        Error::request(
            "session",
            format!("its state is damaged: no tensor '{name}'"),
        )
    })?;
    let mut bytes = vec![0; entry.bytes as usize];
    file.read(entry, &mut bytes)?;
    let number = |b: &[u8]| f32::from_le_bytes(b.try_into().expect("chunks of four"));
    Ok(bytes.chunks_exact(4).map(number).collect())
}
