//! (a) The budget holds, by the driver's own word, and a refusal costs nothing but itself.

use crate::table::{Outcome, Table, mib};
use lowtide_cuda::{Buffer, Error, Gpu, self_test};

/// A multiple of whatever unit a driver deals memory in.
const BUDGET: u64 = 256 << 20;
const PART: usize = 32 << 20;

pub(crate) fn prove(table: &mut Table, ordinal: usize) -> Result<(), Error> {
    let gpu = Gpu::open(ordinal, BUDGET)?;
    let whole = gpu.probe(BUDGET);
    let figures = |result: &Result<(), Error>| match result {
        Ok(()) => "granted".to_owned(),
        Err(error) => error.to_string(),
    };
    table.demand(
        'a',
        "the driver grants the budget",
        whole.is_ok(),
        figures(&whole),
    );
    gpu.trim()?;
    let more = gpu.probe(BUDGET + 1);
    table.demand(
        'a',
        "the driver refuses one byte more",
        matches!(more, Err(Error::OutOfMemory { .. })),
        figures(&more),
    );
    let counted = Buffer::new(&gpu, BUDGET as usize + 1);
    table.demand(
        'a',
        "so does the count, as OutOfMemory",
        matches!(counted, Err(Error::OutOfMemory { asked, .. }) if asked == BUDGET + 1),
        counted.map_or_else(|error| error.to_string(), |_| "granted".to_owned()),
    );
    fill(table, &gpu)?;
    let alive = self_test(&gpu).and_then(|()| gpu.check());
    table.demand(
        'a',
        "the context lives on after refusals",
        alive.is_ok(),
        alive.map_or_else(
            |error| error.to_string(),
            |()| "self-test passed".to_owned(),
        ),
    );
    odd(table, ordinal)
}

/// Buffers of an eighth, until one is refused.
fn fill(table: &mut Table, gpu: &Gpu) -> Result<(), Error> {
    let mut parts = Vec::new();
    let refusal = loop {
        match Buffer::new(gpu, PART) {
            Ok(part) => parts.push(part),
            Err(error) => break error,
        }
    };
    let expected = BUDGET as usize / PART;
    table.demand(
        'a',
        "eight eighths fit, the ninth does not",
        parts.len() == expected && refusal.is_out_of_memory(),
        format!(
            "{} of {expected} granted; used {}, peak {}, reserved {}",
            parts.len(),
            mib(gpu.used()),
            mib(gpu.peak()),
            mib(gpu.reserved())
        ),
    );
    drop(parts);
    gpu.trim()
}

/// Where the driver draws the line of a budget that is no multiple of its unit.
fn odd(table: &mut Table, ordinal: usize) -> Result<(), Error> {
    let budget = BUDGET + 1000;
    let gpu = Gpu::open(ordinal, budget)?;
    let mut granted = 0;
    for extra in [0, 1000, 1 << 20, 2 << 20, 4 << 20, 32 << 20, 64 << 20] {
        if gpu.probe(BUDGET + extra).is_ok() {
            granted = BUDGET + extra;
        }
        gpu.trim()?;
    }
    table.add(
        'a',
        "the driver's line for an odd budget",
        Outcome::Measured,
        format!(
            "of {budget} bytes it grants {granted} and stops there or below the next of 1, 2, 4, 32 or 64 MiB; the count stops at the byte"
        ),
    );
    Ok(())
}
