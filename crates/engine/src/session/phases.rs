//! What a session does in each phase, and how it goes from one to the next.

use std::sync::Arc;

use lowtide_core::{Bytes, Offload, PhasePlan};
use lowtide_models::samplers::History;

use super::denoise::{self, Going, visits_left};
use super::work::Work;
use super::{Context, Session, pictures, rung};
use crate::Result;
use crate::device::ground;
use crate::pipeline::pictures::{image, unit};
use crate::pipeline::{Part, Phase, Running, SMALL_THINGS_BYTES};
use crate::stream::{self, Failure, Stream, Traffic};

impl Session {
    /// Begins a phase unless it was begun: freed buffers may be kept up to its predicted peak, and its own peak is
    /// measured.
    pub(super) fn enter(&mut self, phase: usize) {
        if self.entered == Some(phase) {
            return;
        }
        if self.entered.is_some() {
            self.leave();
        }
        self.entered = Some(phase);
        if matches!(self.context.planned.phases[phase], Phase::Decode(_)) {
            self.work.forget_texts();
        }
        self.context.enter(phase);
    }

    /// Ends the phase that was begun, whatever stream it had.
    pub(super) fn leave(&mut self) {
        let Some(phase) = self.entered.take() else {
            return;
        };
        if self.context.seat.owns() {
            self.context.note_peak(phase);
        }
        self.context.close(&mut self.stream, phase);
    }

    /// Others want to take up to `wanted` bytes beside this session until its end. Weights that no phase to come uses
    /// make way for them. Returns how many they may take, which is never less than the last time.
    pub fn cede(&mut self, wanted: Bytes) -> Bytes {
        let Some(next) = self.phase().filter(|_| !self.over) else {
            return self.context.ceded;
        };
        let context = &mut self.context;
        let phases = next..context.planned.phases.len();
        let needs = phases
            .map(|phase| context.planned.plan.phases[phase].peak + context.kept_for_later(phase));
        let needs = needs.max().unwrap_or_default();
        let room = context.planned.plan.budget.total.saturating_sub(needs);
        let ceded = wanted.min(room);
        if ceded > context.ceded {
            context.ceded = ceded;
            if let Some(phase) = self.entered.filter(|_| context.seat.owns()) {
                context.bound(phase);
            }
        }
        context.ceded
    }

    /// Whether weights that stay in the phase to come, or that has just begun, are still to be read.
    pub fn arriving(&self) -> bool {
        let Some(phase) = self.phase().filter(|_| !self.over) else {
            return false;
        };
        let context = &self.context;
        let Part { blocks, layout } = context.makings.model.part_of(context.planned.phases[phase]);
        let placement = &context.planned.plan.phases[phase].placement;
        let missing = |block: usize| placement.is_resident(block) && !blocks.is_kept(block);
        self.counted(phase).0 == 0 && (0..layout.blocks.len()).any(missing)
    }

    /// One step of `phase`.
    pub(super) fn advance(&mut self, phase: usize) -> Result<()> {
        let Session {
            context,
            work,
            going,
            stream,
            ..
        } = self;
        match context.planned.phases[phase] {
            Phase::Text(stage) => context.texts((phase, stage), stream, work),
            Phase::Picture(pass) => context.picture((phase, pass), stream, work),
            Phase::Denoise(pass) => context.denoise((phase, pass), stream, work, going),
            Phase::Decode(pass) => context.decode((phase, pass), stream, work),
        }
    }
}

impl Context {
    pub(super) fn enter(&self, phase: usize) {
        ground::trim();
        self.bound(phase);
        ground::reset_peak();
    }

