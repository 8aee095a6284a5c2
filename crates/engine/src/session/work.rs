//! What a session has reached: texts, members, pictures. The phase it is in follows from them, so that members may be
//! dropped, and come back from files at different places.

use std::ops::Range;
use std::sync::Arc;

use lowtide_models::Tensor;
use lowtide_models::samplers::History;
use serde::{Deserialize, Serialize};

use crate::generator::Generator;
use crate::pipeline::{Caption, Origin, Pass, Phase};
use crate::request::{Image, ImageRequest, NoiseOf};

/// Everything that decides what is made of a text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct TextKey {
    /// Token ids, by text encoder.
    pub(crate) ids: Vec<Vec<u32>>,
    /// Weights of the tokens as bits of f32, by text encoder; none where all are 1.
    #[serde(default)]
    pub(crate) weights: Vec<Vec<u32>>,
    /// Nothing is made of it but zeros: what some models take an empty negative prompt for.
    #[serde(default)]
    pub(crate) zeros: bool,
    /// Layers of the text encoders that are left out.
    #[serde(default)]
    pub(crate) clip_skip: usize,
    /// A digest of what is added to the text encoders.
    #[serde(default)]
    pub(crate) adapters: Option<[u8; 32]>,
    /// A digest of whatever else.
    #[serde(default)]
    pub(crate) settings: u64,
}

impl TextKey {
    /// A text of one encoder, without weights.
    pub(crate) fn of_ids(ids: Vec<u32>) -> TextKey {
        TextKey {
            ids: vec![ids],
            ..TextKey::default()
        }
    }

    /// How many tokens the network reads.
    pub(crate) fn tokens(&self) -> usize {
        self.ids.first().map_or(0, Vec::len)
    }

    /// Bytes of itself.
    pub(crate) fn bytes(&self) -> usize {
        let lists = self.ids.iter().chain(&self.weights);
        lists.map(|list| size_of_val(&list[..])).sum()
    }
}

/// One text, however many members use it.
pub(crate) struct Text {
    pub(crate) key: TextKey,
    /// Stages it went through.
    pub(crate) stages: usize,
    /// What came of them, until the last.
    pub(crate) made: Caption,
    /// What came of the last.
    pub(crate) caption: Option<Arc<Caption>>,
}

/// One of the jobs that share the session.
pub(crate) struct Member {
    pub(crate) request: ImageRequest,
    /// Which text is its prompt.
    pub(crate) positive: usize,
    /// With guidance, which one is its negative prompt.
    pub(crate) negative: Option<usize>,
    pub(crate) pictures: Range<usize>,
    /// Whether somebody still waits for it.
    pub(crate) wanted: bool,
}

impl Member {
    pub(crate) fn texts(&self) -> impl Iterator<Item = usize> {
        [Some(self.positive), self.negative].into_iter().flatten()
    }
}

/// One picture.
pub(crate) struct Picture {
    pub(crate) member: usize,
    pub(crate) seed: u64,
    /// The pass it is in.
    pub(crate) pass: usize,
    /// Network calls of that pass done.
    pub(crate) steps: usize,
    /// (C, h, w); made when the pass begins.
    pub(crate) latent: Option<Tensor>,
    /// What the schedule remembers of the steps before.
    pub(crate) history: History,
    /// The latents of the picture the pass began from, as long as they are needed.
    pub(crate) given: Option<Tensor>,
    /// The noise the pass began with, where it is needed again.
    pub(crate) noise: Option<Tensor>,
    /// What the network reads beside the latents: mask, and latents of what the mask leaves.
    pub(crate) beside: Option<Tensor>,
    /// The picture of the pass before, which the next one begins from.
    pub(crate) between: Option<lowtide_media::Picture>,
    pub(crate) generator: Generator,
    /// A small look at it: 3 bytes a latent pixel; empty before the first step.
    pub(crate) sketch: Vec<u8>,
    /// Decoded, of the last pass.
    pub(crate) image: Option<Image>,
    /// The picture in 0..1, where that was asked for.
    pub(crate) values: Vec<f32>,
}

impl Picture {
    fn new(member: usize, seed: u64, noise_of: NoiseOf) -> Picture {
        Picture {
            member,
            seed,
            pass: 0,
            steps: 0,
            latent: None,
            history: History::new(),
            given: None,
            noise: None,
            beside: None,
            between: None,
            generator: Generator::new(seed, noise_of),
            sketch: Vec::new(),
            image: None,
            values: Vec::new(),
        }
    }

