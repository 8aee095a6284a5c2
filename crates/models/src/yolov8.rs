//! YOLOv8: where in a picture things are, of which kind, and, with a second head, what their outlines are.
//!
//! A backbone halves the map five times, a neck carries what the small maps know back to the larger ones, and three heads
//! look at one map in 8, 16 and 32 pixels a place each. Sizes n, s, m, l and x differ in channels and repetitions alone,
//! which are told from the shapes in a checkpoint; so are the classes, and whether it has outlines. Batch norms stand
//! beside the convolutions as in training, or were folded into them as in exported files.
//!
//! # Source
//! The architecture as drawn and tabulated in the public documentation, <https://docs.ultralytics.com/models/yolov8/>;
//! names are those of its checkpoints. No code was taken.

mod boxes;
mod network;

use lowtide_core::{ComponentLayout, Formula, Mode};
use lowtide_kernels as kernels;

use crate::tensor::{Compute, Tensor};
use crate::weights::{BlockSource, Headers, record};
use crate::{Error, Result};

pub use boxes::{Found, Outline, Sieve, find, overlap};
use network::{Heads, Loaded};

/// What errors and layouts call it.
const COMPONENT: &str = "detector";

/// Pixels a place of each head's map, from the finest on.
pub const STRIDES: [usize; 3] = [8, 16, 32];

/// Sides of a network's input are multiples of this.
pub const SIDE_STEP: usize = STRIDES[2];

/// The head's number among the modules.
const HEAD: usize = 22;

/// Modules whose maps the heads look at.
const SEEN: [usize; 3] = [15, 18, 21];

/// Bytes of lists, names and other small things that do not grow with anything.
const SMALL_BYTES: u64 = 64 * 1024;

/// A module of backbone and neck: its number in the checkpoint, and what it does to the map before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Module {
    index: usize,
    does: Does,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Does {
    /// A convolution 3 x 3 of every other place.
    Halve,
    /// Two paths joined, one of them through bottlenecks, which add to what they read where that is said.
    Split { add: bool },
    /// Maxima over ever larger surroundings.
    Pool,
    /// The map doubled, and beside it that of an earlier module.
    Double { beside: usize },
    /// The map, and beside it that of an earlier module.
    Join { beside: usize },
}

const MODULES: [Module; 20] = {
    const fn module(index: usize, does: Does) -> Module {
        Module { index, does }
    }
    const ADDING: Does = Does::Split { add: true };
    const PLAIN: Does = Does::Split { add: false };
    [
        module(0, Does::Halve),
        module(1, Does::Halve),
        module(2, ADDING),
        module(3, Does::Halve),
        module(4, ADDING),
        module(5, Does::Halve),
        module(6, ADDING),
        module(7, Does::Halve),
        module(8, ADDING),
        module(9, Does::Pool),
        module(11, Does::Double { beside: 6 }),
        module(12, PLAIN),
        module(14, Does::Double { beside: 4 }),
        module(15, PLAIN),
        module(16, Does::Halve),
        module(17, Does::Join { beside: 12 }),
        module(18, PLAIN),
        module(19, Does::Halve),
        module(20, Does::Join { beside: 9 }),
        module(21, PLAIN),
    ]
};

impl Module {
    fn has_weights(self) -> bool {
        !matches!(self.does, Does::Double { .. } | Does::Join { .. })
    }
}

/// The last module that reads the map of module `index`, which comes at `at` of [`MODULES`].
fn read_last(index: usize, at: usize) -> usize {
    if SEEN.contains(&index) {
        return HEAD;
    }
    let beside = MODULES.iter().rev().find_map(|module| match module.does {
        Does::Double { beside } | Does::Join { beside } if beside == index => Some(module.index),
        _ => None,
    });
    beside.unwrap_or_else(|| MODULES.get(at + 1).map_or(HEAD, |next| next.index))
}

/// Channels of a module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Width {
    /// Of its result.
    out: usize,
    /// Of a path within it.
    hidden: usize,
    /// How many bottlenecks.
    repeats: usize,
}

/// Outlines, where a model has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Outlines {
    /// Prototypes, and coefficients of a thing.
    count: usize,
    /// Channels of the heads that give coefficients.
    hidden: usize,
    /// Channels before the prototypes.
    prototypes_hidden: usize,
}

