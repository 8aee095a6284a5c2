//! Random weights, drawn by several threads, in an order that does not depend on how many there are.

use std::sync::mpsc::sync_channel;

use lowtide_core::{Dtype, TensorLayout};

/// Numbers drawn at once: a seed of its own for each such piece makes the bytes independent of the threads.
const CHUNK: u64 = 1 << 20;
/// Standard deviation of the weights: what initialisation of such networks uses.
const DEVIATION: f64 = 0.02;
/// Bits of one draw: the normal distribution in 65,536 steps of equal probability.
const DRAW_BITS: u32 = 16;
/// Pieces that each thread may be ahead of the disk.
const AHEAD: usize = 2;

/// Draws the numbers of tensors.
pub(crate) struct Filler {
    seed: u64,
    threads: usize,
    /// Bytes of one number, 2 or 4.
    width: usize,
    /// Every draw's number, little endian, in its first `width` bytes.
    table: Vec<[u8; 4]>,
    one: [u8; 4],
}

impl Filler {
    pub(crate) fn new(seed: u64, dtype: Dtype, threads: usize) -> Filler {
        let encode = |value: f64| match dtype {
            Dtype::Bf16 => {
                let [low, high] = bf16_bits(value as f32).to_le_bytes();
                [low, high, 0, 0]
            }
            _ => (value as f32).to_le_bytes(),
        };
        let steps = 1u32 << DRAW_BITS;
        let quantile = |step| normal_quantile((f64::from(step) + 0.5) / f64::from(steps));
        let table = (0..steps)
            .map(|step| encode(DEVIATION * quantile(step)))
            .collect();
        Filler {
            seed,
            threads,
            width: dtype.size() as usize,
            table,
            one: encode(1.0),
        }
    }

    /// Calls `write` with the tensor's bytes, piece after piece.
    pub(crate) fn fill<E>(
        &self,
        layout: &TensorLayout,
        mut write: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let chunks = layout.elements().div_ceil(CHUNK);
        let length =
            |chunk: u64| (layout.elements() - chunk * CHUNK).min(CHUNK) as usize * self.width;
        if is_norm(&layout.name) {
            return (0..chunks).try_for_each(|chunk| {
                write(&self.one[..self.width].repeat(length(chunk) / self.width))
            });
        }
        let seed = self.seed ^ fingerprint(&layout.name);
        let threads = (self.threads as u64).min(chunks);
        if threads <= 1 {
            return (0..chunks)
                .try_for_each(|chunk| write(&self.draw(seed, chunk, vec![0; length(chunk)])));
        }
        std::thread::scope(|scope| {
            let mut lanes = Vec::new();
            for thread in 0..threads {
                let (full, ready) = sync_channel::<Vec<u8>>(AHEAD);
                let (back, empty) = sync_channel::<Vec<u8>>(AHEAD + 1);
                scope.spawn(move || {
                    for chunk in (thread..chunks).step_by(threads as usize) {
                        let mut bytes = empty.try_recv().unwrap_or_default();
                        bytes.resize(length(chunk), 0);
                        // The other end is gone when a write has failed: there is nothing left to do.
                        if full.send(self.draw(seed, chunk, bytes)).is_err() {
                            return;
                        }
                    }
                });
                lanes.push((ready, back));
            }
            for chunk in 0..chunks {
                let (ready, back) = &lanes[(chunk % threads) as usize];
                let bytes = ready
                    .recv()
                    .expect("a thread ends only after its last piece");
                write(&bytes)?;
                // A full queue of spare buffers is no loss: the buffer is freed instead.
                let _ = back.try_send(bytes);
            }
            Ok(())
        })
    }

    /// Fills one piece: four numbers from each 64 random bits.
    fn draw(&self, seed: u64, chunk: u64, mut bytes: Vec<u8>) -> Vec<u8> {
        let mut state = mix(seed.wrapping_add(mix(chunk.wrapping_add(1)))) | 1;
        for four in bytes.chunks_mut(4 * self.width) {
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            let bits = state.wrapping_mul(0x2545_F491_4F6C_DD1D);
            for (number, place) in four.chunks_exact_mut(self.width).enumerate() {
                let draw = (bits >> (DRAW_BITS as usize * number)) as u16;
                place.copy_from_slice(&self.table[usize::from(draw)][..self.width]);
            }
        }
        bytes
    }
}

/// Whether a tensor scales a norm, whose neutral value is one.
fn is_norm(name: &str) -> bool {
    name.strip_suffix(".weight").is_some_and(|module| {
        let last = module.rsplit('.').next().unwrap_or(module);
        last.contains("norm") || module == "cap_embedder.0"
    })
}

/// FNV-1a: a seed for each name.
fn fingerprint(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The finaliser of splitmix64: neighbouring seeds become unrelated.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The nearest bf16, ties to even, of a finite number.
fn bf16_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

/// The number below which a standard normal variable lies with this probability, by bisection of its distribution:
/// slow, and called 65,536 times in all.
fn normal_quantile(probability: f64) -> f64 {
    let (mut low, mut high) = (-6.0, 6.0);
    for _ in 0..40 {
        let middle = 0.5 * (low + high);
        if normal_below(middle) < probability {
            low = middle;
        } else {
            high = middle;
        }
    }
    0.5 * (low + high)
}

/// The standard normal distribution function by its power series, exact enough within 6 deviations.
fn normal_below(x: f64) -> f64 {
    let (mut term, mut sum, mut n) = (x, x, 1.0);
    while (term / sum).abs() > 1e-15 {
        n += 2.0;
        term *= x * x / n;
        sum += term;
    }
    if x == 0.0 {
        return 0.5;
    }
    0.5 + sum * (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt()
}
