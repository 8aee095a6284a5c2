//! What the headers tell about a model: components, blocks, bytes and types. `models show` prints it.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

use lowtide_core::{Bytes, Dtype};

use crate::TensorEntry;

/// A model, described.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelSummary {
    /// What a user calls it.
    pub name: String,
    /// `_class_name` of the model.
    pub class_name: String,
    /// In the order of `model_index.json`.
    pub components: Vec<ComponentSummary>,
}

/// A component, described.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ComponentSummary {
    /// The folder's name.
    pub name: String,
    /// The library that defines it.
    pub library: String,
    /// Its class there.
    pub class: String,
    /// Its weights; `None` for what has none by nature.
    pub weights: Option<WeightsSummary>,
}

/// The weights of a component, described.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightsSummary {
    /// How many files they are in.
    pub files: usize,
    /// How many tensors.
    pub tensors: usize,
    /// How many numbers.
    pub parameters: u64,
    /// Their bytes, as stored.
    pub bytes: Bytes,
    /// The same by type, the largest first.
    pub dtypes: Vec<DtypeShare>,
    /// The same by block, in natural order: `layers.2` before `layers.10`.
    pub blocks: Vec<BlockSummary>,
}

/// What is stored in one type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DtypeShare {
    /// The type.
    pub dtype: Dtype,
    /// How many tensors.
    pub tensors: usize,
    /// Their bytes.
    pub bytes: Bytes,
}

/// Tensors whose names begin alike: one layer, one resnet, or a part outside all layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockSummary {
    /// What their names begin with: `layers.7`, `decoder.up_blocks.0.resnets.1`, `t_embedder`.
    pub name: String,
    /// How many tensors.
    pub tensors: usize,
    /// How many numbers.
    pub parameters: u64,
    /// Their bytes, as stored.
    pub bytes: Bytes,
    /// Their types, each once, in order.
    pub dtypes: Vec<Dtype>,
}

impl ModelSummary {
    /// Bytes of all components' weights.
    pub fn bytes(&self) -> Bytes {
        self.weights().map(|w| w.bytes).sum()
    }

    /// Numbers in all components' weights.
    pub fn parameters(&self) -> u64 {
        self.weights().map(|w| w.parameters).sum()
    }

    fn weights(&self) -> impl Iterator<Item = &WeightsSummary> {
        self.components.iter().filter_map(|c| c.weights.as_ref())
    }
}

impl WeightsSummary {
    pub(crate) fn of(files: usize, tensors: &[TensorEntry]) -> WeightsSummary {
        let mut dtypes: BTreeMap<Dtype, DtypeShare> = BTreeMap::new();
        for tensor in tensors {
            let dtype = tensor.dtype;
            let share = dtypes.entry(dtype).or_insert(DtypeShare {
                dtype,
                tensors: 0,
                bytes: Bytes::ZERO,
            });
            share.tensors += 1;
            share.bytes += Bytes(tensor.bytes);
        }
        let mut dtypes: Vec<DtypeShare> = dtypes.into_values().collect();
        dtypes.sort_by_key(|share| std::cmp::Reverse(share.bytes));
        WeightsSummary {
            files,
            tensors: tensors.len(),
            parameters: tensors.iter().map(TensorEntry::elements).sum(),
            bytes: tensors.iter().map(|t| Bytes(t.bytes)).sum(),
            dtypes,
            blocks: blocks(tensors),
        }
    }
}

/// Groups tensors by the block their names say they are in.
fn blocks(tensors: &[TensorEntry]) -> Vec<BlockSummary> {
    let grouping = Grouping::of(tensors);
    let mut at: HashMap<&str, usize> = HashMap::new();
    let mut blocks: Vec<BlockSummary> = Vec::new();
    for tensor in tensors {
        let name = grouping.block(&tensor.name);
        let index = *at.entry(name).or_insert_with(|| {
            let (bytes, dtypes) = (Bytes::ZERO, Vec::new());
            blocks.push(BlockSummary {
                name: name.to_owned(),
                tensors: 0,
                parameters: 0,
                bytes,
                dtypes,
            });
            blocks.len() - 1
        });
        let block = &mut blocks[index];
        block.tensors += 1;
        block.parameters += tensor.elements();
        block.bytes += Bytes(tensor.bytes);
        if let Err(place) = block.dtypes.binary_search(&tensor.dtype) {
            block.dtypes.insert(place, tensor.dtype);
        }
    }
    blocks.sort_by(|a, b| natural(&a.name, &b.name));
    blocks
}

/// Which prefixes of a checkpoint's names are blocks.
struct Grouping<'a> {
    /// Prefixes ending in a number under which there are modules, not just weight and bias.
    numbered: HashSet<&'a str>,
    /// First parts of names that hold numbered blocks, so that what is left over in them needs a second part.
    halls: HashSet<&'a str>,
}