    /// Makes room for what a phase will take and for what was ceded to others; freed buffers may be kept up to there.
    fn bound(&self, phase: usize) {
        let plan = &self.planned.plan.phases[phase];
        let others = match self.planned.habits.offload {
            // The plan has room for all of them.
            Offload::Never => Bytes::ZERO,
            Offload::Auto | Offload::Components | Offload::Stream => self.make_room(phase, plan),
        };
        // Small things are taken beside buffers, and need their room even when freed buffers fill the rest.
        let kept_most = plan.peak.0.saturating_sub(SMALL_THINGS_BYTES as u64);
        ground::set_cache_limit(Some(kept_most.saturating_add(others.0 + self.ceded.0)));
    }

    /// Forgets blocks that earlier phases kept until this phase fits beside the rest; returns how many bytes of other
    /// phases are still kept. The phase just over is needed again last, so it goes first.
    fn make_room(&self, phase: usize, plan: &PhasePlan) -> Bytes {
        let budget = self.planned.plan.budget;
        let own = plan.peak.saturating_sub(budget.in_use);
        let allowed = budget
            .total
            .saturating_sub(budget.in_use)
            .saturating_sub(own)
            .saturating_sub(self.ceded);
        let phases = self.planned.phases.len();
        let this = self.part(phase);
        let model = &self.makings.model;
        let other = |part: &Part| !std::ptr::eq(part, this);
        let others = || -> Bytes {
            let parts = model.parts().into_iter().filter(|part| other(part));
            stream::ours(parts.map(|part| &part.blocks)).bytes()
        };
        // Parts that this job does not use at all go first.
        let used = |part: &Part| (0..phases).any(|p| std::ptr::eq(self.part(p), part));
        let unused = model.parts().into_iter().filter(|part| !used(part));
        let by_need = (1..phases).map(|before| self.part((phase + phases - before) % phases));
        for part in unused.chain(by_need).filter(|part| other(part)) {
            if others() <= allowed {
                break;
            }
            // Blocks that others hold as well are not given back by forgetting them.
            let shared = part.blocks.shared(&model.ours());
            part.blocks.forget_unless(|block| shared[block]);
        }
        others()
    }

    /// Bytes kept in memory during `phase` that only phases after it use.
    fn kept_for_later(&self, phase: usize) -> Bytes {
        let this = self.part(phase);
        let mut later: Vec<&Part> = Vec::new();
        for after in phase + 1..self.planned.phases.len() {
            let part = self.part(after);
            let known = |known: &&Part| std::ptr::eq(*known, part);
            if !std::ptr::eq(part, this) && !later.iter().any(known) {
                later.push(part);
            }
        }
        stream::ours(later.into_iter().map(|part| &part.blocks)).bytes()
    }

    /// Ends a stream, and keeps or forgets what it held.
    fn close(&mut self, stream: &mut Option<Stream>, phase: usize) {
        let Some(stream) = stream.take() else { return };
        let Traffic {
            bytes_read,
            waited,
            reading,
        } = stream.traffic();
        self.bytes_read += bytes_read;
        *self.reading.entry(self.name(phase)).or_default() += reading.as_secs_f64();
        *self.waited.entry(self.name(phase)).or_default() += waited.as_secs_f64();
        if self.planned.habits.keeps() {
            stream.shelve();
        } else {
            drop(stream);
            self.part(phase).blocks.forget_unless(|_| false);
        }
    }

    pub(super) fn note_peak(&mut self, phase: usize) {
        let peak = self.peak.entry(self.name(phase)).or_default();
        *peak = (*peak).max(Bytes(ground::peak()));
    }

