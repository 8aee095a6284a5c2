//! The denoising loop: rounds of pictures, steps of the schedule.

use std::collections::BTreeMap;

use lowtide_models::{Compute, Tensor};

use crate::Result;
use crate::course::Course;
use crate::pipeline::{Call, Phase, Pipeline, Round, Running, Seen, Shape};
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
            let picture = &mut work.pictures[i];
            let latent = picture.latent.as_mut().expect("made before");
            let ahead = |k: usize| course.ahead(at, latent, output, k);
            picture.sketch = model.sketcher().sketch(latent.shape(), ahead);
            course.step(at, latent, output);
            picture.steps += 1;
        }
        Ok(())
    }
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
        beside: None,
        positive: caption(member.positive),
        negative: member.negative.map(caption),
    }
}

/// Makes the latents that a pass begins with, of pictures that have none yet.
pub(crate) fn begin(
    model: &dyn Pipeline,
    work: &mut Work,
    pass: usize,
    compute: Compute,
) -> Result<()> {
    let _ = compute;
    let (h, w) = work.passes[pass].latent;
    let shape = [model.vae().config.latent_channels, h, w];
    for i in work.waiting(Phase::Denoise(pass)) {
        let Work {
            pictures, members, ..
        } = work;
        let picture = &mut pictures[i];
        if picture.latent.is_some() {
            continue;
        }
        let member = &members[picture.member];
        let latent = noise(
            picture,
            i - member.pictures.start,
            &member.request.noise,
            &shape,
        );
        picture.latent = Some(latent.map_err(model.wrap("latents"))?);
    }
    Ok(())
}

/// The noise picture `index` of its job begins with: given, or drawn.
fn noise(
    picture: &mut Picture,
    index: usize,
    given: &Option<Vec<f32>>,
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
