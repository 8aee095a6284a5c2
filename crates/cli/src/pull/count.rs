//! How far a pull is, how fast, and how long it will take.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use lowtide_core::Bytes;

/// The speed is that of so long.
const WINDOW: Duration = Duration::from_secs(5);

/// Counts bytes.
#[derive(Debug, Default)]
pub(crate) struct Count {
    total: u64,
    there: u64,
    /// Bytes that were here before, and so say nothing about the speed.
    local: u64,
    /// Bytes that came over the network, at times.
    samples: VecDeque<(Instant, u64)>,
}

impl Count {
    /// What is to come, and what of it is there.
    pub(crate) fn plan(&mut self, total: u64, there: u64) {
        self.total = total;
        self.there = there;
        self.local = there;
    }

    /// The next so many bytes that come are those of an earlier pull.
    pub(crate) fn resumed(&mut self, bytes: u64) {
        self.local = self.local.saturating_add(bytes);
    }

    /// So many more bytes are there.
    pub(crate) fn add(&mut self, bytes: u64) {
        self.there = self.there.saturating_add(bytes);
    }

    /// So many are gone again.
    pub(crate) fn lose(&mut self, bytes: u64) {
        self.there = self.there.saturating_sub(bytes);
        self.samples.clear();
    }

    /// Bytes of all.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// Bytes that are there.
    pub(crate) fn there(&self) -> u64 {
        self.there
    }

    /// Bytes a second over the window; `None` until there is something to compare.
    pub(crate) fn speed(&mut self, now: Instant) -> Option<f64> {
        let came = self.there.saturating_sub(self.local);
        self.samples.push_back((now, came));
        while self.samples.len() > 2 && now - self.samples[0].0 > WINDOW {
            self.samples.pop_front();
        }
        let (then, before) = *self.samples.front()?;
        let seconds = (now - then).as_secs_f64();
        (seconds > 0.0 && came > before).then(|| (came - before) as f64 / seconds)
    }

    /// Seconds that are left at this speed.
    pub(crate) fn remaining(&self, per_second: Option<f64>) -> Option<u64> {
        let left = self.total.saturating_sub(self.there) as f64;
        per_second.map(|speed| (left / speed).ceil() as u64)
    }

    /// All of it in a line.
    pub(crate) fn line(&self, per_second: Option<f64>) -> String {
        let percent = match self.total {
            0 => 0,
            total => (u128::from(self.there) * 100 / u128::from(total)).min(100),
        };
        let mut line = format!(
            "  {percent:>3} %  {} of {}",
            Bytes(self.there),
            Bytes(self.total)
        );
        if let Some(speed) = per_second {
            line.push_str(&format!("  {}/s", Bytes(speed as u64)));
        }
        if let Some(seconds) = self.remaining(per_second) {
            line.push_str(&match seconds {
                0..=99 => format!("  {seconds} s left"),
                100..=5_999 => format!("  {} min left", seconds.div_ceil(60)),
                _ => format!("  {} h left", seconds.div_ceil(3_600)),
            });
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speed_and_rest_leave_out_what_was_here() {
        let mut count = Count::default();
        count.plan(1000 << 20, 100 << 20);
        count.resumed(50 << 20);
        let begun = Instant::now();
        count.add(50 << 20);
        assert_eq!(count.speed(begun), None);
        count.add(80 << 20);
        let speed = count.speed(begun + Duration::from_secs(4));
        assert_eq!(speed, Some(f64::from(20 << 20)));
        let line = count.line(speed);
        assert_eq!(
            line,
            "   23 %  230.0 MiB of 1000.0 MiB  20.0 MiB/s  39 s left"
        );
    }
}
