//! Repairs in progress: a look, then thing after thing, then the next pass.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lowtide_core::{Bytes, Dtype, Plan, TensorLayout};
use lowtide_kernels::memory;
use lowtide_media::{Fit, Mask, Picture};
use lowtide_weights::{Checkpoint, SafetensorsWriter, TensorEntry};
use serde_json::{Map, Value, json};

use super::masks::{chosen, masks};
use super::pass::Pass;
use super::request::{Request, of_pass};
use super::{Given, Studio, expected};
use crate::detector::{Looked, PHASE, keeps};
use crate::device::cpu::precision_word;
use crate::device::limits::Seat;
use crate::parameters::MadeBy;
use crate::processor::{File, Product, Run, Stepped};
use crate::processors::detect::{found_json, looked_progress};
use crate::processors::text_to_image::given::{Given as Placed, Under};
use crate::request::{Image, Outcome, Report};
use crate::session::Session;
use crate::{Error, Progress, Result, Step};

/// Names within a saved session.
const REQUEST: &str = "lowtide_detail";
const REACHED: &str = "lowtide_detail_reached";
const PICTURE: &str = "picture";
const MASKS: &str = "masks";

/// A picture whose things are drawn anew.
pub(super) struct Repair {
    studio: Arc<Studio>,
    request: Request,
    plan: Plan,
    seat: Seat,
    /// As far as it is repaired.
    picture: Picture,
    /// What the given file says it was made with.
    text: Option<String>,
    /// The pass that goes on.
    at: usize,
    /// What it draws; `None` before the look.
    things: Option<Things>,
    /// What came of the passes so far, the present one last.
    told: Vec<Told>,
    took: Took,
    wanted: bool,
}

/// What a pass draws, one after the other.
struct Things {
    masks: Vec<Mask>,
    /// The next one, or the one in progress.
    next: usize,
    going: Option<Going>,
}

/// A thing in progress.
struct Going {
    session: Session,
    under: Under,
}

/// What came of a pass.
#[derive(Clone, Debug, Default)]
struct Told {
    detector: String,
    /// All that was found.
    found: usize,
    /// What of it counts, as JSON.
    things: Vec<Value>,
    /// How many were drawn, and how many stay as they are since their prompt says so.
    drawn: usize,
    skipped: usize,
    seeds: Vec<u64>,
}

impl Told {
    fn json(&self) -> Value {
        json!({
            "detector": self.detector,
            "found": self.found,
            "things": self.things,
            "drawn": self.drawn,
            "skipped": self.skipped,
            "seeds": self.seeds,
        })
    }

