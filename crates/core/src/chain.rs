//! Chains: jobs of several steps, each with a model, planned as a whole.
//!
//! Each step is planned alone first, as fast as the budget allows with everything else out of the way: whoever works
//! comes before whoever waits. What its peak leaves is then given to the models of the other steps, the one needed
//! soonest first: what of them is in memory stays, and more of them is read while the step works, so that nothing is
//! read twice that the budget could have held, and little is waited for.

use std::fmt;

use crate::explain::seconds as spoken;
use crate::{Bytes, DoesNotFit};

/// What a step costs when it is planned alone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepCost {
    /// Which of the chain's models it uses.
    pub model: usize,
    /// The most it takes, weights included, what others use not.
    pub peak: Bytes,
    /// Bytes of its model that stay in memory once they were read.
    pub stays: Bytes,
    /// Bytes it reads when none of them are there.
    pub reads: Bytes,
    /// Seconds it takes then.
    pub seconds: f64,
    /// Seconds of them in which it waits for weights.
    pub stall_s: f64,
}

/// What a chain is planned for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ChainRoom<'a> {
    /// What the budget leaves beside what others use; weights of the chain's models are no others.
    pub available: Bytes,
    /// Bytes of each model that are in memory now.
    pub there: &'a [Bytes],
    /// Bytes a second at which weights are read.
    pub bytes_per_s: f64,
}

/// How much of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Which of the chain's models.
    pub model: usize,
    /// Bytes of it.
    pub bytes: Bytes,
}

/// What is to be read ahead of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ahead {
    /// The step that needs it.
    pub step: usize,
    /// Bytes of its model that are to be in memory when the present step ends.
    pub bytes: Bytes,
    /// Bytes of them that are read meanwhile.
    pub read: Bytes,
}

/// How a step of a chain will run.
#[derive(Clone, Debug, PartialEq)]
pub struct StepPlan {
    /// Its model.
    pub model: usize,
    /// Bytes of its model that are there when it begins.
    pub there: Bytes,
    /// What of the other models stays in memory when it begins, the one needed soonest first; what is not named goes.
    pub beside: Vec<Share>,
    /// What is read for later steps while it works, the one needed soonest first.
    pub ahead: Vec<Ahead>,
    /// Bytes it reads itself.
    pub reads: Bytes,
    /// The most that is in memory while it works, what others use not.
    pub peak: Bytes,
    /// Predicted seconds, waiting included.
    pub seconds: f64,
    /// Seconds in which weights for this step are read, here or ahead.
    pub loading_s: f64,
    /// Seconds it waits for weights.
    pub waiting_s: f64,
}

/// How a chain will run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChainPlan {
    /// Step by step.
    pub steps: Vec<StepPlan>,
    /// The most of the steps' peaks.
    pub peak: Bytes,
    /// Sums over the steps.
    pub seconds: f64,
    /// See `seconds`.
    pub loading_s: f64,
    /// See `seconds`.
    pub waiting_s: f64,
    /// Bytes of weights read, by the steps and ahead of them.
    pub reads: Bytes,
}

