//! What is in memory while the blocks are visited: the sequences' maps, those kept for the way up, and tokens.

use std::rc::Rc;

use super::embedding::{Embedders, Told, distinct};
use super::network::{Block, Kind, LayerShape, Loaded, ResnetShape, blocks, sizes};
use super::resnet::{Output, Resnet, Sampler, concatenated, whole};
use super::transformer::{Layer, Rows};
use super::{Condition, Pass};
use crate::layers::Strip;
use crate::tensor::Tensor;
use crate::{Error, Result};

/// Rows below which a chunk of tokens is never cut: a panel of the products.
pub(super) const CHUNK_ROWS_MIN: usize = 64;

/// A pass under way.
pub(super) struct Flow<'a> {
    pass: Pass<'a>,
    /// Rows and columns of maps, by level.
    sizes: Vec<(usize, usize)>,
    /// Tokens of one sequence in the finest transformer.
    finest: usize,
    sequences: &'a [(usize, Condition<'a>)],
    /// SiLU of the time's embedding with what joins it (E, time_dim), and the row of each sequence.
    embeddings: Option<Tensor>,
    embedded: Vec<usize>,
    /// The current map of each sequence; sequences that have had everything in common share theirs.
    maps: Vec<Rc<Strip>>,
    /// For each sequence, the maps kept for the way up.
    kept: Vec<Vec<Rc<Strip>>>,
    /// Within a transformer, the tokens of all sequences.
    tokens: Option<Tensor>,
    predictions: Vec<Tensor>,
}

/// Rows of a chunk in a transformer of `tokens` tokens, for `chunk_rows` in one of `finest` tokens.
pub(super) fn chunk(chunk_rows: usize, tokens: usize, finest: usize) -> usize {
    let share = chunk_rows.saturating_mul(tokens).div_ceil(finest.max(1));
    share.max(CHUNK_ROWS_MIN)
}

/// Tokens of one sequence in the finest transformer.
pub(super) fn finest(blocks: &[Block], sizes: &[(usize, usize)]) -> usize {
    let layers = blocks
        .iter()
        .filter(|block| matches!(block.kind, Kind::Layer(_)));
    let tokens = layers.map(|block| sizes[block.level].0 * sizes[block.level].1);
    tokens.max().unwrap_or(1)
}

