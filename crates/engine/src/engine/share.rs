//! Memory that other processes of this program on the same device give way with.

use std::sync::Arc;
use std::time::{Duration, Instant};

use lowtide_core::Bytes;

use super::Engine;
use crate::Result;
use crate::adapters::Active;
use crate::device::{figures, ground};
use crate::job::Planned;
use crate::session::work::Work;

/// So long a job that could begin in smaller pieces waits for its share.
const NEIGHBOURS_WAIT: Duration = Duration::from_secs(2);

/// So long one that could not begin at all does. A step on a small GPU takes some seconds.
const NEIGHBOURS_WAIT_MAX: Duration = Duration::from_secs(20);

/// What is free is looked at again after this.
const NEIGHBOURS_EVERY: Duration = Duration::from_millis(20);

impl Engine {
    pub(super) fn reserve(&self) -> Bytes {
        figures::reserve_there(self.options.budget, self.options.reserve)
    }

    /// Where other processes of this program hold the memory that a job would have as its share, asks them for it and waits
    /// a little: they give way between two steps.
    pub(super) fn ask_neighbours(
        &self,
        work: &Work,
        active: Option<&Arc<Active>>,
        room: (bool, Bytes),
    ) -> Result<()> {
        let Some(share) = ground::share(self.reserve()) else {
            return Ok(());
        };
        let plan_with = |total: Option<Bytes>| -> Result<Planned> {
            let (_, courses) = self.passes(work.settings())?;
            self.planned_within(work, (courses, active.cloned()), room, total)
        };
        // What is busy keeps its share; what is idle gives all.
        let most = ground::most(self.reserve());
        let Ok(ideal) = plan_with(Some(share)).or_else(|_| plan_with(Some(most))) else {
            // Not even all of it would do.
            return Ok(());
        };
        let wanted = ideal.plan.peak;
        let lacks = || wanted.saturating_sub(self.budget().total);
        if lacks() == Bytes::ZERO {
            return Ok(());
        }
        let most = match plan_with(None) {
            Ok(_) => NEIGHBOURS_WAIT,
            Err(_) => NEIGHBOURS_WAIT_MAX,
        };
        let began = Instant::now();
        while lacks() > Bytes::ZERO && began.elapsed() < most {
            ground::want(wanted.saturating_sub(Bytes(ground::live())));
            std::thread::sleep(NEIGHBOURS_EVERY);
        }
        ground::want(Bytes::ZERO);
        Ok(())
    }
}
