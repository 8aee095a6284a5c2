//! One layer of a transformer over the tokens of maps: attention among them, attention to the text, a feed-forward.
//!
//! Letters: S sequences, T tokens of one (a map's places), C channels, K tokens of a text. The tokens of all sequences
//! are the rows of one matrix (S T, C), sequence after sequence.

use std::ops::Range;

use super::config::Config;
use super::network::LayerShape;
use crate::layers::{Affine, GroupNorm, Heads, LayerNorm, Linear, Strip, geglu};
use crate::tensor::{Compute, Part, Tensor};
use crate::weights::Weights;
use crate::{Result, ops};

/// Added to the variance in a transformer's first norm, whatever the configuration.
const GROUP_NORM_EPS: f32 = 1e-6;

/// Added to the variance in the norms of layers, whatever the configuration.
const LAYER_NORM_EPS: f32 = 1e-5;

/// Width of the feed-forward, in channels.
pub(super) const HIDDEN: usize = 4;

/// The tokens of all sequences, and how many rows are computed at a time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rows {
    /// Tokens of one sequence.
    pub(super) tokens: usize,
    pub(super) sequences: usize,
    /// At least 1.
    pub(super) chunk: usize,
}

impl Rows {
    fn all(&self) -> Range<usize> {
        0..self.tokens * self.sequences
    }

    /// Sequences that are computed together: as many as a chunk holds, at least one.
    fn groups(&self) -> impl Iterator<Item = Range<usize>> {
        let Rows {
            tokens, sequences, ..
        } = *self;
        let step = (self.chunk / tokens).max(1);
        (0..sequences)
            .step_by(step)
            .map(move |first| first * tokens..(first + step).min(sequences) * tokens)
    }

    /// The chunks of some rows.
    fn chunks(&self, rows: Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
        parts(self.chunk, rows)
    }

    /// The sequences that some rows belong to, each with its share of them.
    fn segments(&self, rows: &Range<usize>) -> impl Iterator<Item = (usize, Range<usize>)> {
        let (tokens, rows) = (self.tokens, rows.clone());
        (rows.start / tokens..rows.end.div_ceil(tokens)).map(move |sequence| {
            let start = (sequence * tokens).max(rows.start);
            (sequence, start..((sequence + 1) * tokens).min(rows.end))
        })
    }
}

/// Some rows in parts of `size` at most.
fn parts(size: usize, rows: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    rows.clone()
        .step_by(size)
        .map(move |start| start..(start + size).min(rows.end))
}

/// What makes tokens of a map.
struct First<'w> {
    norm: GroupNorm,
    proj_in: Linear<'w>,
}

struct Attention<'w> {
    to_q: Linear<'w>,
    to_k: Linear<'w>,
    to_v: Linear<'w>,
    to_out: Linear<'w>,
    heads: Heads,
}

/// One layer; the first also makes tokens of maps, the last puts them back.
pub(super) struct Layer<'w> {
    first: Option<First<'w>>,
    norm1: LayerNorm,
    attn1: Attention<'w>,
    text_only: bool,
    norm2: LayerNorm,
    attn2: Attention<'w>,
    norm3: LayerNorm,
    ff_in: Linear<'w>,
    ff_out: Linear<'w>,
    last: Option<Linear<'w>>,
}

