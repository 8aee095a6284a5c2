//! How jobs are ordered, and the limits that keep the order fair.

use crate::job::{Moment, Priority};

/// What the order of jobs depends on. The defaults suit a device that one person or a small team shares.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// An urgent job counts as if it had waited so much longer. 4 h: beyond a day's backlog of normal jobs only their
    /// turn of the oldest brings them forward.
    pub urgent_ahead_s: f64,
    /// A batch job counts as if it had waited so much less.
    pub batch_behind_s: f64,
    /// How many seconds of waiting a second of loading is worth. With 30, others wait at most thirty loads longer so that
    /// a loaded model is used before another takes its place. For three models of which one fits, 10 loads a quarter
    /// more often, 60 hardly less.
    pub load_weight: f64,
    /// The most that loading counts.
    pub load_penalty_max_s: f64,
    /// A session that was begun counts as if it had waited so much longer, so that what was begun is finished.
    pub begun_ahead_s: f64,
    /// A deadline makes a job hurry when the time to spare is less than this, or than twice its own time.
    pub deadline_horizon_s: f64,
    /// Of so many starts of a free worker one is the oldest's.
    pub turn: u32,
    /// Without a higher class, a session is parked no sooner than after so many times the cost of switching.
    pub quantum_ratio: f64,
    /// Nor sooner than this where a model has to be loaded.
    pub quantum_min_s: f64,
    /// Seconds to park a session, and again to resume it: a few megabytes.
    pub park_s: f64,
    /// The most jobs in a batch.
    pub batch_max: usize,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy {
            urgent_ahead_s: 4.0 * 3600.0,
            batch_behind_s: 4.0 * 3600.0,
            load_weight: 30.0,
            load_penalty_max_s: 300.0,
            begun_ahead_s: 300.0,
            deadline_horizon_s: 60.0,
            turn: 8,
            quantum_ratio: 10.0,
            quantum_min_s: 20.0,
            park_s: 0.05,
            batch_max: 8,
        }
    }
}

/// What a job's place in the order depends on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Claim {
    pub(super) priority: Priority,
    pub(super) submitted: Moment,
    pub(super) deadline: Option<Moment>,
    /// Predicted seconds still to go.
    pub(super) seconds: f64,
    /// Predicted seconds to load its model.
    pub(super) load_s: f64,
    /// Whether its session was begun.
    pub(super) begun: bool,
}

/// A job's place in the order.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Standing {
    /// Seconds it counts as having waited: the most goes first.
    pub(super) as_if_s: f64,
    /// Where its deadline is near but can be met: seconds it may still be put off.
    pub(super) slack_s: Option<f64>,
    /// Where its deadline cannot be met any more: by how much it is missed.
    pub(super) late_s: Option<f64>,
}

impl Policy {
    /// The most by which a job that was submitted later can stand before another, deadlines apart.
    pub fn head_start_max_s(&self) -> f64 {
        self.urgent_ahead_s + self.batch_behind_s + self.load_penalty_max_s + self.begun_ahead_s
    }

    /// The most starts, its own included, until a job starts that fits on each of `workers` workers and has `older`
    /// jobs before it that were submitted earlier. A job that is tried again counts again.
    ///
    /// A worker starts the oldest at least once in two turns: a free one when the turn is due, and while jobs of a
    /// higher class are started in the middle of others, at most another turn passes. Each such start takes away one
    /// that is older, or is the job itself.
    pub fn starts_max(&self, older: u64, workers: u64) -> u64 {
        let round = 2 * u64::from(self.turn);
        round * (older + 1) + (round - 1) * workers.saturating_sub(1)
    }

    /// Seconds a class counts as having waited from the beginning.
    pub(super) fn head_start_s(&self, priority: Priority) -> f64 {
        match priority {
            Priority::Urgent => self.urgent_ahead_s,
            Priority::Normal => 0.0,
            Priority::Batch => -self.batch_behind_s,
        }
    }

    /// What loading a model for `load_s` takes off a job's standing.
    pub(super) fn load_penalty_s(&self, load_s: f64) -> f64 {
        (load_s * self.load_weight).clamp(0.0, self.load_penalty_max_s)
    }

    pub(super) fn standing(&self, claim: &Claim, now: Moment) -> Standing {
        let head_start_s = self.head_start_s(claim.priority);
        let spare_s = claim.deadline.map(|deadline| {
            deadline.as_secs_f64() - now.as_secs_f64() - claim.seconds - claim.load_s
        });
        let late_s = spare_s.filter(|&spare| spare < 0.0).map(|spare| -spare);
        let near_s = self.deadline_horizon_s.max(2.0 * claim.seconds);
        let slack_s = spare_s.filter(|spare| (0.0..=near_s).contains(spare));
        let begun_s = if claim.begun { self.begun_ahead_s } else { 0.0 };
        let waited_s = now.seconds_since(claim.submitted);
        let in_turn_s = head_start_s + waited_s + begun_s - self.load_penalty_s(claim.load_s);
        let as_if_s = match slack_s {
            // Before everything of its class and the one above that has not waited for hours, and among its like the
            // least slack first; but a deadline never puts back what has waited longer still.
            Some(slack_s) => {
                let hurry_s = 1.5 * self.urgent_ahead_s.max(self.batch_behind_s);
                in_turn_s.max(head_start_s + hurry_s - slack_s)
            }
            None => in_turn_s,
        };
        Standing {
            as_if_s,
            slack_s,
            late_s,
        }
    }
}