impl<'a> Flow<'a> {
    pub(super) fn new(
        pass: Pass<'a>,
        size: (usize, usize),
        sequences: &'a [(usize, Condition<'a>)],
    ) -> Flow<'a> {
        let sizes = sizes(pass.config, size);
        Flow {
            pass,
            finest: finest(&blocks(pass.config), &sizes),
            sizes,
            sequences,
            embeddings: None,
            embedded: Vec::new(),
            maps: Vec::new(),
            kept: vec![Vec::new(); sequences.len()],
            tokens: None,
            predictions: Vec::new(),
        }
    }

    /// What every sequence came to.
    pub(super) fn predictions(self) -> Vec<Tensor> {
        self.predictions
    }

    /// Takes all sequences through one block.
    pub(super) fn apply(
        &mut self,
        block: &Block,
        loaded: Loaded<'_>,
        samples: &[&Tensor],
        timestep: f32,
    ) -> Result<()> {
        match (loaded, &block.kind) {
            (Loaded::Start(layers), _) => self.start(&layers, samples, timestep),
            (Loaded::Resnet(layers), Kind::Resnet(shape)) => self.resnet(&layers, shape),
            (Loaded::Layer(layers), Kind::Layer(shape)) => {
                self.layer(&layers, shape, self.sizes[block.level])
            }
            (Loaded::Sampler(sampler), Kind::Up { .. }) => {
                self.up(&sampler, self.sizes[block.level - 1])
            }
            (Loaded::Sampler(sampler), _) => self.down(&sampler),
            (Loaded::Output(layers), _) => self.output(&layers),
            (Loaded::Resnet(_) | Loaded::Layer(_), _) => {
                unreachable!("a block is loaded as what it is")
            }
        }
    }

    fn start(&mut self, layers: &Embedders<'_>, samples: &[&Tensor], timestep: f32) -> Result<()> {
        let Pass {
            compute, config, ..
        } = self.pass;
        let told = self.sequences.iter().map(|(_, told)| Told::of(told));
        let (told, embedded) = distinct(told);
        self.embeddings = Some(layers.embeddings(compute, config, timestep, &told)?);
        self.embedded = embedded;
        let mut maps: Vec<Option<Rc<Strip>>> = vec![None; samples.len()];
        for &(sample, _) in self.sequences {
            let map = match &maps[sample] {
                Some(map) => Rc::clone(map),
                None => {
                    let x = whole(samples[sample].copied_here()?)?;
                    Rc::new(layers.sample(compute, &x)?)
                }
            };
            maps[sample] = Some(Rc::clone(&map));
            self.maps.push(map);
        }
        self.keep();
        Ok(())
    }

    /// Keeps the current maps for the way up.
    fn keep(&mut self) {
        for (kept, map) in self.kept.iter_mut().zip(&self.maps) {
            kept.push(Rc::clone(map));
        }
    }

    /// Replaces every map by what `apply` makes of it, once for sequences that have had everything in common.
    fn each(
        &mut self,
        mut apply: impl FnMut(&mut Flow<'a>, usize, Rc<Strip>) -> Result<Strip>,
    ) -> Result<()> {
        let maps = std::mem::take(&mut self.maps);
        let alike = |s: usize, t: usize| {
            Rc::ptr_eq(&maps[s], &maps[t]) && self.embedded[s] == self.embedded[t]
        };
        let first: Vec<usize> = (0..maps.len())
            .map(|s| (0..s).find(|&t| alike(s, t)).unwrap_or(s))
            .collect();
        // Those that will take another's result let go of their map now, so that the other may free it.
        let maps: Vec<Option<Rc<Strip>>> = maps
            .into_iter()
            .enumerate()
            .map(|(s, map)| (first[s] == s).then_some(map))
            .collect();
        let mut results: Vec<Rc<Strip>> = Vec::with_capacity(maps.len());
        for (s, map) in maps.into_iter().enumerate() {
            let result = match map {
                Some(map) => Rc::new(apply(self, s, map)?),
                None => Rc::clone(&results[first[s]]),
            };
            results.push(result);
        }
        self.maps = results;
        Ok(())
    }

    fn resnet(&mut self, layers: &Resnet<'_>, shape: &ResnetShape) -> Result<()> {
        let compute = self.pass.compute;
        let embeddings = self.embeddings.as_ref();
        let embeddings = embeddings.expect("the first block embeds the time");
        let shifts = layers.shifts(compute, embeddings)?;
        let joins = shape.channels_skip > 0;
        let kept = self.kept.iter_mut();
        let mut kept: Vec<_> = kept
            .map(|kept| joins.then(|| kept.pop()).flatten())
            .collect();
        self.each(|flow, s, map| {
            let map = match kept[s].take() {
                None => map,
                Some(kept) => Rc::new(concatenated(map, kept)?),
            };
            layers.forward(compute, map, shifts.row(flow.embedded[s]))
        })?;
        if shape.keep {
            self.keep();
        }
        Ok(())
    }

    fn down(&mut self, sampler: &Sampler<'_>) -> Result<()> {
        let compute = self.pass.compute;
        self.each(|_, _, map| sampler.down(compute, &map))?;
        self.keep();
        Ok(())
    }

    fn up(&mut self, sampler: &Sampler<'_>, size: (usize, usize)) -> Result<()> {
        let compute = self.pass.compute;
        self.each(|_, _, map| sampler.up(compute, map, size))
    }

    fn layer(
        &mut self,
        layer: &Layer<'_>,
        shape: &LayerShape,
        (height, width): (usize, usize),
    ) -> Result<()> {
        let compute = self.pass.compute;
        let tokens = height * width;
        let rows = Rows {
            tokens,
            sequences: self.sequences.len(),
            chunk: chunk(self.pass.chunk_rows, tokens, self.finest),
        };
        let made = layer.tokens(compute, rows, self.maps.iter().map(|map| &**map))?;
        let mut x = made
            .or(self.tokens.take())
            .expect("a transformer's first layer makes tokens");
        let texts: Vec<&Tensor> = self.sequences.iter().map(|(_, told)| told.text).collect();
        layer.forward(compute, rows, &mut x, &texts)?;
        if !layer.is_last() {
            self.tokens = Some(x);
            return Ok(());
        }
        for s in 0..self.maps.len() {
            // From here on sequences that shared a map have their own.
            if Rc::get_mut(&mut self.maps[s]).is_none() {
                self.maps[s] = Rc::new(whole(self.maps[s].rows.duplicate()?)?);
            }
            let map = Rc::get_mut(&mut self.maps[s]).ok_or_else(|| Error::Shape {
                what: "holders of a map",
                expected: vec![1],
                found: vec![2],
            })?;
            layer.add_back(compute, rows, (&x, s), map)?;
        }
        if shape.keep {
            self.keep();
        }
        Ok(())
    }

    fn output(&mut self, layers: &Output<'_>) -> Result<()> {
        let compute = self.pass.compute;
        for map in std::mem::take(&mut self.maps) {
            self.predictions.push(layers.forward(compute, &map)?);
        }
        Ok(())
    }
}
