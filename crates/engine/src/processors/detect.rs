//! `detect`: where in a picture things are, by a detector: boxes, scores, classes and outlines as JSON, and a mask.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use lowtide_core::{Budget, Bytes, DeviceProfile, Plan};
use lowtide_media::{Format, Mask, Picture, Pixels};
use lowtide_models::Precision;
use lowtide_weights::ModelFolder;
use serde_json::{Value, json};

use super::fields::Fields;
use super::text_to_image::given;
use super::text_to_image::request::INPUT_BYTES_MAX;
use crate::detector::{
    Detection, Detector, Detectors, Looked, OVERLAP_DEFAULT, PHASE, SIDE_DEFAULT, SIDES, Search,
    keeps, meant,
};
use crate::device::cpu;
use crate::device::limits::Seat;
use crate::processor::{
    Card, File, Forecast, Opened, Order, Processor, Product, Run, Setup, Stepped,
};
use crate::{Error, Progress, Result};

/// Scores from this on count unless a request says otherwise.
pub(super) const CONFIDENCE_DEFAULT: f32 = 0.3;

/// Longest list of classes.
pub(super) const CLASSES_BYTES_MAX: usize = 4096;

/// The kind's only model: whatever detectors there are.
const MODEL: &str = "detectors";

/// The detector that looks unless a request says otherwise.
const DETECTOR_DEFAULT: &str = "face";

/// Longest name of a detector.
pub(super) const DETECTOR_BYTES_MAX: usize = 256;

/// The kind.
pub(super) struct Detect;

impl Processor for Detect {
    fn kind(&self) -> &'static str {
        "detect"
    }

    fn about(&self) -> &'static str {
        "Finds faces, hands, persons or other things in a picture"
    }

    fn schema(&self) -> Value {
        let share = |title: &str, otherwise: f32| json!({ "type": ["number", "null"], "minimum": 0, "maximum": 1, "default": otherwise, "title": title });
        json!({
            "type": "object",
            "additionalProperties": false,
            "required": ["image"],
            "properties": {
                "image": { "type": "string", "maxLength": INPUT_BYTES_MAX, "title": "Picture", "format": "input-picture" },
                "detector": { "type": ["string", "null"], "maxLength": DETECTOR_BYTES_MAX, "default": DETECTOR_DEFAULT,
                              "title": "Detector: face, hand, person, or a file" },
                "confidence": share("Least score", CONFIDENCE_DEFAULT),
                "overlap": share("Boxes of a kind that share more of their area are one", OVERLAP_DEFAULT),
                "classes": { "type": ["string", "null"], "maxLength": CLASSES_BYTES_MAX,
                             "title": "Classes by name or number, with commas; all when left out" },
                "size": { "type": ["integer", "null"], "minimum": SIDES.start(), "maximum": SIDES.end(),
                          "default": SIDE_DEFAULT, "unit": "px", "title": "Longer side that the detector sees" },
            }
        })
    }

    fn own_models(&self) -> &'static [&'static str] {
        &[MODEL]
    }

    fn runs(&self, _: &ModelFolder) -> bool {
        false
    }

    fn open(&self, _: &str, _: Option<ModelFolder>, setup: Setup) -> Result<Arc<dyn Opened>> {
        Ok(Arc::new(Finder(Arc::new(Eyes {
            detectors: Detectors::default(),
            profile: cpu::profile(Precision::F32),
            setup,
        }))))
    }
}

/// What a request says.
#[derive(Clone, Debug, PartialEq)]
struct Request {
    image: String,
    detector: String,
    search: Search,
}

/// A list of classes as people write it.
pub(super) fn classes(text: &str) -> Vec<String> {
    let words = text.split(',').map(str::trim);
    words
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
        .collect()
}

impl Request {
    fn read(request: &Value) -> Result<Request> {
        let mut fields = Fields::of(request)?;
        let image = fields.text("image", INPUT_BYTES_MAX)?;
        let image = image.ok_or_else(|| Error::request("image", "is missing: give a picture"))?;
        let detector = fields.text("detector", DETECTOR_BYTES_MAX)?;
        let confidence = fields.number("confidence", 0.0..=1.0)?;
        let overlap = fields.number("overlap", 0.0..=1.0)?;
        let named = fields.text("classes", CLASSES_BYTES_MAX)?.unwrap_or("");
        let side = fields.whole("size", SIDES)?;
        fields.done()?;
        Ok(Request {
            image: image.to_owned(),
            detector: detector.unwrap_or(DETECTOR_DEFAULT).to_owned(),
            search: Search {
                confidence: confidence.unwrap_or(CONFIDENCE_DEFAULT),
                overlap: overlap.unwrap_or(OVERLAP_DEFAULT),
                side: side.map_or(SIDE_DEFAULT, |side| side as usize),
                classes: classes(named),
            },
        })
    }

