//! The noise one picture draws, one tensor after the other.

use super::{Mt19937, philox};
use crate::{Result, Tensor};

/// Which generator a seed is given to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Generator {
    /// PyTorch's on a CPU, as diffusers is usually seeded.
    Cpu,
    /// PyTorch's on CUDA, as web UIs are usually seeded.
    Gpu,
}

/// A picture's generator. All its draws have the same length, so that seed, length and number of draws taken are its
/// whole state: it can be written down and resumed.
pub struct Draws {
    generator: Generator,
    seed: u64,
    len: usize,
    taken: usize,
    twister: Mt19937,
}

impl Draws {
    /// The generator of a picture whose latents have `len` values.
    pub fn new(generator: Generator, seed: u64, len: usize) -> Draws {
        Draws {
            generator,
            seed,
            len,
            taken: 0,
            twister: Mt19937::new(seed),
        }
    }

    /// The same after `taken` draws.
    pub fn resume(generator: Generator, seed: u64, len: usize, taken: usize) -> Draws {
        let mut draws = Draws::new(generator, seed, len);
        if generator == Generator::Cpu {
            for _ in 0..taken {
                draws.twister.skip(len);
            }
        }
        draws.taken = taken;
        draws
    }

    /// How many tensors were drawn.
    pub fn taken(&self) -> usize {
        self.taken
    }

    /// The next `len` values, standard normal.
    ///
    /// # Errors
    /// [`crate::Error::OutOfMemory`]; nothing is drawn then.
    pub fn normal(&mut self) -> Result<Tensor> {
        let mut values = Tensor::new(&[self.len])?;
        match self.generator {
            Generator::Cpu => self.twister.fill(values.data_mut()),
            // The counter has 32 bits, more than any picture has draws.
            Generator::Gpu => philox::fill(self.seed, self.taken as u32, values.data_mut()),
        }
        self.taken += 1;
        Ok(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resumed_draws_go_on_to_the_same_bits() {
        for generator in [Generator::Cpu, Generator::Gpu] {
            for len in [5, 16, 37, 700] {
                let mut straight = Draws::new(generator, 9, len);
                for taken in 0..4 {
                    let mut resumed = Draws::resume(generator, 9, len, taken);
                    let (expected, found) = (straight.normal().unwrap(), resumed.normal().unwrap());
                    assert_eq!(expected.data(), found.data(), "{generator:?} {len} {taken}");
                    assert_eq!(resumed.taken(), taken + 1);
                }
            }
        }
    }

    #[test]
    fn the_first_draw_is_the_pictures_initial_noise() {
        let mut cpu = Draws::new(Generator::Cpu, 5, 64);
        assert_eq!(cpu.normal().unwrap().data(), super::super::randn(5, 64));
        let mut gpu = Draws::new(Generator::Gpu, 5, 64);
        assert_eq!(gpu.normal().unwrap().data(), philox::philox_randn(5, 64));
    }
}
