//! What a visit of all blocks takes: bytes at the worst moment and operations, as formulas of the batch and the chunk.
//!
//! The blocks are walked once with what is live as a linear form; every moment that may be the worst leaves its form, and
//! the formula is the largest of them. Within a block sequences go one after the other and each frees what it no longer
//! needs, so the worst moment is that of the first or of the last.

use std::ops::{Add, Mul};

use lowtide_core::{Formula, Ladder, Mode, Term};

use super::config::Config;
use super::flow::{CHUNK_ROWS_MIN, finest};
use super::network::{Block, Kind, LayerShape, ResnetShape, blocks, sizes};
use super::transformer::HIDDEN;

/// The variable with the samples of a visit.
pub const BATCH: &str = "batch";

/// The variable with the tokens computed together.
pub const CHUNK_ROWS: &str = "chunk_rows";

/// Bytes of one f32.
const F32: f64 = 4.0;

/// Buffers are rounded up to this many bytes.
const BUFFER_GRAIN: u64 = lowtide_kernels::memory::BUFFER_ALIGNMENT as u64;

/// Bytes of lists, names and other small things that do not grow with anything.
const SMALL_BYTES: f64 = 32.0 * 1024.0;

/// What decides the cost of a visit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Job {
    /// Latent rows and columns.
    pub size: (usize, usize),
    /// Samples at most.
    pub samples: usize,
    /// Sequences a sample: two with guidance.
    pub sequences: usize,
    /// Tokens of the longest text.
    pub text_tokens: usize,
}

/// The ways to visit the blocks, with what each takes beside samples, texts and weights.
pub fn modes(config: &Config, job: Job) -> Vec<Mode> {
    let walk = Walk::of(config, job);
    let rows = (job.samples * job.sequences * walk.finest).max(1) as u64;
    let floor = rows.min(CHUNK_ROWS_MIN as u64);
    let step = CHUNK_ROWS_MIN as u64;
    vec![Mode {
        name: "chunks".to_owned(),
        exact: true,
        activation: Formula {
            alternatives: walk.worst.iter().map(Form::terms).collect(),
        },
        flops: Formula {
            alternatives: vec![vec![Term::new(walk.flops, &[BATCH])]],
        },
        ladders: vec![
            Ladder::new(BATCH, job.samples as u64, 1, 1),
            Ladder::new(CHUNK_ROWS, rows, floor, step),
        ],
        resident_blocks: Vec::new(),
    }]
}

/// Bytes: so many, so many a sample, so many a row of a chunk.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Form {
    constant: f64,
    batch: f64,
    chunk: f64,
}

impl Form {
    fn constant(bytes: f64) -> Form {
        Form {
            constant: bytes,
            ..Form::default()
        }
    }

    fn a_sample(bytes: f64) -> Form {
        Form {
            batch: bytes,
            ..Form::default()
        }
    }

    fn never_above(&self, other: &Form) -> bool {
        // A batch and a chunk are at least 1.
        let (batch, chunk) = (other.batch - self.batch, other.chunk - self.chunk);
        batch >= 0.0 && chunk >= 0.0 && other.constant - self.constant + batch + chunk >= 0.0
    }

    fn terms(&self) -> Vec<Term> {
        let none: [&'static str; 0] = [];
        vec![
            Term::new(self.constant, &none),
            Term::new(self.batch, &[BATCH]),
            Term::new(self.chunk, &[CHUNK_ROWS]),
        ]
    }
}

impl Add for Form {
    type Output = Form;
    fn add(self, other: Form) -> Form {
        Form {
            constant: self.constant + other.constant,
            batch: self.batch + other.batch,
            chunk: self.chunk + other.chunk,
        }
    }
}

impl Mul<f64> for Form {
    type Output = Form;
    fn mul(self, times: f64) -> Form {
        Form {
            constant: self.constant * times,
            batch: self.batch * times,
            chunk: self.chunk * times,
        }
    }
}

/// The maps of all sequences at one point, by bytes of one and how many there are a sample.
#[derive(Clone, Copy, Debug)]
struct Maps {
    bytes: f64,
    each: f64,
}

impl Maps {
    fn all(&self) -> Form {
        Form::a_sample(self.bytes * self.each)
    }
}

/// The walk through the blocks.
struct Walk<'c> {
    config: &'c Config,
    job: Job,
    sizes: Vec<(usize, usize)>,
    finest: usize,
    current: Maps,
    /// Whether the current maps are the last of those kept.
    current_kept: bool,
    kept: Vec<Maps>,
    tokens: Form,
    worst: Vec<Form>,
    /// Operations a sample.
    flops: f64,
}

