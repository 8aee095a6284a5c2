//! `*.safetensors.index.json`: which tensor is in which shard; and which of a folder's files are the weights.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::place::{Place, check_file_name};
use crate::{Error, Result};

/// The longest index that is read, in bytes: 100,000 tensors need about 10 MB.
const INDEX_BYTES_MAX: u64 = 64 << 20;
/// The most shards: every one is an open file, and the largest models published have fewer than 200.
const SHARDS_MAX: usize = 512;
/// Names that libraries give to weights, and whether an index goes before a single file where both are there: as
/// diffusers and as transformers do.
const BASES: [(&str, bool); 2] = [("diffusion_pytorch_model", true), ("model", false)];
/// The same in the older format.
const BIN_BASES: [(&str, bool); 2] = [("diffusion_pytorch_model", true), ("pytorch_model", false)];
/// Formats in order of preference: the ending, and what goes before it.
const FORMATS: [(&str, [(&str, bool); 2]); 2] = [("safetensors", BASES), ("bin", BIN_BASES)];
/// Variants in order of preference; the plain file is what the libraries load when not told otherwise.
const VARIANTS: [&str; 3] = ["", ".fp16", ".bf16"];
/// What downloaders append to a file that is not complete.
const PARTIAL: [&str; 7] = [
    ".part",
    ".partial",
    ".incomplete",
    ".crdownload",
    ".download",
    ".aria2",
    ".tmp",
];
/// How many of a folder's names an error repeats.
const NAMES_SHOWN: usize = 12;

/// Which files a folder's weights are in.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// One file.
    Single(String),
    /// The index of several.
    Index(String),
}

/// Whether a file of that name is a download that has not ended.
pub(crate) fn is_partial(name: &str) -> bool {
    PARTIAL.iter().any(|ending| name.ends_with(ending))
}

/// Finds the weights of a component.
pub(crate) fn locate(place: &Place) -> Result<Found> {
    let names = place.names()?;
    let is_there = |name: &String| names.binary_search(name).is_ok();
    let choices = FORMATS
        .into_iter()
        .flat_map(|format| VARIANTS.map(|v| (format, v)));
    for ((ending, bases), variant) in choices {
        for (base, index_first) in bases {
            let single = format!("{base}{variant}.{ending}");
            // Both spellings are in use: diffusers puts the variant before `json`, others before `safetensors`.
            let index = [
                format!("{base}.{ending}.index{variant}.json"),
                format!("{base}{variant}.{ending}.index.json"),
            ]
            .into_iter()
            .find(is_there);
            match index {
                Some(index) if index_first || !is_there(&single) => return Ok(Found::Index(index)),
                _ if is_there(&single) => return Ok(Found::Single(single)),
                _ => {}
            }
        }
    }
    Err(nothing(place, names))
}

/// Why a folder without weights has none.
fn nothing(place: &Place, names: Vec<String>) -> Error {
    let ours = |name: &&String| {
        BASES
            .iter()
            .chain(&BIN_BASES)
            .any(|(base, _)| name.starts_with(base))
    };
    if let Some(partial) = names.iter().filter(ours).find(|name| is_partial(name)) {
        return Error::HalfDownloaded {
            file: place.describe_file(partial),
        };
    }
    if let Some(shard) = names
        .iter()
        .filter(ours)
        .find(|n| n.contains("-of-") && (n.ends_with(".safetensors") || n.ends_with(".bin")))
    {
        let base = shard.split('-').next().unwrap_or(shard);
        let ending = shard.rsplit('.').next().unwrap_or_default();
        let index = place.describe_file(&format!("{base}.{ending}.index.json"));
        return Error::BadIndex {
            index,
            why: "it is missing, while its shards are there".to_owned(),
        };
    }
    let mut found = names;
    found.truncate(NAMES_SHOWN);
    Error::NoWeights {
        folder: place.describe(),
        found,
    }
}

/// Reads an index: for every shard, by name, the tensors that should be in it.
pub(crate) fn read(place: &Place, name: &str) -> Result<BTreeMap<String, Vec<String>>> {
    let index = place.describe_file(name);
    let Some(text) = place.text(name, INDEX_BYTES_MAX)? else {
        return Err(Error::HalfDownloaded { file: index });
    };
    let value = crate::json::parse(&text, &index)?;
    let bad = |why: String| Error::BadIndex {
        index: index.clone(),
        why,
    };
    let map = value
        .get("weight_map")
        .and_then(Value::as_object)
        .ok_or_else(|| bad("it has no object 'weight_map'".to_owned()))?;
    let mut shards: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (tensor, shard) in map {
        let shard = shard
            .as_str()
            .ok_or_else(|| bad(format!("the shard of tensor {tensor:?} is not a file name")))?;
        check_file_name(shard, &index)?;
        shards
            .entry(shard.to_owned())
            .or_default()
            .push(tensor.clone());
        if shards.len() > SHARDS_MAX {
            return Err(bad(format!("it names more than {SHARDS_MAX} shards")));
        }
    }
    if shards.is_empty() {
        return Err(bad("its weight_map is empty".to_owned()));
    }
    Ok(shards)
}
