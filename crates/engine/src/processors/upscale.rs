//! `upscale`: a picture made larger by a network in a file.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use lowtide_core::{Budget, Bytes, Plan, Quality};
use lowtide_media::{Format, Limits, Size, decode_original, size_of};
use lowtide_weights::ModelFolder;
use serde_json::{Value, json};

use super::fields::Fields;
use crate::device::cpu::precision_word;
use crate::device::ground;
use crate::processor::{
    Brought, Card, File, Files, Forecast, Opened, Order, Processor, Product, Run, Setup, Stepped,
};
use crate::shared::Counted;
use crate::upscale::{
    Enlarged, Enlargement, Enlarger, Enlarging, EnlargingStep, SCALE_MAX, TILE_MAX, TILE_MIN,
};
use crate::{Error, Result};

/// The kind.
const KIND: &str = "upscale";
/// Largest file of a given picture.
const PICTURE_BYTES_MAX: u64 = 256 << 20;
/// The longest name of an input file, in bytes.
const NAME_BYTES_MAX: usize = 1024;
/// The side of a picture of usual size, in pixels.
const SAMPLE_SIDE: u32 = 512;
/// Bytes a pixel that a finished file takes while it is written, at most: pixels in its order, and the file.
const FILE_FACTOR: u64 = 2;

/// The kind.
pub(super) struct Upscales;

impl Processor for Upscales {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn about(&self) -> &'static str {
        "Makes a picture larger, with details that a network finds likely"
    }

    fn schema(&self) -> Value {
        let formats: Vec<&str> = Format::ALL.iter().map(|format| format.name()).collect();
        json!({
            "type": "object",
            "additionalProperties": false,
            "required": ["image"],
            "properties": {
                "image": { "type": "string", "maxLength": NAME_BYTES_MAX, "title": "Picture", "format": "input-picture" },
                "scale": { "type": ["number", "null"], "minimum": 1, "maximum": SCALE_MAX,
                           "title": "Factor; the network's own when left out" },
                "tile": { "type": ["integer", "null"], "minimum": TILE_MIN, "maximum": TILE_MAX,
                          "title": "Side of tiles; as memory allows when left out", "unit": "px" },
                "quality": { "type": ["string", "null"], "enum": ["auto", "exact", null], "default": "auto",
                             "title": "Whether tiles may show" },
                "output_format": { "type": ["string", "null"], "enum": formats.iter().map(|&f| json!(f)).chain([Value::Null]).collect::<Vec<_>>(),
                                   "default": "png", "title": "File format" },
            }
        })
    }

    fn runs(&self, folder: &ModelFolder) -> bool {
        Enlarger::runs(folder)
    }

    fn open(
        &self,
        model: &str,
        folder: Option<ModelFolder>,
        setup: Setup,
    ) -> Result<Arc<dyn Opened>> {
        let folder = folder.ok_or_else(|| Error::Incomplete {
            model: model.to_owned(),
            what: "upscale needs a network's file".to_owned(),
        })?;
        Ok(Arc::new(Upscaler(Arc::new(Studio {
            enlarger: Enlarger::open(&folder, setup.options)?,
            files: setup.files,
            name: model.to_owned(),
        }))))
    }
}

/// An opened network and what it is called.
struct Studio {
    enlarger: Arc<Enlarger>,
    files: Arc<dyn Files>,
    name: String,
}

/// What a request says, checked.
#[derive(Clone, Debug, PartialEq)]
struct Request {
    image: String,
    asked: Enlargement,
    format: Format,
}