impl<'w> Layer<'w> {
    /// From the transformer's scope.
    pub(super) fn load(
        transformer: &Weights<'w>,
        config: &Config,
        shape: &LayerShape,
    ) -> Result<Layer<'w>> {
        let c = shape.channels;
        let first = || -> Result<First<'w>> {
            Ok(First {
                norm: transformer.group_norm(config.groups, c, GROUP_NORM_EPS, "norm")?,
                proj_in: transformer.linear(c, c, "proj_in")?,
            })
        };
        let w = transformer.pp(format!("transformer_blocks.{}", shape.index));
        let norm = |name| w.layer_norm(c, LAYER_NORM_EPS, name);
        let text = shape.text_dim;
        let source1 = if shape.text_only { text } else { c };
        Ok(Layer {
            first: (shape.index == 0).then(first).transpose()?,
            norm1: norm("norm1")?,
            attn1: Attention::load(&w.pp("attn1"), shape, source1)?,
            text_only: shape.text_only,
            norm2: norm("norm2")?,
            attn2: Attention::load(&w.pp("attn2"), shape, text)?,
            norm3: norm("norm3")?,
            ff_in: w.linear(c, 2 * HIDDEN * c, "ff.net.0.proj")?,
            ff_out: w.linear(HIDDEN * c, c, "ff.net.2")?,
            last: shape
                .last
                .then(|| transformer.linear(c, c, "proj_out"))
                .transpose()?,
        })
    }

    /// Makes tokens of `maps`, where this is a transformer's first layer: (S T, C).
    ///
    /// # Memory
    /// The tokens, and two chunks of them.
    pub(super) fn tokens<'m>(
        &self,
        compute: Compute,
        rows: Rows,
        maps: impl Iterator<Item = &'m Strip>,
    ) -> Result<Option<Tensor>> {
        let Some(first) = &self.first else {
            return Ok(None);
        };
        let channels = first.norm.weight.len();
        let mut x = Tensor::new(&[rows.all().end, channels])?;
        for (s, map) in maps.enumerate() {
            let norm = super::resnet::affine(&first.norm, map)?;
            for part in rows.chunks(0..rows.tokens) {
                let mut normed = Tensor::new(&[part.len(), channels])?;
                normed_tokens(map, &norm, part.start, &mut normed)?;
                let projected = first.proj_in.forward(compute, &normed)?;
                drop(normed);
                let start = s * rows.tokens;
                x.part_mut(start + part.start..start + part.end)
                    .copy_from(projected.all())?;
            }
        }
        Ok(Some(x))
    }

    /// `x` (S T, C) in place.
    ///
    /// # Memory
    /// Beside x, of a group of G rows in chunks of R: 4 G C where the chunk holds the group, else 2 G C + 2 R C, with keys
    /// and values of the texts 2 K C + 2 R C, and for the feed-forward 5 R C.
    pub(super) fn forward(
        &self,
        compute: Compute,
        rows: Rows,
        x: &mut Tensor,
        texts: &[&Tensor],
    ) -> Result<()> {
        for group in rows.groups() {
            if self.text_only {
                let (attention, norm) = (&self.attn1, &self.norm1);
                attention.to_texts(compute, norm, (rows, group.clone()), x, texts)?;
            } else {
                self.attn1
                    .among(compute, &self.norm1, (rows, group.clone()), x)?;
            }
            self.attn2
                .to_texts(compute, &self.norm2, (rows, group), x, texts)?;
        }
        for part in rows.chunks(rows.all()) {
            let normed = self.norm3.forward(x.part(part.clone()))?;
            let hidden = geglu(compute, &normed, &self.ff_in)?;
            drop(normed);
            let out = self.ff_out.forward(compute, &hidden)?;
            drop(hidden);
            x.part_mut(part).add(out.all())?;
        }
        Ok(())
    }

    /// Whether [`Layer::add_back`] is to be called.
    pub(super) fn is_last(&self) -> bool {
        self.last.is_some()
    }

    /// Adds the tokens of `sequence` to its map, where this is a transformer's last layer.
    ///
    /// # Memory
    /// A chunk of tokens.
    pub(super) fn add_back(
        &self,
        compute: Compute,
        rows: Rows,
        (x, sequence): (&Tensor, usize),
        map: &mut Strip,
    ) -> Result<()> {
        let Some(proj_out) = &self.last else {
            return Ok(());
        };
        let start = sequence * rows.tokens;
        for part in rows.chunks(0..rows.tokens) {
            let here = x.part(start + part.start..start + part.end);
            let out = proj_out.forward(compute, here)?;
            add_tokens(&out, part.start, map)?;
        }
        Ok(())
    }
}

