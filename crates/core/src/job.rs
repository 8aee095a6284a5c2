//! Words about jobs that the store, the scheduler and the server share: moments, ids, priorities, states, retries.

use std::fmt;
use std::ops::Add;
use std::str::FromStr;
use std::time::Duration;

/// A moment in milliseconds since the Unix epoch. Core never asks for it: it is passed in, so that a test's clock may
/// begin at 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(pub u64);

impl Moment {
    /// The moment `seconds` after the epoch. What is not a positive number is the epoch itself.
    pub fn from_secs_f64(seconds: f64) -> Moment {
        // The cast saturates at both ends and turns NaN into 0.
        Moment((seconds * 1e3).round() as u64)
    }

    /// Seconds since the epoch.
    pub fn as_secs_f64(self) -> f64 {
        self.0 as f64 / 1e3
    }

    /// Seconds since `earlier`; 0 where that lies ahead, as after a clock was set back.
    pub fn seconds_since(self, earlier: Moment) -> f64 {
        self.0.saturating_sub(earlier.0) as f64 / 1e3
    }

    /// Time since `earlier`; none where that lies ahead, as after a clock was set back.
    pub fn since(self, earlier: Moment) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// `seconds` later; not later at all for what is not a positive number.
    #[must_use]
    pub fn plus_seconds(self, seconds: f64) -> Moment {
        Moment(self.0.saturating_add((seconds * 1e3).ceil() as u64))
    }
}

impl Add<Duration> for Moment {
    type Output = Moment;
    /// Rounded up, so that the time has passed at that moment.
    fn add(self, later: Duration) -> Moment {
        let ms = u64::try_from(later.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
        Moment(self.0.saturating_add(ms))
    }
}

/// What names a job for ever. Ids made later sort later, so that a list by id is a list by age.
///
/// Its text has 26 signs of Crockford's base 32 in small letters: no text from a client that is not such a text becomes
/// an id, and thereby a file's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(pub u128);

const ID_SIGNS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
const ID_LENGTH: usize = 26;
const ID_RANDOM_BITS: u32 = 80;

impl JobId {
    /// The id of a job submitted `at`; of `random` the lower 80 bits count.
    pub fn new(at: Moment, random: u128) -> JobId {
        let random = random & ((1 << ID_RANDOM_BITS) - 1);
        JobId(u128::from(at.0) << ID_RANDOM_BITS | random)
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text: String = (0..ID_LENGTH)
            .rev()
            .map(|place| char::from(ID_SIGNS[(self.0 >> (5 * place) & 31) as usize]))
            .collect();
        f.pad(&text)
    }
}

/// Why a text is not a job's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is not a job's id: one has 26 signs, digits and small letters without i, l, o and u")]
pub struct NotAnId;

impl FromStr for JobId {
    type Err = NotAnId;

    /// Reads exactly what `Display` writes, so that one job has one name.
    fn from_str(text: &str) -> Result<JobId, NotAnId> {
        if text.len() != ID_LENGTH {
            return Err(NotAnId);
        }
        let mut id: u128 = 0;
        for sign in text.bytes() {
            let digit = ID_SIGNS.iter().position(|&s| s == sign).ok_or(NotAnId)?;
            if id >> (u128::BITS - 5) != 0 {
                return Err(NotAnId);
            }
            id = id << 5 | digit as u128;
        }
        Ok(JobId(id))
    }
}

/// A word that is none of a list.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{word}' is not a {of}: write {choices}")]
pub struct NotAWord {
    /// What was written.
    pub word: String,
    /// What it should have been.
    pub of: &'static str,
    /// What may be written.
    pub choices: String,
}

fn read_word<T: Copy>(
    word: &str,
    of: &'static str,
    all: &[T],
    name: impl Fn(T) -> &'static str,
) -> Result<T, NotAWord> {
    let found = all.iter().copied().find(|&item| name(item) == word);
    found.ok_or_else(|| NotAWord {
        word: word.to_owned(),
        of,
        choices: all
            .iter()
            .map(|&item| name(item))
            .collect::<Vec<_>>()
            .join(", "),
    })
}

/// How soon a job should run. Waiting makes up for the class in the end: nobody starves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// When nothing else is to be done.
    Batch,
    /// In turn.
    #[default]
    Normal,
    /// Someone sits and waits: a running job of a lower class is parked for it.
    Urgent,
}

impl Priority {
    /// All classes, the most urgent first.
    pub const ALL: [Priority; 3] = [Priority::Urgent, Priority::Normal, Priority::Batch];

