//! Jobs in progress: a step machine that can be looked at, and dropped, between any two steps.
//!
//! A stage of the texts is one step, `denoise` one a step of the schedule, `decode` one a picture. A step leaves
//! the state as it was when it fails, so that it can be tried again on a lower rung. The jobs of a session go through
//! it together; what each has reached is in [`work`], and decides which phase comes next.

mod denoise;
mod phases;
mod pictures;
mod saved;
pub(crate) mod sketch;
pub(crate) mod work;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use lowtide_core::{Budget, Bytes, DeviceProfile, PhasePlan};
use lowtide_kernels::memory;
use lowtide_models::Compute;

use crate::device::ground;
use crate::device::limits::Seat;
use crate::job::{self, Job, Planned, less, replan, still_shared};
use crate::pipeline::Pipeline;
use crate::prompt_cache::PromptCache;
use crate::request::{Outcome, Progress, Report, Sketch, Step};
use crate::session::denoise::Going;
pub(crate) use crate::session::saved::Saved;
use crate::session::work::Work;
use crate::stream::Stream;
use crate::{Error, Result};

/// Others may take this much more than the plan knew of before it is made anew.
const OTHERS_SLACK: Bytes = Bytes::mib(1);

/// A measured speed beyond this factor of the predicted one, either way, says more about the machine's load than about
/// the steps to come.
const SPEED_FACTOR_MAX: f64 = 20.0;

/// One or several jobs in progress.
pub struct Session {
    context: Context,
    work: Work,
    going: Option<Going>,
    stream: Option<Stream>,
    /// The phase in which the stream was started, the peak is measured, and kept buffers are bounded.
    entered: Option<usize>,
    over: bool,
}

/// What a session is made with.
pub(crate) struct Makings {
    pub(crate) model: Arc<dyn Pipeline>,
    pub(crate) compute: Compute,
    pub(crate) profile: DeviceProfile,
    pub(crate) prompts: Arc<PromptCache>,
    /// What is left to others of the device's memory.
    pub(crate) reserve: Bytes,
}

/// Everything about a session that does not change from step to step, and the report that grows.
struct Context {
    makings: Makings,
    planned: Planned,
    seat: Seat,
    seconds: BTreeMap<&'static str, f64>,
    waited: BTreeMap<&'static str, f64>,
    reading: BTreeMap<&'static str, f64>,
    /// Bytes that others may take beside the plan.
    ceded: Bytes,
    peak: BTreeMap<&'static str, Bytes>,
    bytes_read: u64,
    rungs_taken: usize,
    prompts_cached: usize,
    /// What the plan said about the steps done.
    predicted_s: f64,
}

impl Context {
    /// Forgets weights that are kept for other phases; returns their bytes.
    fn forget_beside(&self, phase: usize) -> Bytes {
        let model = &self.makings.model;
        let own = model.part_of(self.planned.phases[phase]);
        let mut forgotten = Bytes::ZERO;
        for part in model.parts() {
            if !std::ptr::eq(part, own) {
                forgotten += part.blocks.kept();
                part.blocks.forget_unless(|_| false);
            }
        }
        forgotten
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.park();
        if !self.context.planned.habits.reuse {
            for part in self.context.makings.model.parts() {
                part.blocks.forget_unless(|_| false);
            }
        }
    }
}

impl Session {
    pub(crate) fn new(makings: Makings, job: Job) -> Session {
        let Job { work, planned } = job;
        let context = Context {
            makings,
            planned,
            seat: Seat::take_of_pipeline(),
            seconds: BTreeMap::new(),
            waited: BTreeMap::new(),
            reading: BTreeMap::new(),
            ceded: Bytes::ZERO,
            peak: BTreeMap::new(),
            bytes_read: 0,
            rungs_taken: 0,
            prompts_cached: 0,
            predicted_s: 0.0,
        };
        context.seat.own(context.planned.plan.budget.total);
        let mut session = Session {
            context,
            work,
            going: None,
            stream: None,
            entered: None,
            over: false,
        };
        session.take_cached_prompts();
        session
    }