impl Request {
    fn read(request: &Value) -> Result<Request> {
        let mut fields = Fields::of(request)?;
        let image = fields.text("image", NAME_BYTES_MAX)?;
        let image = image.filter(|image| !image.is_empty());
        let image =
            image.ok_or_else(|| Error::request("image", "is missing: a picture to enlarge"))?;
        let scale = fields.number("scale", 1.0..=SCALE_MAX as f32)?;
        // As it was written: a number of 32 bits is a little off, and whole pixels are counted down.
        let scale = scale.map(|scale| (f64::from(scale) * 1e4).round() / 1e4);
        let tile = fields.whole("tile", TILE_MIN as u64..=TILE_MAX as u64)?;
        let quality = match fields.word("quality", &["auto", "exact"])? {
            Some("exact") => Quality::Exact,
            _ => Quality::Auto,
        };
        let names = Format::ALL.map(Format::name);
        let format = fields.word("output_format", &names)?;
        let format = format.and_then(Format::named).unwrap_or(Format::Png);
        fields.done()?;
        Ok(Request {
            image: image.to_owned(),
            asked: Enlargement {
                scale,
                tile: tile.map(|tile| tile as usize),
                quality,
            },
            format,
        })
    }

    fn json(&self) -> Value {
        json!({
            "image": self.image,
            "scale": self.asked.scale,
            "tile": self.asked.tile,
            "quality": match self.asked.quality { Quality::Exact => "exact", Quality::Auto => "auto" },
            "output_format": self.format.name(),
        })
    }
}

impl Studio {
    /// A file that a field names, through `read`.
    fn file<T>(
        &self,
        request: &Request,
        read: impl Fn(&[u8]) -> lowtide_media::Result<T>,
    ) -> Result<T> {
        let shown: String = request.image.chars().take(80).collect();
        let wrong = |problem: String| Error::request("image", format!("'{shown}': {problem}"));
        let file = self.files.input(&request.image, PICTURE_BYTES_MAX);
        read(&file.map_err(wrong)?).map_err(|problem| wrong(problem.to_string()))
    }

    fn size(&self, request: &Request) -> Result<Size> {
        self.file(request, |file| size_of(file, &Limits::default()))
    }

    fn forecast(
        &self,
        size: &Size,
        asked: &Enlargement,
        budget: Option<Budget>,
    ) -> Result<Forecast> {
        let plan = self.enlarger.plan(size, asked, budget)?;
        let run = plan.peak.saturating_sub(plan.budget.in_use);
        Ok(Forecast {
            seconds: plan.seconds,
            peak: run.max(self.writing(size, asked)?),
            batch: None,
            plan: Some(plan),
        })
    }

    /// What a saved session belongs to.
    fn about(&self, request: &Request) -> String {
        let about = json!({
            "model": self.name,
            "precision": precision_word(self.enlarger.precision()),
            "request": request.json(),
        });
        about.to_string()
    }

    /// Bytes of the result while its file is written, as far as that happens where the network computes.
    fn writing(&self, size: &Size, asked: &Enlargement) -> Result<Bytes> {
        let (width, height) = self.enlarger.result_size(size, asked)?;
        let values = if size.alpha { 4 } else { 3 } * if size.deep { 2 } else { 1 };
        let result = values * u64::from(width) * u64::from(height);
        Ok(ground::of_host(Bytes(result * (1 + FILE_FACTOR))))
    }

    /// What is written into a finished file.
    fn text(&self, enlarged: &Enlarged) -> String {
        let report = &enlarged.report;
        let how = if report.exact {
            String::new()
        } else {
            format!(", Approximate: {}", report.cut)
        };
        format!(
            "Upscaled by {}, Size: {}x{}, Precision: {}{how}, Version: lowtide {}",
            self.name,
            enlarged.picture.width(),
            enlarged.picture.height(),
            precision_word(self.enlarger.precision()),
            env!("CARGO_PKG_VERSION")
        )
    }
}

struct Upscaler(Arc<Studio>);

impl Opened for Upscaler {
    fn card(&self) -> Card {
        let (blocks, bytes) = self.0.enlarger.weights();
        Card {
            bytes,
            components: vec![("upscaler".to_owned(), blocks, bytes)],
            defaults: json!({
                "scale": self.0.enlarger.scale(), "quality": "auto", "output_format": "png",
            }),
        }
    }