    /// The word in requests, configuration and the store.
    pub fn name(self) -> &'static str {
        match self {
            Priority::Urgent => "urgent",
            Priority::Normal => "normal",
            Priority::Batch => "batch",
        }
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Priority {
    type Err = NotAWord;
    fn from_str(word: &str) -> Result<Priority, NotAWord> {
        read_word(word, "priority", &Priority::ALL, Priority::name)
    }
}

/// Where a job is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum JobState {
    /// Accepted and durable; waits for a worker, perhaps until a moment after a failed attempt. It may have the saved
    /// session of an earlier attempt to go on from.
    Queued,
    /// A worker holds its lease and steps it.
    Running,
    /// A worker holds its lease, but another job steps.
    Parked,
    /// A hand stopped it; nobody holds its lease and its memory is given back.
    Paused,
    /// Its artifact is there.
    Done,
    /// Given up, with its history: the dead letters.
    Failed,
    /// Nobody wants it any more.
    Cancelled,
}

impl JobState {
    /// All states, in the order of a life.
    pub const ALL: [JobState; 7] = [
        JobState::Queued,
        JobState::Running,
        JobState::Parked,
        JobState::Paused,
        JobState::Done,
        JobState::Failed,
        JobState::Cancelled,
    ];

    /// The word in answers and in the store.
    pub fn name(self) -> &'static str {
        match self {
            JobState::Queued => "queued",
            JobState::Running => "running",
            JobState::Parked => "parked",
            JobState::Paused => "paused",
            JobState::Done => "done",
            JobState::Failed => "failed",
            JobState::Cancelled => "cancelled",
        }
    }

    /// Whether a worker holds a lease on a job in this state.
    pub fn is_leased(self) -> bool {
        match self {
            JobState::Running | JobState::Parked => true,
            JobState::Queued
            | JobState::Paused
            | JobState::Done
            | JobState::Failed
            | JobState::Cancelled => false,
        }
    }

    /// Whether nothing more happens by itself.
    pub fn is_final(self) -> bool {
        match self {
            JobState::Done | JobState::Failed | JobState::Cancelled => true,
            JobState::Queued | JobState::Running | JobState::Parked | JobState::Paused => false,
        }
    }

    /// Whether the step from this state to `next` exists. A failed job can be queued again by hand; a done or a
    /// cancelled one stays what it is.
    pub fn can_become(self, next: JobState) -> bool {
        use JobState::{Cancelled, Done, Failed, Parked, Paused, Queued, Running};
        match self {
            Queued => matches!(next, Running | Paused | Failed | Cancelled),
            Running => matches!(next, Parked | Paused | Queued | Done | Failed | Cancelled),
            Parked => matches!(next, Running | Paused | Queued | Failed | Cancelled),
            Paused => matches!(next, Queued | Failed | Cancelled),
            Failed => matches!(next, Queued),
            Done | Cancelled => false,
        }
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for JobState {
    type Err = NotAWord;
    fn from_str(word: &str) -> Result<JobState, NotAWord> {
        read_word(word, "job state", &JobState::ALL, JobState::name)
    }
}

/// How an attempt ended without a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Setback {
    /// The job failed, and the same again would fail again: a wrong input, or no room on the lowest rung.
    Permanent,
    /// The job failed, but another attempt may do better: the memory was taken, a file was not to be read.
    Transient,
    /// The worker died or let its lease run out. Often not the job's fault, so it has its own, larger limit; but a job
    /// that kills each worker must end somewhere.
    Lost,
    /// The worker gave it back, because it was told to end. Costs nothing.
    GivenBack,
}

/// What went wrong with a job so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Setbacks {
    /// Attempts that ended in [`Setback::Permanent`] or [`Setback::Transient`].
    pub failures: u32,
    /// Attempts that ended in [`Setback::Lost`].
    pub losses: u32,
}

impl Setbacks {
    /// One more.
    #[must_use]
    pub fn and(self, setback: Setback) -> Setbacks {
        let Setbacks { failures, losses } = self;
        match setback {
            Setback::Permanent | Setback::Transient => Setbacks {
                failures: failures.saturating_add(1),
                losses,
            },
            Setback::Lost => Setbacks {
                failures,
                losses: losses.saturating_add(1),
            },
            Setback::GivenBack => self,
        }
    }
}

/// What becomes of a job after a setback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// It is queued again and may be claimed from this moment on.
    From(Moment),
    /// It goes to the dead letters.
    GiveUp,
}

/// How often and how soon a job is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Failed attempts after which a job is given up.
    pub failures_max: u32,
    /// Lost attempts after which a job is given up.
    pub losses_max: u32,
    /// The wait after the first setback; each further one doubles it.
    pub backoff_first: Duration,
    /// The longest wait.
    pub backoff_max: Duration,
}

impl Default for RetryPolicy {
    /// 3 failures, 10 losses, 1 s to 5 min.
    fn default() -> RetryPolicy {
        RetryPolicy {
            failures_max: 3,
            losses_max: 10,
            backoff_first: Duration::from_secs(1),
            backoff_max: Duration::from_secs(300),
        }
    }
}

