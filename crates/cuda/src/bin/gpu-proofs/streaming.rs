//! (b) Slots that are refilled while the compute stream works give the same bits, and their copies are hidden.
//! (e) A slot that is refilled in place shows its new content through views made before.

use crate::sizes::{SPARE, Sizes};
use crate::table::{Outcome, Table, mib, rate};
use lowtide_cuda::{
    Buffer, Error, Event, Gpu, Pinned, Span, SpanMut, busy, busy_on_host, checksum,
    checksum_on_host,
};

const SLOTS: usize = 2;
/// Every block is used so many times.
const PASSES: usize = 3;
/// How much longer a block is computed on than copied.
const LONGER: f64 = 1.5;
/// The least part of the copies that must be hidden.
const HIDDEN_MIN: f64 = 0.8;

/// Blocks in pinned memory, slots on the GPU, and a sum for every visit.
struct Line {
    gpu: Gpu,
    host: Pinned,
    block: usize,
    slots: Vec<Buffer>,
    sums: Buffer,
    rounds: u32,
    visits: usize,
}

impl Line {
    fn new(gpu: &Gpu, sizes: &Sizes) -> Result<Line, Error> {
        let mut host = Pinned::new(gpu.context(), sizes.block * sizes.blocks)?;
        fill(host.as_mut_slice(), 11);
        let visits = sizes.blocks * PASSES;
        let slots = (0..SLOTS)
            .map(|_| Buffer::zeroed(gpu, sizes.block))
            .collect::<Result<_, _>>()?;
        let line = Line {
            gpu: gpu.clone(),
            host,
            block: sizes.block,
            slots,
            sums: Buffer::zeroed(gpu, visits * 8)?,
            rounds: 64,
            visits,
        };
        // The copy stream knows nothing of buffers that were just made.
        gpu.synchronise()?;
        Ok(line)
    }

    fn content(&self, visit: usize) -> &[u8] {
        let blocks = self.host.len() / self.block;
        let begin = visit % blocks * self.block;
        &self.host.as_slice()[begin..begin + self.block]
    }

    /// Queues the work on a slot.
    fn work(&mut self, visit: usize) -> Result<(), Error> {
        let mut sums = self.sums.span_mut();
        let sum = sums.part(visit * 8..visit * 8 + 8);
        busy(
            &self.gpu,
            self.slots[visit % SLOTS].span(),
            self.rounds,
            sum,
        )
    }

    /// Queues the copy into a slot.
    fn copy(&mut self, visit: usize) -> Result<(), Error> {
        let slot = &self.slots[visit % SLOTS];
        // SAFETY: the slot lives in `self`, and the events around every call keep its users apart.
        let to = unsafe { SpanMut::from_raw(&self.gpu, slot.span().address(), slot.len()) };
        // SAFETY: the host's blocks are pinned and never written after `new`; every run ends with a wait for all.
        unsafe { self.gpu.copies().start(to, self.content(visit)) }
    }

    /// One after the other, on the host's word each.
    fn plain(&mut self) -> Result<Vec<u64>, Error> {
        self.forget()?;
        for visit in 0..self.visits {
            self.copy(visit)?;
            self.gpu.synchronise()?;
            self.work(visit)?;
            self.gpu.synchronise()?;
        }
        self.results()
    }

    /// Both streams at once, two events a slot; the host only queues. Milliseconds from first to last.
    fn streamed(&mut self) -> Result<(Vec<u64>, f32), Error> {
        self.forget()?;
        let ready = self.events(SLOTS, false)?;
        let free = self.events(SLOTS, false)?;
        let ends = self.events(2, true)?;
        self.gpu.record(&ends[0])?;
        self.gpu.copies().wait(&ends[0])?;
        for visit in 0..self.visits {
            let slot = visit % SLOTS;
            // Before its first use a slot's event was never recorded, and so is past.
            self.gpu.copies().wait(&free[slot])?;
            self.copy(visit)?;
            self.gpu.copies().record(&ready[slot])?;
            self.gpu.wait(&ready[slot])?;
            self.work(visit)?;
            self.gpu.record(&free[slot])?;
        }
        self.gpu.record(&ends[1])?;
        let ms = ends[1].elapsed_ms(&ends[0])?;
        Ok((self.results()?, ms))
    }