/// Plans steps that each fit alone: none has a peak above `room.available`.
pub fn plan_chain(steps: &[StepCost], room: &ChainRoom<'_>) -> ChainPlan {
    let mut there: Vec<Bytes> = room.there.to_vec();
    let mut plan = ChainPlan::default();
    let rooms: Vec<Bytes> = steps
        .iter()
        .map(|step| room.available.saturating_sub(step.peak))
        .collect();
    for (now, cost) in steps.iter().enumerate() {
        let own = there[cost.model].min(cost.stays);
        let reads = cost.reads.saturating_sub(own);
        let waiting_s = (cost.stall_s - own.as_f64() / room.bytes_per_s).max(0.0);
        let seconds = cost.seconds - (cost.stall_s - waiting_s);
        // The loader is free for others while it does not read for the step itself.
        let idle_s = (seconds - reads.as_f64() / room.bytes_per_s).max(0.0);
        let readable = Bytes((idle_s * room.bytes_per_s) as u64);
        let (beside, ahead) = others(steps, now, (&rooms, readable), &mut there);
        there[cost.model] = cost.stays;
        let taken: Bytes = ends(&beside, &ahead, steps).sum();
        plan.steps.push(StepPlan {
            model: cost.model,
            there: own,
            beside,
            ahead,
            reads,
            peak: cost.peak + taken,
            seconds,
            loading_s: reads.as_f64() / room.bytes_per_s,
            waiting_s,
        });
    }
    for now in 0..steps.len() {
        for ahead in plan.steps[now].ahead.clone() {
            plan.steps[ahead.step].loading_s += ahead.read.as_f64() / room.bytes_per_s;
            plan.reads += ahead.read;
        }
        plan.reads += plan.steps[now].reads;
    }
    plan.peak = plan
        .steps
        .iter()
        .map(|step| step.peak)
        .max()
        .unwrap_or_default();
    plan.seconds = plan.steps.iter().map(|step| step.seconds).sum();
    plan.loading_s = plan.steps.iter().map(|step| step.loading_s).sum();
    plan.waiting_s = plan.steps.iter().map(|step| step.waiting_s).sum();
    plan
}

/// What of each other model is in memory when a step ends.
fn ends<'a>(
    beside: &'a [Share],
    ahead: &'a [Ahead],
    steps: &'a [StepCost],
) -> impl Iterator<Item = Bytes> + 'a {
    let read = move |share: &&Share| !ahead.iter().any(|a| steps[a.step].model == share.model);
    let kept = beside.iter().filter(read).map(|share| share.bytes);
    kept.chain(ahead.iter().map(|ahead| ahead.bytes))
}

/// What of the other models stays beside step `now`, and what of them is read meanwhile.
fn others(
    steps: &[StepCost],
    now: usize,
    (rooms, mut readable): (&[Bytes], Bytes),
    there: &mut [Bytes],
) -> (Vec<Share>, Vec<Ahead>) {
    let this = steps[now].model;
    let (mut beside, mut ahead) = (Vec::new(), Vec::new());
    // What is still free beside each step from this one on.
    let mut free = rooms[now..].to_vec();
    let mut seen = vec![false; there.len()];
    seen[this] = true;
    for (later, cost) in steps.iter().enumerate().skip(now + 1) {
        if std::mem::replace(&mut seen[cost.model], true) {
            continue;
        }
        let between = ..later - now;
        let most = free[between].iter().copied().min().unwrap_or_default();
        let stays = there[cost.model].min(most);
        let more = cost.stays.min(most).saturating_sub(stays).min(readable);
        readable = readable - more;
        if stays > Bytes::ZERO {
            let bytes = stays;
            beside.push(Share {
                model: cost.model,
                bytes,
            });
        }
        let bytes = stays + more;
        if more > Bytes::ZERO {
            let (step, read) = (later, more);
            ahead.push(Ahead { step, bytes, read });
        }
        there[cost.model] = bytes;
        for free in &mut free[between] {
            *free = *free - bytes;
        }
    }
    // Nobody in the chain needs the rest; the next job may.
    let mut left = free[0];
    for (model, there) in there
        .iter_mut()
        .enumerate()
        .filter(|(model, _)| !seen[*model])
    {
        *there = (*there).min(left);
        left = left - *there;
        if *there > Bytes::ZERO {
            let bytes = *there;
            beside.push(Share { model, bytes });
        }
    }
    (beside, ahead)
}

/// The refusal of a chain of which at least one step does not fit: the step that needs the most, which says so. `called`
/// names steps.
pub fn refuse_chain(
    refused: Vec<(usize, DoesNotFit)>,
    called: impl Fn(usize) -> String,
) -> Option<DoesNotFit> {
    let most = refused
        .into_iter()
        .max_by_key(|(_, numbers)| numbers.smallest);
    most.map(|(step, numbers)| DoesNotFit {
        phase: format!("{}, {}", called(step), numbers.phase),
        ..numbers
    })
}