impl RetryPolicy {
    /// What becomes of a job that met `setback` at `now`; `setbacks` counts it already. The wait is between three
    /// quarters and the whole of the backoff, by `random`, so that jobs that failed together do not come back together.
    pub fn after(&self, setback: Setback, setbacks: Setbacks, now: Moment, random: u64) -> Retry {
        let count = match setback {
            Setback::Permanent => return Retry::GiveUp,
            Setback::GivenBack => return Retry::From(now),
            Setback::Transient if setbacks.failures >= self.failures_max => return Retry::GiveUp,
            Setback::Lost if setbacks.losses >= self.losses_max => return Retry::GiveUp,
            Setback::Transient => setbacks.failures,
            Setback::Lost => setbacks.losses,
        };
        let doublings = count.saturating_sub(1).min(31);
        let wait = self
            .backoff_first
            .saturating_mul(1 << doublings)
            .min(self.backoff_max);
        let off = wait / 4 * (random % 1024) as u32 / 1024;
        Retry::From(now + (wait - off))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn words_are_read_as_they_are_written() {
        for priority in Priority::ALL {
            assert_eq!(priority.name().parse(), Ok(priority));
        }
        for state in JobState::ALL {
            assert_eq!(state.name().parse(), Ok(state));
        }
        let refused = "asap".parse::<Priority>().expect_err("no such class");
        assert_eq!(
            refused.to_string(),
            "'asap' is not a priority: write urgent, normal, batch"
        );
        assert!(Priority::Urgent > Priority::Normal && Priority::Normal > Priority::Batch);
    }

    #[test]
    fn lives_end_once() {
        for state in JobState::ALL {
            assert!(!state.can_become(state), "{state} to itself");
            assert!(
                state.is_final() || state.can_become(JobState::Cancelled),
                "{state} can be cancelled"
            );
            assert!(
                state.is_leased() || !state.can_become(JobState::Done),
                "{state} is done without a worker"
            );
        }
        let after_the_end: Vec<(JobState, JobState)> = JobState::ALL
            .into_iter()
            .flat_map(|from| JobState::ALL.map(|to| (from, to)))
            .filter(|(from, to)| from.is_final() && from.can_become(*to))
            .collect();
        assert_eq!(after_the_end, [(JobState::Failed, JobState::Queued)]);
    }

    #[test]
    fn setbacks_are_limited_each_by_its_own_count() {
        let policy = RetryPolicy::default();
        let now = Moment(1_000_000);
        let mut setbacks = Setbacks::default();
        let mut waits = Vec::new();
        while let Retry::From(at) = {
            setbacks = setbacks.and(Setback::Lost);
            policy.after(Setback::Lost, setbacks, now, 0)
        } {
            waits.push(at.since(now).as_secs());
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 256]);
        assert_eq!(setbacks.losses, 10);
        let failed = setbacks.and(Setback::Transient);
        assert_eq!(
            policy.after(Setback::Transient, failed, now, 0),
            Retry::From(now + Duration::from_secs(1)),
            "losses do not count as failures"
        );
        assert_eq!(
            policy.after(Setback::GivenBack, failed, now, 0),
            Retry::From(now)
        );
        assert_eq!(
            policy.after(Setback::Permanent, failed, now, 0),
            Retry::GiveUp
        );
    }

    proptest! {
        #[test]
        fn an_id_has_one_text(id in any::<u128>(), text in "[0-9a-zA-Z]{25,27}") {
            prop_assert_eq!(JobId(id).to_string().parse(), Ok(JobId(id)));
            if let Ok(read) = text.parse::<JobId>() {
                prop_assert_eq!(read.to_string(), text);
            }
        }

        #[test]
        fn later_ids_sort_later(a in 0..1u64 << 48, b in 0..1u64 << 48, ra in any::<u128>(), rb in any::<u128>()) {
            prop_assume!(a != b);
            let (one, other) = (JobId::new(Moment(a), ra), JobId::new(Moment(b), rb));
            prop_assert_eq!(one < other, a < b);
            prop_assert_eq!(one.to_string() < other.to_string(), a < b);
        }

        #[test]
        fn waits_stay_between_three_quarters_and_the_longest(losses in 1..9u32, random in any::<u64>()) {
            let policy = RetryPolicy::default();
            let setbacks = Setbacks { failures: 0, losses };
            let full = Duration::from_secs(1 << (losses - 1));
            let Retry::From(at) = policy.after(Setback::Lost, setbacks, Moment(5), random) else {
                return Err(TestCaseError::fail("given up too early"));
            };
            prop_assert!(at.since(Moment(5)) <= full && at.since(Moment(5)) >= full * 3 / 4 - Duration::from_millis(1));
        }
    }
}