    /// Milliseconds of all copies alone, and of all work alone.
    fn apart(&mut self) -> Result<(f32, f32), Error> {
        let ends = self.events(4, true)?;
        self.gpu.copies().record(&ends[0])?;
        for visit in 0..self.visits {
            self.copy(visit)?;
        }
        self.gpu.copies().record(&ends[1])?;
        let copies = ends[1].elapsed_ms(&ends[0])?;
        self.gpu.record(&ends[2])?;
        for visit in 0..self.visits {
            self.work(visit)?;
        }
        self.gpu.record(&ends[3])?;
        Ok((copies, ends[3].elapsed_ms(&ends[2])?))
    }

    /// Chooses how long the work on a block takes, by what a copy takes.
    fn calibrate(&mut self) -> Result<(), Error> {
        self.apart()?;
        for _ in 0..3 {
            let (copies, work) = self.apart()?;
            let factor = LONGER * f64::from(copies) / f64::from(work).max(1e-3);
            self.rounds = (f64::from(self.rounds) * factor).clamp(1.0, 1e7) as u32;
        }
        Ok(())
    }

    fn forget(&mut self) -> Result<(), Error> {
        self.sums.span_mut().zero()?;
        self.gpu.synchronise()
    }

    fn events(&self, count: usize, timed: bool) -> Result<Vec<Event>, Error> {
        (0..count).map(|_| Event::new(&self.gpu, timed)).collect()
    }

    fn results(&self) -> Result<Vec<u64>, Error> {
        self.gpu.synchronise()?;
        numbers(self.sums.span())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        // Pinned memory goes next, which nothing may still be copied from.
        let _ = self.gpu.synchronise();
    }
}

fn numbers(sums: Span<'_>) -> Result<Vec<u64>, Error> {
    let mut bytes = vec![0; sums.len()];
    sums.download(&mut bytes)?;
    let numbers = bytes.chunks_exact(8);
    Ok(numbers
        .map(|n| u64::from_le_bytes([n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7]]))
        .collect())
}

/// Something that no two places share.
pub(crate) fn fill(bytes: &mut [u8], seed: u32) {
    let mut x = seed;
    for word in bytes.chunks_exact_mut(4) {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        word.copy_from_slice(&(x ^ (x >> 13)).to_le_bytes());
    }
}

/// (b)
pub(crate) fn prove(table: &mut Table, ordinal: usize, sizes: &Sizes) -> Result<(), Error> {
    let budget = (sizes.block * (SLOTS + 1)) as u64 + SPARE;
    let gpu = Gpu::open(ordinal, budget)?;
    let mut line = Line::new(&gpu, sizes)?;
    line.calibrate()?;
    let (copies, work) = line.apart()?;
    let plain = line.plain()?;
    let host: Vec<u64> = (0..line.visits)
        .map(|visit| busy_on_host(line.content(visit), line.rounds))
        .collect();
    let (streamed, together) = line.streamed()?;
    let same = plain == host && streamed == plain;
    table.demand(
        'b',
        "refilled slots give the same bits",
        same,
        format!(
            "{} visits of {} in {SLOTS} slots: plain {}, streamed {}",
            line.visits,
            mib(line.block as u64),
            verdict(&plain, &host),
            verdict(&streamed, &host)
        ),
    );
    let hidden = hidden(copies, work, together);
    let figures = format!(
        "{:.0} % of {copies:.1} ms of copies ({}); work alone {work:.1} ms, together {together:.1} ms",
        hidden * 100.0,
        rate((line.block * line.visits) as f64 / (f64::from(copies).max(1e-3) / 1e3)),
    );
    let what = "copies hidden behind longer work (80 % at least)";
    if work > copies {
        table.demand('b', what, hidden >= HIDDEN_MIN, figures);
    } else {
        table.add(
            'b',
            what,
            Outcome::Skipped,
            format!("the work was not longer: {figures}"),
        );
    }
    gpu.check()
}

