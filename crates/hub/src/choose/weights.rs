//! Which of a component's files are its weights: one format, one variant, whole or in shards.

use std::collections::{BTreeMap, BTreeSet};

use crate::Listed;

/// Names that libraries give to weights, in the order they are looked for; whether shards go before a single file.
const BASES: [(&str, bool); 3] = [
    ("diffusion_pytorch_model", true),
    ("model", false),
    ("pytorch_model", false),
];
/// Variants taken where the one asked for is not there, in order; the plain one first.
const FALLBACKS: [&str; 3] = ["", "fp16", "bf16"];
/// How the number of a shard is written: `-00001-of-00003`.
const SHARD_DIGITS: std::ops::RangeInclusive<usize> = 3..=6;

/// One way the weights are there.
#[derive(Clone, Debug, Default)]
struct Set {
    single: Option<String>,
    shards: BTreeSet<String>,
    index: BTreeSet<String>,
}

/// What identifies a set: pickled or not, base, variant.
type Key = (bool, String, String);

/// All weights of a component.
#[derive(Clone, Debug, Default)]
pub(super) struct Weights {
    sets: BTreeMap<Key, Set>,
}

/// The set that is taken.
#[derive(Clone, Debug)]
pub(super) struct Picked {
    pub(super) files: BTreeSet<String>,
    pub(super) variant: String,
    pub(super) pickled: bool,
}

impl Weights {
    pub(super) fn among(files: &[&Listed]) -> Weights {
        let mut weights = Weights::default();
        for file in files {
            let name = file.path.name();
            let Some(part) = Part::of(name) else {
                continue;
            };
            let key = (part.pickled, part.base, part.variant);
            let set = weights.sets.entry(key).or_default();
            match (part.index, part.shard) {
                (true, _) => set.index.insert(name.to_owned()),
                (false, true) => set.shards.insert(name.to_owned()),
                (false, false) => set.single.replace(name.to_owned()).is_none(),
            };
        }
        weights
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sets.is_empty()
    }

    /// The set of the variant that is asked for, else the nearest; safetensors before pickles.
    pub(super) fn pick(&self, variant: Option<&str>) -> Option<Picked> {
        for pickled in [false, true] {
            for variant in variant.into_iter().chain(FALLBACKS) {
                for (base, shards_first) in BASES {
                    let key = (pickled, base.to_owned(), variant.to_owned());
                    let files = self.sets.get(&key).and_then(|set| set.files(shards_first));
                    if let Some(files) = files {
                        let variant = variant.to_owned();
                        return Some(Picked {
                            files,
                            variant,
                            pickled,
                        });
                    }
                }
            }
        }
        None
    }
}

impl Set {
    fn files(&self, shards_first: bool) -> Option<BTreeSet<String>> {
        let sharded = !self.shards.is_empty() && !self.index.is_empty();
        match &self.single {
            Some(single) if !(sharded && shards_first) => Some([single.clone()].into()),
            _ if sharded => Some(self.shards.union(&self.index).cloned().collect()),
            _ => None,
        }
    }
}

/// Whether a file says which shard has which tensor.
pub(super) fn is_index(name: &str) -> bool {
    name.ends_with(".json") && name.contains(".index.")
}

/// What a file's name says.
struct Part {
    base: String,
    variant: String,
    pickled: bool,
    shard: bool,
    index: bool,
}

impl Part {
    fn of(name: &str) -> Option<Part> {
        let index = is_index(name);
        // `model.safetensors.index.fp16.json` and `model.fp16.safetensors.index.json` are the same.
        let plain = match index {
            true => {
                let (before, after) = name.split_once(".index.")?;
                let variant = after.strip_suffix("json")?.trim_end_matches('.');
                let (stem, ending) = before.rsplit_once('.')?;
                match variant {
                    "" => before.to_owned(),
                    variant => format!("{stem}.{variant}.{ending}"),
                }
            }
            false => name.to_owned(),
        };
        let (stem, ending) = plain.rsplit_once('.')?;
        let pickled = match ending {
            "safetensors" => false,
            "bin" => true,
            _ => return None,
        };
        let mut shard = false;
        let mut parts = stem.split('.').map(|part| match unsharded(part) {
            Some(part) => {
                shard = true;
                part
            }
            None => part,
        });
        let base = parts.next()?.to_owned();
        let variant = parts.collect::<Vec<_>>().join(".");
        BASES
            .iter()
            .any(|(known, _)| *known == base)
            .then_some(Part {
                base,
                variant,
                pickled,
                shard,
                index,
            })
    }
}

/// The name without `-00001-of-00003` at its end.
fn unsharded(part: &str) -> Option<&str> {
    let digits =
        |text: &str| SHARD_DIGITS.contains(&text.len()) && text.bytes().all(|c| c.is_ascii_digit());
    let (rest, of) = part.rsplit_once("-of-")?;
    let (base, number) = rest.rsplit_once('-')?;
    (digits(of) && digits(number)).then_some(base)
}
