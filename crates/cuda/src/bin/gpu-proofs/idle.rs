//! (c) What is dropped is back with the driver within a moment, and what a process that does nothing still holds.

use crate::sizes::{SPARE, Sizes};
use crate::table::{Outcome, Table, mib};
use lowtide_cuda::telemetry::{Memory, Telemetry};
use lowtide_cuda::{Buffer, Error, Gpu};
use std::time::{Duration, Instant};

const PART: usize = 64 << 20;
/// How soon it must be back.
const SOON: Duration = Duration::from_millis(100);
/// What others on the device may take meanwhile, and what the driver rounds.
const SLACK: u64 = 64 << 20;

pub(crate) fn prove(
    table: &mut Table,
    ordinal: usize,
    sizes: &Sizes,
    before: Option<Memory>,
) -> Result<(), Error> {
    let gpu = Gpu::open(ordinal, sizes.idle + SPARE)?;
    let telemetry = Telemetry::open(&gpu.info().pci).ok();
    gpu.trim()?;
    let free = gpu.free();
    let managed = telemetry.as_ref().and_then(|t| t.memory().ok());
    let mut parts = Vec::new();
    for _ in 0..(sizes.idle / PART as u64).max(1) {
        parts.push(Buffer::zeroed(&gpu, PART)?);
    }
    gpu.synchronise()?;
    let taken = free.saturating_sub(gpu.free());
    let begin = Instant::now();
    drop(parts);
    gpu.synchronise()?;
    let without = free.saturating_sub(gpu.free());
    gpu.trim()?;
    let seen = until(SOON, || gpu.free() + SLACK >= free);
    let took = begin.elapsed();
    table.demand(
        'c',
        "freed memory is the driver's again within 100 ms",
        seen && took <= SOON && taken + SLACK >= sizes.idle / PART as u64 * PART as u64,
        format!(
            "{} taken; {} still held after drop and wait alone, {} after the trim, {:.1} ms after the drop",
            mib(taken),
            mib(without),
            mib(free.saturating_sub(gpu.free())),
            took.as_secs_f64() * 1e3
        ),
    );
    by_nvml(table, telemetry.as_ref(), managed, begin);
    left(table, &gpu, telemetry.as_ref(), before);
    gpu.check()
}

/// The same, as the management library sees it.
fn by_nvml(
    table: &mut Table,
    telemetry: Option<&Telemetry>,
    managed: Option<Memory>,
    begin: Instant,
) {
    let what = "the management library sees it as well";
    let (Some(telemetry), Some(managed)) = (telemetry, managed) else {
        table.add('c', what, Outcome::Skipped, "there is no such library here");
        return;
    };
    let used = || telemetry.memory().map_or(u64::MAX, |memory| memory.used);
    // It may look at the device less often than we do.
    let seen = until(Duration::from_secs(2), || used() <= managed.used + SLACK);
    let took = begin.elapsed();
    table.demand(
        'c',
        what,
        seen,
        format!(
            "{} used before, {} after, {:.1} ms after the drop",
            mib(managed.used),
            mib(used()),
            took.as_secs_f64() * 1e3
        ),
    );
}

/// What the context alone keeps.
fn left(table: &mut Table, gpu: &Gpu, telemetry: Option<&Telemetry>, before: Option<Memory>) {
    let what = "what an idle process leaves behind";
    let own = telemetry.and_then(|t| t.processes().ok()).and_then(|all| {
        let own = all.into_iter().find(|one| one.id == std::process::id())?;
        own.used
    });
    let grown = telemetry
        .and_then(|t| t.memory().ok())
        .zip(before)
        .map(|(now, before)| now.used.saturating_sub(before.used));
    let say = |bytes: Option<u64>| bytes.map_or("not known".to_owned(), mib);
    table.add(
        'c',
        what,
        Outcome::Measured,
        format!(
            "by the process list {}, by the device's growth since before the first context {}; in the pool {}",
            say(own),
            say(grown),
            mib(gpu.reserved())
        ),
    );
}

/// Looks again and again for as long as that.
pub(crate) fn until(time: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let begin = Instant::now();
    loop {
        if holds() {
            return true;
        }
        if begin.elapsed() > time {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_ends_when_it_holds_or_time_is_up() {
        let mut left = 3;
        assert!(until(Duration::from_secs(5), || {
            left -= 1;
            left == 0
        }));
        assert!(!until(Duration::from_millis(2), || false));
    }
}