/// A model as its checkpoint's shapes tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// What all names begin with: nothing, or what a wrapper adds.
    prefix: String,
    /// Whether batch norms stand beside the convolutions.
    normed: bool,
    /// By position in [`MODULES`].
    widths: Vec<Width>,
    /// Kinds of things.
    pub classes: usize,
    /// Steps of the distribution that tells how far an edge is.
    bins: usize,
    box_hidden: usize,
    class_hidden: usize,
    outlines: Option<Outlines>,
}

/// Reads shapes.
struct Shapes<'h> {
    headers: &'h dyn Headers,
    prefix: String,
}

impl Shapes<'_> {
    fn get(&self, name: &str) -> Option<Vec<usize>> {
        let (_, shape) = self.headers.tensor(&format!("{}{name}", self.prefix))?;
        Some(shape)
    }

    /// Results of the convolution of that name.
    fn channels(&self, name: &str) -> Result<usize> {
        match self.get(name).as_deref() {
            Some(&[out, _, _, _]) if out > 0 => Ok(out),
            Some(other) => Err(Error::WrongShape {
                name: format!("{}{name}", self.prefix),
                expected: vec![0; 4],
                found: other.to_vec(),
            }),
            None => Err(Error::MissingTensor {
                name: format!("{}{name}", self.prefix),
            }),
        }
    }
}

/// What comes before the names of modules.
const PREFIXES: [&str; 3] = ["", "model.", "module."];

/// The name that only this head has: YOLOv5 and 7 have other heads, YOLO11 and later have theirs elsewhere.
const TELLS: [&str; 3] = [
    "model.0.conv.weight",
    "model.2.m.0.cv1.conv.weight",
    "model.22.cv3.0.2.weight",
];

impl Config {
    /// Whether these are the names of such a model.
    pub fn is_told_by(headers: &dyn Headers) -> bool {
        prefix_of(headers).is_some()
    }

    /// The model that these shapes are of.
    ///
    /// # Errors
    /// When a name is missing or its shape is none that such a model has.
    pub fn read(headers: &dyn Headers) -> Result<Config> {
        let unknown = || {
            let problem = "is not that of a YOLOv8 model (its head would be 'model.22')";
            Error::config(COMPONENT, "names", problem)
        };
        let prefix = prefix_of(headers).ok_or_else(unknown)?.to_owned();
        let shapes = Shapes { headers, prefix };
        let normed = shapes.get("model.0.bn.weight").is_some();
        let widths = MODULES.iter().enumerate();
        let mut found: Vec<Width> = Vec::with_capacity(MODULES.len());
        for (at, module) in widths {
            let width = width_of(&shapes, at, *module, &found)?;
            found.push(width);
        }
        let head = |name: &str| shapes.channels(&format!("model.{HEAD}.{name}"));
        let outlines = match shapes.get(&format!("model.{HEAD}.proto.cv1.conv.weight")) {
            None => None,
            Some(_) => Some(Outlines {
                count: head("cv4.0.2.weight")?,
                hidden: head("cv4.0.0.conv.weight")?,
                prototypes_hidden: head("proto.cv1.conv.weight")?,
            }),
        };
        let edges = head("cv2.0.2.weight")?;
        if !edges.is_multiple_of(4) {
            let problem = format!("has {edges} results; four edges have a number of steps each");
            return Err(Error::config(COMPONENT, "model.22.cv2.0.2", problem));
        }
        Ok(Config {
            normed,
            widths: found,
            classes: head("cv3.0.2.weight")?,
            bins: edges / 4,
            box_hidden: head("cv2.0.0.conv.weight")?,
            class_hidden: head("cv3.0.0.conv.weight")?,
            outlines,
            prefix: shapes.prefix,
        })
    }

    /// Whether it tells outlines, not boxes alone.
    pub fn has_outlines(&self) -> bool {
        self.outlines.is_some()
    }

