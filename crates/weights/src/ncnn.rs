//! Models of ncnn: a text file of layers, `.param`, and the layers' numbers one after the other, `.bin`. The layers are
//! not run; they tell what lies where.
//!
//! # Source
//! The text: <https://github.com/Tencent/ncnn/wiki/param-and-model-file-structure>

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use lowtide_core::Dtype;

use crate::header::NAME_BYTES_MAX;
use crate::torch::Contents;
use crate::{Error, Result, Source, TensorEntry};

/// Metadata that says that layers have names of ncnn's, and are in order.
pub(crate) const FORMAT: &str = "ncnn";
/// The first line of a file of layers.
const MAGIC: &str = "7767517";
/// The longest file of layers that is read, in bytes: a network of a thousand layers has 120 KiB.
const PARAM_BYTES_MAX: u64 = 16 << 20;
/// The most layers.
const LAYERS_MAX: usize = 1 << 17;
/// Before numbers of two bytes.
const FLAG_F16: u32 = 0x0130_6b47;
/// Before numbers of one byte.
const FLAG_INT8: u32 = 0x000d_4b38;
/// Before numbers of four bytes, in one of two ways.
const FLAGS_F32: [u32; 2] = [0, 0x0002_c056];
/// Where the numbers of a layer are padded to.
const ALIGN: u64 = 4;
/// Layers that have no numbers in the file.
const WITHOUT: [&str; 38] = [
    "AbsVal",
    "ArgMax",
    "BinaryOp",
    "Cast",
    "CELU",
    "Clip",
    "Concat",
    "Crop",
    "Dropout",
    "Eltwise",
    "ELU",
    "ExpandDims",
    "Exp",
    "Flatten",
    "GELU",
    "HardSigmoid",
    "HardSwish",
    "Input",
    "Interp",
    "Log",
    "Mish",
    "Noop",
    "Packing",
    "Padding",
    "Permute",
    "PixelShuffle",
    "Pooling",
    "Power",
    "ReLU",
    "Reduction",
    "Reshape",
    "Sigmoid",
    "Slice",
    "Softmax",
    "Split",
    "Squeeze",
    "Swish",
    "UnaryOp",
];

/// Both files of a model, by the path of either; `None` where `path` is not one of an ncnn model.
pub(crate) fn pair(path: &Path) -> Option<(PathBuf, PathBuf)> {
    match path.extension()?.to_str()? {
        "param" => Some((path.to_owned(), path.with_extension("bin"))),
        "bin" => {
            let param = path.with_extension("param");
            param.is_file().then(|| (param, path.to_owned()))
        }
        _ => None,
    }
}

/// One layer of the text.
struct Layer<'t> {
    kind: &'t str,
    name: &'t str,
    /// `key=value`, as they stand.
    settings: Vec<&'t str>,
}

/// Where the next numbers are.
struct Reader<'s> {
    bin: &'s Source,
    at: u64,
    /// Number of the line that is read, and its file, for messages.
    line: usize,
    file: String,
    tensors: Vec<TensorEntry>,
    names: HashSet<String>,
}

/// Reads what the files hold, without the numbers.
pub(crate) fn read(param: &Source, bin: &Source) -> Result<Contents> {
    let file = param.name();
    if param.byte_len() > PARAM_BYTES_MAX {
        return Err(Error::TooLarge {
            file,
            found: param.byte_len(),
            limit: PARAM_BYTES_MAX,
        });
    }
    let mut text = vec![0; param.byte_len() as usize];
    param.read_at(0, &mut text)?;
    let text = String::from_utf8(text).map_err(|e| Error::NotUtf8 {
        file: file.clone(),
        offset: e.utf8_error().valid_up_to() as u64,
    })?;
    let mut reader = Reader {
        bin,
        at: 0,
        line: 1,
        file,
        tensors: Vec::new(),
        names: HashSet::new(),
    };
    let mut lines = text.lines();
    if lines.next().map(str::trim) != Some(MAGIC) {
        return Err(reader.fault(format!(
            "it does not begin with {MAGIC}: not ncnn's text form"
        )));
    }
    reader.line = 2;
    let counts = lines.next().unwrap_or_default();
    let layers = counts.split_whitespace().next();
    let layers: usize = layers
        .and_then(|count| count.parse().ok())
        .filter(|&count| count <= LAYERS_MAX)
        .ok_or_else(|| reader.fault(format!("not a number of layers up to {LAYERS_MAX}")))?;
    let mut found = 0;
    for line in lines {
        reader.line += 1;
        if line.trim().is_empty() {
            continue;
        }
        found += 1;
        let layer = Layer::parse(line).map_err(|why| reader.fault(why))?;
        reader.layer(&layer)?;
    }
    if found != layers {
        return Err(reader.fault(format!(
            "{found} layers where {layers} were announced: cut off?"
        )));
    }
    reader.finish()
}

