//! A session on a disk: what a job has reached, in one safetensors file of a few MB, so that it can go on in another
//! process, to the same bytes. Of jobs that share a session each has its own file, and goes on alone.

use std::path::Path;
use std::sync::Arc;

use lowtide_core::{Dtype, Quality, TensorLayout};
use lowtide_models::{Compute, Tensor, z_image};
use lowtide_weights::{Checkpoint, SafetensorsWriter};
use serde::{Deserialize, Serialize};

use crate::device::cpu::precision_word;
use crate::pipeline::z_image::{Shape, ZImage};
use crate::request::{Image, TextToImage};
use crate::session::Session;
use crate::session::work::{Member, Picture, Text, Work};
use crate::{Error, Result};

/// Key of the state in the file's free text.
const STATE_KEY: &str = "lowtide_session";

/// Changes when older files cannot be read any more.
const VERSION: u32 = 2;

/// Everything about a job that is not a tensor.
#[derive(Debug, Serialize, Deserialize)]
struct State {
    version: u32,
    model: String,
    /// Bytes of the transformer's weights, which tells models of one name apart.
    weights: u64,
    precision: String,
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
    noise: bool,
    /// The prompt and, with guidance, the negative prompt.
    texts: Vec<SavedText>,
    pictures: Vec<SavedPicture>,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedText {
    ids: Vec<u32>,
    reached: TextReached,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum TextReached {
    Nothing,
    State,
    Caption,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedPicture {
    steps: usize,
    latent: bool,
    image: bool,
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

impl Session {
    /// Writes what job `member` has reached to `file`, whole or not at all; the session can go on afterwards. Returns
    /// `false`, and writes nothing, when it has reached nothing yet or was dropped.
    ///
    /// # Errors
    /// When the session is over or the file cannot be written.
    pub fn save(&self, member: usize, file: &Path) -> Result<bool> {
        if self.over {
            let problem = "is over; there is nothing to save";
            return Err(Error::request("session", problem));
        }
        let Some(member) = self.work.members.get(member).filter(|member| member.wanted) else {
            return Ok(false);
        };
        let texts: Vec<&Text> = member.texts().map(|text| &self.work.texts[text]).collect();
        let pictures = &self.work.pictures[member.pictures.clone()];
        let entries = entries(&texts, pictures, &self.noise_to_save(member, pictures));
        let state = self.state(member, &texts, pictures);
        let reached = |text: &SavedText| text.reached != TextReached::Nothing;
        if !state.texts.iter().any(reached) && !state.pictures.iter().any(|p| p.latent || p.image) {
            return Ok(false);
        }
        write(file, &state, &entries)?;
        Ok(true)
    }

    /// Given noise, as long as it is not in the latents.
    fn noise_to_save<'s>(&self, member: &'s Member, pictures: &[Picture]) -> Option<&'s [f32]> {
        let drawn = pictures.iter().any(|picture| picture.latent.is_some());
        member.request.noise.as_deref().filter(|_| !drawn)
    }

    fn state(&self, member: &Member, texts: &[&Text], pictures: &[Picture]) -> State {
        let makings = &self.context.makings;
        let request = &member.request;
        let text = |text: &&Text| SavedText {
            ids: text.ids.clone(),
            reached: match (&text.caption, &text.state) {
                (Some(_), _) => TextReached::Caption,
                (None, Some(_)) => TextReached::State,
                (None, None) => TextReached::Nothing,
            },
        };
        let picture = |picture: &Picture| SavedPicture {
            steps: picture.steps,
            latent: picture.latent.is_some(),
            image: picture.image.is_some(),
        };
        State {
            version: VERSION,
            model: makings.model.name.clone(),
            weights: makings.model.transformer.layout.bytes().0,
            precision: precision_word(makings.compute.precision).to_owned(),
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
            keep_values: self.context.planned.shape.keep_values,
            noise: self.noise_to_save(member, pictures).is_some(),
            texts: texts.iter().map(text).collect(),
            pictures: pictures.iter().map(picture).collect(),
        }
    }
}

/// Every tensor of a job.
fn entries<'a>(texts: &[&Text], pictures: &'a [Picture], noise: &Option<&[f32]>) -> Vec<Entry<'a>> {
    let mut entries = Vec::new();
    for (i, text) in texts.iter().enumerate() {
        if let Some(tensor) = text.caption.as_deref().or(text.state.as_ref()) {
            entries.push(f32_entry(
                format!("text.{i}"),
                tensor.shape(),
                tensor.data(),
            ));
        }
    }
    for (i, picture) in pictures.iter().enumerate() {
        if let Some(latent) = &picture.latent {
            entries.push(f32_entry(
                format!("latent.{i}"),
                latent.shape(),
                latent.data(),
            ));
        }
        if let Some(image) = &picture.image {
            let layout = TensorLayout {
                name: format!("image.{i}"),
                dtype: Dtype::U8,
                shape: vec![image.height, image.width, 3],
            };
            entries.push(Entry {
                layout,
                bytes: (&image.rgb[..]).into(),
            });
        }
        if !picture.values.is_empty() {
            let values = &picture.values;
            entries.push(f32_entry(format!("values.{i}"), &[values.len()], values));
        }
    }
    if let Some(noise) = noise {
        entries.push(f32_entry("noise".to_owned(), &[noise.len()], noise));
    }
    entries
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
        let precision = precision_word(compute.precision);
        if state.precision != precision {
            return Err(wrong(format!(
                "was computed in {}, not in {precision}",
                state.precision
            )));
        }
        let texts = if state.guidance > 0.0 { 2 } else { 1 };
        if state.texts.len() != texts
            || state.texts.iter().any(|text| text.ids.is_empty())
            || state.pictures.len() != state.count
        {
            return Err(wrong(
                "its state is damaged: counts that do not agree".to_owned(),
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

    /// The token ids of its texts.
    pub(crate) fn prompts(&self) -> Vec<Vec<u32>> {
        self.state
            .texts
            .iter()
            .map(|text| text.ids.clone())
            .collect()
    }

    pub(crate) fn keep_values(&self) -> bool {
        self.state.keep_values
    }

    /// Puts job `member` of `work`, which is at its beginning, where the file says.
    pub(crate) fn restore(
        self,
        model: &ZImage,
        shape: &Shape,
        work: &mut Work,
        member: usize,
    ) -> Result<()> {
        let config = &model.transformer_config;
        let (texts, pictures) = {
            let member = &work.members[member];
            (member.texts().collect::<Vec<_>>(), member.pictures.clone())
        };
        for (i, (saved, place)) in self.state.texts.iter().zip(texts).enumerate() {
            let text = &mut work.texts[place];
            let (name, tokens) = (format!("text.{i}"), saved.ids.len());
            match saved.reached {
                TextReached::Nothing => {}
                TextReached::State => {
                    text.state = Some(self.tensor(&name, &[tokens, config.caption_dim])?);
                }
                TextReached::Caption => {
                    let caption = self.tensor(&name, &[z_image::padded(tokens), config.dim])?;
                    text.caption = Some(Arc::new(caption));
                }
            }
        }
        let (h, w) = shape.latent;
        for (i, (saved, place)) in self.state.pictures.iter().zip(pictures).enumerate() {
            let damaged = saved.steps > self.state.steps
                || (saved.steps > 0 && !saved.latent && !saved.image);
            if damaged || (saved.image && saved.steps < self.state.steps) {
                let problem = format!("its state is damaged: picture {i}");
                return Err(Error::request("session", problem));
            }
            let picture = &mut work.pictures[place];
            picture.steps = saved.steps;
            if saved.latent {
                picture.latent =
                    Some(self.tensor(&format!("latent.{i}"), &[config.channels, h, w])?);
            }
            if saved.image {
                picture.image = Some(self.image(i)?);
                if self.state.keep_values {
                    picture.values = values(&self.file, &format!("values.{i}"))?;
                }
            }
        }
        Ok(())
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
