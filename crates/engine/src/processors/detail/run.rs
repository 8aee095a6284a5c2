//! Repairs in progress: a look, then thing after thing, then the next pass.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lowtide_core::{Bytes, PhasePlan, Plan};
use lowtide_kernels::memory;
use lowtide_media::{Fit, Mask, Picture};

use super::masks::{chosen, masks};
use super::pass::Pass;
use super::request::{Request, of_pass};
use super::told::{Told, Took};
use super::{Given, Studio, expected};
use crate::detector::{Looked, PHASE, keeps};
use crate::device::limits::Seat;
use crate::processor::{File, Product, Run, Stepped};
use crate::processors::detect::{found_json, looked_progress};
use crate::processors::text_to_image::given::{Given as Placed, Under};
use crate::request::Outcome;
use crate::session::Session;
use crate::{Error, Progress, Result, Step};

/// A picture whose things are drawn anew.
pub(super) struct Repair {
    pub(super) studio: Arc<Studio>,
    pub(super) request: Request,
    pub(super) plan: Plan,
    seat: Seat,
    /// As far as it is repaired.
    pub(super) picture: Picture,
    /// What the given file says it was made with.
    pub(super) text: Option<String>,
    /// The pass that goes on.
    pub(super) at: usize,
    /// What it draws; `None` before the look.
    pub(super) things: Option<Things>,
    /// What came of the passes so far, the present one last.
    pub(super) told: Vec<Told>,
    pub(super) took: Took,
    wanted: bool,
    /// Bytes that others may take beside it.
    ceded: Bytes,
}

/// What a pass draws, one after the other.
pub(super) struct Things {
    pub(super) masks: Vec<Mask>,
    /// The next one, or the one in progress.
    pub(super) next: usize,
    pub(super) going: Option<Going>,
}

/// A thing in progress.
pub(super) struct Going {
    session: Session,
    under: Under,
    /// What was ceded to others when it began, and so is no part of its budget.
    ceded_before: Bytes,
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
            ceded: Bytes::ZERO,
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

    pub(super) fn size(&self) -> (u32, u32) {
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
            let mut budget = detector.budget(options);
            let kept = self.studio.engine.kept();
            budget.in_use = budget.in_use.max(self.others() + kept);
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
        self.took.reading += looked.traffic.reading.as_secs_f64();
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
        let others = self.others();
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
        let (engine, detectors) = (&self.studio.engine, &self.studio.detectors);
        let beside = detectors.held() + others;
        let session = match engine.start_beside(drawing.clone(), beside) {
            // Kept weights of detectors give way.
            Err(Error::DoesNotFit(_)) if detectors.forget() > Bytes::ZERO => {
                engine.start_beside(drawing, others)?
            }
            session => session?,
        };
        let under = under.expect("where there is a mask there is something below it");
        things.going = Some(Going {
            session,
            under,
            ceded_before: self.ceded,
        });
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

    /// What others used when it began, and may take beside it since.
    fn others(&self) -> Bytes {
        self.plan.budget.in_use + self.ceded
    }

    /// Bytes that the looks and things after the one in progress leave of the budget: with all weights that stay between
    /// them, which would have to be read again. `None` where nothing comes after it.
    fn left_by_later(&self) -> Option<Bytes> {
        let things = self.things.as_ref();
        let more = things.is_none_or(|things| things.next + 1 < things.masks.len());
        if !more && self.at + 1 >= self.request.passes.len() {
            return None;
        }
        let engine = &self.studio.engine;
        let blank = self.request.blank(self.pass(), self.studio.against());
        let Ok(parts) = blank.and_then(|blank| engine.parts_of(&blank)) else {
            return Some(Bytes::ZERO);
        };
        let kept = engine.kept() + self.studio.detectors.held();
        let each = self.plan.phases.len() / self.request.passes.len();
        let needs = |(at, phase): (usize, &PhasePlan)| {
            let own = match at % each {
                0 => self.studio.detectors.held(),
                at => parts[at - 1].blocks.kept(),
            };
            phase.peak + kept.saturating_sub(own)
        };
        let needs = self.plan.phases.iter().enumerate().map(needs).max();
        let total = self.plan.budget.total;
        Some(total.saturating_sub(needs.unwrap_or_default()))
    }

    pub(super) fn drawn(&self) -> usize {
        self.told.iter().map(|told| told.drawn).sum()
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

    /// The session in progress.
    pub(super) fn session(&self) -> Option<&Session> {
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
        // After a restart nothing is in progress yet.
        self.settle()?;
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
        self.write(file)
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

    fn cede(&mut self, wanted: Bytes) -> Bytes {
        let left = self.left_by_later();
        let things = self.things.as_mut();
        let going = things.and_then(|things| things.going.as_mut());
        let room = match (going, left) {
            // What was ceded before is no part of the session's budget.
            (Some(going), left) => {
                let before = going.ceded_before;
                let more = left.map_or(wanted, |left| left.min(wanted));
                before + going.session.cede(more.saturating_sub(before))
            }
            (None, Some(left)) => left,
            // Before the last thing, or after it: what comes is in the plan.
            (None, None) => Bytes::ZERO,
        };
        self.ceded = self.ceded.max(wanted.min(room));
        self.ceded
    }

    fn arriving(&self) -> bool {
        self.session().is_some_and(Session::arriving)
    }

    fn rungs_taken(&self) -> usize {
        self.took.rungs + self.session().map_or(0, Session::rungs_taken)
    }
}
