//! What a solver remembers between two steps.

use crate::{Error, Result, Tensor};

/// The most outputs any solver looks back on.
const OUTPUTS_MAX: usize = 8;

/// Tensors of earlier steps. How many there are and what they mean follows from the track and the step alone, so that
/// written down with the sample after any step they are all it takes to go on to the same bytes.
///
/// # Memory
/// At most `Track::tensors_max` tensors of the sample's size; each can be refused when it is first needed.
#[derive(Debug, Default)]
pub struct History {
    /// Oldest first.
    outputs: Vec<Tensor>,
    sample: Option<Tensor>,
}

impl History {
    /// Nothing remembered: before the first step.
    pub fn new() -> History {
        History::default()
    }

    /// Everything remembered, under names that [`History::restore`] takes back.
    pub fn tensors(&self) -> Vec<(String, &Tensor)> {
        let outputs = self.outputs.iter().enumerate();
        let outputs = outputs.map(|(i, tensor)| (format!("output.{i}"), tensor));
        let sample = self.sample.iter();
        outputs
            .chain(sample.map(|tensor| ("sample".to_owned(), tensor)))
            .collect()
    }

    /// Takes back what [`History::tensors`] gave, in any order.
    ///
    /// # Errors
    /// [`Error::Config`] on a name that is not one of its own, or missing between others.
    pub fn restore(tensors: impl IntoIterator<Item = (String, Tensor)>) -> Result<History> {
        let mut outputs: [Option<Tensor>; OUTPUTS_MAX] = Default::default();
        let mut history = History::new();
        for (name, tensor) in tensors {
            let index = name.strip_prefix("output.").and_then(|i| i.parse().ok());
            let place = match index {
                Some(index) => outputs.get_mut::<usize>(index),
                None if name == "sample" => Some(&mut history.sample),
                None => None,
            };
            match place {
                Some(place) if place.is_none() => *place = Some(tensor),
                _ => return Err(unknown(&name)),
            }
        }
        let count = outputs.iter().take_while(|output| output.is_some()).count();
        if outputs[count..].iter().any(Option::is_some) {
            return Err(unknown(&format!("output.{count}")));
        }
        history.outputs = outputs.into_iter().flatten().collect();
        Ok(history)
    }

    /// How many outputs are remembered.
    pub(super) fn outputs(&self) -> usize {
        self.outputs.len()
    }

    /// The output remembered `back` steps ago; 0 is the latest.
    pub(super) fn output(&self, back: usize) -> Result<&[f32]> {
        let index = self.outputs.len().checked_sub(back + 1);
        let output = index.and_then(|index| self.outputs.get(index));
        output.map(Tensor::data).ok_or_else(|| missing("an output"))
    }

    /// The sample remembered.
    pub(super) fn sample(&self) -> Result<&[f32]> {
        let sample = self.sample.as_ref();
        sample.map(Tensor::data).ok_or_else(|| missing("a sample"))
    }

    /// Makes room for one more output of `elements` among at most `most`. The memory of the oldest is used again, and
    /// still holds its values.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]; nothing has changed then.
    pub(super) fn room(&mut self, elements: usize, most: usize) -> Result<Tensor> {
        if self.outputs.len() >= most {
            Ok(self.outputs.remove(0))
        } else {
            Tensor::new(&[elements])
        }
    }

    /// Remembers an output as the latest.
    pub(super) fn push(&mut self, output: Tensor) {
        self.outputs.push(output);
    }

    /// Makes sure that there is memory for a sample of `elements`.
    ///
    /// # Errors
    /// As [`History::room`].
    pub(super) fn reserve_sample(&mut self, elements: usize) -> Result<()> {
        if self.sample.is_none() {
            self.sample = Some(Tensor::new(&[elements])?);
        }
        Ok(())
    }

    /// Remembers a sample; [`History::reserve_sample`] came before.
    pub(super) fn keep_sample(&mut self, sample: &[f32]) -> Result<()> {
        let kept = self.sample.as_mut().ok_or_else(|| missing("a sample"))?;
        kept.data_mut().copy_from_slice(sample);
        Ok(())
    }

    /// Everything apart, to be written together: outputs oldest first, and the sample.
    pub(super) fn parts(&mut self) -> (&[Tensor], Option<&mut Tensor>) {
        (&self.outputs, self.sample.as_mut())
    }

    /// Forgets the sample.
    pub(super) fn drop_sample(&mut self) {
        self.sample = None;
    }

    /// Forgets the outputs.
    pub(super) fn drop_outputs(&mut self) {
        self.outputs.clear();
    }

    /// Checks that everything has `elements` elements.
    pub(super) fn check(&self, elements: usize) -> Result<()> {
        for (_, tensor) in self.tensors() {
            if tensor.data().len() != elements {
                return Err(Error::Shape {
                    what: "a sampler's history",
                    expected: vec![elements],
                    found: tensor.shape().to_vec(),
                });
            }
        }
        Ok(())
    }
}

fn unknown(name: &str) -> Error {
    Error::config(
        "sampler",
        "history",
        format!("has '{name}', or lacks it, where a saved history would not"),
    )
}

fn missing(what: &'static str) -> Error {
    Error::Shape {
        what: "a sampler's history lacks a tensor of an earlier step",
        expected: vec![1],
        found: vec![usize::from(what.is_empty())],
    }
}