    fn json(&self) -> Value {
        let Search {
            confidence,
            overlap,
            side,
            classes,
        } = &self.search;
        json!({
            "image": self.image,
            "detector": self.detector,
            "confidence": confidence,
            "overlap": overlap,
            "classes": classes.join(", "),
            "size": side,
        })
    }
}

/// The detectors that were used, and how they use their device.
struct Eyes {
    detectors: Detectors,
    profile: DeviceProfile,
    setup: Setup,
}

impl Eyes {
    fn picture(&self, request: &Request) -> Result<Picture> {
        Ok(given::read(&*self.setup.files, "image", &request.image)?.picture)
    }

    /// The detector of a request, and what it is to look for.
    fn search(&self, request: &Request) -> Result<(Arc<Detector>, Search)> {
        let files = &*self.setup.files;
        let (detector, classes) = meant(&self.detectors, files, &request.detector)?;
        let mut search = request.search.clone();
        if search.classes.is_empty() {
            search.classes = classes;
        }
        detector.classes(&search.classes)?;
        Ok((detector, search))
    }

    fn plan(
        &self,
        picture: &Picture,
        (detector, search): (&Detector, &Search),
        budget: Option<Budget>,
    ) -> Result<Plan> {
        let options = &self.setup.options;
        let budget = budget.unwrap_or_else(|| detector.budget(options));
        let size = (picture.width(), picture.height());
        let how = (budget, keeps(options));
        detector.plan(size, search.side, how, &self.profile)
    }
}

struct Finder(Arc<Eyes>);

impl Opened for Finder {
    fn card(&self) -> Card {
        Card {
            bytes: Bytes::ZERO,
            components: Vec::new(),
            defaults: json!({
                "detector": DETECTOR_DEFAULT, "confidence": CONFIDENCE_DEFAULT, "overlap": OVERLAP_DEFAULT,
                "size": SIDE_DEFAULT,
            }),
        }
    }

    fn check(&self, request: &Value) -> Result<Value> {
        let request = Request::read(request)?;
        self.0.search(&request)?;
        Ok(request.json())
    }

    fn forecast(&self, request: &Value, budget: Option<Budget>) -> Result<Forecast> {
        let request = Request::read(request)?;
        let (detector, search) = self.0.search(&request)?;
        let picture = self.0.picture(&request)?;
        let plan = self.0.plan(&picture, (&detector, &search), budget)?;
        Ok(Forecast {
            seconds: plan.seconds,
            peak: plan.peak.saturating_sub(plan.budget.in_use),
            batch: None,
            plan: Some(plan),
        })
    }

    fn start(&self, orders: Vec<Order<'_>>) -> Result<Box<dyn Run>> {
        let began = Instant::now();
        let [order] = &orders[..] else {
            return Err(Error::request(
                "orders",
                "are not one, and detect shares no batch (this is a bug)",
            ));
        };
        let request = Request::read(&order.request)?;
        let (detector, search) = self.0.search(&request)?;
        let picture = self.0.picture(&request)?;
        let plan = self.0.plan(&picture, (&detector, &search), None)?;
        Ok(Box::new(Look {
            keep: keeps(&self.0.setup.options),
            seat: Seat::take(),
            detector,
            search,
            picture,
            plan,
            wanted: true,
            start_s: began.elapsed().as_secs_f64(),
        }))
    }

    fn held(&self) -> Bytes {
        self.0.detectors.held()
    }

    fn forget(&self) -> Bytes {
        self.0.detectors.forget()
    }
}

/// A look at a picture: one step.
struct Look {
    detector: Arc<Detector>,
    search: Search,
    /// Whether the weights stay.
    keep: bool,
    picture: Picture,
    plan: Plan,
    seat: Seat,
    wanted: bool,
    /// Seconds it took to unpack the picture and plan.
    start_s: f64,
}

