//! (r) What the link gives: rates, the price of pinning, and how long a large model takes to be back.

use crate::sizes::{RESTORE_BYTES, SPARE, Sizes};
use crate::table::{Outcome, Table, mib, rate};
use lowtide_cuda::{Buffer, Error, Event, Gpu, Pinned, Rates};
use std::time::Instant;

pub(crate) fn measure(table: &mut Table, ordinal: usize, sizes: &Sizes) -> Result<(), Error> {
    let bytes = sizes.large / 2;
    let gpu = Gpu::open(ordinal, bytes as u64 * 2 + SPARE)?;
    let rates = Rates::measure(&gpu, bytes)?;
    let mut line = |what: &str, figures: String| table.add('r', what, Outcome::Measured, figures);
    line("pinned memory up", rate(rates.pinned_up));
    line("pinned memory down", rate(rates.pinned_down));
    line("pageable memory up", rate(rates.pageable_up));
    line("on the device", rate(rates.on_device));
    line("pinning", format!("{:.3} s/GiB", rates.pin_gib));
    line(
        "a small kernel in a row of them",
        format!("{:.1} us", rates.launch * 1e6),
    );
    gpu.check()
}

pub(crate) fn restore(table: &mut Table, ordinal: usize, sizes: &Sizes) -> Result<(), Error> {
    let bytes = sizes.restore;
    let gpu = Gpu::open(ordinal, bytes as u64 + SPARE)?;
    let begin = Instant::now();
    let host = Pinned::new(gpu.context(), bytes)?;
    let pinned = begin.elapsed().as_secs_f64();
    let begin = Instant::now();
    let mut there = Buffer::new(&gpu, bytes)?;
    gpu.synchronise()?;
    let allocated = begin.elapsed().as_secs_f64();
    let ends = [Event::new(&gpu, true)?, Event::new(&gpu, true)?];
    gpu.copies().record(&ends[0])?;
    // SAFETY: both outlive the wait for the last event.
    unsafe { gpu.copies().start(there.span_mut(), host.as_slice()) }?;
    gpu.copies().record(&ends[1])?;
    let seconds = f64::from(ends[1].elapsed_ms(&ends[0])?) / 1e3;
    let scaled = if (bytes as u64) + (1 << 16) < RESTORE_BYTES {
        let whole = seconds * RESTORE_BYTES as f64 / bytes as f64;
        format!("; scaled down for lack of memory: 12 GB would take {whole:.2} s")
    } else {
        String::new()
    };
    table.add(
        'r',
        "a large model back from pinned memory",
        Outcome::Measured,
        format!(
            "{} in {seconds:.2} s ({}), room for it {:.1} ms, pinned before in {pinned:.1} s{scaled}",
            mib(bytes as u64),
            rate(bytes as f64 / seconds.max(1e-6)),
            allocated * 1e3
        ),
    );
    gpu.check()
}
