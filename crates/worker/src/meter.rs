//! How busy the device is, from the processor's time and the clock, or from what a device with memory of its own says of itself.

use std::time::Instant;

use lowtide_engine::device::figures::{Figures, cpu_s};
use lowtide_jobs::report::Utilisation;

/// Shortest stretch of time that is measured: the processor's time is counted in hundredths of a second.
const STRETCH_MIN_S: f64 = 0.25;

/// Follows the utilisation of a device with so many threads.
pub(crate) struct Meter {
    threads: f64,
    last: (Instant, Option<f64>, Option<f64>),
    shares: Utilisation,
    /// Since the job began: seconds computed, seconds passed, when it began.
    job: Option<(Instant, Option<f64>)>,
    power_w: Option<f64>,
    /// Seconds that a device with memory of its own was busy, summed from what it said; `None` where the processor computes.
    busy_s: Option<f64>,
}

impl Meter {
    pub(crate) fn new(threads: usize) -> Meter {
        let figures = Figures::read();
        Meter {
            threads: match figures.busy {
                Some(_) => 1.0,
                None => threads.max(1) as f64,
            },
            busy_s: figures.busy.map(|_| 0.0),
            last: (
                Instant::now(),
                figures.busy.map_or(figures.cpu_s, |_| Some(0.0)),
                figures.energy_j,
            ),
            shares: Utilisation::default(),
            job: None,
            power_w: None,
        }
    }

    /// A job runs, or none does. To be told when that changes, not later: the time between would count as the job's.
    pub(crate) fn job_runs(&mut self, runs: bool) {
        if runs && self.job.is_none() {
            self.shares.job_average = 0.0;
            self.shares.job_peak = 0.0;
            self.job = Some((Instant::now(), self.computed_s()));
        } else if !runs && self.job.is_some() {
            self.average(self.computed_s());
            self.job = None;
        }
    }

    /// Seconds that were computed so far, by all threads or by the device.
    fn computed_s(&self) -> Option<f64> {
        self.busy_s.or_else(cpu_s)
    }

    fn average(&mut self, cpu_s: Option<f64>) {
        let Some((began, Some(before))) = self.job else {
            return;
        };
        let passed = began.elapsed().as_secs_f64();
        if let Some(cpu_s) = cpu_s
            && passed > 0.02
        {
            self.shares.job_average = ((cpu_s - before) / passed / self.threads).clamp(0.0, 1.0);
            self.shares.job_peak = self.shares.job_peak.max(self.shares.job_average);
        }
    }

    /// Takes these figures into account.
    pub(crate) fn read(&mut self, figures: &Figures) -> (Utilisation, Option<f64>) {
        let (then, cpu_before, energy_before) = self.last;
        let passed = then.elapsed().as_secs_f64();
        let mut computed_s = figures.cpu_s;
        if let Some(busy_s) = &mut self.busy_s {
            if passed >= STRETCH_MIN_S {
                *busy_s += figures.busy.unwrap_or(0.0) * passed;
            }
            computed_s = Some(*busy_s);
        }
        if passed >= STRETCH_MIN_S {
            if let (Some(before), Some(cpu_s)) = (cpu_before, computed_s) {
                self.shares.now = ((cpu_s - before) / passed / self.threads).clamp(0.0, 1.0);
                if self.job.is_some() {
                    self.shares.job_peak = self.shares.job_peak.max(self.shares.now);
                }
            }
            // The counter wraps around now and then.
            let used = figures.energy_j.zip(energy_before);
            let used = used.filter(|_| self.busy_s.is_none());
            self.power_w = used
                .map(|(energy_j, before)| (energy_j - before) / passed)
                .filter(|&watts| watts >= 0.0)
                .or(figures.watts);
            self.last = (Instant::now(), computed_s, figures.energy_j);
        }
        self.average(computed_s);
        (self.shares.clone(), self.power_w)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_says_how_busy_it_is_is_believed() {
        let told = |busy| Figures {
            busy: Some(busy),
            watts: Some(300.0),
            cpu_s: Some(0.0),
            ..Figures::default()
        };
        let mut meter = Meter::new(8);
        (meter.threads, meter.busy_s) = (1.0, Some(0.0));
        meter.last = (Instant::now(), Some(0.0), None);
        meter.job_runs(true);
        std::thread::sleep(std::time::Duration::from_millis(300));
        let (shares, watts) = meter.read(&told(0.5));
        assert!((shares.now - 0.5).abs() < 0.02, "{shares:?}");
        assert!((shares.job_average - 0.5).abs() < 0.1, "{shares:?}");
        assert_eq!(watts, Some(300.0));
        std::thread::sleep(std::time::Duration::from_millis(300));
        let (shares, _) = meter.read(&told(1.0));
        assert!((shares.now - 1.0).abs() < 0.02, "{shares:?}");
        assert!(
            shares.job_peak > 0.9 && shares.job_average > 0.6,
            "{shares:?}"
        );
    }
}
