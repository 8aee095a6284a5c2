//! The denoising loop: rounds of pictures, steps of the schedule.

use std::collections::BTreeMap;

use lowtide_models::Tensor;
use lowtide_models::resample::{Resampling, resample};
use lowtide_models::samplers::Noise;

use crate::Result;
use crate::course::Course;
use crate::pipeline::{Call, Origin, Phase, Pipeline, Round, Running, Seen, Shape};
use crate::request::{Stretch, Upscaler};
use crate::session::work::{Picture, TextKey, Work};

/// Pictures that go through a pass together. They have the same number of steps behind them.
pub(crate) struct Going {
    pass: usize,
    /// Their places.
    pictures: Vec<usize>,
    round: Box<dyn Round>,
}

impl Going {
    /// The next round of at most `batch` pictures: those that have come farthest go first, so that what was interrupted
    /// is finished before anything is begun.
    pub(crate) fn begin(
        model: &dyn Pipeline,
        work: &Work,
        shape: &Shape,
        (pass, batch): (usize, usize),
    ) -> Result<Going> {
        let unfinished = work.waiting(Phase::Denoise(pass));
        let farthest = unfinished
            .iter()
            .map(|&i| work.pictures[i].steps)
            .max()
            .unwrap_or(0);
        let pictures: Vec<usize> = unfinished
            .into_iter()
            .filter(|&i| work.pictures[i].steps == farthest)
            .take(batch)
            .collect();
        let key = |text: usize| &work.texts[text].key;
        let texts: Vec<(&TextKey, Option<&TextKey>)> = pictures
            .iter()
            .map(|&i| &work.members[work.pictures[i].member])
            .map(|member| (key(member.positive), member.negative.map(key)))
            .collect();
        let round = model.round(shape, pass, &texts, work.settings())?;
        Ok(Going {
            pass,
            pictures,
            round,
        })
    }

    /// Whether all its pictures are wanted and lack steps of the pass.
    pub(crate) fn goes_on(&self, work: &Work) -> bool {
        self.pictures.iter().all(|&i| {
            let picture = &work.pictures[i];
            let lacks = picture.steps < work.passes[self.pass].evaluations;
            work.wants(picture) && picture.pass == self.pass && lacks
        })
    }

    /// One step of all its pictures.
    pub(crate) fn step(
        &self,
        model: &dyn Pipeline,
        course: &Course,
        work: &mut Work,
        running: Running<'_>,
    ) -> Result<()> {
        let at = work.pictures[self.pictures[0]].steps;
        let (time, scale) = course.time(at);
        let pass = &work.passes[self.pass];
        let call = Call {
            request: work.settings(),
            time,
            scale,
            pictures: self.pictures.iter().map(|&i| seen(work, i)).collect(),
            size: (pass.width, pass.height),
        };
        let outputs = self.round.predict(running, &call)?;
        for (&i, output) in self.pictures.iter().zip(&outputs) {
            let mask = work.mask(&work.pictures[i]);
            move_on(model, course, (&mut work.pictures[i], mask), output)?;
        }
        Ok(())
    }
}

/// Moves one picture on by what the network said. When memory is refused, the picture is as it was.
fn move_on(
    model: &dyn Pipeline,
    course: &Course,
    (picture, mask): (&mut Picture, Option<Vec<f32>>),
    output: &Tensor,
) -> Result<()> {
    let at = picture.steps;
    let wrap = model.wrap("scheduler");
    let latent = picture.latent.as_mut().expect("made before");
    let ahead = course.ahead(at, latent, output).map_err(&wrap)?;
    let noise = match course.noise(at) {
        Noise::None => None,
        Noise::Normal => Some(picture.generator.normal(latent.data().len())),
        Noise::Brownian { from, to } => {
            let between = course
                .path(picture.seed)
                .normal(from, to, latent.data().len());
            Some(between.map_err(&wrap)?.data().to_vec())
        }
    };
    let moved = course.step(at, (latent, &mut picture.history), output, noise.as_deref());
    if moved.is_err() && course.noise(at) == Noise::Normal {
        picture.generator.undo();
    }
    moved.map_err(&wrap)?;
    if let (Some(mask), Some(given), Some(noise)) = (mask, &picture.given, &picture.noise) {
        let mut kept = vec![0.0; given.data().len()];
        let kept_at = course.noise_at(at, (given, noise), &mut kept);
        kept_at.map_err(&wrap)?;
        let plane = mask.len();
        for (k, x) in latent.data_mut().iter_mut().enumerate() {
            let mask = mask[k % plane];
            *x = (1.0 - mask) * kept[k] + mask * *x;
        }
    }
    picture.sketch = model.sketcher().sketch(latent.shape(), |k| ahead[k]);
    picture.steps += 1;
    Ok(())
}