    fn take_cached_prompts(&mut self) {
        for text in self.work.uncaptioned() {
            let text = &mut self.work.texts[text];
            text.caption = self.context.makings.prompts.get(&text.key);
            self.context.prompts_cached += usize::from(text.caption.is_some());
        }
    }

    /// Gives the weights back and keeps what the jobs have reached: a few tensors. The next [`Session::step`] goes on
    /// from there, to the same bytes.
    pub fn park(&mut self) {
        self.leave();
        // Whoever took what was ceded has given it back by now, or counts among others from here on.
        self.context.ceded = Bytes::ZERO;
        ground::trim();
    }

    /// The plan in force. It changes only when memory was refused unexpectedly and a rung was taken, or when others
    /// took memory while the session was parked.
    pub fn plan(&self) -> &lowtide_core::Plan {
        &self.context.planned.plan
    }

    /// Rungs taken after memory was refused.
    pub fn rungs_taken(&self) -> usize {
        self.context.rungs_taken
    }

    /// Does one step.
    ///
    /// # Errors
    /// After an error the session is over.
    pub fn step(&mut self) -> Result<Step> {
        if self.over {
            return Err(Error::request("session", "is over"));
        }
        self.come_back();
        let start = Instant::now();
        let Some(phase) = self.phase() else {
            // All members were dropped.
            return Ok(Step::Finished(Box::new(self.finish())));
        };
        self.give_way(phase);
        self.enter(phase);
        let before = self.counted(phase);
        loop {
            match self.advance(phase) {
                Ok(()) => break,
                Err(error) => match out_of_memory(&error) {
                    Some(refused) => self.take_rung(phase, refused)?,
                    None => {
                        self.over = true;
                        return Err(error);
                    }
                },
            }
        }
        let elapsed = start.elapsed();
        let (done, total) = self.counted(phase);
        let share = (done - before.0.min(done)) as f64 / total.max(1) as f64;
        self.context.predicted_s += share * self.context.planned.plan.phases[phase].seconds;
        *self
            .context
            .seconds
            .entry(self.context.name(phase))
            .or_default() += elapsed.as_secs_f64();
        self.context.note_peak(phase);
        if self.phase().is_none() {
            return Ok(Step::Finished(Box::new(self.finish())));
        }
        let memory = Bytes(ground::live());
        Ok(Step::Progress(Progress {
            phase: self.context.name(phase),
            done,
            total,
            elapsed,
            memory,
        }))
    }

    /// The phase of the next step; `None` when there is nothing left to do.
    fn phase(&self) -> Option<usize> {
        let next = self.work.next()?;
        let phases = &self.context.planned.phases;
        let place = phases.iter().position(|phase| *phase == next);
        Some(place.expect("work asks for phases of its passes"))
    }

    /// Units of a phase that are done, and in all.
    fn counted(&self, phase: usize) -> (usize, usize) {
        self.work.counted(self.context.planned.phases[phase])
    }

    /// Takes the limits over where another session had them; what that one still holds may call for another plan.
    fn come_back(&mut self) {
        if self.context.seat.owns() {
            return;
        }
        let total = self.context.planned.plan.budget.total;
        self.context.seat.own(total);
        if self.stream.is_none() {
            self.refit();
        }
        if let Some(phase) = self.entered {
            self.context.enter(phase);
        }
    }

    /// Plans the phases to come anew when others hold more than the plan knew of. Where nothing fits any more the plan
    /// stays, and rungs are taken when memory is refused.
    fn refit(&mut self) {
        let context = &mut self.context;
        let own = context.makings.model.ours().bytes() + Bytes::from(self.work.bytes());
        let not_others = Bytes(ground::scratch_allocated()) + own;
        let in_use = Bytes(ground::live()).saturating_sub(not_others);
        let known = context.planned.plan.budget;
        if in_use <= known.in_use + OTHERS_SLACK {
            return;
        }
        let budget = Budget { in_use, ..known };
        let shared = job::shared(&*context.makings.model, &context.planned.shape);
        let phases: Result<Vec<PhasePlan>> = (0..context.planned.phases.len())
            .map(|phase| {
                replan(
                    &*context.makings.model,
                    &context.planned,
                    &context.makings.profile,
                    phase,
                    (budget, &shared),
                )
            })
            .collect();
        if let Ok(phases) = phases {
            let plan = &mut context.planned.plan;
            plan.budget = budget;
            plan.peak = phases
                .iter()
                .map(|phase| phase.peak)
                .max()
                .unwrap_or(plan.peak);
            plan.phases = phases;
            context.planned.shared = shared;
            self.going = None;
        }
    }