    fn check(&self, request: &Value) -> Result<Value> {
        let request = Request::read(request)?;
        let size = self.0.size(&request)?;
        self.0.enlarger.result_size(&size, &request.asked)?;
        Ok(request.json())
    }

    fn forecast(&self, request: &Value, budget: Option<Budget>) -> Result<Forecast> {
        let request = Request::read(request)?;
        let size = self.0.size(&request)?;
        self.0.forecast(&size, &request.asked, budget)
    }

    fn result_size(&self, request: &Value, given: Option<[u32; 2]>) -> Option<[u32; 2]> {
        let request = Request::read(request).ok()?;
        let [width, height] = given?;
        let size = Size {
            width,
            height,
            alpha: false,
            deep: false,
        };
        let (width, height) = self.0.enlarger.result_size(&size, &request.asked).ok()?;
        Some([width, height])
    }

    fn sample(&self, budget: Budget) -> Option<Result<(String, Forecast)>> {
        let size = Size {
            width: SAMPLE_SIDE,
            height: SAMPLE_SIDE,
            alpha: false,
            deep: false,
        };
        let asked = Enlargement {
            quality: Quality::Exact,
            ..Enlargement::default()
        };
        let forecast = self.0.forecast(&size, &asked, Some(budget));
        Some(forecast.map(|forecast| (format!("{SAMPLE_SIDE}x{SAMPLE_SIDE}"), forecast)))
    }

    fn start(&self, orders: Vec<Order<'_>>) -> Result<Box<dyn Run>> {
        let [order] = &orders[..] else {
            return Err(Error::request(
                "orders",
                "are not one, and pictures share no batch (this is a bug)",
            ));
        };
        let began = Instant::now();
        let request = Request::read(&order.request)?;
        let studio = self.0.clone();
        let picture = studio.file(&request, |file| decode_original(file, &Limits::default()))?;
        let writing = studio.writing(&picture.size(), &request.asked)?;
        let mut run = studio.enlarger.start(Arc::new(picture), request.asked)?;
        if let Some(file) = order.resume {
            run.restore(&studio.about(&request), file)?;
        }
        Ok(Box::new(Upscaling {
            studio,
            request,
            run,
            writing,
            wanted: true,
            start_s: began.elapsed().as_secs_f64(),
        }))
    }

    fn held(&self) -> Bytes {
        self.0.enlarger.held_weights()
    }

    fn held_beside(&self, counted: &mut Counted) -> Bytes {
        self.0.enlarger.held_beside(counted)
    }

    fn load(&self) -> Result<Bytes> {
        self.0.enlarger.preload()
    }

    fn forget(&self) -> Bytes {
        self.0.enlarger.forget_weights()
    }

    fn shrink(&self, most: Bytes) -> Bytes {
        self.0.enlarger.shrink(most)
    }

    fn stays(&self, _: &Value, forecast: &Forecast) -> Result<Bytes> {
        let plan = forecast.plan.as_ref();
        Ok(plan.map_or(Bytes::ZERO, |plan| self.0.enlarger.stays(plan)))
    }

    fn bring(
        &self,
        _: &Value,
        forecast: &Forecast,
        more: &dyn Fn(Bytes) -> bool,
    ) -> Result<Brought> {
        match &forecast.plan {
            Some(plan) => self.0.enlarger.bring(plan, more),
            None => Ok(Brought::default()),
        }
    }
}

/// A job in progress.
struct Upscaling {
    studio: Arc<Studio>,
    request: Request,
    run: Enlarging,
    /// Bytes of the result while its file is written, as far as that happens where the network computes.
    writing: Bytes,
    wanted: bool,
    /// Seconds it took to unpack the picture and plan.
    start_s: f64,
}

