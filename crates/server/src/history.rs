//! Memory over time: one sample a second, of the last minutes.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lowtide_core::job::Moment;
use lowtide_jobs::report::HolderBytes;
use serde::Serialize;

use crate::fleet::Fleet;

/// Holders in a sample, the largest first; the others are too small to be seen in a chart.
const HOLDERS_MAX: usize = 12;

/// The least and the most that is kept.
const KEPT: (Duration, Duration) = (Duration::from_secs(600), Duration::from_secs(3600));

/// Memory at one moment, all workers together.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Sample {
    pub(crate) at_ms: u64,
    pub(crate) allocated: u64,
    pub(crate) reserved: u64,
    /// Shared with the sample before where nothing moved, so that an idle hour takes little room.
    #[serde(serialize_with = "plainly")]
    pub(crate) holders: Arc<Vec<HolderBytes>>,
}

fn plainly<S: serde::Serializer>(
    holders: &Arc<Vec<HolderBytes>>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    holders.as_ref().serialize(serializer)
}

/// The samples kept.
pub(crate) struct History {
    kept: Duration,
    samples: Mutex<VecDeque<Sample>>,
}

impl History {
    /// Keeps samples for so long.
    pub(crate) fn new(kept: Duration) -> History {
        History {
            kept: kept.clamp(KEPT.0, KEPT.1),
            samples: Mutex::default(),
        }
    }

    /// Adds how it is now.
    pub(crate) fn note(&self, fleet: &Fleet, now: Moment) {
        let mut holders: Vec<HolderBytes> = fleet
            .alive()
            .flat_map(|worker| worker.status.memory.holders.iter().cloned())
            .collect();
        holders.sort_by_key(|holder| std::cmp::Reverse(holder.bytes));
        holders.truncate(HOLDERS_MAX);
        let mut samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        let last = samples.back().map(|sample| Arc::clone(&sample.holders));
        samples.push_back(Sample {
            at_ms: now.0,
            allocated: fleet.memory_sum(|memory| memory.allocated),
            reserved: fleet.memory_sum(|memory| memory.reserved),
            holders: last
                .filter(|last| **last == holders)
                .unwrap_or_else(|| Arc::new(holders)),
        });
        let most = self.kept.as_secs() as usize;
        while samples.len() > most {
            samples.pop_front();
        }
    }

    /// Those of the last so long, oldest first.
    pub(crate) fn last(&self, time: Duration, now: Moment) -> Vec<Sample> {
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        samples
            .iter()
            .filter(|sample| now.since(Moment(sample.at_ms)) <= time)
            .cloned()
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_go_and_the_same_holders_are_kept_once() {
        let history = History::new(Duration::from_secs(1));
        for second in 0..700 {
            history.note(&Fleet::default(), Moment(second * 1000));
        }
        let all = history.last(Duration::from_secs(3600), Moment(700_000));
        assert_eq!(all.len(), 600, "ten minutes are the least");
        assert_eq!(all[0].at_ms, 100_000);
        assert!(Arc::ptr_eq(&all[0].holders, &all[599].holders));
        assert_eq!(
            history.last(Duration::from_secs(10), Moment(700_000)).len(),
            10
        );
    }
}