    /// What plans and reports call a phase.
    pub(super) fn name(&self, phase: usize) -> &'static str {
        self.planned.phases[phase].name(&*self.makings.model)
    }

    fn part(&self, phase: usize) -> &Part {
        self.makings.model.part_of(self.planned.phases[phase])
    }

    /// Starts the phase's stream unless it runs already.
    fn open<'s>(
        &'s self,
        stream: &'s mut Option<Stream>,
        phase: usize,
        visits: u64,
    ) -> Result<Running<'s>> {
        let plan = &self.planned.plan.phases[phase];
        if stream.is_none() {
            let blocks = self.part(phase).blocks.clone();
            let started = Stream::start(blocks, plan, visits).map_err(|failure| match failure {
                Failure::Memory(refused) => lowtide_models::Error::OutOfMemory(refused),
                other => lowtide_models::Error::Source(Box::new(other)),
            });
            let model = &*self.makings.model;
            let component = self.planned.phases[phase].component(model);
            let adapters = self.planned.active.as_ref();
            let adapters = adapters.and_then(|active| active.component(component));
            let started = started.map_err(model.wrap(component))?;
            *stream = Some(started.with_adapters(adapters));
        }
        Ok(Running {
            compute: self.makings.compute,
            plan,
            source: stream.as_mut().expect("just opened"),
        })
    }

    fn texts(
        &self,
        (phase, stage): (usize, usize),
        stream: &mut Option<Stream>,
        work: &mut Work,
    ) -> Result<()> {
        let running = self.open(stream, phase, 1)?;
        let last = work.is_last_stage(stage);
        let mut texts = work.texts_before(stage);
        self.makings.model.encode(stage, running, &mut texts)?;
        for text in texts {
            text.stages = stage + 1;
            if last {
                let caption = Arc::new(std::mem::take(&mut text.made));
                self.makings.prompts.put(&text.key, &caption);
                text.caption = Some(caption);
            }
        }
        Ok(())
    }

    fn picture(
        &self,
        (phase, pass): (usize, usize),
        stream: &mut Option<Stream>,
        work: &mut Work,
    ) -> Result<()> {
        let waiting = work.waiting(Phase::Picture(pass));
        let inpaints = self.makings.model.inpaints();
        let visits = pictures::visits(work, pass, &waiting, inpaints);
        let running = self.open(stream, phase, visits)?;
        let about = (&*self.makings.model, &self.planned.courses[pass]);
        pictures::begin(about, (work, pass), waiting[0], running)
    }

    fn denoise(
        &self,
        (phase, pass): (usize, usize),
        stream: &mut Option<Stream>,
        work: &mut Work,
        going: &mut Option<Going>,
    ) -> Result<()> {
        let (model, shape) = (&*self.makings.model, &self.planned.shape);
        denoise::begin(model, &self.planned.courses[pass], work, pass)?;
        let batch = rung(&self.planned.plan.phases[phase], "batch");
        let visits = visits_left(work, going.as_ref(), pass, batch);
        let running = self.open(stream, phase, visits)?;
        let now = match going.take() {
            Some(going) => going,
            None => Going::begin(model, work, shape, (pass, batch))?,
        };
        now.step(model, &self.planned.courses[pass], work, running)?;
        *going = Some(now).filter(|going| going.goes_on(work));
        Ok(())
    }

    fn decode(
        &self,
        (phase, pass): (usize, usize),
        stream: &mut Option<Stream>,
        work: &mut Work,
    ) -> Result<()> {
        let waiting = work.waiting(Phase::Decode(pass));
        let running = self.open(stream, phase, waiting.len() as u64)?;
        let model = &*self.makings.model;
        let picture = &mut work.pictures[waiting[0]];
        let latent = picture.latent.as_ref().expect("denoised before");
        let decoded = model.vae().decode(running, latent, model.wrap("vae"))?;
        let decoded_image = image(&decoded, picture.seed);
        if pass + 1 < work.passes.len() {
            let noise_of = work.members[picture.member].request.noise_of;
            let (width, height) = (decoded_image.width as u32, decoded_image.height as u32);
            let between = lowtide_media::Picture::new(width, height, decoded_image.rgb)?;
            picture.between = Some(between);
            picture.next_pass(noise_of);
            return Ok(());
        }
        picture.image = Some(decoded_image);
        picture.sketch = Vec::new();
        (picture.given, picture.noise, picture.beside) = (None, None, None);
        picture.history = History::new();
        if self.planned.shape.keep_values {
            picture.values = decoded.data().iter().map(|&x| unit(x)).collect();
        }
        Ok(())
    }
}
