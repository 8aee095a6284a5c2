//! What a network consists of, as far as memory is concerned: components made of blocks made of tensors.

use crate::{Bytes, Dtype};

/// Weights of a block start at multiples of this in its slot, so that vector loads never straddle a cache line
/// at a tensor's start.
pub const WEIGHT_ALIGNMENT: u64 = 64;

/// One named array of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorLayout {
    /// The name as in the checkpoint, without the component's folder.
    pub name: String,
    /// How it is stored.
    pub dtype: Dtype,
    /// Its dimensions, slowest first.
    pub shape: Vec<usize>,
}

impl TensorLayout {
    /// Number of elements.
    pub fn elements(&self) -> u64 {
        self.shape.iter().map(|&d| d as u64).product()
    }

    /// Bytes as stored.
    pub fn bytes(&self) -> Bytes {
        Bytes(self.elements() * self.dtype.size())
    }
}

/// The unit that moves: one transformer layer or one resnet, or what is left over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockLayout {
    /// What it is called in explanations, such as `layers.7`.
    pub name: String,
    /// Its tensors, in the order in which they are laid into a slot.
    pub tensors: Vec<TensorLayout>,
}

impl BlockLayout {
    /// Bytes of a slot that holds it: every tensor at a multiple of [`WEIGHT_ALIGNMENT`].
    pub fn bytes(&self) -> Bytes {
        self.tensors
            .iter()
            .map(|t| t.bytes().align_up(WEIGHT_ALIGNMENT))
            .sum()
    }

    /// Number of weights.
    pub fn elements(&self) -> u64 {
        self.tensors.iter().map(TensorLayout::elements).sum()
    }

    /// Where each tensor begins in the slot.
    pub fn offsets(&self) -> impl Iterator<Item = (&TensorLayout, usize)> {
        self.tensors.iter().scan(Bytes::ZERO, |at, tensor| {
            let here = *at;
            *at += tensor.bytes().align_up(WEIGHT_ALIGNMENT);
            Some((tensor, here.as_usize()))
        })
    }
}

/// One network of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ComponentLayout {
    /// The folder's name: `text_encoder`, `transformer`, `vae`.
    pub name: String,
    /// The blocks in order of use.
    pub blocks: Vec<BlockLayout>,
    /// Tables of which only the rows used are read (embeddings). They never move as a whole.
    pub tables: Vec<TensorLayout>,
}

impl ComponentLayout {
    /// Bytes of all blocks together.
    pub fn bytes(&self) -> Bytes {
        self.blocks.iter().map(BlockLayout::bytes).sum()
    }
}