impl<'c> Walk<'c> {
    fn of(config: &'c Config, job: Job) -> Walk<'c> {
        let (blocks, sizes) = (blocks(config), sizes(config, job.size));
        let mut walk = Walk {
            config,
            job,
            finest: finest(&blocks, &sizes),
            sizes,
            current: Maps {
                bytes: 0.0,
                each: 1.0,
            },
            current_kept: false,
            kept: Vec::new(),
            tokens: Form::default(),
            worst: Vec::new(),
            flops: 0.0,
        };
        for block in &blocks {
            walk.block(block);
        }
        walk
    }

    fn plane(&self, level: usize) -> usize {
        self.sizes[level].0 * self.sizes[level].1
    }

    fn map(&self, channels: usize, level: usize) -> f64 {
        buffer(channels * self.plane(level))
    }

    fn sequences(&self) -> f64 {
        self.job.sequences as f64
    }

    /// Rows of the embeddings a sample: those told the same share one, but only the sequences of one sample surely do.
    fn embeddings(&self) -> Form {
        let rows = if self.config.added.is_some() {
            self.sequences()
        } else {
            1.0
        };
        Form::a_sample(rows * F32 * self.config.time_dim as f64)
    }

    /// What is live between two steps of one sequence, the current maps apart.
    fn held(&self) -> Form {
        let kept = self.kept.iter().map(Maps::all);
        let start = self.embeddings() + self.tokens + Form::constant(SMALL_BYTES);
        kept.fold(start, Form::add)
    }

    fn moment(&mut self, live: Form) {
        if self.worst.iter().any(|worst| live.never_above(worst)) {
            return;
        }
        self.worst.retain(|worst| !worst.never_above(&live));
        self.worst.push(live);
    }

    /// One map after the other becomes another: `freed` is what goes with each, `peak` what is live while it happens.
    fn one_by_one(&mut self, held: Form, (freed, peak): (f64, f64), result: Maps) {
        for waiting in [freed, result.bytes] {
            let others = Form::a_sample(waiting * result.each) + Form::constant(-waiting);
            self.moment(held + others + Form::constant(peak));
        }
    }

    fn block(&mut self, block: &Block) {
        match &block.kind {
            Kind::Start => self.start(),
            Kind::Resnet(shape) => self.resnet(shape, block.level),
            Kind::Layer(shape) => self.layer(shape, block.level),
            Kind::Down { channels } => {
                let result = Maps {
                    bytes: self.map(*channels, block.level + 1),
                    each: self.current.each,
                };
                self.one_by_one(self.held(), (0.0, result.bytes), result);
                self.convolved(9 * channels, *channels, block.level + 1, result.each);
                self.replace(result, true);
            }
            Kind::Up { channels } => self.up(*channels, block.level),
            Kind::Output => self.output(),
        }
    }

    fn replace(&mut self, result: Maps, keep: bool) {
        self.current = result;
        self.current_kept = keep;
        if keep {
            self.kept.push(result);
        }
    }

    /// The current maps, where they are not counted among those kept.
    fn current(&self) -> Form {
        if self.current_kept {
            Form::default()
        } else {
            self.current.all()
        }
    }

    fn convolved(&mut self, taps: usize, channels: usize, level: usize, each: f64) {
        self.flops += each * 2.0 * (taps * channels) as f64 * self.plane(level) as f64;
    }

    fn start(&mut self) {
        let config = self.config;
        let channels = config.channels(0);
        let result = Maps {
            bytes: self.map(channels, 0),
            each: 1.0,
        };
        let sample = self.map(config.in_channels, 0);
        let hidden =
            channels + 2 * config.time_dim + config.added.map_or(0, |added| added.input_dim);
        let small = F32 * (hidden + 8 * config.time_dim + 2 * channels) as f64;
        self.moment(self.held() + Form::a_sample(self.sequences() * small) + Form::constant(small));
        let peak = sample + result.bytes + F32 * channels as f64;
        self.one_by_one(self.held(), (0.0, peak), result);
        let (kernel, _) = config.kernels;
        self.convolved(kernel * kernel * config.in_channels, channels, 0, 1.0);
        self.replace(result, true);
    }

    fn resnet(&mut self, shape: &ResnetShape, level: usize) {
        let joined = shape.channels_skip > 0;
        let from = shape.channels_in + shape.channels_skip;
        let (x, out) = (self.map(from, level), self.map(shape.channels_out, level));
        let skip = if joined { self.kept.pop() } else { None };
        // The last map kept is the current one where nothing is between down and up.
        self.current_kept &= !joined;
        let each = match self.config.added {
            Some(_) => self.sequences(),
            None => self.current.each,
        };
        let held = self.held() + Form::a_sample(self.sequences() * F32 * shape.channels_out as f64);
        let small = F32 * (4 * from + 10 * shape.channels_out) as f64;
        let input = if self.current_kept {
            0.0
        } else {
            // What several sequences kept together goes with the last of them.
            let share = skip.map_or(0.0, |skip| skip.bytes * skip.each / each);
            self.current.bytes + share
        };
        let whole_skip = skip.map_or(0.0, |skip| skip.bytes);
        let owned = joined || !self.current_kept;
        let source = if owned { x } else { 0.0 };
        let residual = if from == shape.channels_out && owned {
            0.0
        } else {
            out
        };
        let joining = if joined {
            self.current.bytes + whole_skip + x
        } else {
            0.0
        };
        let peak = joining.max(source + out + residual) + small;
        let result = Maps { bytes: out, each };
        // Where sequences part here, the map they shared waits for the last of them.
        self.one_by_one(held, (input, peak), result);
        self.convolved(9 * from, shape.channels_out, level, each);
        self.convolved(9 * shape.channels_out, shape.channels_out, level, each);
        if from != shape.channels_out {
            self.convolved(from, shape.channels_out, level, each);
        }
        self.replace(result, shape.keep);
    }

    fn up(&mut self, channels: usize, level: usize) {
        let (input, result) = (
            self.current.bytes,
            Maps {
                bytes: self.map(channels, level - 1),
                each: self.current.each,
            },
        );
        let (rows, columns) = self.sizes[level];
        let doubled = self.sizes[level - 1] == (2 * rows, 2 * columns);
        let peak = if doubled {
            input + result.bytes
        } else {
            2.0 * result.bytes
        };
        let small = F32 * channels as f64;
        let freed = if self.current_kept { 0.0 } else { input };
        self.one_by_one(self.held(), (freed, peak + small), result);
        self.convolved(9 * channels, channels, level - 1, result.each);
        self.replace(result, false);
    }

    fn output(&mut self) {
        let config = self.config;
        let result = Maps {
            bytes: self.map(config.out_channels, 0),
            each: self.current.each,
        };
        let (input, small) = (self.current.bytes, 5.0 * F32 * config.channels(0) as f64);
        let freed = if self.current_kept { 0.0 } else { input };
        self.one_by_one(self.held(), (freed, input + result.bytes + small), result);
        let (_, kernel) = config.kernels;
        let taps = kernel * kernel * config.channels(0);
        self.convolved(taps, config.out_channels, 0, result.each);
    }

    /// Rows of a chunk of one level: at most the largest of these.
    fn chunk_rows(&self, tokens: usize, at_most: usize) -> [Form; 2] {
        let share = Form {
            // Rounded up.
            constant: if tokens == self.finest { 0.0 } else { 1.0 },
            chunk: tokens as f64 / self.finest as f64,
            batch: 0.0,
        };
        [share, Form::constant(CHUNK_ROWS_MIN.min(at_most) as f64)]
    }

    fn layer(&mut self, shape: &LayerShape, level: usize) {
        let (tokens, c) = (self.plane(level), shape.channels as f64);
        let sequences = self.sequences();
        let x = Form::a_sample(sequences * buffer(shape.channels * tokens));
        let small = Form::constant(24.0 * F32 * c);
        self.tokens = x;
        let held = self.held() + self.current() + small;
        let all = tokens * self.job.sequences * self.job.samples;
        let (t, k) = (tokens as f64, self.job.text_tokens as f64);
        for rows in self.chunk_rows(tokens, tokens) {
            if shape.index == 0 {
                self.moment(held + rows * (2.0 * F32 * c));
            }
            // Keys and values of one sequence, or of as many as a chunk holds.
            let sequence = Form::constant(2.0 * F32 * c);
            self.moment(held + sequence * t + rows * (2.0 * F32 * c));
            self.moment(held + sequence * k + rows * (2.0 * F32 * c));
        }
        for rows in self.chunk_rows(tokens, all) {
            self.moment(held + rows * (4.0 * F32 * c));
            self.moment(held + rows * (2.0 * F32 * c * (1.0 + k / t)));
            self.moment(held + rows * ((HIDDEN + 1) as f64 * F32 * c));
        }
        self.flops += sequences * layer_flops(shape, t, k);
        if shape.last {
            let maps = Maps {
                each: sequences,
                ..self.current
            };
            for rows in self.chunk_rows(tokens, tokens) {
                self.moment(self.held() + maps.all() + small + rows * (F32 * c));
            }
            self.tokens = Form::default();
            self.replace(maps, shape.keep);
        }
    }
}

/// Operations of one layer on one sequence of `t` tokens with a text of `k`.
fn layer_flops(shape: &LayerShape, t: f64, k: f64) -> f64 {
    let (c, text) = (shape.channels as f64, shape.text_dim as f64);
    let (seen, width) = if shape.text_only { (k, text) } else { (t, c) };
    let ends = f64::from(shape.index == 0) + f64::from(shape.last);
    // Queries and results of both attentions, the feed-forward, and what makes tokens and maps.
    let rows = t * c * c * (4.0 + 3.0 * HIDDEN as f64 + ends);
    let keys = 2.0 * c * (seen * width + k * text);
    let scores = 2.0 * t * c * (seen + k);
    2.0 * (rows + keys + scores)
}

fn buffer(elements: usize) -> f64 {
    (elements as u64 * 4).next_multiple_of(BUFFER_GRAIN) as f64
}
