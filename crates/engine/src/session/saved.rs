//! A session on a disk: what a job has reached, in one safetensors file of a few MB, so that it can go on in another
//! process, to the same bytes. Of jobs that share a session each has its own file, and goes on alone.

use std::path::Path;
use std::sync::Arc;

use lowtide_core::{Dtype, TensorLayout};
use lowtide_models::samplers::History;
use lowtide_models::{Compute, Tensor};
use lowtide_weights::{Checkpoint, SafetensorsWriter};
use serde::{Deserialize, Serialize};

use crate::device::cpu::precision_word;
use crate::generator::{Drawn, Generator};
use crate::pipeline::{Pass, Pipeline};
use crate::request::{Image, ImageRequest};
use crate::session::Session;
use crate::session::work::{Member, Picture, Text, TextKey, Work};
use crate::{Error, Result};

/// Key of the state in the file's free text.
const STATE_KEY: &str = "lowtide_session";

/// Most values a picture draws at once, and most times it draws: far above what any job does.
const DRAW_MAX: usize = 1 << 28;
const DRAWS_MAX: usize = 1 << 13;

/// Changes when older files cannot be read any more.
const VERSION: u32 = 3;

/// Everything about a job that is not a tensor.
#[derive(Debug, Serialize, Deserialize)]
struct State {
    version: u32,
    model: String,
    /// Bytes of all weights, which tells models of one name apart.
    weights: u64,
    precision: String,
    request: ImageRequest,
    /// A digest of the picture it began from.
    source: Option<u64>,
    /// A digest of what was added to the weights.
    adapters: Option<[u8; 32]>,
    keep_values: bool,
    noise: bool,
    /// The prompt and, with guidance, the negative prompt.
    texts: Vec<SavedText>,
    pictures: Vec<SavedPicture>,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedText {
    key: TextKey,
    /// Stages it went through.
    stages: usize,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedPicture {
    pass: usize,
    steps: usize,
    drawn: Drawn,
    latent: bool,
    /// Tensors of a latent's size beside the latent itself, by name.
    more: Vec<String>,
    /// The picture between two passes, (width, height).
    between: Option<(usize, usize)>,
    image: bool,
}

impl SavedPicture {
    /// Whether a picture can be so in `pass`.
    fn is_possible(&self, pass: &Pass, last: bool) -> bool {
        let nowhere = !self.latent && !self.image;
        let unlikely = self.steps > pass.evaluations
            || (self.steps > 0 && nowhere)
            || (self.between.is_some() && (self.pass == 0 || !nowhere))
            || (self.pass > 0 && nowhere && self.between.is_none())
            || (self.image && !(last && self.steps == pass.evaluations))
            || self.drawn.0.iter().any(|&len| len > DRAW_MAX)
            || self.drawn.0.len() > DRAWS_MAX;
        !unlikely
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
        let reached = |text: &SavedText| text.stages > 0;
        let begun = |picture: &SavedPicture| picture.latent || picture.image || picture.pass > 0;
        if !state.texts.iter().any(reached) && !state.pictures.iter().any(begun) {
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
        let adapters = self.context.planned.active.as_deref();
        let request = &member.request;
        let text = |text: &&Text| SavedText {
            key: text.key.clone(),
            stages: match tensors_of(text).is_empty() {
                true => 0,
                false => text.stages,
            },
        };
        let picture = |picture: &Picture| SavedPicture {
            pass: picture.pass,
            steps: picture.steps,
            drawn: picture.generator.drawn().clone(),
            latent: picture.latent.is_some(),
            more: more(picture).into_iter().map(|(name, _)| name).collect(),
            between: picture
                .between
                .as_ref()
                .map(|image| (image.width() as usize, image.height() as usize)),
            image: picture.image.is_some(),
        };
        State {
            version: VERSION,
            model: makings.model.name().to_owned(),
            weights: makings.model.bytes().0,
            precision: precision_word(makings.compute.precision).to_owned(),
            request: request.clone(),
            source: request.source.as_ref().map(|source| source.digest()),
            adapters: adapters.and_then(|active| active.digest()),
            keep_values: self.context.planned.shape.keep_values,
            noise: self.noise_to_save(member, pictures).is_some(),
            texts: texts.iter().map(text).collect(),
            pictures: pictures.iter().map(picture).collect(),
        }
    }
}

/// What was made of a text so far.
fn tensors_of(text: &Text) -> &[Tensor] {
    text.caption.as_deref().unwrap_or(&text.made)
}

/// What else there is of a picture's latents.
fn more(picture: &Picture) -> Vec<(String, &Tensor)> {
    let named = [
        ("given", &picture.given),
        ("noise", &picture.noise),
        ("beside", &picture.beside),
    ];
    let named = named.into_iter();
    let named = named.filter_map(|(name, tensor)| Some((name.to_owned(), tensor.as_ref()?)));
    named.chain(picture.history.tensors()).collect()
}

/// Every tensor of a job.
fn entries<'a>(texts: &[&Text], pictures: &'a [Picture], noise: &Option<&[f32]>) -> Vec<Entry<'a>> {
    let mut entries = Vec::new();
    for (i, text) in texts.iter().enumerate() {
        for (k, tensor) in tensors_of(text).iter().enumerate() {
            entries.push(f32_entry(
                format!("text.{i}.{k}"),
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
        for (name, tensor) in more(picture) {
            entries.push(f32_entry(
                format!("{name}.{i}"),
                tensor.shape(),
                tensor.data(),
            ));
        }
        // There is one or the other.
        let decoded = picture.image.as_ref();
        let decoded = decoded.map(|image| ((image.height, image.width), &image.rgb[..]));
        let between = picture.between.as_ref();
        let between = between.map(|image| {
            let size = (image.height() as usize, image.width() as usize);
            (size, image.values())
        });
        if let Some(((height, width), rgb)) = decoded.or(between) {
            let layout = TensorLayout {
                name: format!("image.{i}"),
                dtype: Dtype::U8,
                shape: vec![height, width, 3],
            };
            entries.push(Entry {
                layout,
                bytes: rgb.into(),
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
    pub(crate) fn open(path: &Path, model: &dyn Pipeline, compute: Compute) -> Result<Saved> {
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
        if state.model != model.name() || state.weights != model.bytes().0 {
            return Err(wrong(format!(
                "belongs to the model {}, not to {}",
                state.model,
                model.name()
            )));
        }
        let precision = precision_word(compute.precision);
        if state.precision != precision {
            return Err(wrong(format!(
                "was computed in {}, not in {precision}",
                state.precision
            )));
        }
        let texts = if model.guided(&state.request) { 2 } else { 1 };
        if state.texts.len() != texts
            || !state.texts.iter().all(|text| model.knows(&text.key))
            || state.pictures.len() != state.request.count
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

    pub(crate) fn request(&self) -> ImageRequest {
        ImageRequest {
            noise: self.noise.clone(),
            ..self.state.request.clone()
        }
    }

    /// Its texts.
    pub(crate) fn prompts(&self) -> Vec<TextKey> {
        let texts = self.state.texts.iter();
        texts.map(|text| text.key.clone()).collect()
    }

    /// A digest of the picture it began from.
    pub(crate) fn source(&self) -> Option<u64> {
        self.state.source
    }

    /// Checks that the LoRAs are those it was begun with, by content.
    ///
    /// # Errors
    /// [`Error::Request`].
    pub(crate) fn check_adapters(&self, digest: Option<[u8; 32]>) -> Result<()> {
        match self.state.adapters == digest {
            true => Ok(()),
            false => {
                let problem = "was begun with other LoRA files; begin it anew";
                Err(Error::request("session", problem))
            }
        }
    }

    pub(crate) fn keep_values(&self) -> bool {
        self.state.keep_values
    }

    /// Puts job `member` of `work`, which is at its beginning, where the file says.
    pub(crate) fn restore(
        self,
        model: &dyn Pipeline,
        work: &mut Work,
        member: usize,
    ) -> Result<()> {
        let (texts, pictures) = {
            let member = &work.members[member];
            (member.texts().collect::<Vec<_>>(), member.pictures.clone())
        };
        for (i, (saved, place)) in self.state.texts.iter().zip(texts).enumerate() {
            let last = model.text_stages().len();
            if saved.stages > last {
                return Err(damaged(format!("text {i}")));
            }
            let shapes = model.text_shapes(&saved.key, saved.stages);
            let tensors = shapes.iter().enumerate();
            let made = tensors.map(|(k, shape)| self.tensor(&format!("text.{i}.{k}"), shape));
            let made = made.collect::<Result<Vec<_>>>()?;
            let text = &mut work.texts[place];
            if saved.stages <= text.stages {
                continue;
            }
            text.stages = saved.stages;
            (text.made, text.caption) = match saved.stages == last {
                true => (Vec::new(), Some(Arc::new(made))),
                false => (made, None),
            };
        }
        for (i, place) in pictures.enumerate() {
            self.restore_picture(model, (work, place), i)?;
        }
        Ok(())
    }

    /// Puts picture `i`, which is at its beginning, where the file says.
    fn restore_picture(
        &self,
        model: &dyn Pipeline,
        (work, place): (&mut Work, usize),
        i: usize,
    ) -> Result<()> {
        let saved = &self.state.pictures[i];
        let Work {
            pictures, passes, ..
        } = work;
        let known = passes.get(saved.pass).filter(|pass| {
            let last = saved.pass + 1 == passes.len();
            saved.is_possible(pass, last)
        });
        let pass = known.ok_or_else(|| damaged(format!("picture {i}")))?;
        let picture = &mut pictures[place];
        picture.pass = saved.pass;
        picture.steps = saved.steps;
        picture.generator = Generator::after(
            picture.seed,
            self.state.request.noise_of,
            saved.drawn.clone(),
        );
        let shape = model.latent_shape(pass);
        if saved.latent {
            picture.latent = Some(self.tensor(&format!("latent.{i}"), &shape)?);
        }
        self.restore_more(picture, (i, &saved.more), shape)?;
        if let Some(size) = saved.between {
            let before = &passes[saved.pass - 1];
            if size != (before.width, before.height) {
                return Err(damaged(format!("picture {i}")));
            }
            let image = self.image(i, size)?;
            let (width, height) = (image.width as u32, image.height as u32);
            let between = lowtide_media::Picture::new(width, height, image.rgb)?;
            picture.between = Some(between);
        }
        if saved.image {
            picture.image = Some(self.image(i, (pass.width, pass.height))?);
            if self.state.keep_values {
                picture.values = values(&self.file, &format!("values.{i}"))?;
            }
        }
        Ok(())
    }

    /// What else there was of the latents of picture `i`.
    fn restore_more(
        &self,
        picture: &mut Picture,
        (i, names): (usize, &[String]),
        shape: [usize; 3],
    ) -> Result<()> {
        let mut remembered = Vec::new();
        let [channels, h, w] = shape;
        for name in names {
            let entry = format!("{name}.{i}");
            match &name[..] {
                "given" => picture.given = Some(self.tensor(&entry, &shape)?),
                "noise" => picture.noise = Some(self.tensor(&entry, &shape)?),
                "beside" => {
                    picture.beside = Some(self.tensor(&entry, &[channels + 1, h, w])?);
                }
                // What a sampler remembers has no rows.
                _ => remembered.push((name.clone(), self.tensor(&entry, &[channels * h * w])?)),
            }
        }
        let restored = History::restore(remembered);
        picture.history = restored.map_err(|error| damaged(format!("picture {i}: {error}")))?;
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

    fn image(&self, index: usize, (width, height): (usize, usize)) -> Result<Image> {
        let entry = self.file.get(&format!("image.{index}"));
        let entry =
            entry.filter(|entry| entry.dtype == Dtype::U8 && entry.shape == [height, width, 3]);
        let entry = entry.ok_or_else(|| damaged(format!("picture {index}")))?;
        let mut rgb = vec![0; entry.bytes as usize];
        self.file.read(entry, &mut rgb)?;
        Ok(Image {
            width,
            height,
            rgb,
            seed: self.state.request.seed.wrapping_add(index as u64),
        })
    }
}

fn damaged(what: String) -> Error {
    Error::request("session", format!("its state is damaged: {what}"))
}

/// All values of an f32 tensor of the file.
fn values(file: &Checkpoint, name: &str) -> Result<Vec<f32>> {
    let entry = file.get(name).filter(|entry| entry.dtype == Dtype::F32);
    let entry = entry.ok_or_else(|| damaged(format!("no tensor '{name}'")))?;
    let mut bytes = vec![0; entry.bytes as usize];
    file.read(entry, &mut bytes)?;
    let number = |b: &[u8]| f32::from_le_bytes(b.try_into().expect("chunks of four"));
    Ok(bytes.chunks_exact(4).map(number).collect())
}