fn verdict(got: &[u64], expected: &[u64]) -> String {
    let wrong = got.iter().zip(expected).filter(|(a, b)| a != b).count();
    if wrong == 0 {
        "as on the host".to_owned()
    } else {
        format!("{wrong} wrong")
    }
}

/// The part of the copies that cost no time.
fn hidden(copies: f32, work: f32, together: f32) -> f64 {
    let saved = f64::from(copies) + f64::from(work) - f64::from(together);
    (saved / f64::from(copies).max(1e-6)).clamp(0.0, 1.0)
}

/// (e)
pub(crate) fn prove_views(table: &mut Table, ordinal: usize, sizes: &Sizes) -> Result<(), Error> {
    let gpu = Gpu::open(ordinal, sizes.block as u64 + SPARE)?;
    let slot = Buffer::zeroed(&gpu, sizes.block)?;
    let mut sums = Buffer::zeroed(&gpu, 3 * 2 * 8)?;
    let third = sizes.block / 3 / 256 * 256;
    let address = slot.span().address();
    // SAFETY: the slot outlives the views, and whoever fills it keeps to the events below.
    let views =
        [0, 1, 2].map(|i| unsafe { Span::from_raw(&gpu, address + (i * third) as u64, third) });
    let mut host = Pinned::new(gpu.context(), sizes.block * 2)?;
    fill(host.as_mut_slice(), 12);
    let (ready, free) = (Event::new(&gpu, false)?, Event::new(&gpu, false)?);
    gpu.synchronise()?;
    let mut expected = Vec::new();
    for (turn, content) in host.as_slice().chunks_exact(sizes.block).enumerate() {
        gpu.copies().wait(&free)?;
        // SAFETY: as for the views.
        let to = unsafe { SpanMut::from_raw(&gpu, address, sizes.block) };
        // SAFETY: the content is pinned until the end, and the compute stream waits for `ready`.
        unsafe { gpu.copies().start(to, content) }?;
        gpu.copies().record(&ready)?;
        gpu.wait(&ready)?;
        for (i, view) in views.iter().enumerate() {
            let at = (turn * 3 + i) * 8;
            checksum(&gpu, *view, sums.span_mut().part(at..at + 8))?;
            expected.push(checksum_on_host(&content[i * third..(i + 1) * third]));
        }
        gpu.record(&free)?;
    }
    gpu.synchronise()?;
    let got = numbers(sums.span())?;
    table.demand(
        'e',
        "views show what a slot was refilled with",
        got == expected,
        format!(
            "3 views of {} before and after: {}",
            mib(third as u64),
            verdict(&got, &expected)
        ),
    );
    gpu.check()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_is_what_was_saved() {
        assert!((hidden(10.0, 20.0, 20.0) - 1.0).abs() < 1e-9);
        assert!((hidden(10.0, 20.0, 30.0)).abs() < 1e-9);
        assert!((hidden(10.0, 20.0, 22.0) - 0.8).abs() < 1e-6);
        assert!(hidden(10.0, 20.0, 99.0).abs() < 1e-9);
    }

    #[test]
    fn verdicts_count() {
        assert_eq!(verdict(&[1, 2], &[1, 2]), "as on the host");
        assert_eq!(verdict(&[1, 3], &[1, 2]), "1 wrong");
    }

    #[test]
    fn filled_bytes_depend_on_the_seed() {
        let (mut a, mut b) = ([0; 64], [0; 64]);
        fill(&mut a, 1);
        fill(&mut b, 2);
        assert_ne!(a, b);
    }
}