    /// The published size with these shapes, such as `YOLOv8n-seg`; without a letter where it is none of them.
    pub fn name(&self) -> String {
        let size = match (self.widths[0].out, self.widths[4].repeats) {
            (16, 2) => "n",
            (32, 2) => "s",
            (48, 4) => "m",
            (64, 6) => "l",
            (80, 6) => "x",
            _ => "",
        };
        let what = if self.has_outlines() { "-seg" } else { "" };
        format!("YOLOv8{size}{what}")
    }

    fn width(&self, index: usize) -> Width {
        let at = MODULES.iter().position(|module| module.index == index);
        self.widths[at.expect("modules that are named are there")]
    }

    /// Channels that module number `at` of the list reads.
    fn channels_in(&self, at: usize) -> usize {
        match at {
            0 => 3,
            at => self.widths[at - 1].out,
        }
    }
}

fn prefix_of(headers: &dyn Headers) -> Option<&'static str> {
    let has = |prefix: &str| {
        let there = |name: &&str| headers.tensor(&format!("{prefix}{name}")).is_some();
        TELLS.iter().all(there)
    };
    PREFIXES.into_iter().find(|prefix| has(prefix))
}

fn width_of(shapes: &Shapes<'_>, at: usize, module: Module, before: &[Width]) -> Result<Width> {
    let Module { index, does } = module;
    let out = |name: &str| shapes.channels(&format!("model.{index}.{name}"));
    let beside = |other: usize| {
        let at = MODULES.iter().position(|module| module.index == other);
        before[at.expect("earlier modules are there")].out
    };
    Ok(match does {
        Does::Halve => Width {
            out: out("conv.weight")?,
            ..Width::default()
        },
        Does::Split { .. } => {
            let named = |k: &usize| format!("model.{index}.m.{k}.cv1.conv.weight");
            let repeats = (0..)
                .take_while(|k| shapes.get(&named(k)).is_some())
                .count();
            Width {
                out: out("cv2.conv.weight")?,
                hidden: out("cv1.conv.weight")? / 2,
                repeats,
            }
        }
        Does::Pool => Width {
            out: out("cv2.conv.weight")?,
            hidden: out("cv1.conv.weight")?,
            repeats: 0,
        },
        Does::Double { beside: other } | Does::Join { beside: other } => Width {
            out: before[at - 1].out + beside(other),
            ..Width::default()
        },
    })
}

/// The blocks in order of use: the modules that have weights, and the heads.
///
/// # Errors
/// When a tensor is missing or of another shape or type than the others call for.
pub fn layout(headers: &dyn Headers, config: &Config) -> Result<ComponentLayout> {
    let mut blocks = Vec::new();
    for (at, module) in MODULES.iter().enumerate() {
        if module.has_weights() {
            let name = format!("model.{}", module.index);
            blocks.push(record(headers, name, |weights| {
                Loaded::load(weights, config, at).map(drop)
            })?);
        }
    }
    blocks.push(record(headers, format!("model.{HEAD}"), |weights| {
        Heads::load(weights, config).map(drop)
    })?);
    Ok(ComponentLayout {
        name: COMPONENT.to_owned(),
        blocks,
        tables: Vec::new(),
    })
}

/// What the heads say, place by place.
#[derive(Debug)]
pub struct Output {
    /// From the finest map on.
    pub levels: Vec<Level>,
    /// Prototypes of outlines (count, height / 4, width / 4).
    pub prototypes: Option<Tensor>,
}

/// What one head says.
#[derive(Debug)]
pub struct Level {
    /// Pixels a place.
    pub stride: usize,
    /// Distributions of the distances to left, top, right and bottom (4 bins, h, w).
    pub edges: Tensor,
    /// Scores before their sigmoid (classes, h, w).
    pub classes: Tensor,
    /// Coefficients of the prototypes (count, h, w).
    pub outlines: Option<Tensor>,
}

