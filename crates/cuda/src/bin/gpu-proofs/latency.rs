//! (d) How long a few bytes that a kernel waits for stand behind a large copy, whole and cut into pieces.

use crate::sizes::{SPARE, Sizes};
use crate::table::{Outcome, Table, mib};
use lowtide_cuda::{Buffer, CHUNK_BYTES, Error, Event, Gpu, Pinned};
use std::time::{Duration, Instant};

const SMALL: usize = 64;
const TRIES: usize = 12;

/// Times in milliseconds, sorted.
struct Times(Vec<f64>);

impl Times {
    fn new(mut times: Vec<f64>) -> Times {
        times.sort_by(f64::total_cmp);
        Times(times)
    }

    fn median(&self) -> f64 {
        self.0.get(self.0.len() / 2).copied().unwrap_or(0.0)
    }

    fn worst(&self) -> f64 {
        self.0.last().copied().unwrap_or(0.0)
    }

    fn text(&self) -> String {
        if self.0.is_empty() {
            return format!("in none of {TRIES} tries did the two copies meet");
        }
        format!(
            "median {:.3} ms, worst {:.3} ms of {}",
            self.median(),
            self.worst(),
            self.0.len()
        )
    }
}

pub(crate) fn prove(table: &mut Table, ordinal: usize, sizes: &Sizes) -> Result<(), Error> {
    let gpu = Gpu::open(ordinal, sizes.large as u64 + SPARE)?;
    let host = Pinned::new(gpu.context(), sizes.large)?;
    let mut large = Buffer::new(&gpu, sizes.large)?;
    let mut small = Buffer::zeroed(&gpu, SMALL)?;
    gpu.synchronise()?;
    let alone = tries(&gpu, None, &mut large, &mut small)?;
    gpu.copies().set_chunk(usize::MAX);
    let whole = tries(&gpu, Some(&host), &mut large, &mut small)?;
    gpu.copies().set_chunk(CHUNK_BYTES);
    let cut = tries(&gpu, Some(&host), &mut large, &mut small)?;
    let lines = [
        ("64 bytes up, nothing else under way".to_owned(), alone),
        (
            format!("64 bytes up behind {} whole", mib(sizes.large as u64)),
            whole,
        ),
        (
            format!(
                "64 bytes up behind the same in pieces of {}",
                mib(CHUNK_BYTES as u64)
            ),
            cut,
        ),
    ];
    for (what, times) in lines {
        table.add('d', what, Outcome::Measured, times.text());
    }
    gpu.check()
}

fn tries(
    gpu: &Gpu,
    behind: Option<&Pinned>,
    large: &mut Buffer,
    small: &mut Buffer,
) -> Result<Times, Error> {
    let copied = Event::new(gpu, false)?;
    let mut times = Vec::new();
    for _ in 0..TRIES {
        if let Some(host) = behind {
            // SAFETY: both outlive the wait at the end of the try, and nothing else uses the large buffer.
            unsafe { gpu.copies().start(large.span_mut(), host.as_slice()) }?;
            gpu.copies().record(&copied)?;
            // So that the engine is at it when the small one comes.
            std::thread::sleep(Duration::from_millis(1));
        }
        let begin = Instant::now();
        small.span_mut().upload(&[7; SMALL])?;
        gpu.synchronise_compute()?;
        let took = begin.elapsed().as_secs_f64() * 1e3;
        // A try in which the large copy had ended before says nothing.
        if behind.is_none() || !ended_early(&copied, took)? {
            times.push(took);
        }
        gpu.synchronise()?;
    }
    Ok(Times::new(times))
}

/// Whether the large copy was over when the small one was, and the small one was quick: then they did not meet.
fn ended_early(copied: &Event, took: f64) -> Result<bool, Error> {
    Ok(copied.is_past()? && took < 0.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_sorted_and_said() {
        let times = Times::new(vec![3.0, 1.0, 2.0]);
        assert!((times.median() - 2.0).abs() < 1e-9);
        assert!((times.worst() - 3.0).abs() < 1e-9);
        assert_eq!(times.text(), "median 2.000 ms, worst 3.000 ms of 3");
        assert!(Times::new(vec![]).text().contains("none of"));
    }
}