/// A picture whose pass ended with latents goes on to the next one.
fn pass_on(model: &dyn Pipeline, work: &mut Work, picture: usize) -> Result<()> {
    let noise_of = work.settings().noise_of;
    let Work {
        pictures, passes, ..
    } = work;
    let picture = &mut pictures[picture];
    let next = &passes[picture.pass + 1];
    let Origin::Latents(upscaler) = next.origin else {
        return Ok(());
    };
    let latent = picture.latent.as_ref().expect("made before");
    let method = match upscaler {
        Upscaler::LatentNearest => Resampling::NearestExact,
        Upscaler::Latent | Upscaler::Lanczos => Resampling::Bilinear { antialias: false },
    };
    let larger =
        resample(latent, next.latent.0, next.latent.1, method).map_err(model.wrap("latents"))?;
    picture.next_pass(noise_of);
    picture.given = Some(larger);
    Ok(())
}

/// What the network sees of a picture.
fn seen(work: &Work, picture: usize) -> Seen<'_> {
    let picture = &work.pictures[picture];
    let member = &work.members[picture.member];
    let caption = |text: usize| {
        let caption = work.texts[text].caption.as_deref();
        caption.expect("texts come before pictures")
    };
    Seen {
        latent: picture.latent.as_ref().expect("made before"),
        beside: picture.beside.as_ref(),
        positive: caption(member.positive),
        negative: member.negative.map(caption),
    }
}

/// Makes the latents that a pass begins with, of pictures that have none yet.
pub(crate) fn begin(
    model: &dyn Pipeline,
    course: &Course,
    work: &mut Work,
    pass: usize,
) -> Result<()> {
    let shape = model.latent_shape(&work.passes[pass]);
    for i in work.waiting(Phase::Denoise(pass)) {
        if work.pictures[i].pass < pass {
            pass_on(model, work, i)?;
        }
        let Work {
            pictures, members, ..
        } = work;
        let picture = &mut pictures[i];
        if picture.latent.is_some() {
            continue;
        }
        let member = &members[picture.member];
        let given = member.request.noise.as_deref().filter(|_| pass == 0);
        let noise = noise(picture, i - member.pictures.start, given, &shape);
        let mut noise = noise.map_err(model.wrap("latents"))?;
        picture.latent = Some(match picture.given.take() {
            // What another model ended with is as noisy as it should be.
            None if matches!(member.request.part, Some(Stretch::After(_))) => noise,
            None => {
                course.begin(&mut noise);
                noise
            }
            Some(mut latent) => {
                let added = course.add_noise(&mut latent, &noise);
                added.map_err(model.wrap("scheduler"))?;
                latent
            }
        });
    }
    Ok(())
}

/// The noise picture `index` of its job begins with: given, or drawn.
pub(crate) fn noise(
    picture: &mut Picture,
    index: usize,
    given: Option<&[f32]>,
    shape: &[usize],
) -> lowtide_models::Result<Tensor> {
    let len: usize = shape.iter().product();
    match given {
        Some(given) => Tensor::from_slice(shape, &given[index * len..(index + 1) * len]),
        None => Tensor::from_slice(shape, &picture.generator.normal(len)),
    }
}

/// Visits of the blocks that are still to come in `pass` when rounds begun from now on have `batch` pictures.
pub(crate) fn visits_left(work: &Work, going: Option<&Going>, pass: usize, batch: usize) -> u64 {
    let evaluations = work.passes[pass].evaluations;
    let mut waiting: BTreeMap<usize, usize> = BTreeMap::new();
    for i in work.waiting(Phase::Denoise(pass)) {
        *waiting.entry(work.pictures[i].steps).or_default() += 1;
    }
    let mut visits = 0;
    if let Some(going) = going.filter(|going| going.pass == pass) {
        let steps = work.pictures[going.pictures[0]].steps;
        if let Some(count) = waiting.get_mut(&steps) {
            *count -= going.pictures.len().min(*count);
        }
        visits += evaluations - steps;
    }
    for (steps, count) in waiting {
        visits += count.div_ceil(batch.max(1)) * (evaluations - steps);
    }
    visits as u64
}
