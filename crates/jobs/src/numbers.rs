//! States and classes as numbers, in every store the same.

use lowtide_core::job::{JobState, Priority};

/// A word that stores write as a number. These numbers are in files; they never change.
pub(crate) trait Numbered: Copy + 'static {
    /// All words.
    const ALL: &'static [Self];
    /// The word's number.
    fn number(self) -> u8;
}

impl Numbered for JobState {
    const ALL: &'static [JobState] = &JobState::ALL;
    fn number(self) -> u8 {
        match self {
            JobState::Queued => 0,
            JobState::Paused => 1,
            JobState::Running => 2,
            JobState::Parked => 3,
            JobState::Done => 4,
            JobState::Failed => 5,
            JobState::Cancelled => 6,
        }
    }
}

impl Numbered for Priority {
    const ALL: &'static [Priority] = &Priority::ALL;
    fn number(self) -> u8 {
        match self {
            Priority::Urgent => 0,
            Priority::Normal => 1,
            Priority::Batch => 2,
        }
    }
}
