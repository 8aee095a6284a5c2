//! A phase's course in time: one loader that fetches blocks into slots, one computer that uses them.
//!
//! The same few lines predict (the planner, which skips what repeats itself) and simulate (the simulated device, which
//! watches every event). Two rules make the course:
//!
//! * The loader fetches blocks in order of use. A block that stays is fetched once. A streamed one waits for a slot, and
//!   a slot is free when the block in it has been computed.
//! * A block is computed when the one before is done and its weights are there. While the loader copies, computing
//!   goes on at `overlap` of its speed.

use std::convert::Infallible;

/// Blocks one prediction may visit before what repeats itself nearly is taken to repeat itself.
const VISITS_WATCHED_MAX: u64 = 4000;

/// Differences of state below this share of a pass are rounding.
const SAME_STATE: f64 = 1e-9;

/// What the course depends on. Slices are by block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Course<'a> {
    /// Whether a block stays.
    pub(crate) resident: &'a [bool],
    /// The blocks that do not, in order.
    pub(crate) streamed: &'a [usize],
    /// Slots of the ring: no more than blocks that stream, so that loads are less than a visit ahead.
    pub(crate) slots: usize,
    /// Seconds of a block's first load.
    pub(crate) cold_s: &'a [f64],
    /// Seconds of its later loads.
    pub(crate) warm_s: &'a [f64],
    /// Seconds of one visit's computing.
    pub(crate) compute_s: &'a [f64],
    /// Visits of all blocks.
    pub(crate) visits: u64,
    /// Share of the computing speed left while the loader copies, 0 to 1.
    pub(crate) overlap: f64,
}

/// One load of one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Load {
    /// The block.
    pub block: usize,
    /// Its slot, or `None` for a block that stays.
    pub slot: Option<usize>,
    /// The visit it is for, from 0.
    pub visit: u64,
}

/// Watches a course, and may change or end it.
pub(crate) trait Watch {
    /// What ends it.
    type Error;
    /// A load begins. Returns the seconds it will take, which are `planned_s` unless something is wrong.
    fn load_begins(&mut self, at_s: f64, load: Load, planned_s: f64) -> Result<f64, Self::Error>;
    /// A block's computing is done.
    fn computed(&mut self, at_s: f64, block: usize, visit: u64) -> Result<(), Self::Error>;
}

/// Watches nothing.
struct Nobody;

impl Watch for Nobody {
    type Error = Infallible;
    #[inline]
    fn load_begins(&mut self, _at_s: f64, _load: Load, planned_s: f64) -> Result<f64, Infallible> {
        Ok(planned_s)
    }
    #[inline]
    fn computed(&mut self, _at_s: f64, _block: usize, _visit: u64) -> Result<(), Infallible> {
        Ok(())
    }
}

impl Course<'_> {
    /// Seconds of the whole course. Visits that repeat the one before are not computed one by one.
    pub(crate) fn seconds(&self) -> f64 {
        let mut state = State::new(self);
        let mut watched = Vec::with_capacity(4);
        let watched_max = (VISITS_WATCHED_MAX / self.resident.len().max(1) as u64).max(4);
        let mut skipped = false;
        while state.visit < self.visits {
            match state.run_visit(&mut Nobody) {
                Ok(()) => {}
                Err(never) => match never {},
            }
            let here = state.landmark();
            // The last visit differs (nothing is left to prefetch), so it is always computed.
            let skippable = self.visits.saturating_sub(state.visit + 1);
            if !skipped && skippable > 0 {
                let pass_s = watched
                    .last()
                    .map_or(here.at_s, |before: &Landmark| here.at_s - before.at_s);
                if watched
                    .last()
                    .is_some_and(|before| before.repeats(&here, pass_s))
                {
                    state.skip(skippable, pass_s);
                    skipped = true;
                } else if state.visit >= watched_max {
                    let half: &Landmark = &watched[watched.len() / 2];
                    state.skip(
                        skippable,
                        (here.at_s - half.at_s) / (state.visit - half.visit) as f64,
                    );
                    skipped = true;
                }
            }
            watched.push(here);
        }
        state.now
    }

    /// Runs every visit under the eyes of `watch`, and returns the seconds.
    pub(crate) fn run<W: Watch>(&self, watch: &mut W) -> Result<f64, W::Error> {
        let mut state = State::new(self);
        while state.visit < self.visits {
            state.run_visit(watch)?;
        }
        Ok(state.now)
    }

    /// A bound no course beats, from sums alone: everything is computed after the first load, everything is loaded one
    /// after the other, and what copying takes from computing is lost.
    pub(crate) fn seconds_min(&self, sums: &Sums) -> f64 {
        if self.visits == 0 || self.resident.is_empty() {
            return 0.0;
        }
        let compute_s = sums.compute_s * self.visits as f64;
        let loads_s = sums.cold_s + (self.visits - 1) as f64 * sums.streamed_warm_s;
        let first_s = self.cold_s[0];
        let last_s = self.compute_s.last().copied().unwrap_or(0.0);
        let computing = first_s + compute_s + (1.0 - self.overlap) * (loads_s - first_s);
        // The last load is the last block's only when that block streams.
        let last_s = if self.visits == 1 || self.streamed.last() == Some(&(self.resident.len() - 1))
        {
            last_s
        } else {
            0.0
        };
        computing.max(loads_s + last_s)
    }
}

