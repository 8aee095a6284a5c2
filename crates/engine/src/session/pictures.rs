//! Encodes the pictures that a pass begins from, and adds the noise it begins with.

use lowtide_media::{Filter, Mask};
use lowtide_models::Tensor;
use lowtide_models::autoencoder_kl::Moments;

use super::denoise::noise;
use super::work::{Picture, Work};
use crate::Result;
use crate::course::Course;
use crate::pipeline::pictures::tensor;
use crate::pipeline::{Origin, Pipeline, Running};
use crate::request::Source;

/// Calls of the encoder that are still to come in `pass`.
pub(super) fn visits(work: &Work, pass: usize, waiting: &[usize], inpaints: bool) -> u64 {
    if work.passes[pass].origin == Origin::Picture {
        return waiting.len() as u64;
    }
    let mut members: Vec<usize> = waiting.iter().map(|&i| work.pictures[i].member).collect();
    members.dedup();
    let masked = |&member: &usize| {
        let source = work.members[member].request.source.as_ref();
        source.is_some_and(|source| inpaints && source.mask.is_some())
    };
    let masked = members.iter().filter(|member| masked(member)).count();
    let plain = match needs_whole(work, inpaints) {
        true => members.len(),
        false => 0,
    };
    (plain + masked) as u64
}

/// Whether the picture itself is encoded: not where all of it is drawn anew beside what the mask leaves.
fn needs_whole(work: &Work, inpaints: bool) -> bool {
    let request = work.settings();
    let masked = request
        .source
        .as_ref()
        .is_some_and(|source| source.mask.is_some());
    !(inpaints && masked && request.strength >= 1.0)
}

/// Makes the first latents of picture `first`, and of the others of its job, which begin from the same picture.
pub(super) fn begin(
    (model, course): (&dyn Pipeline, &Course),
    (work, pass): (&mut Work, usize),
    first: usize,
    running: Running<'_>,
) -> Result<()> {
    match work.passes[pass].origin {
        Origin::Given => begin_given((model, course), (work, pass), first, running),
        _ => begin_enlarged((model, course), (work, pass), first, running),
    }
}

/// From the picture of the pass before.
fn begin_enlarged(
    (model, course): (&dyn Pipeline, &Course),
    (work, pass): (&mut Work, usize),
    at: usize,
    running: Running<'_>,
) -> Result<()> {
    let size = &work.passes[pass];
    let shape = model.latent_shape(size);
    let picture = &mut work.pictures[at];
    let before = picture.between.as_ref().expect("decoded before");
    let larger = before.resized(size.width as u32, size.height as u32, Filter::Lanczos);
    let wrap = model.wrap("vae");
    let moments = {
        let pixels = tensor(&larger, None).map_err(&wrap)?;
        model.vae().encode(running, &pixels, &wrap)?
    };
    let start = Start {
        course,
        shape,
        whole: Some(&moments),
        masked: None,
        mask: None,
        keep: false,
        fresh: false,
    };
    start.begin(picture, (0, None)).map_err(wrap)?;
    picture.between = None;
    Ok(())
}

/// From a picture that was given.
fn begin_given(
    (model, course): (&dyn Pipeline, &Course),
    (work, pass): (&mut Work, usize),
    first: usize,
    running: Running<'_>,
) -> Result<()> {
    let (inpaints, size) = (model.inpaints(), &work.passes[pass]);
    let shape = model.latent_shape(size);
    let member = work.pictures[first].member;
    let request = work.members[member].request.clone();
    let source: &Source = request.source.as_deref().expect("the pass has one");
    let wrap = model.wrap("vae");
    let Running {
        compute,
        plan,
        source: weights,
    } = running;
    let mut encode = |mask: Option<&Mask>| {
        let pixels = tensor(&source.picture, mask).map_err(&wrap)?;
        let running = Running {
            compute,
            plan,
            source: &mut *weights,
        };
        model.vae().encode(running, &pixels, &wrap)
    };
    let whole = needs_whole(work, inpaints)
        .then(|| encode(None))
        .transpose()?;
    let masked = source.mask.as_ref().filter(|_| inpaints);
    let masked = masked.map(|mask| encode(Some(mask))).transpose()?;
    let mask = work.mask(&work.pictures[first]);
    let start = Start {
        course,
        shape,
        whole: whole.as_ref(),
        masked: masked.as_ref(),
        keep: mask.is_some() && !inpaints,
        fresh: mask.is_some() && request.strength >= 1.0,
        mask: mask.as_deref(),
    };
    let range = work.members[member].pictures.clone();
    for (index, picture) in work.pictures[range].iter_mut().enumerate() {
        if picture.latent.is_none() && picture.pass == pass {
            let given = request.noise.as_deref();
            start.begin(picture, (index, given)).map_err(&wrap)?;
        }
    }
    Ok(())
}

/// What the pictures of a job begin from.
struct Start<'a> {
    course: &'a Course,
    /// Of the latents.
    shape: [usize; 3],
    /// The given picture.
    whole: Option<&'a Moments>,
    /// What the mask leaves of it, for a network that reads that.
    masked: Option<&'a Moments>,
    /// Where it changes, by latent pixel.
    mask: Option<&'a [f32]>,
    /// Whether the latents of the given picture are put back after every step.
    keep: bool,
    /// Whether the way begins from noise alone.
    fresh: bool,
}

impl Start<'_> {
    /// The first latents of a picture: it draws for the given picture, for its noise, and for what the mask leaves, in
    /// this order.
    fn begin(
        &self,
        picture: &mut Picture,
        (index, noise_given): (usize, Option<&[f32]>),
    ) -> lowtide_models::Result<()> {
        let len: usize = self.shape.iter().product();
        let draw =
            |picture: &mut Picture| Tensor::from_slice(&self.shape, &picture.generator.normal(len));
        let drawn = picture.generator.drawn().clone();
        let mut made = || {
            let given = match self.whole {
                Some(moments) => Some(moments.sample(&draw(picture)?)?),
                None => None,
            };
            let mut noise = noise(picture, index, noise_given, &self.shape)?;
            let kept_noise = self.keep.then(|| noise.duplicate()).transpose()?;
            // The reference draws for this one even where nothing reads it.
            let beside = match (self.mask, self.masked) {
                (Some(_), None) => {
                    picture.generator.normal(len);
                    None
                }
                (Some(mask), Some(moments)) => {
                    Some(beside(mask, &moments.sample(&draw(picture)?)?)?)
                }
                (None, _) => None,
            };
            let (latent, given) = match given {
                Some(given) if !self.fresh => {
                    let mut latent = given.duplicate()?;
                    self.course.add_noise(&mut latent, &noise)?;
                    (latent, Some(given))
                }
                given => {
                    self.course.begin(&mut noise);
                    (noise, given)
                }
            };
            picture.latent = Some(latent);
            picture.given = given.filter(|_| self.keep);
            (picture.noise, picture.beside) = (kept_noise, beside);
            Ok(())
        };
        let made = made();
        if made.is_err() {
            picture.generator.rewind(drawn);
        }
        made
    }
}

/// Mask (1, h, w) and latents (C, h, w), one after the other.
fn beside(mask: &[f32], latents: &Tensor) -> lowtide_models::Result<Tensor> {
    let (channels, h, w) = latents.dims3()?;
    let mut beside = Tensor::new(&[channels + 1, h, w])?;
    let (first, rest) = beside.data_mut().split_at_mut(h * w);
    first.copy_from_slice(mask);
    rest.copy_from_slice(latents.data());
    Ok(beside)
}