    /// What it needs next.
    fn next(&self, passes: &[Pass]) -> Option<Phase> {
        if self.image.is_some() {
            return None;
        }
        let pass = &passes[self.pass];
        if pass.encodes() && self.latent.is_none() {
            return Some(Phase::Picture(self.pass));
        }
        Some(match (self.steps < pass.evaluations, pass.decodes) {
            (true, _) => Phase::Denoise(self.pass),
            (false, true) => Phase::Decode(self.pass),
            // Another model goes on from these.
            (false, false) if self.pass + 1 == passes.len() => return None,
            // Its latents are passed on when the next pass begins.
            (false, false) => Phase::Denoise(self.pass + 1),
        })
    }

    /// Begins the next pass, from nothing but what is kept between passes.
    pub(crate) fn next_pass(&mut self, noise_of: NoiseOf) {
        self.pass += 1;
        self.steps = 0;
        self.latent = None;
        self.noise = None;
        self.beside = None;
        self.history = History::new();
        self.sketch = Vec::new();
        self.generator = Generator::new(self.seed, noise_of);
    }

    /// Network calls of `pass` done.
    fn done(&self, pass: usize, evaluations: usize) -> usize {
        match pass.cmp(&self.pass) {
            std::cmp::Ordering::Less => evaluations,
            std::cmp::Ordering::Equal => self.steps,
            std::cmp::Ordering::Greater => 0,
        }
    }

    fn bytes(&self) -> usize {
        let tensors = [&self.latent, &self.given, &self.noise, &self.beside];
        let tensors = tensors.into_iter().flatten();
        let remembered = self.history.tensors();
        tensors.map(tensor_bytes).sum::<usize>()
            + remembered
                .iter()
                .map(|(_, tensor)| tensor_bytes(tensor))
                .sum::<usize>()
            + self.sketch.len()
            + self
                .between
                .as_ref()
                .map_or(0, |picture| picture.values().len())
            + self.image.as_ref().map_or(0, |image| image.rgb.len())
            + size_of_val(&self.values[..])
    }
}

fn tensor_bytes(tensor: &Tensor) -> usize {
    size_of_val(tensor.data())
}

/// All of it.
pub(crate) struct Work {
    pub(crate) texts: Vec<Text>,
    pub(crate) members: Vec<Member>,
    pub(crate) pictures: Vec<Picture>,
    /// Passes of every picture.
    pub(crate) passes: Vec<Pass>,
    /// Stages of a text.
    stages: usize,
}

impl Work {
    /// The beginning of all `members`: each request, and its prompt and, with guidance, its negative prompt. Texts have
    /// `stages` stages.
    pub(crate) fn new(
        members: Vec<(ImageRequest, Vec<TextKey>)>,
        passes: Vec<Pass>,
        stages: usize,
    ) -> Work {
        let mut work = Work {
            texts: Vec::new(),
            members: Vec::new(),
            pictures: Vec::new(),
            passes,
            stages,
        };
        for (request, prompts) in members {
            let mut texts = prompts
                .into_iter()
                .map(|key| work.text(key))
                .collect::<Vec<_>>()
                .into_iter();
            let positive = texts.next().expect("every member has a prompt");
            let (first, member) = (work.pictures.len(), work.members.len());
            let seeds = (0..request.count).map(|k| request.seed.wrapping_add(k as u64));
            let noise_of = request.noise_of;
            let pictures = seeds.map(|seed| Picture::new(member, seed, noise_of));
            work.pictures.extend(pictures);
            work.members.push(Member {
                positive,
                negative: texts.next(),
                pictures: first..work.pictures.len(),
                wanted: true,
                request,
            });
        }
        work
    }

    /// The place of a text; the same text has one place.
    fn text(&mut self, key: TextKey) -> usize {
        let known = self.texts.iter().position(|text| text.key == key);
        known.unwrap_or_else(|| {
            self.texts.push(Text {
                key,
                stages: 0,
                made: Vec::new(),
                caption: None,
            });
            self.texts.len() - 1
        })
    }

    /// What every member agrees in: size, steps, guidance.
    pub(crate) fn settings(&self) -> &ImageRequest {
        &self.members[0].request
    }

    pub(crate) fn wants(&self, picture: &Picture) -> bool {
        self.members[picture.member].wanted
    }

    fn wanted(&self) -> impl Iterator<Item = &Picture> {
        self.pictures.iter().filter(|picture| self.wants(picture))
    }

    /// Where the picture changes, by latent pixel from 0 to 1, when its job keeps part of what was given.
    pub(crate) fn mask(&self, picture: &Picture) -> Option<Vec<f32>> {
        let pass = &self.passes[picture.pass];
        let source = self.members[picture.member].request.source.as_ref()?;
        let mask = source
            .mask
            .as_ref()
            .filter(|_| pass.origin == Origin::Given)?;
        let (h, w) = pass.latent;
        Some(mask.latents(w as u32, h as u32))
    }

