//! What a session has reached: texts, members, pictures. The phase it is in follows from them, so that members may be
//! dropped, and come back from files at different places.

use std::ops::Range;
use std::sync::Arc;

use lowtide_models::{Tensor, noise};

use crate::Result;
use crate::pipeline::z_image::ZImage;
use crate::request::{Image, TextToImage};

/// One text, however many members use it.
pub(crate) struct Text {
    pub(crate) ids: Vec<u32>,
    /// The text encoder's states, between encoding and refining.
    pub(crate) state: Option<Tensor>,
    /// The refined caption.
    pub(crate) caption: Option<Arc<Tensor>>,
}

/// One of the jobs that share the session.
pub(crate) struct Member {
    pub(crate) request: TextToImage,
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
    /// (C, h, w); made when denoising begins.
    pub(crate) latent: Option<Tensor>,
    /// Denoising steps done.
    pub(crate) steps: usize,
    /// A small look at it: 3 bytes a latent pixel; empty before the first step.
    pub(crate) sketch: Vec<u8>,
    pub(crate) image: Option<Image>,
    /// The picture in 0..1, where that was asked for.
    pub(crate) values: Vec<f32>,
}

/// All of it.
pub(crate) struct Work {
    pub(crate) texts: Vec<Text>,
    pub(crate) members: Vec<Member>,
    pub(crate) pictures: Vec<Picture>,
    /// Denoising steps of every picture.
    pub(crate) steps: usize,
}

impl Work {
    /// The beginning of all `members`: each request, and the token ids of its prompt and, with guidance, of its negative
    /// prompt.
    pub(crate) fn new(members: Vec<(TextToImage, Vec<Vec<u32>>)>) -> Work {
        let steps = members.first().map_or(0, |(request, _)| request.steps);
        let mut work = Work {
            texts: Vec::new(),
            members: Vec::new(),
            pictures: Vec::new(),
            steps,
        };
        for (request, prompts) in members {
            let mut texts = prompts
                .into_iter()
                .map(|ids| work.text(ids))
                .collect::<Vec<_>>()
                .into_iter();
            let positive = texts.next().expect("every member has a prompt");
            let first = work.pictures.len();
            for index in 0..request.count {
                work.pictures.push(Picture {
                    member: work.members.len(),
                    seed: request.seed.wrapping_add(index as u64),
                    latent: None,
                    steps: 0,
                    sketch: Vec::new(),
                    image: None,
                    values: Vec::new(),
                });
            }
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
    fn text(&mut self, ids: Vec<u32>) -> usize {
        let known = self.texts.iter().position(|text| text.ids == ids);
        known.unwrap_or_else(|| {
            self.texts.push(Text {
                ids,
                state: None,
                caption: None,
            });
            self.texts.len() - 1
        })
    }

    /// What every member agrees in: size, steps, guidance.
    pub(crate) fn settings(&self) -> &TextToImage {
        &self.members[0].request
    }

    pub(crate) fn wants(&self, picture: &Picture) -> bool {
        self.members[picture.member].wanted
    }

    fn wanted(&self) -> impl Iterator<Item = &Picture> {
        self.pictures.iter().filter(|picture| self.wants(picture))
    }

    /// Places of the wanted pictures that lack steps.
    pub(crate) fn unfinished(&self) -> Vec<usize> {
        let lacking =
            |&i: &usize| self.wants(&self.pictures[i]) && self.pictures[i].steps < self.steps;
        (0..self.pictures.len()).filter(lacking).collect()
    }

    /// The next picture to decode.
    pub(crate) fn undecoded(&self) -> Option<usize> {
        let lacking =
            |&i: &usize| self.wants(&self.pictures[i]) && self.pictures[i].image.is_none();
        (0..self.pictures.len()).find(lacking)
    }

    /// Places of the texts that denoising needs and that are no captions yet.
    pub(crate) fn uncaptioned(&self) -> Vec<usize> {
        let mut needed: Vec<usize> = self
            .unfinished()
            .into_iter()
            .flat_map(|i| self.members[self.pictures[i].member].texts())
            .filter(|&text| self.texts[text].caption.is_none())
            .collect();
        needed.sort_unstable();
        needed.dedup();
        needed
    }

    /// Texts that are not even encoded.
    pub(crate) fn unencoded(&self) -> Vec<usize> {
        let mut texts = self.uncaptioned();
        texts.retain(|&text| self.texts[text].state.is_none());
        texts
    }

    /// Denoising steps done, and in all.
    pub(crate) fn denoised(&self) -> (usize, usize) {
        let wanted = self.wanted().count();
        (
            self.wanted().map(|picture| picture.steps).sum(),
            wanted * self.steps,
        )
    }

    /// Pictures decoded, and in all.
    pub(crate) fn decoded(&self) -> (usize, usize) {
        let done = self
            .wanted()
            .filter(|picture| picture.image.is_some())
            .count();
        (done, self.wanted().count())
    }

    /// Draws the noise that denoising begins with, where it is not there yet.
    pub(crate) fn draw(&mut self, model: &ZImage, (h, w): (usize, usize)) -> Result<()> {
        let shape = [model.transformer_config.channels, h, w];
        let len: usize = shape.iter().product();
        for member in self.members.iter().filter(|member| member.wanted) {
            for i in member.pictures.clone() {
                let picture = &mut self.pictures[i];
                if picture.latent.is_some() {
                    continue;
                }
                let index = i - member.pictures.start;
                let latent = match &member.request.noise {
                    Some(given) => {
                        Tensor::from_slice(&shape, &given[index * len..(index + 1) * len])
                    }
                    None => Tensor::from_slice(&shape, &noise::randn(picture.seed, len)),
                };
                picture.latent = Some(latent.map_err(model.wrap("transformer"))?);
            }
        }
        Ok(())
    }

    /// Lets go of texts that nothing needs any more.
    pub(crate) fn forget_texts(&mut self) {
        let mut needed = vec![false; self.texts.len()];
        for i in self.unfinished() {
            for text in self.members[self.pictures[i].member].texts() {
                needed[text] = true;
            }
        }
        for (text, _) in self
            .texts
            .iter_mut()
            .zip(needed)
            .filter(|(_, needed)| !needed)
        {
            (text.state, text.caption) = (None, None);
        }
    }

    /// Nobody waits for `member` any more.
    pub(crate) fn drop_member(&mut self, member: usize) {
        let Some(dropped) = self.members.get_mut(member) else {
            return;
        };
        dropped.wanted = false;
        for picture in &mut self.pictures[dropped.pictures.clone()] {
            picture.latent = None;
            picture.sketch = Vec::new();
            picture.image = None;
            picture.values = Vec::new();
        }
        self.forget_texts();
    }

    /// Bytes of everything.
    pub(crate) fn bytes(&self) -> usize {
        let tensor = |tensor: &Tensor| size_of_val(tensor.data());
        let texts = self.texts.iter().map(|text| {
            text.state.as_ref().map_or(0, tensor) + text.caption.as_deref().map_or(0, tensor)
        });
        let pictures = self.pictures.iter().map(|picture| {
            picture.latent.as_ref().map_or(0, tensor)
                + picture.sketch.len()
                + picture.image.as_ref().map_or(0, |image| image.rgb.len())
                + size_of_val(&picture.values[..])
        });
        texts.sum::<usize>() + pictures.sum::<usize>()
    }
}