impl Look {
    fn product(&self, looked: &Looked, seconds: f64) -> Result<Product> {
        let (width, height) = (self.picture.width(), self.picture.height());
        let mut all = Mask::where_inside(width, height, |_, _| false)?;
        for thing in &looked.things {
            all = all.united(&thing.mask(width, height)?);
        }
        let rgb: Vec<u8> = all.values().iter().flat_map(|&value| [value; 3]).collect();
        let pixels = Pixels {
            width,
            height,
            rgb: &rgb,
        };
        let detector = &self.detector;
        let things: Vec<Value> = looked.things.iter().map(thing_json).collect();
        let document = json!({
            "model": detector.name(),
            "architecture": detector.architecture(),
            "width": width,
            "height": height,
            "detections": things,
        });
        let document = serde_json::to_vec_pretty(&document).expect("plain values");
        let traffic = looked.traffic;
        Ok(Product {
            files: vec![
                File::picture(pixels, Format::Png, "")?,
                File {
                    media_type: "application/json".to_owned(),
                    content: document,
                },
            ],
            report: json!({
                "model": detector.name(),
                "found": looked.things.len(),
                "seconds": { "start": self.start_s, PHASE: seconds },
                "waited_seconds": { PHASE: traffic.waited.as_secs_f64() },
                "load_seconds": traffic.waited.as_secs_f64(),
                "bytes_read": traffic.bytes_read,
                "memory": {
                    "budget": self.plan.budget.total.0,
                    "in_use_before": self.plan.budget.in_use.0,
                    "predicted_peak": { PHASE: self.plan.peak.0 },
                    "measured_peak": { PHASE: looked.peak.0 },
                },
                "quality": "exact",
                "reasons": self.plan.phases.iter().map(|p| p.reason.to_string()).collect::<Vec<_>>(),
            }),
        })
    }
}

/// A thing for programs; an outline as lengths of stretches that do not belong to it and do, in turn, column by column.
fn thing_json(thing: &Detection) -> Value {
    let mut shown = found_json(thing);
    if let Some(outline) = &thing.outline {
        shown["mask"] = json!({
            "size": [outline.height(), outline.width()],
            "counts": stretches(outline),
        });
    }
    shown
}

/// A thing without its outline.
pub(super) fn found_json(thing: &Detection) -> Value {
    json!({
        "box": thing.edges,
        "score": thing.score,
        "class": thing.class,
        "label": thing.label,
    })
}

/// Lengths of stretches of a mask that are not masked and are, in turn, down one column after the other: as COCO writes
/// them uncompressed.
fn stretches(mask: &Mask) -> Vec<usize> {
    let (width, height) = (mask.width() as usize, mask.height() as usize);
    let mut counts = vec![0];
    let mut masked = false;
    for place in 0..width * height {
        let value = mask.values()[place % height * width + place / height];
        if (value > 0) != masked {
            masked = !masked;
            counts.push(0);
        }
        *counts.last_mut().expect("it begins with one") += 1;
    }
    counts
}

impl Run for Look {
    fn step(&mut self) -> Result<Stepped> {
        if !self.wanted {
            return Ok(Stepped::Finished(vec![None]));
        }
        let began = Instant::now();
        self.seat.own(self.plan.budget.total);
        let how = (&self.plan, self.keep);
        let looked = self.detector.look(&self.picture, &self.search, how)?;
        let product = self.product(&looked, began.elapsed().as_secs_f64())?;
        Ok(Stepped::Finished(vec![Some(product)]))
    }

    fn save(&self, _: usize, _: &Path) -> Result<bool> {
        // One step: there is nothing between its beginning and its end.
        Ok(false)
    }

    fn drop_member(&mut self, _: usize) {
        self.wanted = false;
    }

    fn plan(&self) -> Option<&Plan> {
        Some(&self.plan)
    }

    fn remaining_s(&self) -> f64 {
        self.plan.seconds
    }

    fn holds(&self) -> Bytes {
        Bytes::from(self.picture.values().len())
    }

    fn peak(&self) -> Bytes {
        self.plan.peak.saturating_sub(self.plan.budget.in_use)
    }
}

/// A step of a look as others tell it.
pub(super) fn looked_progress(done: usize, total: usize, began: Instant) -> Progress {
    Progress {
        phase: PHASE,
        done,
        total,
        elapsed: began.elapsed(),
        memory: Bytes(lowtide_kernels::memory::live()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outline_is_written_column_by_column() {
        let mask = Mask::new(3, 2, vec![0, 255, 255, 0, 255, 0]).unwrap();
        assert_eq!(stretches(&mask), [2, 3, 1]);
        let all = Mask::new(1, 2, vec![255, 255]).unwrap();
        assert_eq!(stretches(&all), [0, 2]);
    }
}