/// Sums over blocks that the lower bound needs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sums {
    /// Computing of one visit.
    pub(crate) compute_s: f64,
    /// First loads of all blocks.
    pub(crate) cold_s: f64,
    /// Later loads of the streamed blocks, one each.
    pub(crate) streamed_warm_s: f64,
}

/// Where a course stands at the end of a visit. Two visits that end alike are followed by equal ones.
#[derive(Clone, Copy, Debug)]
struct Landmark {
    visit: u64,
    at_s: f64,
    /// Loads begun beyond what the visits so far needed.
    ahead: u64,
    /// Seconds the load in progress still takes.
    loading_s: f64,
}

impl Landmark {
    fn repeats(&self, later: &Landmark, pass_s: f64) -> bool {
        self.ahead == later.ahead && (self.loading_s - later.loading_s).abs() <= pass_s * SAME_STATE
    }
}

struct State<'a> {
    course: &'a Course<'a>,
    /// The computer's time.
    now: f64,
    /// The visit being computed.
    visit: u64,
    /// When the load in progress ends. In the past when the loader waits.
    loading_until: f64,
    /// The visit whose loads come next, and how many of them have begun.
    load_visit: u64,
    load_index: usize,
    /// Loads begun, and loads that visits so far needed.
    begun: u64,
    needed: u64,
    /// Streamed loads begun and streamed blocks computed: their difference is the slots in use.
    streamed_begun: u64,
    streamed_computed: u64,
}

