//! ONNX files, for their weights: a graph is never run. Initialisers are ranges of the file like any other tensor's,
//! and those that the exporter made anonymous get the names of the modules that use them.
//!
//! # Source
//! The fields' numbers: <https://github.com/onnx/onnx/blob/main/onnx/onnx.proto>

mod names;
mod tensor;
mod wire;

use std::collections::HashSet;

use crate::header::TENSORS_MAX;
use crate::torch::Contents;
use crate::{Error, Result, Source, TensorEntry};
use tensor::Decoded;
use wire::{Field, Part, Wire};

/// The most nodes of a graph.
const NODES_MAX: usize = 1 << 18;
/// The longest name of a node or a value that is kept, in bytes.
const NAME_BYTES_MAX: u64 = 4096;
/// The most memory that the names of nodes may take, in bytes.
const NAMES_BYTES_MAX: u64 = 64 << 20;
/// The longest text beside the graph that is kept, in bytes: the names of a detector's classes have some thousands.
const METADATA_BYTES_MAX: u64 = 64 << 10;
/// The most texts beside the graph.
const METADATA_MAX: usize = 256;
/// The largest version of the format that a first byte may say; version 12 came in 2025.
const VERSION_MAX: u8 = 64;

/// What of a node is needed to name its weights.
#[derive(Debug, Default)]
struct Node {
    name: String,
    op: String,
    inputs: Vec<String>,
    outputs: Vec<String>,
    /// `transB` of a Gemm: the matrix is as the network has it.
    transposed: bool,
    /// The tensor of a Constant.
    value: Option<Part>,
}

/// What is read of a graph.
#[derive(Default)]
struct Graph {
    tensors: Vec<Part>,
    nodes: Vec<Node>,
    metadata: Vec<(String, String)>,
    /// Bytes that names have taken.
    spent: u64,
}

/// Whether these first bytes of a file are those of an ONNX model: the version of the format, then another field.
pub(crate) fn is_onnx(start: &[u8]) -> bool {
    let is_header = start.get(crate::PREFIX_BYTES as usize) == Some(&b'{');
    // Texts, opset imports and the graph; a version of the model is a number.
    let tags = [0x12, 0x1a, 0x22, 0x28, 0x32, 0x3a, 0x42, 0x72];
    matches!(start, [0x08, 1..=VERSION_MAX, tag, ..] if tags.contains(tag)) && !is_header
}

/// Reads what is in the file, without its numbers.
pub(crate) fn read(source: &Source) -> Result<Contents> {
    let mut wire = Wire::new(source);
    let mut graph = Graph::default();
    let mut rest = wire.whole();
    while let Some((number, field)) = wire.field(&mut rest)? {
        match (number, field) {
            (7, Field::Part(part)) => graph.read(&mut wire, part)?,
            (14, Field::Part(part)) => graph.property(&mut wire, part)?,
            _ => {}
        }
    }
    let mut decoded = Decoded::default();
    let mut tensors = Vec::with_capacity(graph.tensors.len());
    for &part in &graph.tensors {
        tensors.extend(tensor::read(&mut wire, part, None, &mut decoded)?);
    }
    for node in &graph.nodes {
        if let (Some(part), [name]) = (node.value, node.outputs.as_slice()) {
            tensors.extend(tensor::read(&mut wire, part, Some(name), &mut decoded)?);
        }
    }
    check_names(source, &tensors)?;
    if tensors.is_empty() {
        return Err(Error::NoTensors {
            file: source.name(),
            why: "its graph has no initialisers".to_owned(),
        });
    }
    let mut tensors = names::restored(tensors, &graph.nodes);
    tensors.sort_by_key(|tensor| (tensor.source, tensor.offset, tensor.bytes));
    Ok(Contents {
        tensors,
        metadata: graph.metadata,
        decoded: decoded.0,
    })
}