    fn from_json(told: &Value) -> Told {
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
struct Took {
    seconds: BTreeMap<String, f64>,
    waited: BTreeMap<String, f64>,
    peak: BTreeMap<String, Bytes>,
    bytes_read: u64,
    rungs: usize,
    notes: Vec<String>,
}

impl Took {
    fn add(&mut self, phase: &str, seconds: f64, waited: f64, peak: Bytes) {
        *self.seconds.entry(phase.to_owned()).or_default() += seconds;
        *self.waited.entry(phase.to_owned()).or_default() += waited;
        let most = self.peak.entry(phase.to_owned()).or_default();
        *most = (*most).max(peak);
    }

    fn add_report(&mut self, report: &Report) {
        for (phase, &seconds) in &report.seconds {
            let waited = report.waited.get(phase).copied().unwrap_or_default();
            let peak = report.peak.get(phase).copied().unwrap_or_default();
            self.add(phase, seconds, waited, peak);
        }
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
    pub(super) fn new(studio: Arc<Studio>, request: Request, given: Given, plan: Plan) -> Repair {
        Repair {
            studio,
            request,
            plan,
            seat: Seat::take(),
            picture: given.picture,
            text: given.text,
            at: 0,
            things: None,
            told: Vec::new(),
            took: Took::default(),
            wanted: true,
        }
    }

    /// Notes how long it took to get here.
    pub(super) fn started(&mut self, elapsed: Duration) {
        let seconds = elapsed.as_secs_f64();
        self.took.seconds.insert("start".to_owned(), seconds);
    }

    fn pass(&self) -> &Pass {
        &self.request.passes[self.at]
    }

    fn size(&self) -> (u32, u32) {
        (self.picture.width(), self.picture.height())
    }

    /// Looks for the things of the present pass.
    fn look(&mut self) -> Result<()> {
        let began = Instant::now();
        let (detector, search) = self
            .studio
            .search(self.pass())
            .map_err(|error| of_pass(self.at, error))?;
        let options = &self.studio.options;
        let keep = keeps(options);
        let plan = || {
            let budget = detector.budget(options);
            let how = (budget, keep);
            detector.plan(self.size(), search.side, how, self.studio.engine.profile())
        };
        let plan = match plan() {
            // Kept weights of the other network give way.
            Err(Error::DoesNotFit(_)) if self.studio.engine.forget_weights() > Bytes::ZERO => {
                plan()?
            }
            plan => plan?,
        };
        self.seat.own(plan.budget.total);
        let looked = detector.look(&self.picture, &search, (&plan, keep))?;
        let name = detector.name().to_owned();
        self.take(looked, name, began)
    }

    /// Makes of what was found what is to be drawn.
    fn take(&mut self, looked: Looked, detector: String, began: Instant) -> Result<()> {
        let waited = looked.traffic.waited.as_secs_f64();
        self.took.bytes_read += looked.traffic.bytes_read;
        let found = looked.things.len();
        let things = chosen(looked.things, self.pass(), self.size());
        let masks = masks(&things, self.pass(), self.size())?;
        self.told.push(Told {
            detector,
            found,
            things: things.iter().map(found_json).collect(),
            ..Told::default()
        });
        self.things = Some(Things {
            masks,
            next: 0,
            going: None,
        });
        let seconds = began.elapsed().as_secs_f64();
        self.took.add(PHASE, seconds, waited, looked.peak);
        Ok(())
    }

    /// Goes to the next thing that is drawn, to the next pass where there is none left.
    fn settle(&mut self) -> Result<()> {
        while let Some(things) = &mut self.things {
            if things.going.is_some() {
                return Ok(());
            }
            if things.next == things.masks.len() {
                self.things = None;
                self.at += 1;
                return Ok(());
            }
            let at = self.at;
            self.begin().map_err(|error| of_pass(at, error))?;
        }
        Ok(())
    }

    /// Begins with the next thing, or passes it by.
    fn begin(&mut self) -> Result<()> {
        let things = self.things.as_mut().expect("there is one");
        let told = self.told.last_mut().expect("a look was told");
        let pass = &self.request.passes[self.at];
        let drawing = self
            .request
            .drawing(pass, things.next, self.studio.against())?;
        let Some(mut drawing) = drawing else {
            told.skipped += 1;
            things.next += 1;
            return Ok(());
        };
        let placed = Placed {
            image: String::new(),
            mask: None,
            fit: Fit::Resize,
            mask_blur: pass.mask_blur,
            only_masked: pass.only_masked,
            padding: pass.padding,
        };
        let mask = things.masks[things.next].clone();
        let size = (drawing.width, drawing.height);
        let (source, under) = placed.placed(self.picture.clone(), Some(mask), size)?;
        drawing.source = Some(Arc::new(source));
        told.seeds.push(drawing.seed);
        let engine = &self.studio.engine;
        let session = match engine.start(drawing.clone(), false) {
            // Kept weights of detectors give way.
            Err(Error::DoesNotFit(_)) if self.studio.detectors.forget() > Bytes::ZERO => {
                engine.start(drawing, false)?
            }
            session => session?,
        };
        let under = under.expect("where there is a mask there is something below it");
        things.going = Some(Going { session, under });
        Ok(())
    }

    /// One step of the thing in progress.
    fn draw(&mut self) -> Result<Progress> {
        let things = self.things.as_mut().expect("something is drawn");
        let going = things.going.as_mut().expect("something is drawn");
        let (before, all) = (things.next, things.masks.len());
        match going.session.step()? {
            Step::Progress(progress) => Ok(Progress {
                done: before * progress.total + progress.done,
                total: all * progress.total,
                ..progress
            }),
            Step::Finished(outcome) => {
                let began = Instant::now();
                let going = things.going.take().expect("it was there");
                let Outcome { images, report, .. } = *outcome;
                let image = images.into_iter().next().expect("one was drawn");
                let image = going.under.over(image)?;
                self.picture = Picture::new(image.width as u32, image.height as u32, image.rgb)?;
                things.next += 1;
                self.told.last_mut().expect("a look was told").drawn += 1;
                self.took.add_report(&report);
                let (done, total) = (things.next, all);
                Ok(Progress {
                    phase: "decode",
                    done,
                    total,
                    elapsed: began.elapsed(),
                    memory: Bytes(memory::live()),
                })
            }
        }
    }

    fn drawn(&self) -> usize {
        self.told.iter().map(|told| told.drawn).sum()
    }

    /// The text of the finished picture: what the given one says, or what it was asked for here; and the passes.
    fn parameters(&self) -> String {
        let whole = &self.request.whole.engine;
        let (width, height) = self.size();
        let made = MadeBy {
            model: &self.studio.name,
            precision: self.studio.engine.precision(),
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

    fn product(&mut self) -> Result<Product> {
        let began = Instant::now();
        let text = self.parameters();
        let format = self.request.whole.format;
        let file = File::picture(self.picture.pixels(), format, &text)?;
        let seconds = began.elapsed().as_secs_f64();
        self.took.seconds.insert("write".to_owned(), seconds);
        Ok(Product {
            files: vec![file],
            report: self.report(),
        })
    }

    fn report(&self) -> Value {
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

    /// What was reached between two things, beside the pixels.
    fn reached(&self) -> Value {
        json!({
            "at": self.at,
            "next": self.things.as_ref().map(|things| things.next),
            "told": self.told.iter().map(Told::json).collect::<Vec<_>>(),
        })
    }

    fn layouts(&self) -> Vec<TensorLayout> {
        let (width, height) = self.size();
        let (width, height) = (width as usize, height as usize);
        let tensor = |name: &str, shape: Vec<usize>| TensorLayout {
            name: name.to_owned(),
            dtype: Dtype::U8,
            shape,
        };
        let mut layouts = vec![tensor(PICTURE, vec![height, width, 3])];
        let masks = self.things.as_ref().map_or(0, |things| things.masks.len());
        if masks > 0 {
            layouts.push(tensor(MASKS, vec![masks, height, width]));
        }
        layouts
    }

    /// Goes on from what [`Run::save`] wrote.
    ///
    /// # Errors
    /// When the file is none of this request.
    pub(super) fn restore(&mut self, path: &Path) -> Result<()> {
        let file = Checkpoint::open(path)?;
        let wrong = |what: &str| Error::request("session", format!("{}: {what}", path.display()));
        let told = file
            .metadata(REQUEST)
            .ok_or_else(|| wrong("is no saved repair"))?;
        let ours = self.request.json().to_string();
        if told != ours {
            return Err(wrong("belongs to another request"));
        }
        let reached = file.metadata(REACHED).unwrap_or_default();
        let reached: Value = serde_json::from_str(reached).map_err(|_| wrong("is damaged"))?;
        let at = reached["at"].as_u64().map(|at| at as usize);
        let told = reached["told"].as_array().map_or(&[][..], Vec::as_slice);
        let next = reached["next"].as_u64().map(|next| next as usize);
        let passes = self.request.passes.len();
        let at = at.filter(|&at| {
            let looked = at + usize::from(next.is_some());
            at <= passes && looked <= passes && told.len() == looked
        });
        self.at = at.ok_or_else(|| wrong("has reached what cannot be"))?;
        self.told = told.iter().map(Told::from_json).collect();
        let (width, height) = self.size();
        let shape = [height as usize, width as usize, 3];
        let is = |entry: &&TensorEntry, shape: &[usize]| {
            entry.dtype == Dtype::U8 && entry.shape == shape
        };
        let entry = file.get(PICTURE).filter(|entry| is(entry, &shape));
        let entry = entry.ok_or_else(|| wrong("has no picture of the right size"))?;
        let mut values = vec![0; shape.iter().product()];
        file.read(entry, &mut values)?;
        self.picture = Picture::new(width, height, values)?;
        let Some(next) = next else {
            return Ok(());
        };
        let mut masks = Vec::new();
        if let Some(entry) = file.get(MASKS) {
            let count = entry.shape.first().copied().unwrap_or(0);
            if !is(&entry, &[count, shape[0], shape[1]]) {
                return Err(wrong("has masks of another size"));
            }
            let plane = shape[0] * shape[1];
            for k in 0..count {
                let mut values = vec![0; plane];
                file.read_range(entry, (k * plane) as u64, &mut values)?;
                masks.push(Mask::new(width, height, values)?);
            }
        }
        if next > masks.len() {
            return Err(wrong("has fewer masks than were drawn"));
        }
        let going = None;
        self.things = Some(Things { masks, next, going });
        Ok(())
    }

    /// The session in progress.
    fn session(&self) -> Option<&Session> {
        let going = self.things.as_ref()?.going.as_ref()?;
        Some(&going.session)
    }

    /// The part of the plan that is about one pass.
    fn seconds_of(&self, at: usize) -> (f64, f64) {
        let each = self.plan.phases.len() / self.request.passes.len();
        let phases = &self.plan.phases[at * each..(at + 1) * each];
        let seconds = |part: &[lowtide_core::PhasePlan]| part.iter().map(|p| p.seconds).sum();
        (seconds(&phases[..1]), seconds(&phases[1..]))
    }
}

impl Run for Repair {
    fn step(&mut self) -> Result<Stepped> {
        if !self.wanted {
            return Ok(Stepped::Finished(vec![None]));
        }
        let began = Instant::now();
        let passes = self.request.passes.len();
        if self.at == passes {
            return Ok(Stepped::Finished(vec![Some(self.product()?)]));
        }
        let progress = match &self.things {
            None => {
                self.look()?;
                looked_progress(self.at + 1, passes, began)
            }
            Some(_) => self.draw()?,
        };
        self.settle()?;
        match self.at == passes {
            true => Ok(Stepped::Finished(vec![Some(self.product()?)])),
            false => Ok(Stepped::Progress(progress)),
        }
    }

    fn park(&mut self) {
        let going = self
            .things
            .as_mut()
            .and_then(|things| things.going.as_mut());
        if let Some(going) = going {
            going.session.park();
        }
    }

    fn save(&self, _: usize, file: &Path) -> Result<bool> {
        if self.at == 0 && self.things.is_none() {
            return Ok(false);
        }
        let request = self.request.json().to_string();
        let mut reached = self.reached();
        // A thing in progress is drawn again from its beginning.
        if self.session().is_some() {
            let last = reached["told"]
                .as_array_mut()
                .and_then(|told| told.last_mut());
            let seeds = last.and_then(|told| told["seeds"].as_array_mut());
            seeds.and_then(Vec::pop);
        }
        let reached = reached.to_string();
        let metadata = [(REQUEST, &request[..]), (REACHED, &reached[..])];
        let mut writer = SafetensorsWriter::with_metadata(file, &self.layouts(), &metadata)?;
        writer.write(PICTURE, self.picture.values())?;
        let masks = self.things.as_ref().map_or(&[][..], |things| &things.masks);
        if !masks.is_empty() {
            let all: Vec<u8> = masks.iter().flat_map(|m| m.values()).copied().collect();
            writer.write(MASKS, &all)?;
        }
        writer.finish()?;
        Ok(true)
    }

    fn drop_member(&mut self, _: usize) {
        self.wanted = false;
    }

    fn preview(&self, _: usize) -> Option<File> {
        File::preview(self.picture.pixels())
    }

    fn plan(&self) -> Option<&Plan> {
        Some(&self.plan)
    }

    fn remaining_s(&self) -> f64 {
        let passes = self.request.passes.len();
        if self.at == passes {
            return 0.0;
        }
        let to_come = (self.at + 1..passes).map(|at| {
            let (look, thing) = self.seconds_of(at);
            look + thing * expected(&self.request.passes[at]) as f64
        });
        let (look, thing) = self.seconds_of(self.at);
        let now = match &self.things {
            None => look + thing * expected(self.pass()) as f64,
            Some(things) => {
                let going = self.session().map(Session::remaining_s);
                let waiting = things.masks.len() - things.next - usize::from(going.is_some());
                going.unwrap_or(0.0) + thing * waiting as f64
            }
        };
        now + to_come.sum::<f64>()
    }

    fn holds(&self) -> Bytes {
        let masks = self.things.as_ref().map_or(&[][..], |things| &things.masks);
        let masks: usize = masks.iter().map(|mask| mask.values().len()).sum();
        let session = self.session().map_or(Bytes::ZERO, Session::holds);
        Bytes::from(self.picture.values().len() + masks) + session
    }

    fn peak(&self) -> Bytes {
        let planned = self.plan.peak.saturating_sub(self.plan.budget.in_use);
        match (self.session(), self.at + 1 == self.request.passes.len()) {
            (Some(session), true) => session.peak(),
            (Some(session), false) => session.peak().max(planned),
            (None, _) => planned,
        }
    }

    fn rungs_taken(&self) -> usize {
        self.took.rungs + self.session().map_or(0, Session::rungs_taken)
    }
}