    /// Where others on the device lack memory, goes on with less of it: weights that are kept for other phases go first, then
    /// a rung is taken that leaves all they lack, or else half of that, or a quarter. Where no plan needs so little it stays as
    /// it is, and they have to wait.
    fn give_way(&mut self, phase: usize) {
        let context = &mut self.context;
        let makings = &context.makings;
        let peak = context.planned.plan.phases[phase].peak;
        let held = Bytes(ground::live());
        if ground::lacking(makings.reserve, peak.max(held), false) == Bytes::ZERO {
            return;
        }
        context.forget_beside(phase);
        ground::trim();
        let lacking = ground::lacking(makings.reserve, peak, false);
        if lacking == Bytes::ZERO {
            return;
        }
        let shared = still_shared(&*makings.model, &context.planned);
        let rung = [1, 2, 4].into_iter().find_map(|part| {
            let total = peak.saturating_sub(Bytes(lacking.0.div_ceil(part)));
            let budget = less(context.planned.plan.budget, total);
            let planned = &context.planned;
            let (model, profile) = (&*makings.model, &makings.profile);
            replan(model, planned, profile, phase, (budget, &shared)).ok()
        });
        let Some(rung) = rung.filter(|rung| rung.peak < peak) else {
            return;
        };
        context.rungs_taken += 1;
        context.planned.plan.phases[phase] = rung;
        self.leave();
        ground::trim();
        // The budget stays: a phase to come may need more than this one, and is looked at when its turn has come.
        self.going = None;
    }

    /// After a refusal that the plan did not foresee: the next rung below the one that failed.
    fn take_rung(&mut self, phase: usize, refused: memory::OutOfMemory) -> Result<()> {
        self.leave();
        let context = &mut self.context;
        // Weights that wait for other phases go first, where there are any: the plan may do without them.
        let forgotten = context.forget_beside(phase);
        ground::trim();
        if forgotten > Bytes::ZERO {
            self.enter(phase);
            return Ok(());
        }
        let failed = &context.planned.plan.phases[phase];
        let budget = less(
            context.planned.plan.budget,
            Bytes(failed.peak.0.saturating_sub(1)),
        );
        let shared = still_shared(&*context.makings.model, &context.planned);
        match replan(
            &*context.makings.model,
            &context.planned,
            &context.makings.profile,
            phase,
            (budget, &shared),
        ) {
            Ok(rung) => {
                context.rungs_taken += 1;
                context.planned.plan.phases[phase] = rung;
                self.going = None;
                self.enter(phase);
                Ok(())
            }
            Err(error) => {
                self.over = true;
                Err(match error {
                    Error::DoesNotFit(_) => Error::OutOfMemory {
                        phase: context.name(phase),
                        source: refused,
                    },
                    other => other,
                })
            }
        }
    }

    /// Nobody waits for `member` any more: no work is done for it from the next step on.
    pub fn drop_member(&mut self, member: usize) {
        self.work.drop_member(member);
        if self
            .going
            .as_ref()
            .is_some_and(|going| !going.goes_on(&self.work))
        {
            self.going = None;
        }
    }

