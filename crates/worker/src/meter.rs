//! How busy the device is, from the processor's time and the clock.

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
}

impl Meter {
    pub(crate) fn new(threads: usize) -> Meter {
        let figures = Figures::read();
        Meter {
            threads: threads.max(1) as f64,
            last: (Instant::now(), figures.cpu_s, figures.energy_j),
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
            self.job = Some((Instant::now(), cpu_s()));
        } else if !runs && self.job.is_some() {
            self.average(cpu_s());
            self.job = None;
        }
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
        if passed >= STRETCH_MIN_S {
            if let (Some(before), Some(cpu_s)) = (cpu_before, figures.cpu_s) {
                self.shares.now = ((cpu_s - before) / passed / self.threads).clamp(0.0, 1.0);
                if self.job.is_some() {
                    self.shares.job_peak = self.shares.job_peak.max(self.shares.now);
                }
            }
            // The counter wraps around now and then.
            let used = figures.energy_j.zip(energy_before);
            self.power_w = used
                .map(|(energy_j, before)| (energy_j - before) / passed)
                .filter(|&watts| watts >= 0.0);
            self.last = (Instant::now(), figures.cpu_s, figures.energy_j);
        }
        self.average(figures.cpu_s);
        (self.shares.clone(), self.power_w)
    }
}
