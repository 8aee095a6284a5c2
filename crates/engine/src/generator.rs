//! Where a picture's noise comes from.

use lowtide_models::noise::{self, Mt19937};
use serde::{Deserialize, Serialize};

use crate::request::NoiseOf;

/// A picture's own generator of noise. It is made anew from what was drawn of it, so that a picture can go on elsewhere.
pub(crate) struct Generator {
    seed: u64,
    noise_of: NoiseOf,
    /// What was drawn so far: how many values at a time.
    drawn: Drawn,
    /// PyTorch's CPU generator in the state after those; made at the first draw.
    state: Option<Mt19937>,
}

/// What was drawn of a generator: how many values at a time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Drawn(pub(crate) Vec<usize>);

impl Generator {
    /// At its beginning.
    pub(crate) fn new(seed: u64, noise_of: NoiseOf) -> Generator {
        Generator::after(seed, noise_of, Drawn::default())
    }

    /// Where one with this seed was when so much was drawn.
    pub(crate) fn after(seed: u64, noise_of: NoiseOf, drawn: Drawn) -> Generator {
        Generator {
            seed,
            noise_of,
            drawn,
            state: None,
        }
    }

    /// What was drawn.
    pub(crate) fn drawn(&self) -> &Drawn {
        &self.drawn
    }

    /// The next `len` values of the normal distribution, as PyTorch's generator gives them.
    pub(crate) fn normal(&mut self, len: usize) -> Vec<f32> {
        let (seed, drawn) = (self.seed, &self.drawn.0);
        let values = match self.noise_of {
            // As web UIs do it on any device: every draw moves the offset by one.
            NoiseOf::Gpu => {
                let mut values = vec![0.0; len];
                noise::philox::fill(seed, drawn.len() as u32, &mut values);
                values
            }
            NoiseOf::Cpu => {
                let begin = || {
                    let mut state = Mt19937::new(seed);
                    drawn.iter().for_each(|&len| drop(state.randn(len)));
                    state
                };
                self.state.get_or_insert_with(begin).randn(len)
            }
        };
        self.drawn.0.push(len);
        values
    }

    /// Goes back to where so much was drawn.
    pub(crate) fn rewind(&mut self, drawn: Drawn) {
        self.drawn = drawn;
        self.state = None;
    }

    /// Takes the last draw back.
    pub(crate) fn undo(&mut self) {
        self.drawn.0.pop();
        self.state = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generator_goes_on_elsewhere() {
        for noise_of in [NoiseOf::Cpu, NoiseOf::Gpu] {
            let mut generator = Generator::new(7, noise_of);
            let first = generator.normal(40);
            assert_ne!(generator.normal(40), first);
            let mut elsewhere = Generator::after(7, noise_of, generator.drawn().clone());
            assert_eq!(elsewhere.normal(64), generator.normal(64));
            assert_eq!(elsewhere.drawn(), generator.drawn());
        }
    }
}
