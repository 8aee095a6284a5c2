//! Where a picture's noise comes from.

use lowtide_models::noise::Mt19937;
use serde::{Deserialize, Serialize};

/// A picture's own generator of noise. It is made anew from what was drawn of it, so that a picture can go on elsewhere.
pub(crate) struct Generator {
    seed: u64,
    /// What was drawn so far: how many values at a time.
    drawn: Vec<usize>,
    /// In the state after those; made at the first draw.
    state: Option<Mt19937>,
}

/// A generator at rest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Drawn(pub(crate) Vec<usize>);

impl Generator {
    /// At its beginning.
    pub(crate) fn new(seed: u64) -> Generator {
        Generator {
            seed,
            drawn: Vec::new(),
            state: None,
        }
    }

    /// Where one with this seed was when so much was drawn.
    pub(crate) fn after(seed: u64, drawn: Drawn) -> Generator {
        Generator {
            seed,
            drawn: drawn.0,
            state: None,
        }
    }

    /// What was drawn.
    pub(crate) fn drawn(&self) -> Drawn {
        Drawn(self.drawn.clone())
    }

    /// The next `len` values of the normal distribution, as PyTorch's CPU generator gives them.
    pub(crate) fn normal(&mut self, len: usize) -> Vec<f32> {
        let (seed, drawn) = (self.seed, &self.drawn);
        let state = self.state.get_or_insert_with(|| {
            let mut state = Mt19937::new(seed);
            for &len in drawn {
                state.randn(len);
            }
            state
        });
        let values = state.randn(len);
        self.drawn.push(len);
        values
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generator_goes_on_elsewhere() {
        let mut generator = Generator::new(7);
        generator.normal(40);
        generator.normal(17);
        let mut elsewhere = Generator::after(7, generator.drawn());
        assert_eq!(elsewhere.normal(64), generator.normal(64));
        assert_eq!(elsewhere.drawn(), generator.drawn());
    }
}
