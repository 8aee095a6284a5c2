//! Names of weights that an exporter made anonymous.
//!
//! What an exporter folds (a batch norm into a convolution, a transposition into a matrix) loses its name and becomes
//! `onnx::Conv_123`. The node that uses it still has the module's path, `/model.0/conv/Conv`, so the weight gets the
//! name that the network calls it by: `model.0.conv.weight`, turned back as the network has it.

use std::collections::{HashMap, HashSet};

use super::Node;
use crate::TensorEntry;

/// All initialisers under the names that the network knows them by.
pub(super) fn restored(tensors: Vec<TensorEntry>, nodes: &[Node]) -> Vec<TensorEntry> {
    let by_name: HashMap<&str, &TensorEntry> =
        tensors.iter().map(|t| (t.name.as_str(), t)).collect();
    let mut taken: HashSet<String> = tensors.iter().map(|t| t.name.clone()).collect();
    let mut made = Vec::new();
    let mut replaced: HashSet<&str> = HashSet::new();
    for node in nodes {
        // One initialiser under another of its names: exporters join equal tensors.
        if let ("Identity", [input], [output]) = (
            node.op.as_str(),
            node.inputs.as_slice(),
            node.outputs.as_slice(),
        ) && let Some(tensor) = by_name.get(input.as_str())
            && !output.is_empty()
            && taken.insert(output.clone())
        {
            made.push(tensor.renamed(output.as_str()));
        }
        let Some(module) = module_of(&node.name) else {
            continue;
        };
        for (at, input) in node.inputs.iter().enumerate() {
            let Some(tensor) = by_name.get(input.as_str()).filter(|_| is_anonymous(input)) else {
                continue;
            };
            let Some(part) = part_of(&node.op, at) else {
                continue;
            };
            let name = format!("{module}.{part}");
            if let Some(tensor) = as_in_network(node, part, tensor, &name)
                && taken.insert(name)
            {
                replaced.insert(tensors_key(&by_name, input));
                made.push(tensor);
            }
        }
    }
    let replaced: HashSet<String> = replaced.into_iter().map(str::to_owned).collect();
    let mut all: Vec<TensorEntry> = tensors
        .into_iter()
        .filter(|tensor| !replaced.contains(&tensor.name))
        .collect();
    all.extend(made);
    all
}

fn tensors_key<'t>(by_name: &HashMap<&'t str, &'t TensorEntry>, name: &str) -> &'t str {
    let known = by_name.get_key_value(name);
    known.map(|(key, _)| *key).unwrap_or_default()
}

/// Whether a name is an exporter's own: `onnx::Conv_12`, `1234`, `/conv/Constant_output_0`.
fn is_anonymous(name: &str) -> bool {
    name.starts_with("onnx::")
        || name.starts_with('/')
        || name.bytes().all(|byte| byte.is_ascii_digit())
}

/// The module whose forward made a node: `/flow/flows.6/enc/Conv_1` is `flow.flows.6.enc`; a sequence's parts repeat
/// the sequence, as in `/features/features.0/Conv`.
fn module_of(node: &str) -> Option<String> {
    let mut parts: Vec<&str> = node.strip_prefix('/')?.split('/').collect();
    parts.pop()?;
    let mut path: Vec<&str> = Vec::with_capacity(parts.len());
    for part in parts {
        if part.is_empty() {
            return None;
        }
        let repeats = |last: &&str| -> bool {
            part.strip_prefix(*last)
                .is_some_and(|rest| rest.starts_with('.'))
        };
        if path.last().is_some_and(repeats) {
            path.pop();
        }
        path.push(part);
    }
    (!path.is_empty()).then(|| path.join("."))
}

/// What a module calls the input of that number of its node.
fn part_of(op: &str, input: usize) -> Option<&'static str> {
    match (op, input) {
        ("Conv" | "ConvTranspose" | "ConvInteger" | "Gemm", 1) => Some("weight"),
        ("Conv" | "ConvTranspose" | "Gemm", 2) => Some("bias"),
        ("MatMul", 0 | 1) | ("PRelu", 1) => Some("weight"),
        ("BatchNormalization" | "InstanceNormalization" | "LayerNormalization", 1) => {
            Some("weight")
        }
        ("BatchNormalization" | "InstanceNormalization" | "LayerNormalization", 2) => Some("bias"),
        ("BatchNormalization", 3) => Some("running_mean"),
        ("BatchNormalization", 4) => Some("running_var"),
        _ => None,
    }
}

/// The tensor as the network has it: matrices are folded turned, slopes with dimensions of one.
fn as_in_network(node: &Node, part: &str, tensor: &TensorEntry, name: &str) -> Option<TensorEntry> {
    match node.op.as_str() {
        "MatMul" => tensor.transposed(name),
        "Gemm" if part == "weight" && !node.transposed => tensor.transposed(name),
        "PRelu" => tensor.reshaped(name, vec![usize::try_from(tensor.elements()).ok()?]),
        _ => Some(tensor.renamed(name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_tells_its_module() {
        for (node, module) in [
            ("/model.0/conv/Conv", Some("model.0.conv")),
            (
                "/flow/flows.6/enc/in_layers.0/Conv_1",
                Some("flow.flows.6.enc.in_layers.0"),
            ),
            ("/features/features.0/Conv", Some("features.0")),
            (
                "/features/features.1/conv/conv.0/conv.0.0/Conv",
                Some("features.1.conv.0.0"),
            ),
            ("/layer1/layer10/Conv", Some("layer1.layer10")),
            ("/Conv", None),
            ("Conv_12", None),
            ("//Conv", None),
            ("", None),
        ] {
            assert_eq!(module_of(node).as_deref(), module, "{node}");
        }
    }

    #[test]
    fn names_of_people_are_left_alone() {
        for name in ["onnx::Conv_12", "1234", "/conv/Constant_output_0"] {
            assert!(is_anonymous(name), "{name}");
        }
        for name in ["model.0.conv.weight", "conv1.weight", "W", "v12"] {
            assert!(!is_anonymous(name), "{name}");
        }
    }
}
