//! What came of repairs, and what they took: the report, and the text in the picture's file.

use std::collections::BTreeMap;

use lowtide_core::Bytes;
use serde_json::{Map, Value, json};

use super::run::Repair;
use crate::device::cpu::precision_word;
use crate::parameters::MadeBy;
use crate::request::{Image, Report};

/// What came of a pass.
#[derive(Clone, Debug, Default)]
pub(super) struct Told {
    pub(super) detector: String,
    /// All that was found.
    pub(super) found: usize,
    /// What of it counts, as JSON.
    pub(super) things: Vec<Value>,
    /// How many were drawn, and how many stay as they are since their prompt says so.
    pub(super) drawn: usize,
    pub(super) skipped: usize,
    pub(super) seeds: Vec<u64>,
}

impl Told {
    pub(super) fn json(&self) -> Value {
        json!({
            "detector": self.detector,
            "found": self.found,
            "things": self.things,
            "drawn": self.drawn,
            "skipped": self.skipped,
            "seeds": self.seeds,
        })
    }

    pub(super) fn from_json(told: &Value) -> Told {
        let count = |name: &str| told[name].as_u64().unwrap_or(0) as usize;
        let list = |name: &str| told[name].as_array().cloned().unwrap_or_default();
        Told {
            detector: told["detector"].as_str().unwrap_or_default().to_owned(),
            found: count("found"),
            things: list("things"),
            drawn: count("drawn"),
            skipped: count("skipped"),
            seeds: list("seeds").iter().filter_map(Value::as_u64).collect(),
        }
    }
}

/// What all of it took.
#[derive(Default)]
pub(super) struct Took {
    pub(super) seconds: BTreeMap<String, f64>,
    pub(super) waited: BTreeMap<String, f64>,
    /// Seconds in which weights were read, whoever waited.
    pub(super) reading: f64,
    pub(super) peak: BTreeMap<String, Bytes>,
    pub(super) bytes_read: u64,
    pub(super) rungs: usize,
    pub(super) notes: Vec<String>,
}

impl Took {
    pub(super) fn add(&mut self, phase: &str, seconds: f64, waited: f64, peak: Bytes) {
        *self.seconds.entry(phase.to_owned()).or_default() += seconds;
        *self.waited.entry(phase.to_owned()).or_default() += waited;
        let most = self.peak.entry(phase.to_owned()).or_default();
        *most = (*most).max(peak);
    }

    pub(super) fn add_report(&mut self, report: &Report) {
        for (phase, &seconds) in &report.seconds {
            let waited = report.waited.get(phase).copied().unwrap_or_default();
            let peak = report.peak.get(phase).copied().unwrap_or_default();
            self.add(phase, seconds, waited, peak);
        }
        self.reading += report.reading.values().sum::<f64>();
        self.bytes_read += report.bytes_read;
        self.rungs += report.rungs_taken;
        for note in &report.notes {
            if !self.notes.contains(note) {
                self.notes.push(note.clone());
            }
        }
    }
}

impl Repair {
    /// The text of the finished picture: what the given one says, or what it was asked for here; and the passes.
    pub(super) fn parameters(&self) -> String {
        let whole = &self.request.whole.engine;
        let (width, height) = self.size();
        let made = MadeBy {
            model: &self.studio.name,
            precision: self.studio.engine.precision(),
            refiner: None,
            approximate: &self.plan.approximate,
        };
        let image = Image {
            width: width as usize,
            height: height as usize,
            rgb: Vec::new(),
            seed: whole.seed,
        };
        let mut text = match &self.text {
            Some(text) => text.clone(),
            None => made.parameters(whole, &image),
        };
        for (k, pass) in self.request.passes.iter().enumerate() {
            // As ADetailer counts: nothing, then 2nd, 3rd.
            let which = match k {
                0 => String::new(),
                1 => " 2nd".to_owned(),
                2 => " 3rd".to_owned(),
                k => format!(" {}th", k + 1),
            };
            let file = self
                .told
                .get(k)
                .map_or(&pass.detector, |told| &told.detector);
            let file: String = file.chars().filter(|c| !",:\n\"".contains(*c)).collect();
            text.push_str(&format!(
                ", ADetailer model{which}: {file}, ADetailer confidence{which}: {}, ADetailer dilate erode{which}: {}, \
                 ADetailer mask blur{which}: {}, ADetailer denoising strength{which}: {}, ADetailer inpaint only \
                 masked{which}: {}",
                pass.confidence,
                pass.dilate_erode,
                pass.mask_blur,
                pass.strength,
                if pass.only_masked { "True" } else { "False" },
            ));
        }
        text
    }

    pub(super) fn report(&self) -> Value {
        let took = &self.took;
        let plan = &self.plan;
        let mut predicted = BTreeMap::new();
        for phase in &plan.phases {
            let most = predicted.entry(&phase.name).or_insert(0);
            *most = phase.peak.0.max(*most);
        }
        let measured: Map<String, Value> = took
            .peak
            .iter()
            .map(|(phase, peak)| (phase.clone(), peak.0.into()))
            .collect();
        let mut notes = took.notes.clone();
        for told in self.told.iter().filter(|told| told.things.is_empty()) {
            notes.push(match told.found {
                0 => format!("{} found nothing", told.detector),
                found => format!(
                    "{} found {found}, none of a size that counts",
                    told.detector
                ),
            });
        }
        if self.drawn() == 0 {
            notes.push("nothing was drawn: the picture is as it was".to_owned());
        }
        let seeds: Vec<u64> = self.told.iter().flat_map(|t| t.seeds.clone()).collect();
        let reasons = plan.phases.iter().map(|phase| phase.reason.to_string());
        json!({
            "seeds": seeds,
            "model": self.studio.name,
            "precision": precision_word(self.studio.engine.precision()),
            "passes": self.told.iter().map(Told::json).collect::<Vec<_>>(),
            "drawn": self.drawn(),
            "unchanged": self.drawn() == 0,
            "seconds": took.seconds,
            "waited_seconds": took.waited,
            "load_seconds": took.waited.values().sum::<f64>(),
            "reading_seconds": took.reading,
            "memory": {
                "budget": plan.budget.total.0,
                "in_use_before": plan.budget.in_use.0,
                "predicted_peak": predicted,
                "measured_peak": measured,
            },
            "bytes_read": took.bytes_read,
            "rungs_taken": took.rungs,
            "quality": if plan.approximate.is_empty() { "exact" } else { "approximate" },
            "approximate": plan.approximate,
            "notes": notes,
            "reasons": reasons.collect::<Vec<_>>(),
        })
    }
}