/// What the heads say about a picture.
///
/// # Shapes
/// `input` (3, H, W), red, green, blue from 0 to 1; H and W are multiples of [`SIDE_STEP`].
///
/// # Memory
/// As [`modes`] says.
///
/// # Errors
/// When a block cannot be had, memory is refused, or the input's sides are others.
pub fn forward(
    source: &mut dyn BlockSource,
    config: &Config,
    compute: Compute,
    input: Tensor,
) -> Result<Output> {
    let (channels, height, width) = input.dims3()?;
    if channels != 3 || !sides_fit(height, width) {
        return Err(Error::Shape {
            what: "a detector's input",
            expected: vec![3, SIDE_STEP, SIDE_STEP],
            found: input.shape().to_vec(),
        });
    }
    let mut maps: Vec<Option<Tensor>> = std::iter::repeat_with(|| None).take(HEAD).collect();
    let mut before = Some(input);
    let mut block = 0;
    for (at, module) in MODULES.iter().enumerate() {
        let read = match at {
            0 => before.as_ref(),
            at => maps[MODULES[at - 1].index].as_ref(),
        };
        let x = read.expect("a map stays until it was read last");
        let made = match module.does {
            Does::Double { beside } => doubled_beside(x, kept(&maps, beside))?,
            Does::Join { beside } => beside_each_other(x, kept(&maps, beside))?,
            _ => {
                let weights = source.block(block)?;
                block += 1;
                Loaded::load(&weights, config, at)?.forward(compute, x)?
            }
        };
        before = None;
        maps[module.index] = Some(made);
        for (at, earlier) in MODULES.iter().enumerate().take(at + 1) {
            if read_last(earlier.index, at) <= module.index {
                maps[earlier.index] = None;
            }
        }
    }
    let weights = source.block(block)?;
    let heads = Heads::load(&weights, config)?;
    heads.forward(compute, SEEN.map(|index| kept(&maps, index)))
}

fn sides_fit(height: usize, width: usize) -> bool {
    let fits = |side: usize| side > 0 && side.is_multiple_of(SIDE_STEP);
    fits(height) && fits(width)
}

fn kept(maps: &[Option<Tensor>], index: usize) -> &Tensor {
    maps[index]
        .as_ref()
        .expect("a map stays until it was read last")
}

/// The map doubled, each value becoming four, and then the channels of `other`.
fn doubled_beside(x: &Tensor, other: &Tensor) -> Result<Tensor> {
    let (channels, height, width) = x.dims3()?;
    let (more, other_height, other_width) = other.dims3()?;
    if (other_height, other_width) != (2 * height, 2 * width) {
        return Err(Error::Shape {
            what: "maps beside each other",
            expected: vec![more, 2 * height, 2 * width],
            found: other.shape().to_vec(),
        });
    }
    let mut out = Tensor::new(&[channels + more, 2 * height, 2 * width])?;
    let (doubled, rest) = out.data_mut().split_at_mut(4 * x.data().len());
    kernels::upsample_nearest_2x(x.data(), channels, height, width, doubled);
    kernels::copy(rest, other.data());
    Ok(out)
}

/// The channels of one map, then those of the other.
fn beside_each_other(x: &Tensor, other: &Tensor) -> Result<Tensor> {
    let (channels, height, width) = x.dims3()?;
    let (more, other_height, other_width) = other.dims3()?;
    if (other_height, other_width) != (height, width) {
        return Err(Error::Shape {
            what: "maps beside each other",
            expected: vec![more, height, width],
            found: other.shape().to_vec(),
        });
    }
    let mut out = Tensor::new(&[channels + more, height, width])?;
    let (first, rest) = out.data_mut().split_at_mut(x.data().len());
    kernels::copy(first, x.data());
    kernels::copy(rest, other.data());
    Ok(out)
}

/// What looking at a picture of `height` x `width` takes beside the weights: there is one way.
///
/// # Panics
/// When the sides are no multiples of [`SIDE_STEP`].
pub fn modes(config: &Config, height: usize, width: usize) -> Vec<Mode> {
    assert!(sides_fit(height, width), "a picture of {width} x {height}");
    let cost = Cost::of(config, height, width);
    vec![Mode {
        name: "whole".to_owned(),
        exact: true,
        activation: Formula::constant((cost.peak + SMALL_BYTES) as f64),
        flops: Formula::constant(cost.flops),
        ladders: Vec::new(),
        resident_blocks: Vec::new(),
    }]
}

/// Counts what [`forward`] takes, module by module as it goes.
struct Cost {
    /// Bytes of maps that are there.
    live: u64,
    peak: u64,
    flops: f64,
}