impl<'t> Layer<'t> {
    fn parse(line: &'t str) -> std::result::Result<Layer<'t>, String> {
        let mut words = line.split_whitespace();
        let mut word = |what: &'static str| words.next().ok_or(format!("a layer without {what}"));
        let (kind, name) = (word("a kind")?, word("a name")?);
        let mut count = |what: &'static str| -> std::result::Result<usize, String> {
            let count = word(what)?.parse::<usize>().ok();
            count
                .filter(|&count| count <= LAYERS_MAX)
                .ok_or(format!("a layer without {what}"))
        };
        let blobs = count("a number of inputs")? + count("a number of outputs")?;
        for _ in 0..blobs {
            word("the blobs it announces")?;
        }
        if name.len() > NAME_BYTES_MAX / 2 {
            return Err(format!("a layer's name of {} bytes", name.len()));
        }
        Ok(Layer {
            kind,
            name,
            settings: words.collect(),
        })
    }

    /// A whole number that is not negative.
    fn setting(&self, key: &str) -> std::result::Result<Option<u64>, String> {
        let mut pairs = self.settings.iter().filter_map(|pair| pair.split_once('='));
        match pairs.find(|(found, _)| *found == key) {
            None => Ok(None),
            Some((_, value)) => match value.parse() {
                Ok(value) => Ok(Some(value)),
                Err(_) => Err(format!("layer '{}' has {key}={value}", self.name)),
            },
        }
    }

    fn needed(&self, key: &str, what: &str) -> std::result::Result<u64, String> {
        let value = self.setting(key)?.filter(|&value| value > 0);
        value.ok_or(format!(
            "layer '{}' does not say {what} ({key}=)",
            self.name
        ))
    }
}

