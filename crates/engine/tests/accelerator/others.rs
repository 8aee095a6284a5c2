//! Others on the same device: programs that take memory, and processes of this one that wait for it.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use lowtide_core::{Bytes, Placement};
use lowtide_engine::device::neighbours::Neighbours;
use lowtide_engine::{Engine, Outcome, Step};

use crate::asked::request;
use crate::late::Late;

/// A job that others disturb from its second step on.
fn disturbed(engine: &Engine, mut disturb: impl FnMut()) -> Outcome {
    let mut session = engine.start(request(), true).expect("it fits");
    let mut steps = 0;
    loop {
        match session.step().expect("a step") {
            Step::Finished(outcome) => return *outcome,
            Step::Progress(_) => steps += 1,
        }
        if steps >= 2 {
            disturb();
        }
    }
}

/// Whether blocks came anew for every step.
fn is_streamed(outcome: &Outcome) -> bool {
    let mut phases = outcome.report.plan.phases.iter();
    phases.any(|phase| {
        phase.name == "denoise" && matches!(phase.placement, Placement::Streamed { .. })
    })
}

/// A program takes all that is free in the middle of a job, again and again: the job goes on with less, to the same bytes.
pub(crate) fn a_program_that_takes_memory_gets_it(late: &Late, engine: &Engine, alone: &Outcome) {
    let before = disturbed(engine, || {});
    assert!(before.images == alone.images);
    assert!(!is_streamed(&before), "{:?}", before.report.plan.phases);
    assert_eq!(before.report.rungs_taken, 0);
    let reserve = late.total() / 16;
    let most = AtomicU64::new(u64::MAX);
    let after = disturbed(engine, || {
        let live = late.shadow().live();
        let free = late.total() - late.taken.load(Ordering::Relaxed) - live;
        most.store(live + free, Ordering::Relaxed);
        late.take(late.total() - live);
        late.shadow().reset_peak();
    });
    assert!(after.images == alone.images, "other bytes");
    let (rungs, plan) = (after.report.rungs_taken, &after.report.plan);
    assert!(rungs > 0 && is_streamed(&after), "{rungs} {plan:?}");
    let (most, peak) = (most.into_inner(), late.shadow().peak());
    assert!(peak + reserve <= most, "{peak} of {most}, less {reserve}");
    late.take(0);
}

/// A process of this program waits for memory in the middle of a job, and gets what is beyond a half.
pub(crate) fn a_neighbour_that_waits_gets_its_share(
    late: &Late,
    (engine, alone): (&Engine, &Outcome),
    folder: &Path,
) {
    let neighbour = Neighbours::join(folder).unwrap();
    let there = disturbed(engine, || {});
    assert_eq!(there.report.rungs_taken, 0, "it wants nothing yet");
    // All but what the job needs is somebody's, so that what the neighbour wants must come from the job.
    let reserve = late.total() / 16;
    let peak = alone.report.plan.peak.0;
    late.take(late.total() - reserve - peak);
    let there = disturbed(engine, || neighbour.want(Bytes(peak / 4)));
    assert!(there.images == alone.images, "other bytes");
    assert!(there.report.rungs_taken > 0);
    let share = (late.total() - reserve) / 2;
    assert!(share < peak, "what it gives is beyond its share");
    assert!(
        there
            .report
            .plan
            .phases
            .iter()
            .all(|phase| phase.peak.0 <= peak)
    );
    assert!(late.shadow().peak() <= peak);
    late.take(0);
}

/// A job that has less than its share because a neighbour holds it says so, waits, and begins once it has it.
pub(crate) fn a_job_waits_for_its_share(
    late: &Arc<Late>,
    (engine, alone): (&Engine, &Outcome),
    folder: &Path,
) {
    let neighbour = Neighbours::join(folder).unwrap();
    late.take(late.total());
    let given = AtomicBool::new(false);
    let there = std::thread::scope(|scope| {
        scope.spawn(|| {
            while neighbour.others().wanted == Bytes::ZERO {
                std::thread::sleep(Duration::from_millis(5));
            }
            given.store(true, Ordering::Relaxed);
            late.take(0);
        });
        disturbed(engine, || {})
    });
    assert!(given.load(Ordering::Relaxed));
    assert!(there.images == alone.images);
    assert_eq!(neighbour.others().wanted, Bytes::ZERO, "it waits no longer");
}