/// Bytes of a map.
fn bytes(channels: usize, plane: usize) -> u64 {
    const GRAIN: u64 = kernels::memory::BUFFER_ALIGNMENT as u64;
    ((channels * plane * size_of::<f32>()) as u64).next_multiple_of(GRAIN)
}

impl Cost {
    fn of(config: &Config, height: usize, width: usize) -> Cost {
        let input = bytes(3, height * width);
        let mut cost = Cost {
            live: input,
            peak: input,
            flops: 0.0,
        };
        let mut plane = height * width;
        let mut planes = [0; HEAD];
        for (at, module) in MODULES.iter().enumerate() {
            plane = match module.does {
                Does::Halve => plane / 4,
                Does::Double { .. } => plane * 4,
                _ => plane,
            };
            planes[module.index] = plane;
            cost.module(config, at, plane);
            cost.live += bytes(config.widths[at].out, plane);
            if at == 0 {
                cost.live -= input;
            }
            for (earlier_at, earlier) in MODULES.iter().enumerate().take(at + 1) {
                let gone = read_last(earlier.index, earlier_at) == module.index;
                if gone {
                    let width = config.widths[earlier_at];
                    cost.live -= bytes(width.out, planes[earlier.index]);
                }
            }
        }
        cost.heads(config, SEEN.map(|index| planes[index]));
        cost
    }

    fn moment(&mut self, more: u64) {
        self.peak = self.peak.max(self.live + more);
    }

    fn conv(&mut self, channels_in: usize, channels_out: usize, kernel: usize, plane: usize) {
        let taps = channels_in * kernel * kernel;
        self.flops += 2.0 * taps as f64 * channels_out as f64 * plane as f64;
    }

    fn module(&mut self, config: &Config, at: usize, plane: usize) {
        let Width {
            out,
            hidden,
            repeats,
        } = config.widths[at];
        let channels_in = config.channels_in(at);
        let result = bytes(out, plane);
        match MODULES[at].does {
            Does::Halve => {
                self.conv(channels_in, out, 3, plane);
                self.moment(result);
            }
            Does::Split { .. } => {
                let paths = bytes((2 + repeats) * hidden, plane);
                self.conv(channels_in, 2 * hidden, 1, plane);
                for _ in 0..2 * repeats {
                    self.conv(hidden, hidden, 3, plane);
                }
                self.conv((2 + repeats) * hidden, out, 1, plane);
                self.moment(paths + result.max(bytes(hidden, plane)));
            }
            Does::Pool => {
                self.conv(channels_in, hidden, 1, plane);
                self.conv(4 * hidden, out, 1, plane);
                self.moment(bytes(4 * hidden, plane) + result);
            }
            Does::Double { .. } | Does::Join { .. } => self.moment(result),
        }
    }

    fn heads(&mut self, config: &Config, planes: [usize; 3]) {
        if let Some(outlines) = config.outlines {
            let (plane, hidden) = (planes[0], outlines.prototypes_hidden);
            let (small, large) = (bytes(hidden, plane), bytes(hidden, 4 * plane));
            // The weight of the doubling, as it is stored and turned.
            self.live += 2 * bytes(4 * hidden, hidden);
            let result = bytes(outlines.count, 4 * plane);
            self.conv(config.width(SEEN[0]).out, hidden, 3, plane);
            self.conv(hidden, 4 * hidden, 1, plane);
            self.conv(hidden, hidden, 3, 4 * plane);
            self.conv(hidden, outlines.count, 1, 4 * plane);
            self.moment(small + 2 * large);
            self.moment(2 * large);
            self.moment(large + result);
            self.live += result;
        }
        for (index, plane) in SEEN.into_iter().zip(planes) {
            let seen = config.width(index).out;
            let mut branch = |hidden: usize, results: usize| {
                self.conv(seen, hidden, 3, plane);
                self.conv(hidden, hidden, 3, plane);
                self.conv(hidden, results, 1, plane);
                let (inner, result) = (bytes(hidden, plane), bytes(results, plane));
                self.moment(inner + inner.max(result));
                self.live += result;
            };
            branch(config.box_hidden, 4 * config.bins);
            branch(config.class_hidden, config.classes);
            if let Some(outlines) = config.outlines {
                branch(outlines.hidden, outlines.count);
            }
        }
    }
}