/// One phase of a step, as reading ahead sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct PhaseBlocks {
    /// Which part of the model it computes with.
    pub part: usize,
    /// The most it takes, weights included, what others use not.
    pub peak: Bytes,
    /// By block of that part: its bytes, if it stays.
    pub stays: Vec<Option<Bytes>>,
}

/// Which blocks (part, block) are worth reading before a step begins, in the order of their use: those that no phase
/// before the one that uses them has to push out. `available` is what the step may use.
pub fn worth_reading(phases: &[PhaseBlocks], available: Bytes) -> Vec<(usize, usize)> {
    let mut free: Vec<Bytes> = phases
        .iter()
        .map(|phase| available.saturating_sub(phase.peak))
        .collect();
    let mut worth = Vec::new();
    for (k, phase) in phases.iter().enumerate() {
        if phases[..k].iter().any(|before| before.part == phase.part) {
            continue;
        }
        let blocks = phase.stays.iter().enumerate();
        for (block, bytes) in blocks.filter_map(|(block, bytes)| Some((block, (*bytes)?))) {
            if free[..k].iter().any(|&free| free < bytes) {
                return worth;
            }
            for free in &mut free[..k] {
                *free = *free - bytes;
            }
            worth.push((phase.part, block));
        }
    }
    worth
}

impl StepPlan {
    /// One sentence with its numbers: what is there, what is read and when, what stays beside. `names` are the models'.
    pub fn sentence(&self, steps: &[StepPlan], names: &[String]) -> String {
        let mut text = String::new();
        // Writing to a text cannot fail.
        let _ = self.write(&mut text, steps, names);
        text
    }

