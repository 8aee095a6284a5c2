//! `noise`: the picture of PyTorch's Gaussian noise for a seed. It needs no model and takes no time, and shows in one
//! file everything a kind of job is made of.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lowtide_core::{Budget, Bytes, DoesNotFit, Dtype, TensorLayout};
use lowtide_kernels::memory;
use lowtide_media::{Format, Parameters, Pixels};
use lowtide_models::noise::randn;
use lowtide_weights::{Checkpoint, ModelFolder, SafetensorsWriter};
use serde::Serialize;
use serde_json::{Value, json};

use super::fields::Fields;
use crate::processor::{
    Card, File, Forecast, Opened, Order, Processor, Product, Run, Setup, Stepped,
};
use crate::{Error, Progress, Result, drawn_seed};

/// The kind and its only model.
const NAME: &str = "noise";

/// Largest side in pixels: 2048 x 2048 noise is a file of 12 MB.
const SIDE_MAX: u64 = 2048;

/// Longest pause of a step, milliseconds.
const STEP_MS_MAX: u64 = 60_000;

/// Seconds a pixel takes, drawn and compressed.
const PIXEL_S: f64 = 60e-9;

/// Name of the one tensor of a saved session, and of the text beside it.
const ROWS: &str = "rows";
const REQUEST: &str = "lowtide_noise";

/// The kind.
pub(super) struct Noise;

impl Processor for Noise {
    fn kind(&self) -> &'static str {
        NAME
    }

    fn about(&self) -> &'static str {
        "The picture of a seed's noise, strip by strip; for trying things out"
    }

    fn schema(&self) -> Value {
        let side = |title: &str| {
            json!({ "type": ["integer", "null"], "minimum": 1, "maximum": SIDE_MAX, "default": 128,
                                         "title": title, "unit": "px" })
        };
        json!({
            "type": "object",
            "additionalProperties": false,
            "properties": {
                "width": side("Width"),
                "height": side("Height"),
                "seed": { "type": ["integer", "null"], "minimum": 0, "title": "Seed; drawn when left out" },
                "strips": { "type": ["integer", "null"], "minimum": 1, "maximum": SIDE_MAX, "default": 8, "title": "Steps" },
                "step_ms": { "type": ["integer", "null"], "minimum": 0, "maximum": STEP_MS_MAX, "default": 0,
                             "title": "Pause of a step", "unit": "ms" },
            }
        })
    }

    fn own_models(&self) -> &'static [&'static str] {
        &[NAME]
    }

    fn runs(&self, _: &ModelFolder) -> bool {
        false
    }

    fn open(&self, _: &str, _: Option<ModelFolder>, _: Setup) -> Result<Arc<dyn Opened>> {
        Ok(Arc::new(Generator))
    }
}

/// What a request says, checked.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Request {
    width: usize,
    height: usize,
    seed: u64,
    strips: usize,
    step_ms: u64,
}

impl Request {
    /// Reads a request; what it leaves out is filled in, and a seed drawn.
    fn read(request: &Value) -> Result<Request> {
        let mut fields = Fields::of(request)?;
        let mut whole = |name, bounds, otherwise: u64| -> Result<u64> {
            Ok(fields.whole(name, bounds)?.unwrap_or(otherwise))
        };
        let height = whole("height", 1..=SIDE_MAX, 128)? as usize;
        let request = Request {
            width: whole("width", 1..=SIDE_MAX, 128)? as usize,
            height,
            seed: whole("seed", 0..=u64::MAX, drawn_seed())?,
            // A strip is at least one row.
            strips: height.min(whole("strips", 1..=SIDE_MAX, 8)? as usize),
            step_ms: whole("step_ms", 0..=STEP_MS_MAX, 0)?,
        };
        fields.done()?;
        Ok(request)
    }

    fn json(&self) -> Value {
        serde_json::to_value(self).expect("five numbers")
    }

    /// First row of strip `strip`; of one beyond the last, the height.
    fn row(&self, strip: usize) -> usize {
        self.height * strip / self.strips
    }

    /// Bytes of the picture's first `rows` rows.
    fn bytes(&self, rows: usize) -> usize {
        3 * self.width * rows
    }

    /// The picture, one strip as numbers, and the file, which is as large as the picture since noise does not compress,
    /// and twice that while it grows.
    fn peak(&self) -> Bytes {
        let strip = 4 * self.bytes(self.height.div_ceil(self.strips));
        Bytes::from(5 * self.bytes(self.height) + strip) + Bytes::kib(512)
    }

    fn seconds(&self, strips: usize) -> f64 {
        let share = strips as f64 / self.strips as f64;
        (self.width * self.height) as f64 * PIXEL_S * share
            + strips as f64 * self.step_ms as f64 / 1e3
    }
}

/// The opened model: there is nothing to it.
struct Generator;

impl Opened for Generator {
    fn card(&self) -> Card {
        Card {
            bytes: Bytes::ZERO,
            components: Vec::new(),
            defaults: json!({ "width": 128, "height": 128, "strips": 8, "step_ms": 0 }),
        }
    }

    fn check(&self, request: &Value) -> Result<Value> {
        Ok(Request::read(request)?.json())
    }

