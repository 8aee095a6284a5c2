//! The CPU device in numbers, for those who report them: memory in use, time computed, energy.

use std::fs;

use lowtide_core::{Budget, Bytes};
use lowtide_kernels::memory;

use crate::device::ground;
use crate::device::memory::{Memory, reserve_of};

/// How the device is now. What the system does not tell is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Figures {
    /// Bytes the heap has handed out, and those laid aside for weights that are read next.
    pub allocated: Bytes,
    /// Bytes of this process in memory, shared pages of files included.
    pub resident: Option<Bytes>,
    /// Bytes of these that belong to nobody else: what its end would give back.
    pub resident_own: Option<Bytes>,
    /// Built into the machine.
    pub total: Option<Bytes>,
    /// What others could still have.
    pub available: Option<Bytes>,
    /// Seconds that the threads of this process computed, summed.
    pub cpu_s: Option<f64>,
    /// Joules the processor has used since some moment, where this process may read it.
    pub energy_j: Option<f64>,
    /// Share of the last moment in which something ran, of a device with memory of its own.
    pub busy: Option<f64>,
    /// Watts that such a device takes.
    pub watts: Option<f64>,
}

impl Figures {
    /// The present figures.
    pub fn read() -> Figures {
        let memory = Memory::read();
        let resident = resident();
        let there = ground::accelerator().map(|accelerator| accelerator.figures());
        let activity = ground::accelerator().map(|accelerator| accelerator.activity());
        let host = Bytes(memory::live() + memory::spare());
        let total = memory.as_ref().map(|memory| memory.total);
        Figures {
            allocated: there.map_or(host, |there| Bytes(there.held)),
            resident: resident.map(|(all, _)| all),
            resident_own: resident.map(|(all, shared)| all.saturating_sub(shared)),
            total: there.map_or(total, |there| Some(Bytes(there.total))),
            available: match there {
                Some(there) => Some(Bytes(there.free)),
                None => memory.as_ref().map(Memory::free),
            },
            cpu_s: cpu_s(),
            energy_j: energy_j(),
            busy: activity
                .and_then(|there| there.busy)
                .map(|thousandths| f64::from(thousandths) / 1e3),
            watts: activity
                .and_then(|there| there.milliwatts)
                .map(|milliwatts| milliwatts as f64 / 1e3),
        }
    }
}

/// What this process may use in all, and what of it is in use now, when it has these limits.
pub fn budget(budget: Option<Bytes>, reserve: Option<Bytes>) -> Budget {
    of_pipelines(budget, reserve, Bytes(ground::live()))
}

/// As [`budget`], of what pipelines compute on, for whoever counts less than everything as in use.
pub(crate) fn of_pipelines(budget: Option<Bytes>, reserve: Option<Bytes>, in_use: Bytes) -> Budget {
    let Some(accelerator) = ground::accelerator() else {
        return within(budget, reserve, in_use);
    };
    let figures = accelerator.figures();
    let reserve = reserve_there(budget, reserve);
    let free = (figures.free + figures.held).saturating_sub(reserve.0);
    // More than is free or can ever be had is no plan, whoever asks for it.
    let most = Bytes(free.min(figures.most));
    let total = budget.map_or(most, |budget| budget.min(most));
    Budget { total, in_use }
}

/// What is left to others of the memory that pipelines compute in; who names a budget and no reserve has reckoned with them.
pub(crate) fn reserve_there(budget: Option<Bytes>, reserve: Option<Bytes>) -> Bytes {
    reserve.unwrap_or_else(|| match (budget, ground::accelerator()) {
        (None, Some(accelerator)) => reserve_of(Bytes(accelerator.figures().total)),
        _ => Bytes::ZERO,
    })
}

/// What others on the device lack and this process can give of what it holds now: what is held for nothing goes at once,
/// the rest is in use.
pub fn lacking_of_idle(budget: Option<Bytes>, reserve: Option<Bytes>) -> Bytes {
    let Some(accelerator) = ground::accelerator() else {
        return Bytes::ZERO;
    };
    let reserve = reserve_there(budget, reserve);
    let lacking = || ground::lacking(reserve, Bytes(accelerator.figures().held), true);
    if lacking() == Bytes::ZERO {
        return Bytes::ZERO;
    }
    ground::trim();
    lacking()
}

/// What the processor's memory has room for, of those who compute on another device and keep something here.
pub(crate) fn beside_device() -> Budget {
    within(None, None, Bytes(memory::live()))
}

/// As [`budget`], for whoever counts less than everything as in use.
pub(crate) fn within(budget: Option<Bytes>, reserve: Option<Bytes>, in_use: Bytes) -> Budget {
    let total = budget.unwrap_or_else(|| match Memory::read() {
        Some(memory) => {
            let reserve = reserve.unwrap_or_else(|| memory.reserve_default());
            // What is laid aside is taken from the system, and nobody's.
            memory.free().saturating_sub(reserve) + Bytes(memory::spare()) + in_use
        }
        // Nobody knows: as good as no limit.
        None => Bytes(u64::MAX / 2),
    });
    Budget { total, in_use }
}

/// Bytes in memory, and those of them that are pages of files.
fn resident() -> Option<(Bytes, Bytes)> {
    let text = fs::read_to_string("/proc/self/smaps_rollup").ok()?;
    let field = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
        Some(Bytes::kib(kib))
    };
    let all = field("Rss:")?;
    let own = field("Private_Dirty:")?;
    Some((all, all.saturating_sub(own)))
}

/// Of the clock that the kernel counts a process' time in. Linux has it at 100 for every program, whatever its own.
const TICKS_PER_S: f64 = 100.0;

/// Seconds that the threads of this process computed, summed, where the system tells.
pub fn cpu_s() -> Option<f64> {
    let text = fs::read_to_string("/proc/self/stat").ok()?;
    // The name, in brackets, may hold blanks; the fields counted from behind it do not.
    let behind = text.rsplit_once(')')?.1;
    let mut fields = behind.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some((user + system) as f64 / TICKS_PER_S)
}

fn energy_j() -> Option<f64> {
    let text = fs::read_to_string("/sys/class/powercap/intel-rapl:0/energy_uj").ok()?;
    let microjoules: u64 = text.trim().parse().ok()?;
    Some(microjoules as f64 / 1e6)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn the_figures_of_this_process_are_plausible() {
        let before = Figures::read();
        let own = before.resident_own.expect("Linux tells");
        assert!(own > Bytes::ZERO && own <= before.resident.expect("Linux tells"));
        assert!(before.total > before.available);
        let block = vec![1u8; 64 << 20];
        let during = Figures::read();
        assert!(during.resident_own.expect("Linux tells") >= own + Bytes::mib(60));
        assert!(during.allocated >= before.allocated + Bytes::mib(64));
        drop(block);
        let start = std::time::Instant::now();
        let cpu_s = before.cpu_s.expect("Linux tells");
        while Figures::read().cpu_s.expect("Linux tells") < cpu_s + 0.05 {
            assert!(start.elapsed().as_secs() < 60, "reading it takes time");
        }
    }

    #[test]
    fn a_budget_is_what_was_asked_for_or_what_is_free() {
        assert_eq!(budget(Some(Bytes::mib(7)), None).total, Bytes::mib(7));
        let free = budget(None, Some(Bytes::mib(1))).total;
        let less = budget(None, Some(Bytes::mib(1025))).total;
        assert!(free > less, "{free} {less}");
    }
}
