//! Reads: safetensors, model folders, and what their headers tell.
//!
//! A checkpoint comes from strangers, so nothing in it is believed before it is checked: a header that passes
//! [`parse_header`] describes tensors that lie in the file, side by side, without holes, each exactly as long as its
//! shape says. Whatever fails is an [`Error`] that names the file, the tensor and what to do about it.
//!
//! Bytes are read with `pread` into buffers that the caller owns. Nothing is mapped: a file that is truncated under a
//! running job is an error, not a signal, and memory figures mean something. Opening costs the headers alone, so a
//! model of 20 GB is described in milliseconds.
//!
//! Files of `torch.save` are read too, without running them: their pickle is taken apart by a machine that builds plain
//! values and calls nothing, and a tensor is a range of bytes like any other.
//!
//! The weights of ONNX files and of ncnn's pairs of files are read the same way: their graphs are looked at for names,
//! and never run.
//!
//! In reading order: [`Source`] (a file or built-in bytes), [`Header`] (one safetensors header), [`Checkpoint`] (all
//! tensors of a component, across shards), [`ModelFolder`] (the diffusers layout), [`ModelSummary`] (what
//! `models show` prints), [`lora`] (additions to layers), [`SafetensorsWriter`] (the way back).

#![forbid(unsafe_code)]

mod checkpoint;
mod entry;
mod error;
mod folder;
mod header;
mod index;
mod json;
pub mod lora;
mod narrow;
mod ncnn;
mod onnx;
mod pickle;
mod place;
pub mod quantise;
mod single_file;
mod source;
mod summary;
mod torch;
mod write;

pub use checkpoint::{Checkpoint, FileIdentity, Fingerprint};
pub use entry::TensorEntry;
pub use error::{Error, Result};
pub use folder::{Component, EmbeddedFile, ModelFolder};
pub use header::{
    HEADER_BYTES_MAX, Header, NAME_BYTES_MAX, PREFIX_BYTES, RANK_MAX, TENSORS_MAX, header_bytes,
    parse_header,
};
pub use source::Source;
pub use summary::{BlockSummary, ComponentSummary, DtypeShare, ModelSummary, WeightsSummary};
pub use write::{SafetensorsWriter, ShardedWriter, render_header};