impl<'w> Attention<'w> {
    fn load(w: &Weights<'w>, shape: &LayerShape, source: usize) -> Result<Attention<'w>> {
        let c = shape.channels;
        Ok(Attention {
            to_q: w.linear_no_bias(c, c, "to_q")?,
            to_k: w.linear_no_bias(source, c, "to_k")?,
            to_v: w.linear_no_bias(source, c, "to_v")?,
            to_out: w.linear(c, c, "to_out.0")?,
            heads: Heads {
                query: shape.heads,
                key_value: shape.heads,
                dim: c / shape.heads,
                causal: false,
            },
        })
    }

    /// Adds to the rows of `group` what they see of their own sequence.
    fn among(
        &self,
        compute: Compute,
        norm: &LayerNorm,
        (rows, group): (Rows, Range<usize>),
        x: &mut Tensor,
    ) -> Result<()> {
        if rows.chunk >= group.len() {
            let normed = norm.forward(x.part(group.clone()))?;
            let k = self.to_k.forward(compute, &normed)?;
            let v = self.to_v.forward(compute, &normed)?;
            let sequences = parts(rows.tokens, 0..group.len());
            let seen: Vec<_> = sequences
                .map(|rows| Seen {
                    k: k.part(rows.clone()),
                    v: v.part(rows.clone()),
                    rows,
                })
                .collect();
            let attended = self.attend(compute, normed, &seen)?;
            drop((k, v));
            return self.add(compute, attended, (x, group));
        }
        // One sequence: its keys and values whole, all else in chunks.
        let mut k = Tensor::new(&[group.len(), norm.weight.len()])?;
        let mut v = Tensor::new(&[group.len(), norm.weight.len()])?;
        for part in rows.chunks(group.clone()) {
            let normed = norm.forward(x.part(part.clone()))?;
            let here = part.start - group.start..part.end - group.start;
            let keys = self.to_k.forward(compute, &normed)?;
            k.part_mut(here.clone()).copy_from(keys.all())?;
            drop(keys);
            let values = self.to_v.forward(compute, &normed)?;
            v.part_mut(here).copy_from(values.all())?;
        }
        for part in rows.chunks(group) {
            let normed = norm.forward(x.part(part.clone()))?;
            let seen = Seen {
                rows: 0..part.len(),
                k: k.all(),
                v: v.all(),
            };
            let attended = self.attend(compute, normed, &[seen])?;
            self.add(compute, attended, (x, part))?;
        }
        Ok(())
    }

    /// Adds to the rows of `group` what they see of their texts.
    fn to_texts(
        &self,
        compute: Compute,
        norm: &LayerNorm,
        (rows, group): (Rows, Range<usize>),
        x: &mut Tensor,
        texts: &[&Tensor],
    ) -> Result<()> {
        let first = group.start / rows.tokens;
        let keys = rows.segments(&group).map(|(sequence, _)| {
            let k = self.to_k.forward(compute, texts[sequence])?;
            Ok((k, self.to_v.forward(compute, texts[sequence])?))
        });
        let keys = keys.collect::<Result<Vec<_>>>()?;
        for part in rows.chunks(group) {
            let normed = norm.forward(x.part(part.clone()))?;
            let seen = rows.segments(&part).map(|(sequence, here)| {
                let (k, v) = &keys[sequence - first];
                Seen {
                    rows: here.start - part.start..here.end - part.start,
                    k: k.all(),
                    v: v.all(),
                }
            });
            let attended = self.attend(compute, normed, &seen.collect::<Vec<_>>())?;
            self.add(compute, attended, (x, part))?;
        }
        Ok(())
    }

    /// What normed rows see; its memory is theirs.
    fn attend(&self, compute: Compute, normed: Tensor, seen: &[Seen<'_>]) -> Result<Tensor> {
        let q = self.to_q.forward(compute, &normed)?;
        let mut attended = normed;
        for Seen { rows, k, v } in seen {
            let to = attended.part_mut(rows.clone());
            self.heads
                .attend(compute, q.part(rows.clone()), *k, *v, to)?;
        }
        Ok(attended)
    }

    fn add(
        &self,
        compute: Compute,
        attended: Tensor,
        (x, rows): (&mut Tensor, Range<usize>),
    ) -> Result<()> {
        let out = self.to_out.forward(compute, &attended)?;
        x.part_mut(rows).add(out.all())
    }
}

/// Some rows, and the keys and values they see.
struct Seen<'a> {
    rows: Range<usize>,
    k: Part<'a>,
    v: Part<'a>,
}

/// Tokens of a map from `first` on, as many as `out` (R, C) has rows, normalised on the way.
fn normed_tokens(map: &Strip, norm: &Affine, first: usize, out: &mut Tensor) -> Result<()> {
    let plane = map.rows.elements() / norm.scale.len();
    let factors = [norm.scale.values(), norm.shift.values()];
    ops::map_to_tokens(map.rows.values(), factors, plane, first, &mut out.all_mut())
}

/// Adds tokens (R, C) to a map, from its token `first` on.
fn add_tokens(y: &Tensor, first: usize, map: &mut Strip) -> Result<()> {
    let plane = map.rows.elements() / y.all().columns();
    ops::add_tokens_to_map(y.all(), map.rows.values_mut(), plane, first)
}