impl Upscaling {
    fn product(&self, enlarged: &Enlarged) -> Result<Product> {
        let began = Instant::now();
        let text = self.studio.text(enlarged);
        let file = File {
            media_type: self.request.format.media_type().to_owned(),
            content: enlarged.picture.encode(self.request.format, &text)?,
        };
        let report = &enlarged.report;
        let plan = &report.plan;
        let phase = &plan.phases[0];
        let report = json!({
            "model": self.studio.name,
            "precision": precision_word(self.studio.enlarger.precision()),
            "width": enlarged.picture.width(),
            "height": enlarged.picture.height(),
            "factor": self.studio.enlarger.scale(),
            "seconds": {
                "start": self.start_s, "upscale": report.seconds, "write": began.elapsed().as_secs_f64(),
            },
            "waited_seconds": { "upscale": report.waited },
            "load_seconds": report.waited,
            "reading_seconds": report.reading,
            "memory": {
                "budget": plan.budget.total.0,
                "in_use_before": plan.budget.in_use.0,
                "predicted_peak": { "upscale": phase.peak.0 },
                "measured_peak": { "upscale": report.peak.0 },
            },
            "bytes_read": report.bytes_read,
            "rungs_taken": report.rungs_taken,
            "cut": report.cut,
            "quality": if report.exact { "exact" } else { "approximate" },
            "approximate": plan.approximate,
            "reasons": [phase.reason.to_string()],
        });
        Ok(Product {
            files: vec![file],
            report,
        })
    }
}

impl Run for Upscaling {
    fn step(&mut self) -> Result<Stepped> {
        if !self.wanted {
            return Ok(Stepped::Finished(vec![None]));
        }
        match self.run.step()? {
            EnlargingStep::Progress(progress) => Ok(Stepped::Progress(progress)),
            EnlargingStep::Finished(enlarged) => {
                Ok(Stepped::Finished(vec![Some(self.product(&enlarged)?)]))
            }
        }
    }

    fn park(&mut self) {
        self.run.park();
    }

    fn save(&self, _: usize, file: &Path) -> Result<bool> {
        self.run.save(&self.studio.about(&self.request), file)
    }

    fn drop_member(&mut self, _: usize) {
        self.wanted = false;
    }

    fn preview(&self, _: usize) -> Option<File> {
        let small = self.run.glance(256);
        File::preview(small.pixels())
    }

    fn plan(&self) -> Option<&Plan> {
        Some(self.run.plan())
    }

    fn remaining_s(&self) -> f64 {
        self.run.remaining_s()
    }

    fn holds(&self) -> Bytes {
        self.run.holds()
    }

    fn keeps(&self) -> Bytes {
        self.run.keeps()
    }

    fn peak(&self) -> Bytes {
        self.run.peak().max(self.writing)
    }

    fn rungs_taken(&self) -> usize {
        self.run.rungs_taken()
    }

    fn cede(&mut self, wanted: Bytes) -> Bytes {
        let room = self.run.plan().budget.available();
        self.run.cede(wanted.min(room.saturating_sub(self.writing)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_reads_as_it_is_written() {
        for request in [
            json!({ "image": "a.png" }),
            json!({ "image": "a.png", "scale": 3.5, "tile": 64, "quality": "exact", "output_format": "webp" }),
        ] {
            let read = Request::read(&request).unwrap();
            assert_eq!(Request::read(&read.json()).unwrap(), read);
        }
        for (request, says) in [
            (json!({}), "image is missing"),
            (json!({ "image": "" }), "image is missing"),
            (json!({ "image": "a", "scale": 0.5 }), "scale is 0.5"),
            (json!({ "image": "a", "tile": 5 }), "tile is 5"),
            (
                json!({ "image": "a", "model": "b" }),
                "model is not a field",
            ),
        ] {
            let text = Request::read(&request).unwrap_err().to_string();
            assert!(text.starts_with(says), "{text}");
        }
    }
}