impl<'a> Grouping<'a> {
    fn of(tensors: &'a [TensorEntry]) -> Grouping<'a> {
        let mut grouping = Grouping {
            numbered: HashSet::new(),
            halls: HashSet::new(),
        };
        for tensor in tensors {
            let name = tensor.name.as_str();
            for (prefix, rest) in numbered_prefixes(name) {
                if rest.contains('.') {
                    grouping.numbered.insert(prefix);
                    // `decoder` of `decoder.up_blocks.0`, but nothing of `layers.0`.
                    if prefix.matches('.').count() >= 2 {
                        grouping.halls.extend(prefix.split('.').next());
                    }
                }
            }
        }
        grouping
    }

    /// The block of a tensor: the outermost numbered prefix, or a numbered one inside it whose list has a plural name
    /// (`up_blocks.0.resnets.1`, but not `layers.0.feed_forward.net.0`).
    fn block(&self, name: &'a str) -> &'a str {
        let mut block = None;
        for (prefix, _) in
            numbered_prefixes(name).filter(|(prefix, _)| self.numbered.contains(prefix))
        {
            let list = prefix.rsplit('.').nth(1).unwrap_or_default();
            if block.is_none() || list.ends_with('s') {
                block = Some(prefix);
            }
        }
        block.unwrap_or_else(|| self.left_over(name))
    }

    fn left_over(&self, name: &'a str) -> &'a str {
        let mut dots = name.match_indices('.').map(|(at, _)| at);
        let Some(first) = dots.next() else {
            return name;
        };
        if self.halls.contains(&name[..first]) {
            return dots.next().map_or(name, |second| &name[..second]);
        }
        &name[..first]
    }
}

/// Every prefix of a name that ends in a number, with what follows it.
fn numbered_prefixes(name: &str) -> impl Iterator<Item = (&str, &str)> {
    name.match_indices('.')
        .map(|(at, _)| (&name[..at], &name[at + 1..]))
        .filter(|(prefix, _)| prefix.rsplit('.').next().is_some_and(is_number))
}

fn is_number(part: &str) -> bool {
    !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit())
}

/// Orders `layers.2` before `layers.10`.
fn natural(a: &str, b: &str) -> Ordering {
    let (mut left, mut right) = (a.split('.'), b.split('.'));
    loop {
        let order = match (left.next(), right.next()) {
            (None, None) => return a.cmp(b),
            (None, Some(_)) => Ordering::Less,
            (Some(_), None) => Ordering::Greater,
            // Numbers of any length, without parsing them: by length, then by digits.
            (Some(x), Some(y)) if is_number(x) && is_number(y) => {
                let (x, y) = (x.trim_start_matches('0'), y.trim_start_matches('0'));
                x.len().cmp(&y.len()).then_with(|| x.cmp(y))
            }
            (Some(x), Some(y)) => x.cmp(y),
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

impl fmt::Display for ModelSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parameters = Count(self.parameters());
        let (name, class) = (safe(&self.name), safe(&self.class_name));
        writeln!(
            f,
            "{name} ({class})  {parameters} parameters  {}",
            self.bytes()
        )?;
        for component in &self.components {
            let (name, class) = (safe(&component.name), safe(&component.class));
            write!(f, "\n{name}  {class} ({})", safe(&component.library))?;
            match &component.weights {
                Some(weights) => write!(f, "\n{weights}")?,
                None => writeln!(f, "  no weights")?,
            }
        }
        Ok(())
    }
}

impl fmt::Display for WeightsSummary {
    /// A line of totals, then a line a block; blocks that follow each other and are alike share a line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.files == 1 { "" } else { "s" };
        write!(
            f,
            "  {} parameters  {}  ",
            Count(self.parameters),
            self.bytes
        )?;
        write!(f, "{} tensors in {} file{plural}", self.tensors, self.files)?;
        for share in &self.dtypes {
            write!(f, "  {} {}", share.dtype, share.bytes)?;
        }
        writeln!(f)?;
        let runs: Vec<_> = self.blocks.chunk_by(continues).collect();
        let width = runs
            .iter()
            .map(|run| run_name(run).chars().count())
            .max()
            .unwrap_or(0);
        for run in runs {
            let (block, times) = (&run[0], run.len());
            let dtypes: Vec<&str> = block.dtypes.iter().map(|dtype| dtype.name()).collect();
            write!(f, "    {:width$}  {:>10}", run_name(run), block.bytes)?;
            let total: Bytes = run.iter().map(|b| b.bytes).sum();
            match times {
                1 => write!(f, "{:20}", "")?,
                _ => write!(f, " x {times:<3} = {:>10} ", total)?,
            }
            writeln!(
                f,
                "  {:>8}  {}",
                Count(run.iter().map(|b| b.parameters).sum()),
                dtypes.join("+")
            )?;
        }
        Ok(())
    }
}

/// Whether `b` is the next block of the list that `a` is in, and of the same size.
fn continues(a: &BlockSummary, b: &BlockSummary) -> bool {
    let numbered = |block: &BlockSummary| {
        let (list, number) = block.name.rsplit_once('.')?;
        Some((list.to_owned(), number.parse::<u64>().ok()?))
    };
    let next = match (numbered(a), numbered(b)) {
        (Some((list, number)), Some((other, follower))) => {
            list == other && number.checked_add(1) == Some(follower)
        }
        _ => false,
    };
    next && (a.tensors, a.bytes, a.parameters, &a.dtypes)
        == (b.tensors, b.bytes, b.parameters, &b.dtypes)
}

/// `layers.0..29` for a run, the block's own name for one.
fn run_name(run: &[BlockSummary]) -> String {
    match run {
        [first, .., last] => {
            let number = last.name.rsplit('.').next().unwrap_or_default();
            format!("{}..{number}", safe(&first.name))
        }
        _ => run
            .first()
            .map(|block| safe(&block.name))
            .unwrap_or_default(),
    }
}

/// A name out of a file, without what would command a terminal.
fn safe(name: &str) -> String {
    name.chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

/// A number of parameters as people write it: `6.15 B`, `21.5 M`, `288`.
struct Count(u64);

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.0 as f64;
        let text = match self.0 {
            0..10_000 => self.0.to_string(),
            10_000..1_000_000 => format!("{:.0} K", value / 1e3),
            1_000_000..1_000_000_000 => format!("{:.1} M", value / 1e6),
            _ => format!("{:.2} B", value / 1e9),
        };
        f.pad(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(names: &[&str]) -> Vec<TensorEntry> {
        let entry = |name: &&str| TensorEntry {
            name: (*name).to_owned(),
            dtype: Dtype::Bf16,
            shape: vec![2],
            source: 0,
            offset: 0,
            bytes: 4,
            strides: None,
        };
        names.iter().map(entry).collect()
    }

    fn check(names: &[&str], expect: &[(&str, usize)]) {
        let blocks = blocks(&entries(names));
        let got: Vec<(&str, usize)> = blocks
            .iter()
            .map(|b| (b.name.as_str(), b.tensors))
            .collect();
        assert_eq!(got, expect);
    }

    #[test]
    fn blocks_are_what_people_call_layers() {
        check(
            &[
                "all_final_layer.2-1.linear.weight",
                "all_final_layer.2-1.adaLN_modulation.1.bias",
                "cap_embedder.0.weight",
                "cap_embedder.1.weight",
                "layers.10.attention.to_out.0.weight",
                "layers.2.attention.to_out.0.weight",
                "layers.2.norm.weight",
                "layers.2.scale",
                "t_embedder.mlp.0.weight",
                "t_embedder.mlp.2.weight",
                "x_pad_token",
            ],
            &[
                ("all_final_layer", 2),
                ("cap_embedder", 2),
                ("layers.2", 3),
                ("layers.10", 1),
                ("t_embedder", 2),
                ("x_pad_token", 1),
            ],
        );
        check(
            &[
                "decoder.conv_in.weight",
                "decoder.mid_block.attentions.0.to_out.0.weight",
                "decoder.up_blocks.0.resnets.0.conv1.weight",
                "decoder.up_blocks.0.resnets.1.conv1.weight",
                "decoder.up_blocks.0.upsamplers.0.conv.weight",
                "encoder.conv_in.bias",
            ],
            &[
                ("decoder.conv_in", 1),
                ("decoder.mid_block.attentions.0", 1),
                ("decoder.up_blocks.0.resnets.0", 1),
                ("decoder.up_blocks.0.resnets.1", 1),
                ("decoder.up_blocks.0.upsamplers.0", 1),
                ("encoder", 1),
            ],
        );
        check(
            &[
                "model.embed_tokens.weight",
                "model.layers.0.mlp.net.0.proj.weight",
                "model.layers.0.mlp.net.2.weight",
            ],
            &[("model.embed_tokens", 1), ("model.layers.0", 2)],
        );
        check(
            // Odd names are grouped somehow, and nothing breaks.
            &["", ".", "..0..", "0", "0.1", "a.0"],
            &[("", 1), (".", 1), ("..0", 1), ("0", 2), ("a", 1)],
        );
    }

    #[test]
    fn no_name_commands_the_terminal() {
        let weights = Some(WeightsSummary::of(1, &entries(&["a\u{1b}[2Jb.weight"])));
        let [name, class, library] = ["\u{1b}[1mvae", "C\n", "l\r"].map(str::to_owned);
        let component = ComponentSummary {
            name: name.clone(),
            library,
            class: class.clone(),
            weights,
        };
        let text = ModelSummary {
            name,
            class_name: class,
            components: vec![component],
        }
        .to_string();
        assert!(
            text.lines().count() == 5 && !text.replace('\n', "").contains(char::is_control),
            "{text:?}"
        );
        assert!(
            text.contains("?[1mvae  C? (l?)") && text.contains("a?[2Jb"),
            "{text:?}"
        );
    }

    #[test]
    fn blocks_that_are_alike_share_a_line() {
        let names: Vec<String> = (0..12).map(|i| format!("layers.{i}.norm.weight")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let text = WeightsSummary::of(1, &entries(&names)).to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(
            lines[0].contains("24 parameters  48 B  12 tensors in 1 file  BF16 48 B"),
            "{text}"
        );
        assert!(
            lines[1].contains("layers.0..11")
                && lines[1].contains("4 B x 12")
                && lines[1].contains("= "),
            "{text}"
        );
    }
}