impl Reader<'_> {
    fn fault(&self, why: impl Into<String>) -> Error {
        Error::Ncnn {
            file: self.file.clone(),
            line: self.line,
            why: why.into(),
        }
    }

    fn layer(&mut self, layer: &Layer) -> Result<()> {
        match layer.kind {
            "Convolution" | "ConvolutionDepthWise" => self.convolution(layer),
            "InnerProduct" => self.product(layer),
            "PReLU" => {
                let slopes = self.said(layer.needed("0", "how many slopes it has"))?;
                self.plain(layer, "weight", slopes)
            }
            kind if WITHOUT.contains(&kind) => Ok(()),
            kind => Err(self.fault(format!(
                "layers of the kind '{kind}' are not known, so what follows them cannot be found"
            ))),
        }
    }

    fn said<T>(&self, value: std::result::Result<T, String>) -> Result<T> {
        value.map_err(|why| self.fault(why))
    }

    /// Numbers of a kernel, and one a channel where there is a bias.
    fn convolution(&mut self, layer: &Layer) -> Result<()> {
        let out = self.said(layer.needed("0", "how many channels it makes"))?;
        let width = self.said(layer.needed("1", "how wide its kernel is"))?;
        let height = self.said(layer.setting("11"))?.unwrap_or(width);
        let count = self.said(layer.needed("6", "how many numbers it has"))?;
        if self.said(layer.setting("8"))?.unwrap_or(0) != 0 {
            return Err(self.quantised(layer));
        }
        let each = out.checked_mul(width).and_then(|n| n.checked_mul(height));
        let into = each.filter(|&each| each > 0 && count.is_multiple_of(each));
        let into = into.map(|each| count / each);
        let into = into.ok_or_else(|| {
            let name = layer.name;
            self.fault(format!(
                "layer '{name}' has {count} numbers for {out} channels of {width} by {height}"
            ))
        })?;
        self.flagged(layer, &[out, into, height, width], count)?;
        self.bias(layer, "5", out)
    }

    fn product(&mut self, layer: &Layer) -> Result<()> {
        let out = self.said(layer.needed("0", "how many numbers it makes"))?;
        let count = self.said(layer.needed("2", "how many numbers it has"))?;
        if self.said(layer.setting("8"))?.unwrap_or(0) != 0 {
            return Err(self.quantised(layer));
        }
        if !count.is_multiple_of(out) {
            let name = layer.name;
            return Err(self.fault(format!("layer '{name}' has {count} numbers for {out} rows")));
        }
        self.flagged(layer, &[out, count / out], count)?;
        self.bias(layer, "1", out)
    }

    fn bias(&mut self, layer: &Layer, key: &str, out: u64) -> Result<()> {
        match self.said(layer.setting(key))?.unwrap_or(0) {
            0 => Ok(()),
            _ => self.plain(layer, "bias", out),
        }
    }

    fn quantised(&self, layer: &Layer) -> Error {
        self.fault(format!(
            "layer '{}' is quantised, which is not read; use the model in f16 or f32",
            layer.name
        ))
    }

    /// Numbers after a flag that tells their type.
    fn flagged(&mut self, layer: &Layer, shape: &[u64], count: u64) -> Result<()> {
        let mut flag = [0; 4];
        self.bin.read_at(self.at, &mut flag)?;
        self.at += flag.len() as u64;
        let dtype = match u32::from_le_bytes(flag) {
            FLAG_F16 => Dtype::F16,
            flag if FLAGS_F32.contains(&flag) => Dtype::F32,
            FLAG_INT8 => return Err(self.quantised(layer)),
            flag => {
                let name = layer.name;
                return Err(self.fault(format!(
                    "the numbers of layer '{name}' begin with 0x{flag:08x}, which says no known type: \
                     quantised, or files that do not belong together"
                )));
            }
        };
        self.add(layer, "weight", dtype, shape, count)
    }

    /// Numbers without a flag.
    fn plain(&mut self, layer: &Layer, part: &str, count: u64) -> Result<()> {
        self.add(layer, part, Dtype::F32, &[count], count)
    }

    fn add(
        &mut self,
        layer: &Layer,
        part: &str,
        dtype: Dtype,
        shape: &[u64],
        count: u64,
    ) -> Result<()> {
        let tensor = format!("{}.{part}", layer.name);
        let bytes = count.checked_mul(dtype.size());
        let end = bytes.and_then(|bytes| self.at.checked_add(bytes));
        let (Some(bytes), Some(end)) = (bytes, end) else {
            return Err(Error::Overflow {
                file: self.file.clone(),
                tensor,
                shape: shape.to_vec(),
            });
        };
        if end > self.bin.byte_len() {
            return Err(Error::Truncated {
                file: self.bin.name(),
                needed: end,
                found: self.bin.byte_len(),
            });
        }
        if !self.names.insert(tensor.clone()) {
            return Err(Error::DuplicateTensor {
                file: self.file.clone(),
                tensor,
            });
        }
        self.tensors.push(TensorEntry {
            name: tensor,
            dtype,
            shape: shape.iter().map(|&dim| dim as usize).collect(),
            source: 0,
            offset: self.at,
            bytes,
            strides: None,
        });
        // In a file that ends here the padding may be missing.
        self.at = end.next_multiple_of(ALIGN).min(self.bin.byte_len());
        Ok(())
    }

    fn finish(self) -> Result<Contents> {
        if self.tensors.is_empty() {
            return Err(Error::NoTensors {
                file: self.file,
                why: "none of its layers has numbers".to_owned(),
            });
        }
        let left = self.bin.byte_len() - self.at;
        if left > 0 {
            return Err(self.fault(format!(
                "{left} bytes of {} belong to no layer: the two files do not belong together",
                self.bin.name()
            )));
        }
        Ok(Contents {
            tensors: self.tensors,
            metadata: vec![(FORMAT.to_owned(), MAGIC.to_owned())],
            ..Contents::default()
        })
    }
}