impl Graph {
    fn read(&mut self, wire: &mut Wire, part: Part) -> Result<()> {
        let mut rest = part;
        while let Some((number, field)) = wire.field(&mut rest)? {
            match (number, field) {
                (1, Field::Part(part)) => {
                    if self.nodes.len() == NODES_MAX {
                        return Err(wire.fault(part.at, format!("more than {NODES_MAX} nodes")));
                    }
                    let node = self.node(wire, part)?;
                    self.nodes.push(node);
                }
                (5, Field::Part(part)) => {
                    if self.tensors.len() == TENSORS_MAX {
                        return Err(wire.fault(part.at, format!("more than {TENSORS_MAX} tensors")));
                    }
                    self.tensors.push(part);
                }
                (15, Field::Part(part)) => {
                    let why =
                        "a sparse tensor, which is not read; export the model with plain ones";
                    return Err(wire.fault(part.at, why));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn node(&mut self, wire: &mut Wire, part: Part) -> Result<Node> {
        let mut node = Node::default();
        let mut rest = part;
        while let Some((number, field)) = wire.field(&mut rest)? {
            let Field::Part(part) = field else {
                continue;
            };
            match number {
                1 => node.inputs.push(self.text(wire, part)?),
                2 => node.outputs.push(self.text(wire, part)?),
                3 => node.name = self.text(wire, part)?,
                4 => node.op = self.text(wire, part)?,
                5 => self.attribute(wire, part, &mut node)?,
                _ => {}
            }
        }
        if node.op != "Constant" {
            node.value = None;
        }
        Ok(node)
    }

    fn attribute(&mut self, wire: &mut Wire, part: Part, node: &mut Node) -> Result<()> {
        let (mut name, mut int, mut tensor) = (String::new(), 0, None);
        let mut rest = part;
        while let Some((number, field)) = wire.field(&mut rest)? {
            match (number, field) {
                (1, Field::Part(part)) => {
                    name = wire.text(part, NAME_BYTES_MAX)?.unwrap_or_default();
                }
                (3, Field::Int(value)) => int = value,
                (5, Field::Part(part)) => tensor = Some(part),
                _ => {}
            }
        }
        match name.as_str() {
            "transB" => node.transposed = int != 0,
            "value" => node.value = tensor,
            _ => {}
        }
        Ok(())
    }

    /// A name; empty where it is too long to be one.
    fn text(&mut self, wire: &mut Wire, part: Part) -> Result<String> {
        let text = wire.text(part, NAME_BYTES_MAX)?.unwrap_or_default();
        self.spent += (size_of::<String>() + text.len()) as u64;
        if self.spent > NAMES_BYTES_MAX {
            let why = format!("its names take more than {} MiB", NAMES_BYTES_MAX >> 20);
            return Err(wire.fault(part.at, why));
        }
        Ok(text)
    }

    /// A text beside the graph, such as the names of a detector's classes.
    fn property(&mut self, wire: &mut Wire, part: Part) -> Result<()> {
        let (mut key, mut value) = (None, None);
        let mut rest = part;
        while let Some((number, field)) = wire.field(&mut rest)? {
            match (number, field) {
                (1, Field::Part(part)) => key = wire.text(part, NAME_BYTES_MAX)?,
                (2, Field::Part(part)) => value = wire.text(part, METADATA_BYTES_MAX)?,
                _ => {}
            }
        }
        if let (Some(key), Some(value)) = (key, value)
            && self.metadata.len() < METADATA_MAX
        {
            self.metadata.push((key, value));
        }
        Ok(())
    }
}

fn check_names(source: &Source, tensors: &[TensorEntry]) -> Result<()> {
    let mut seen = HashSet::with_capacity(tensors.len());
    match tensors.iter().find(|tensor| !seen.insert(&tensor.name)) {
        None => Ok(()),
        Some(tensor) => Err(Error::DuplicateTensor {
            file: source.name(),
            tensor: tensor.name.clone(),
        }),
    }
}