    /// What comes next; `None` when there is nothing left to do. Pictures go through a pass together, and what was
    /// interrupted catches up with the rest.
    pub(crate) fn next(&self) -> Option<Phase> {
        let order = |phase: &Phase| match *phase {
            Phase::Text(stage) => (0, stage),
            Phase::Picture(pass) => (pass, 1),
            Phase::Denoise(pass) => (pass, 2),
            Phase::Decode(pass) => (pass, 3),
        };
        let next = self
            .wanted()
            .filter_map(|picture| picture.next(&self.passes));
        let next = next.min_by_key(order)?;
        match (
            next,
            self.uncaptioned()
                .iter()
                .map(|&text| self.texts[text].stages)
                .min(),
        ) {
            (Phase::Denoise(_), Some(stage)) => Some(Phase::Text(stage)),
            _ => Some(next),
        }
    }

    /// Places of the wanted pictures that need `phase` next.
    pub(crate) fn waiting(&self, phase: Phase) -> Vec<usize> {
        let lacking = |&i: &usize| {
            let picture = &self.pictures[i];
            self.wants(picture) && picture.next(&self.passes) == Some(phase)
        };
        (0..self.pictures.len()).filter(lacking).collect()
    }

    /// Places of the texts that denoising still needs.
    fn needed(&self) -> Vec<usize> {
        let denoises = |picture: &&Picture| match picture.next(&self.passes) {
            None => false,
            Some(Phase::Decode(pass)) => pass + 1 < self.passes.len(),
            Some(_) => true,
        };
        let mut needed: Vec<usize> = self
            .wanted()
            .filter(denoises)
            .flat_map(|picture| self.members[picture.member].texts())
            .collect();
        needed.sort_unstable();
        needed.dedup();
        needed
    }

    /// Places of the texts that denoising needs and that are no captions yet.
    pub(crate) fn uncaptioned(&self) -> Vec<usize> {
        let mut texts = self.needed();
        texts.retain(|&text| self.texts[text].caption.is_none());
        texts
    }

    /// The texts that wait for `stage`.
    pub(crate) fn texts_before(&mut self, stage: usize) -> Vec<&mut Text> {
        let waiting = self.uncaptioned();
        let texts = self.texts.iter_mut().enumerate();
        texts
            .filter(|(i, text)| text.stages == stage && waiting.contains(i))
            .map(|(_, text)| text)
            .collect()
    }

    /// Units of `phase` that are done, and in all.
    pub(crate) fn counted(&self, phase: Phase) -> (usize, usize) {
        let wanted = self.wanted().count();
        match phase {
            Phase::Text(stage) => {
                let waiting = self.uncaptioned();
                let lacking = |&text: &usize| self.texts[text].stages <= stage;
                (usize::from(!waiting.iter().any(lacking)), 1)
            }
            Phase::Picture(pass) => {
                let begun = |picture: &&Picture| {
                    picture.pass > pass || picture.pass == pass && picture.latent.is_some()
                };
                (self.wanted().filter(begun).count(), wanted)
            }
            Phase::Denoise(pass) => {
                let evaluations = self.passes[pass].evaluations;
                let done = self.wanted().map(|picture| picture.done(pass, evaluations));
                (done.sum(), wanted * evaluations)
            }
            Phase::Decode(pass) => {
                let done = |picture: &&Picture| picture.pass > pass || picture.image.is_some();
                (self.wanted().filter(done).count(), wanted)
            }
        }
    }

    /// Lets go of texts that nothing needs any more.
    pub(crate) fn forget_texts(&mut self) {
        let needed = self.needed();
        for (i, text) in self.texts.iter_mut().enumerate() {
            if !needed.contains(&i) {
                (text.made, text.caption) = (Vec::new(), None);
            }
        }
    }

    /// A text has everything that its stages make of it.
    pub(crate) fn is_last_stage(&self, stage: usize) -> bool {
        stage + 1 == self.stages
    }

    /// Nobody waits for `member` any more.
    pub(crate) fn drop_member(&mut self, member: usize) {
        let Some(dropped) = self.members.get_mut(member) else {
            return;
        };
        dropped.wanted = false;
        for picture in &mut self.pictures[dropped.pictures.clone()] {
            *picture = Picture::new(member, picture.seed, NoiseOf::Cpu);
        }
        self.forget_texts();
    }

    /// Bytes of everything.
    pub(crate) fn bytes(&self) -> usize {
        let captions = |caption: &Caption| caption.iter().map(tensor_bytes).sum::<usize>();
        let texts = self
            .texts
            .iter()
            .map(|text| captions(&text.made) + text.caption.as_deref().map_or(0, captions));
        let pictures = self.pictures.iter().map(Picture::bytes);
        texts.sum::<usize>() + pictures.sum::<usize>()
    }
}