    fn write(&self, f: &mut impl fmt::Write, steps: &[StepPlan], names: &[String]) -> fmt::Result {
        let name = |model: usize| names.get(model).map_or("?", String::as_str);
        match (self.there, self.reads) {
            (Bytes::ZERO, Bytes::ZERO) => f.write_str("no weights")?,
            (there, Bytes::ZERO) => write!(f, "{there} of weights are there")?,
            (Bytes::ZERO, reads) => write!(f, "reads {reads}")?,
            (there, reads) => write!(f, "{there} of weights are there, reads {reads}")?,
        }
        match self.waiting_s > 0.0005 {
            true => write!(f, ", waits {} for them", spoken(self.waiting_s))?,
            false => f.write_str(", waits for none")?,
        }
        for ahead in &self.ahead {
            let model = steps.get(ahead.step).map_or("?", |step| name(step.model));
            let step = ahead.step + 1;
            write!(
                f,
                "; meanwhile {} of {model} are made ready for step {step}",
                ahead.bytes
            )?;
        }
        for share in &self.beside {
            write!(
                f,
                "; {} of {} stay beside it",
                share.bytes,
                name(share.model)
            )?;
        }
        write!(f, "; at most {}, about {}", self.peak, spoken(self.seconds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: fn(u64) -> Bytes = Bytes::mib;

    /// A step whose weights all stay: it waits as long as reading them takes, at 100 MiB a second.
    fn step(model: usize, weights: u64, activations: u64, work_s: f64) -> StepCost {
        let stall_s = weights as f64 / 100.0;
        StepCost {
            model,
            peak: MIB(weights + activations),
            stays: MIB(weights),
            reads: MIB(weights),
            seconds: work_s + stall_s,
            stall_s,
        }
    }

    fn planned(steps: &[StepCost], available: u64, there: &[u64]) -> ChainPlan {
        let there: Vec<Bytes> = there.iter().map(|&bytes| MIB(bytes)).collect();
        let room = ChainRoom {
            available: MIB(available),
            there: &there,
            bytes_per_s: MIB(100).as_f64(),
        };
        plan_chain(steps, &room)
    }

    fn share(model: usize, bytes: u64) -> Share {
        let bytes = MIB(bytes);
        Share { model, bytes }
    }

    /// All of it read meanwhile.
    fn ahead(step: usize, bytes: u64) -> Ahead {
        let (bytes, read) = (MIB(bytes), MIB(bytes));
        Ahead { step, bytes, read }
    }

    #[test]
    fn a_budget_that_holds_all_reads_each_model_once_and_waits_for_the_first_only() {
        let steps = [
            step(0, 200, 50, 9.0),
            step(1, 300, 50, 9.0),
            step(0, 200, 50, 9.0),
        ];
        let plan = planned(&steps, 1000, &[0, 0]);
        assert_eq!(plan.reads, MIB(500));
        let waits: Vec<f64> = plan.steps.iter().map(|step| step.waiting_s).collect();
        assert_eq!(waits, [2.0, 0.0, 0.0]);
        assert_eq!(plan.steps[0].ahead, [ahead(1, 300)]);
        assert_eq!(plan.steps[1].beside, [share(0, 200)]);
        assert_eq!(
            plan.steps[2].beside,
            [share(1, 300)],
            "the next job may need it"
        );
        assert_eq!(plan.peak, MIB(250 + 300));
        // A second chain finds everything there.
        let again = planned(&steps, 1000, &[200, 300]);
        assert_eq!((again.reads, again.waiting_s), (Bytes::ZERO, 0.0));
        assert_eq!(again.seconds, 27.0);
    }

    #[test]
    fn what_the_working_step_leaves_is_what_arrives_ahead() {
        let steps = [step(0, 200, 50, 9.0), step(1, 300, 50, 9.0)];
        let plan = planned(&steps, 400, &[0, 0]);
        assert_eq!(plan.steps[0].ahead, [ahead(1, 150)]);
        assert_eq!(plan.steps[0].peak, MIB(400));
        assert_eq!(
            (plan.steps[1].there, plan.steps[1].reads),
            (MIB(150), MIB(150))
        );
        assert_eq!(plan.steps[1].waiting_s, 1.5);
        // What is left of the first model beside the second.
        assert_eq!(plan.steps[1].beside, [share(0, 50)]);
    }

    #[test]
    fn a_short_step_has_no_time_to_read_all_ahead() {
        let steps = [step(0, 200, 50, 1.0), step(1, 300, 50, 9.0)];
        let plan = planned(&steps, 1000, &[200, 0]);
        assert_eq!(plan.steps[0].ahead, [ahead(1, 100)]);
    }

    #[test]
    fn the_model_needed_soonest_has_the_room() {
        let steps = [
            step(0, 100, 0, 9.0),
            step(1, 200, 0, 9.0),
            step(2, 200, 0, 9.0),
        ];
        let plan = planned(&steps, 350, &[0, 0, 200]);
        // 250 beside the first step: all of 1; of 2, which is there, what is left.
        assert_eq!(plan.steps[0].beside, [share(2, 50)]);
        assert_eq!(plan.steps[0].ahead, [ahead(1, 200)]);
        // Nothing is kept for the third step that the second would push out.
        let tight = planned(
            &[steps[0], step(1, 200, 140, 9.0), steps[2]],
            350,
            &[0, 0, 200],
        );
        assert_eq!(tight.steps[0].beside, [share(2, 10)]);
    }

    #[test]
    fn no_plan_takes_more_than_there_is_and_more_room_never_reads_more() {
        // A plain generator of numbers: every run sees the same chains.
        let mut seed = 7u64;
        let mut draw = |most: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) % most
        };
        for _ in 0..2000 {
            let models = 1 + draw(4) as usize;
            let sizes: Vec<u64> = (0..models).map(|_| 10 + draw(500)).collect();
            let steps: Vec<StepCost> = (0..1 + draw(6))
                .map(|_| {
                    let model = draw(models as u64) as usize;
                    step(model, sizes[model], draw(80), draw(50) as f64 / 10.0)
                })
                .collect();
            let least = steps.iter().map(|step| step.peak.0 >> 20).max().unwrap();
            let there: Vec<u64> = sizes.iter().map(|&size| draw(size)).collect();
            let mut before = None;
            for available in [least, least + 50, least + 400, least + 5000] {
                let plan = planned(&steps, available, &there);
                assert!(plan.peak <= MIB(available), "{plan:?}");
                for (step, cost) in plan.steps.iter().zip(&steps) {
                    assert!(step.reads + step.there >= cost.reads);
                    assert!(step.seconds >= 0.0 && step.waiting_s <= cost.stall_s);
                }
                if available == least + 5000 {
                    let used = |model: usize| steps.iter().any(|step| step.model == model);
                    let missing = (0..models).filter(|&model| used(model));
                    let missing = missing.map(|model| sizes[model] - there[model]);
                    assert_eq!(plan.reads, MIB(missing.sum()), "each byte once");
                }
                assert!(before.is_none_or(|before| plan.reads <= before));
                before = Some(plan.reads);
            }
        }
    }

    #[test]
    fn a_refusal_names_the_step_that_needs_the_most() {
        let numbers = |smallest: u64| DoesNotFit {
            phase: "denoise".to_owned(),
            needed: MIB(smallest),
            budget: MIB(10),
            in_use: Bytes::ZERO,
            smallest: MIB(smallest),
            exact_only: false,
            smallest_approximate: None,
        };
        let refused = vec![(0, numbers(20)), (2, numbers(30)), (3, numbers(25))];
        let refusal = refuse_chain(refused, |step| format!("step {}", step + 1)).unwrap();
        let text = refusal.to_string();
        assert!(
            text.starts_with("does not fit: step 3, denoise needs at least 30.0 MiB"),
            "{text}"
        );
        assert_eq!(refuse_chain(Vec::new(), |_| String::new()), None);
    }

    #[test]
    fn blocks_that_an_earlier_phase_would_push_out_are_not_read_ahead() {
        let phase = |part, peak, blocks: &[u64]| PhaseBlocks {
            part,
            peak: MIB(peak),
            stays: blocks
                .iter()
                .map(|&bytes| (bytes > 0).then(|| MIB(bytes)))
                .collect(),
        };
        // Texts, denoising, decoding with another part, a second pass.
        let phases = [
            phase(0, 60, &[20, 20]),
            phase(1, 90, &[40, 0, 30]),
            phase(2, 50, &[10, 10]),
            phase(1, 90, &[40, 0, 30]),
        ];
        let worth = |available| worth_reading(&phases, MIB(available));
        let all = [(0, 0), (0, 1), (1, 0), (1, 2), (2, 0), (2, 1)];
        assert_eq!(worth(60 + 70 + 20), all);
        assert_eq!(worth(60 + 70 + 19), all[..5]);
        assert_eq!(worth(60 + 70), all[..4]);
        assert_eq!(worth(99), all[..2], "40 have no room beside the texts");
        // The decoder is not read where denoising leaves no room for it.
        assert_eq!(worth(109), all[..3]);
    }

    #[test]
    fn sentences_have_their_numbers() {
        let steps = [step(0, 200, 50, 9.0), step(1, 300, 50, 9.0)];
        let plan = planned(&steps, 400, &[0, 0]);
        let names = ["a".to_owned(), "b".to_owned()];
        assert_eq!(
            plan.steps[0].sentence(&plan.steps, &names),
            "reads 200.0 MiB, waits 2.0 s for them; meanwhile 150.0 MiB of b are made ready for step 2; at most 400.0 MiB, \
             about 11.0 s"
        );
        assert_eq!(
            plan.steps[1].sentence(&plan.steps, &names),
            "150.0 MiB of weights are there, reads 150.0 MiB, waits 1.5 s for them; 50.0 MiB of a stay beside it; at most \
             400.0 MiB, about 10.5 s"
        );
    }
}