    fn forecast(&self, request: &Value, budget: Option<Budget>) -> Result<Forecast> {
        let request = Request::read(request)?;
        let peak = request.peak();
        if let Some(budget) = budget.filter(|budget| peak > budget.available()) {
            let refused = DoesNotFit::one_way("draw", peak, budget);
            return Err(Error::DoesNotFit(refused));
        }
        Ok(Forecast {
            plan: None,
            seconds: request.seconds(request.strips),
            peak,
            batch: None,
        })
    }

    fn start(&self, orders: Vec<Order<'_>>) -> Result<Box<dyn Run>> {
        let [order] = &orders[..] else {
            return Err(Error::request(
                "orders",
                "are not one, and noise shares no batch (this is a bug)",
            ));
        };
        let request = Request::read(&order.request)?;
        let mut drawing = Drawing {
            request,
            done: 0,
            rgb: Vec::new(),
            wanted: true,
        };
        drawing.rgb.reserve_exact(request.bytes(request.height));
        if let Some(file) = order.resume {
            drawing.restore(file)?;
        }
        Ok(Box::new(drawing))
    }
}

/// A picture in progress.
struct Drawing {
    request: Request,
    /// Strips drawn.
    done: usize,
    /// Their pixels.
    rgb: Vec<u8>,
    wanted: bool,
}

impl Drawing {
    /// Draws the next strip: strip k from seed + k, as picture k of a job is.
    fn draw(&mut self) {
        let rows = self.request.row(self.done + 1) - self.request.row(self.done);
        let seed = self.request.seed.wrapping_add(self.done as u64);
        // Three standard deviations fill the range of a byte.
        let byte = |x: f32| {
            (127.5 + x * (127.5 / 3.0))
                .round_ties_even()
                .clamp(0.0, 255.0) as u8
        };
        self.rgb
            .extend(randn(seed, self.request.bytes(rows)).into_iter().map(byte));
        self.done += 1;
    }

    fn pixels(&self) -> Pixels<'_> {
        let Request { width, .. } = self.request;
        Pixels {
            width: width as u32,
            height: self.request.row(self.done) as u32,
            rgb: &self.rgb,
        }
    }

    fn product(&self) -> Result<Product> {
        let request = &self.request;
        let parameters = Parameters {
            prompt: NAME,
            negative: None,
            steps: request.strips,
            guidance: 0.0,
            seed: request.seed,
            width: request.width,
            height: request.height,
            model: NAME,
            extra: &[],
        };
        let file = File::picture(self.pixels(), Format::Png, &parameters.text())?;
        Ok(Product {
            files: vec![file],
            report: json!({ "seeds": [request.seed], "strips": request.strips }),
        })
    }

    fn layout(&self) -> TensorLayout {
        let shape = vec![self.request.row(self.done), self.request.width, 3];
        TensorLayout {
            name: ROWS.to_owned(),
            dtype: Dtype::U8,
            shape,
        }
    }

    fn restore(&mut self, path: &Path) -> Result<()> {
        let file = Checkpoint::open(path)?;
        let wrong = |what: &str| Error::request("session", format!("{}: {what}", path.display()));
        let told = file
            .metadata(REQUEST)
            .ok_or_else(|| wrong("is no saved picture of noise"))?;
        let ours = self.request.json().to_string();
        if told != ours {
            return Err(wrong("belongs to another request"));
        }
        let entry = file.get(ROWS).filter(|entry| entry.dtype == Dtype::U8);
        let entry = entry.ok_or_else(|| wrong("has no rows"))?;
        let at = (1..=self.request.strips)
            .find(|&strip| entry.shape == [self.request.row(strip), self.request.width, 3]);
        self.done = at.ok_or_else(|| wrong("has rows that are no strips"))?;
        let rows = self.request.row(self.done);
        self.rgb.resize(self.request.bytes(rows), 0);
        file.read(entry, &mut self.rgb)?;
        Ok(())
    }
}

impl Run for Drawing {
    fn step(&mut self) -> Result<Stepped> {
        if !self.wanted {
            return Ok(Stepped::Finished(vec![None]));
        }
        let start = Instant::now();
        std::thread::sleep(Duration::from_millis(self.request.step_ms));
        if self.done < self.request.strips {
            self.draw();
        }
        if self.done == self.request.strips {
            return Ok(Stepped::Finished(vec![Some(self.product()?)]));
        }
        Ok(Stepped::Progress(Progress {
            phase: "draw",
            done: self.done,
            total: self.request.strips,
            elapsed: start.elapsed(),
            memory: Bytes(memory::live()),
        }))
    }

    fn save(&self, _: usize, file: &Path) -> Result<bool> {
        if self.done == 0 {
            return Ok(false);
        }
        let told = self.request.json().to_string();
        let mut writer =
            SafetensorsWriter::with_metadata(file, &[self.layout()], &[(REQUEST, &told)])?;
        writer.write(ROWS, &self.rgb)?;
        writer.finish()?;
        Ok(true)
    }

    fn drop_member(&mut self, _: usize) {
        self.wanted = false;
    }

    fn preview(&self, _: usize) -> Option<File> {
        (self.done > 0).then(|| File::preview(self.pixels()))?
    }

    fn remaining_s(&self) -> f64 {
        self.request.seconds(self.request.strips - self.done)
    }

    fn holds(&self) -> Bytes {
        Bytes::from(self.rgb.capacity())
    }

    fn peak(&self) -> Bytes {
        self.request.peak()
    }
}