impl<'a> State<'a> {
    fn new(course: &'a Course<'a>) -> State<'a> {
        State {
            course,
            now: 0.0,
            visit: 0,
            loading_until: 0.0,
            load_visit: 0,
            load_index: 0,
            begun: 0,
            needed: 0,
            streamed_begun: 0,
            streamed_computed: 0,
        }
    }

    /// Begins the loads that can begin now.
    #[inline]
    fn pump<W: Watch>(&mut self, watch: &mut W) -> Result<(), W::Error> {
        let course = self.course;
        while self.loading_until <= self.now && self.load_visit < course.visits {
            let first = self.load_visit == 0;
            let count = if first {
                course.resident.len()
            } else {
                course.streamed.len()
            };
            if self.load_index == count {
                if course.streamed.is_empty() {
                    self.load_visit = course.visits;
                } else {
                    self.load_visit += 1;
                    self.load_index = 0;
                }
                continue;
            }
            let block = if first {
                self.load_index
            } else {
                course.streamed[self.load_index]
            };
            let stays = course.resident[block];
            if !stays && self.streamed_begun >= self.streamed_computed + course.slots as u64 {
                return Ok(());
            }
            let slot = (!stays).then(|| (self.streamed_begun % course.slots as u64) as usize);
            let planned_s = if first {
                course.cold_s[block]
            } else {
                course.warm_s[block]
            };
            let load = Load {
                block,
                slot,
                visit: self.load_visit,
            };
            self.loading_until = self.now + watch.load_begins(self.now, load, planned_s)?;
            self.begun += 1;
            self.streamed_begun += u64::from(!stays);
            self.load_index += 1;
        }
        Ok(())
    }

    fn run_visit<W: Watch>(&mut self, watch: &mut W) -> Result<(), W::Error> {
        let course = self.course;
        for block in 0..course.resident.len() {
            self.pump(watch)?;
            let stays = course.resident[block];
            if !stays || self.visit == 0 {
                // Loads end in order, so the block is there when as many have ended as were needed so far.
                self.needed += 1;
                while self.begun - u64::from(self.loading_until > self.now) < self.needed {
                    self.now = self.now.max(self.loading_until);
                    self.pump(watch)?;
                }
            }
            let mut work = course.compute_s[block];
            while work > 0.0 {
                self.pump(watch)?;
                if self.loading_until <= self.now {
                    self.now += work;
                    break;
                }
                let progress = (self.loading_until - self.now) * course.overlap;
                if work < progress {
                    self.now += work / course.overlap;
                    break;
                }
                work -= progress;
                self.now = self.loading_until;
            }
            self.streamed_computed += u64::from(!stays);
            watch.computed(self.now, block, self.visit)?;
        }
        self.visit += 1;
        Ok(())
    }

    fn landmark(&self) -> Landmark {
        Landmark {
            visit: self.visit,
            at_s: self.now,
            ahead: self.begun - self.needed,
            loading_s: (self.loading_until - self.now).max(0.0),
        }
    }

    /// Leaps over `visits` visits of `pass_s` seconds each, after which everything stands as it stands now.
    fn skip(&mut self, visits: u64, pass_s: f64) {
        let leap_s = pass_s * visits as f64;
        self.now += leap_s;
        self.loading_until += leap_s;
        self.visit += visits;
        self.load_visit = (self.load_visit + visits).min(self.course.visits);
        // The counters only matter as differences, which a leap leaves alone.
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A course of `count` equal blocks of which the first `staying` stay.
    struct Equal {
        resident: Vec<bool>,
        streamed: Vec<usize>,
        cold_s: Vec<f64>,
        warm_s: Vec<f64>,
        compute_s: Vec<f64>,
    }

    impl Equal {
        fn new(count: usize, staying: usize, [cold_s, warm_s, compute_s]: [f64; 3]) -> Equal {
            Equal {
                resident: (0..count).map(|block| block < staying).collect(),
                streamed: (staying..count).collect(),
                cold_s: vec![cold_s; count],
                warm_s: vec![warm_s; count],
                compute_s: vec![compute_s; count],
            }
        }

        fn course(&self, visits: u64, overlap: f64) -> Course<'_> {
            let Equal {
                resident,
                streamed,
                cold_s,
                warm_s,
                compute_s,
            } = self;
            Course {
                resident,
                streamed,
                slots: streamed.len().min(2),
                cold_s,
                warm_s,
                compute_s,
                visits,
                overlap,
            }
        }

        fn seconds(&self, visits: u64, overlap: f64) -> f64 {
            self.course(visits, overlap).seconds()
        }
    }

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() <= 1e-9 * a.abs().max(b.abs())
    }

    #[test]
    fn copies_hide_behind_longer_computing() {
        let course = Equal::new(10, 0, [2.0, 1.0, 3.0]);
        assert!(close(course.seconds(1, 1.0), 2.0 + 10.0 * 3.0));
        assert!(close(course.seconds(100, 1.0), 2.0 + 1000.0 * 3.0));
    }

    #[test]
    fn computing_hides_behind_longer_copies() {
        let course = Equal::new(10, 0, [5.0, 4.0, 1.0]);
        assert!(close(course.seconds(1, 1.0), 10.0 * 5.0 + 1.0));
        assert!(close(
            course.seconds(100, 1.0),
            10.0 * 5.0 + 990.0 * 4.0 + 1.0
        ));
    }

    #[test]
    fn without_overlap_the_two_add_up() {
        let course = Equal::new(10, 0, [5.0, 4.0, 1.0]);
        assert!(close(course.seconds(1, 0.0), 10.0 * 5.0 + 10.0));
        assert!(close(
            course.seconds(50, 0.0),
            10.0 * 5.0 + 490.0 * 4.0 + 500.0
        ));
        // Half of each copy is lost to computing, which is longer all the same; the first load delays nothing else.
        let course = Equal::new(10, 0, [2.0, 2.0, 3.0]);
        assert!(close(
            course.seconds(50, 0.5),
            2.0 + 500.0 * 3.0 + 499.0 * 1.0
        ));
    }

    #[test]
    fn what_stays_is_copied_once() {
        let course = Equal::new(10, 10, [5.0, 4.0, 1.0]);
        assert!(close(course.seconds(100, 1.0), 10.0 * 5.0 + 1.0 + 990.0));
        let none = Equal::new(0, 0, [1.0; 3]);
        assert!(none.seconds(100, 1.0).abs() < 1e-12);
        assert!(course.seconds(0, 1.0).abs() < 1e-12);
    }

    #[test]
    fn a_long_course_is_not_computed_visit_by_visit() {
        // A thousand million visits: this test ends because most are skipped.
        let course = Equal::new(30, 10, [0.2, 0.1, 0.01]);
        let each_s = course.seconds(1001, 1.0) - course.seconds(1000, 1.0);
        assert!((course.seconds(1_000_000_000, 1.0) / 1e9 - each_s).abs() < 1e-6);
    }

    proptest! {
        /// Skipping what repeats itself changes nothing, and the bound is one.
        #[test]
        fn a_prediction_is_the_full_course(
            blocks in prop::collection::vec((any::<bool>(), 0.01..3.0f64, 0.01..3.0f64, 0.0..3.0f64), 3..14),
            visits in 1..200u64,
            overlap in prop_oneof![Just(0.0), Just(1.0), 0.0..1.0f64],
        ) {
            let equal = Equal {
                resident: blocks.iter().map(|block| block.0).collect(),
                streamed: (0..blocks.len()).filter(|&index| !blocks[index].0).collect(),
                cold_s: blocks.iter().map(|block| block.1).collect(),
                warm_s: blocks.iter().map(|block| block.2).collect(),
                compute_s: blocks.iter().map(|block| block.3).collect(),
            };
            let course = equal.course(visits, overlap);
            let Ok(full) = course.run(&mut Nobody);
            let predicted = course.seconds();
            prop_assert!((predicted - full).abs() <= 1e-3 * full, "{predicted} s for {full} s");
            let sums = Sums {
                compute_s: equal.compute_s.iter().sum(),
                cold_s: equal.cold_s.iter().sum(),
                streamed_warm_s: equal.streamed.iter().map(|&block| equal.warm_s[block]).sum(),
            };
            prop_assert!(course.seconds_min(&sums) <= full * (1.0 + 1e-9));
        }
    }
}
