//! A Brownian path over noise levels, fixed by its seed: whatever the steps, the same increments between the same levels.
//!
//! The path is halved again and again; the value at each middle is drawn from a seed that belongs to that middle alone.
//! Levels are known to six decimals, so that the halving ends.
//!
//! # Source
//! torchsde 0.2.6 `BrownianInterval` with `halfway_tree`, and the seeds it takes from numpy's `SeedSequence`
//! (O'Neill, "Simple Portable C++ Seed Entropy").

use crate::noise::Mt19937;
use crate::{Result, Tensor};

/// Words of the seed sequence's pool.
const POOL: usize = 24;

/// Where on the path an interval lies, and which of its parent's halves it is.
#[derive(Clone, Copy, Debug)]
struct Interval {
    start: f64,
    end: f64,
    place: u64,
    depth: u64,
}

impl Interval {
    fn middle(&self) -> f64 {
        rounded(0.5 * (self.end + self.start))
    }

    fn halves(&self) -> [Interval; 2] {
        let middle = self.middle();
        let half = |start, end, right| Interval {
            start,
            end,
            place: 2 * self.place + right,
            depth: self.depth + 1,
        };
        [half(self.start, middle, 0), half(middle, self.end, 1)]
    }

    /// How much of it a stretch of levels covers.
    fn cover(&self, from: f64, to: f64) -> Cover {
        if to <= self.start || from >= self.end {
            Cover::None
        } else if from <= self.start && to >= self.end {
            Cover::Whole
        } else {
            Cover::Part
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cover {
    None,
    Part,
    Whole,
}

/// A path between a run's least and largest noise level.
#[derive(Clone, Copy, Debug)]
pub struct BrownianPath {
    seed: u64,
    least: f64,
    largest: f64,
}

impl BrownianPath {
    /// The path of `seed` between the two ends that `Track::brownian_ends` gives.
    pub fn new(seed: u64, (least, largest): (f32, f32)) -> BrownianPath {
        BrownianPath {
            seed,
            least: f64::from(least),
            largest: f64::from(largest),
        }
    }

    /// The increment from one level to another over the root of their distance: `len` standard normal values.
    ///
    /// # Memory
    /// Up to five tensors of `len` values while it computes.
    ///
    /// # Errors
    /// [`crate::Error::OutOfMemory`].
    pub fn normal(&self, from: f32, to: f32, len: usize) -> Result<Tensor> {
        let root = Interval {
            start: rounded(self.least),
            end: rounded(self.largest),
            place: 0,
            depth: 0,
        };
        let inside = |level: f32| rounded(f64::from(level).clamp(root.start, root.end));
        let (low, high) = (inside(from.min(to)), inside(from.max(to)));
        let mut sum = Tensor::zeros(&[len])?;
        if low < high {
            let mut all = Tensor::new(&[len])?;
            let seed = seed_of(self.seed, None);
            Mt19937::new(u64::from(seed)).fill(all.data_mut());
            let spread = (self.largest - self.least).sqrt() as f32;
            all.data_mut().iter_mut().for_each(|w| *w *= spread);
            if root.cover(low, high) == Cover::Whole {
                add(&mut sum, &all);
            } else {
                self.descend(root, all, (low, high), &mut sum)?;
            }
        }
        let sign = if from < to { 1.0 } else { -1.0 };
        let scale = (to - from).abs().sqrt();
        for w in sum.data_mut() {
            *w = *w * sign / scale;
        }
        Ok(sum)
    }

    /// Adds what the stretch `(from, to)` covers of an interval whose increment is `whole`.
    fn descend(
        &self,
        mut interval: Interval,
        mut whole: Tensor,
        (from, to): (f64, f64),
        sum: &mut Tensor,
    ) -> Result<()> {
        loop {
            let [left, right] = interval.halves();
            let mut left_part = Tensor::new(&[whole.data().len()])?;
            self.halve(interval, &mut whole, &mut left_part);
            let right_part = whole;
            let covers = (left.cover(from, to), right.cover(from, to));
            if covers.0 == Cover::Whole {
                add(sum, &left_part);
            }
            if covers.1 == Cover::Whole {
                add(sum, &right_part);
            }
            (interval, whole) = match covers {
                (Cover::Part, Cover::Part) => {
                    self.descend(left, left_part, (from, to), sum)?;
                    (right, right_part)
                }
                (Cover::Part, _) => (left, left_part),
                (_, Cover::Part) => (right, right_part),
                _ => return Ok(()),
            };
        }
    }

    /// Splits an interval's increment: `whole` becomes the right half's, `left` the left half's.
    fn halve(&self, interval: Interval, whole: &mut Tensor, left: &mut Tensor) {
        let middle = interval.middle();
        let (before, after) = (middle - interval.start, interval.end - middle);
        let reciprocal = 1.0 / (interval.end - interval.start);
        let spread = (before * after * reciprocal).sqrt() as f32;
        let (before, reciprocal) = (before as f32, reciprocal as f32);
        let seed = seed_of(self.seed, Some((interval.place, interval.depth)));
        Mt19937::new(u64::from(seed)).fill(left.data_mut());
        for (w, noise) in whole.data_mut().iter_mut().zip(left.data_mut()) {
            let part = before * *w * reciprocal + spread * *noise;
            *noise = part;
            *w -= part;
        }
    }
}

fn add(sum: &mut Tensor, part: &Tensor) {
    for (sum, part) in sum.data_mut().iter_mut().zip(part.data()) {
        *sum += part;
    }
}

/// To six decimals, by the exact decimal value as Python rounds.
fn rounded(level: f64) -> f64 {
    format!("{level:.6}").parse().unwrap_or(level)
}

/// The first word of numpy's `SeedSequence(entropy, spawn_key, pool_size=24)`.
fn seed_of(entropy: u64, key: Option<(u64, u64)>) -> u32 {
    let mut words = little_words(entropy);
    if let Some((place, depth)) = key {
        words.resize(words.len().max(POOL), 0);
        words.extend(little_words(place));
        words.extend(little_words(depth));
    }
    let mut constant = 0x43b0_d7e5_u32;
    let mut hash = |mut word: u32| {
        word ^= constant;
        constant = constant.wrapping_mul(0x931e_8875);
        word = word.wrapping_mul(constant);
        word ^ (word >> 16)
    };
    let mix = |into: u32, word: u32| {
        let mixed = into.wrapping_mul(0xca01_f9dd);
        let mixed = mixed.wrapping_sub(word.wrapping_mul(0x4973_f715));
        mixed ^ (mixed >> 16)
    };
    let mut pool = [0_u32; POOL];
    for (i, slot) in pool.iter_mut().enumerate() {
        *slot = hash(words.get(i).copied().unwrap_or(0));
    }
    for from in 0..POOL {
        for into in 0..POOL {
            if from != into {
                pool[into] = mix(pool[into], hash(pool[from]));
            }
        }
    }
    for &word in words.get(POOL..).unwrap_or_default() {
        for slot in &mut pool {
            *slot = mix(*slot, hash(word));
        }
    }
    let start = 0x8b51_f9dd_u32;
    let first = (pool[0] ^ start).wrapping_mul(start.wrapping_mul(0x58f3_8ded));
    first ^ (first >> 16)
}

/// A number's words, the lowest first; at least one.
fn little_words(number: u64) -> Vec<u32> {
    match number >> 32 {
        0 => vec![number as u32],
        high => vec![number as u32, high as u32],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_numpys() {
        // numpy 2.4: SeedSequence(entropy=e, spawn_key=k, pool_size=24).generate_state(1)
        assert_eq!(seed_of(7, None), 1_376_543_887);
        assert_eq!(seed_of(7, Some((5, 3))), 1_167_487_741);
        assert_eq!(seed_of((1 << 63) + 5, Some((0, 0))), 2_581_192_580);
    }

    #[test]
    fn increments_add_up() {
        let path = BrownianPath::new(3, (0.03, 14.6));
        let part = |from: f32, to: f32| {
            let normal = path.normal(from, to, 20).unwrap();
            let root = (from - to).abs().sqrt();
            normal.data().iter().map(|n| n * root).collect::<Vec<f32>>()
        };
        let (near, far, all) = (part(14.6, 3.7), part(3.7, 0.5), part(14.6, 0.5));
        for i in 0..20 {
            assert!((near[i] + far[i] - all[i]).abs() < 1e-4);
        }
    }

    #[test]
    fn a_stretch_without_length_has_no_increment() {
        let path = BrownianPath::new(3, (1.0, 2.0));
        // Both levels lie beyond the end of the path.
        let noise = path.normal(2.5, 2.25, 16).unwrap();
        assert_eq!(noise.data(), [0.0; 16]);
    }
}