    /// What `member` looks like so far: its first picture, decoded or as a sketch of the latent. `None` before the first
    /// denoising step.
    pub fn sketch(&self, member: usize) -> Option<Sketch<'_>> {
        let member = self
            .work
            .members
            .get(member)
            .filter(|member| member.wanted)?;
        let picture = &self.work.pictures[member.pictures.start];
        if let Some(image) = &picture.image {
            return Some(Sketch {
                width: image.width,
                height: image.height,
                rgb: &image.rgb,
            });
        }
        let (height, width) = self.work.passes[picture.pass].latent;
        let rgb = &picture.sketch[..];
        (rgb.len() == 3 * height * width).then_some(Sketch { width, height, rgb })
    }

    /// Predicted seconds that remain, corrected by what the steps so far took.
    pub fn remaining_s(&self) -> f64 {
        let Some(next) = self.phase() else {
            return 0.0;
        };
        let left = |phase: usize| {
            let (done, total) = self.counted(phase);
            let share = 1.0 - done as f64 / total.max(1) as f64;
            share * self.context.planned.plan.phases[phase].seconds
        };
        let predicted: f64 = (next..self.plan().phases.len()).map(left).sum();
        let measured: f64 = self.context.seconds.values().sum();
        let speed = match self.context.predicted_s > 0.0 {
            true => measured / self.context.predicted_s,
            false => 1.0,
        };
        predicted * speed.clamp(1.0 / SPEED_FACTOR_MAX, SPEED_FACTOR_MAX)
    }

    /// Bytes it holds between two steps, the model's weights not included; it keeps them while it is parked.
    pub fn holds(&self) -> Bytes {
        Bytes::from(self.work.bytes())
    }

    /// Predicted peak of what is to come, above what others use, weights included.
    pub fn peak(&self) -> Bytes {
        let plan = self.plan();
        let last = plan.phases.len() - 1;
        let peaks = plan.phases[self.phase().unwrap_or(last)..].iter();
        let most = peaks.map(|phase| phase.peak).max().unwrap_or_default();
        most.saturating_sub(plan.budget.in_use)
    }

    fn finish(&mut self) -> Outcome {
        self.leave();
        self.over = true;
        let context = &self.context;
        let (h, w) = context.planned.shape.last().latent;
        let pictures = std::mem::take(&mut self.work.pictures);
        let wanted = |i: usize| self.work.members[i].wanted;
        let (mut images, mut latents, mut values) = (Vec::new(), Vec::new(), Vec::new());
        let mut members = Vec::new();
        for (i, member) in self.work.members.iter().enumerate() {
            let first = members
                .iter()
                .flatten()
                .map(|range: &std::ops::Range<usize>| range.end)
                .max();
            let first = first.unwrap_or(0);
            members.push(wanted(i).then(|| first..first + member.pictures.len()));
        }
        for picture in pictures
            .into_iter()
            .filter(|picture| wanted(picture.member))
        {
            images.extend(picture.image);
            if context.planned.shape.keep_values {
                values.extend(picture.values);
                latents.extend(
                    picture
                        .latent
                        .iter()
                        .flat_map(|latent| latent.data())
                        .copied(),
                );
            }
        }
        let channels = context.makings.model.vae().config.latent_channels;
        Outcome {
            latents_shape: [
                members.iter().flatten().map(|range| range.len()).sum(),
                channels,
                h,
                w,
            ],
            images,
            members,
            latents,
            values,
            report: Report {
                plan: context.planned.plan.clone(),
                seconds: context.seconds.clone(),
                waited: context.waited.clone(),
                reading: context.reading.clone(),
                peak: context.peak.clone(),
                bytes_read: context.bytes_read,
                rungs_taken: context.rungs_taken,
                prompts: self.work.texts.len(),
                prompts_cached: context.prompts_cached,
                notes: match context.planned.active.as_deref() {
                    Some(active) => active.notes().to_vec(),
                    None => Vec::new(),
                },
            },
        }
    }
}

/// The value of a ladder that the plan chose.
pub(crate) fn rung(plan: &PhasePlan, var: &str) -> usize {
    plan.vars.get(var).map_or(1, |value| value.max(1) as usize)
}

fn out_of_memory(error: &Error) -> Option<memory::OutOfMemory> {
    match error {
        Error::Model {
            source: lowtide_models::Error::OutOfMemory(refused),
            ..
        } => Some(*refused),
        _ => None,
    }
}
