//! How fast a GPU takes and gives bytes: what plans are made with, measured and not looked up, since the same GPU sits
//! behind very different links.

use crate::check;
use crate::error::Error;
use crate::gpu::Gpu;
use crate::memory::Buffer;
use crate::pinned::Pinned;
use crate::stream::Event;
use std::time::Instant;

/// Every rate is the best of so many tries: what disturbs a copy only ever makes it slower.
const TRIES: usize = 3;
/// Launches in a row, of which one's cost is taken.
const LAUNCHES: u32 = 256;

/// Rates in bytes a second, times in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Page-locked host memory to the GPU.
    pub pinned_up: f64,
    /// The GPU to page-locked host memory.
    pub pinned_down: f64,
    /// Other host memory to the GPU.
    pub pageable_up: f64,
    /// From one place on the GPU to another, counted once.
    pub on_device: f64,
    /// Page-locking one GiB.
    pub pin_gib: f64,
    /// Queueing and running a kernel that does next to nothing, in a row of them.
    pub launch: f64,
    /// Bytes of each copy measured.
    pub bytes: usize,
}

impl Rates {
    /// Measures with two buffers of `bytes` each, which the budget must have room for, and as much pinned memory.
    pub fn measure(gpu: &Gpu, bytes: usize) -> Result<Rates, Error> {
        let bytes = bytes.max(4096) / 4 * 4;
        let begin = Instant::now();
        let mut pinned = Pinned::new(gpu.context(), bytes)?;
        let pin_gib = begin.elapsed().as_secs_f64() / bytes as f64 * f64::from(1 << 30);
        let mut there = Buffer::new(gpu, bytes)?;
        let mut other = Buffer::new(gpu, bytes)?;
        // The copy stream knows nothing of buffers that were just made.
        gpu.synchronise()?;
        Ok(Rates {
            pinned_up: pinned_up(gpu, &pinned, &mut there)?,
            pinned_down: pinned_down(gpu, &mut pinned, &there)?,
            pageable_up: pageable_up(gpu, &mut there)?,
            on_device: on_device(gpu, &there, &mut other)?,
            pin_gib,
            launch: launch(gpu, &there)?,
            bytes,
        })
    }
}

/// The best rate of a few tries that give milliseconds.
fn best(bytes: usize, mut once: impl FnMut() -> Result<f32, Error>) -> Result<f64, Error> {
    let mut best = 0.0f64;
    for _ in 0..TRIES {
        let seconds = f64::from(once()?).max(1e-3) / 1e3;
        best = best.max(bytes as f64 / seconds);
    }
    Ok(best)
}

fn pinned_up(gpu: &Gpu, from: &Pinned, to: &mut Buffer) -> Result<f64, Error> {
    let (begin, end) = (Event::new(gpu, true)?, Event::new(gpu, true)?);
    best(from.len(), || {
        gpu.copies().record(&begin)?;
        // SAFETY: both stay until the event behind the copy is past, which is waited for below.
        unsafe { gpu.copies().start(to.span_mut(), from.as_slice()) }?;
        gpu.copies().record(&end)?;
        end.elapsed_ms(&begin)
    })
}

fn pinned_down(gpu: &Gpu, to: &mut Pinned, from: &Buffer) -> Result<f64, Error> {
    let (begin, end) = (Event::new(gpu, true)?, Event::new(gpu, true)?);
    best(from.len(), || {
        gpu.copies().record(&begin)?;
        // SAFETY: as above.
        unsafe { gpu.copies().start_back(to.as_mut_slice(), from.span()) }?;
        gpu.copies().record(&end)?;
        end.elapsed_ms(&begin)
    })
}

fn pageable_up(gpu: &Gpu, to: &mut Buffer) -> Result<f64, Error> {
    let from = check::pattern(to.len(), 2);
    best(from.len(), || {
        let begin = Instant::now();
        to.span_mut().upload(&from)?;
        gpu.synchronise_compute()?;
        Ok(begin.elapsed().as_secs_f32() * 1e3)
    })
}

fn on_device(gpu: &Gpu, from: &Buffer, to: &mut Buffer) -> Result<f64, Error> {
    let (begin, end) = (Event::new(gpu, true)?, Event::new(gpu, true)?);
    best(from.len(), || {
        gpu.record(&begin)?;
        to.span_mut().copy_from(from.span())?;
        gpu.record(&end)?;
        end.elapsed_ms(&begin)
    })
}

fn launch(gpu: &Gpu, data: &Buffer) -> Result<f64, Error> {
    let mut sum = Buffer::zeroed(gpu, 8)?;
    let word = data.span().part(0..4);
    check::checksum(gpu, word, sum.span_mut())?;
    gpu.synchronise_compute()?;
    let begin = Instant::now();
    for _ in 0..LAUNCHES {
        check::checksum(gpu, word, sum.span_mut())?;
    }
    gpu.synchronise_compute()?;
    Ok(begin.elapsed().as_secs_f64() / f64::from(LAUNCHES))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_try_counts() {
        let mut times = [4.0f32, 2.0, 8.0].into_iter();
        let rate = best(1 << 20, || Ok(times.next().unwrap())).unwrap();
        assert!((rate - f64::from(1 << 20) / 2e-3).abs() < 1.0, "{rate}");
        let failed = best(1, || Err(Error::host("a test")));
        assert!(failed.is_err());
        let instant = best(1000, || Ok(0.0)).unwrap();
        assert!(instant.is_finite());
    }

    #[test]
    fn rates_are_measured_where_there_is_a_gpu() {
        match Gpu::open(0, 64 << 20) {
            Ok(gpu) => {
                let rates = Rates::measure(&gpu, 4 << 20).unwrap();
                assert!(rates.pinned_up > 1e8, "{rates:?}");
            }
            Err(error) => assert!(error.is_absent(), "{error}"),
        }
    }
}
