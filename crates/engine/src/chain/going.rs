//! A chain in progress: the run of the present step, and what is read ahead of the next ones meanwhile.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lowtide_core::{Bytes, ChainPlan, Plan};
use serde_json::{Value, json};

use super::ahead::{Ahead, Wanted};
use super::handed::Named;
use super::look::{Look, SLACK, with_stand_in};
use super::report::{self, Tally};
use super::request::within;
use super::saved::{Files, Reached, Saved};
use super::{IMAGE, Makings};
use crate::device::ground;
use crate::processor::{File, Order, Product, Run, Stage, Stepped};
use crate::{Error, Progress, Result};

/// A chain in progress.
pub(super) struct Going {
    makings: Arc<Makings>,
    request: Value,
    look: Look,
    /// The step it is in.
    at: usize,
    /// What that step was given; nothing in the first.
    given: Vec<Arc<[u8]>>,
    /// Pictures of the step that are done, of those it was given.
    done: usize,
    /// What the step made of them.
    made: Vec<File>,
    running: Option<Running>,
    /// Where the run in progress was saved, until it begins.
    saved: Option<(usize, Files)>,
    /// Pictures that a run takes at most: all, unless they do not fit together.
    together: bool,
    /// The steps from the present one on, as planned when it began.
    plan: ChainPlan,
    ahead: Option<Ahead>,
    /// Whether something is still to be read ahead in this step.
    more_ahead: bool,
    tallies: Vec<Tally>,
    rungs: usize,
    /// Whether this step was begun anew after memory was refused.
    again: bool,
    wanted: bool,
}

/// The run of some pictures of a step.
struct Running {
    run: Box<dyn Run>,
    pictures: Range<usize>,
    /// Its pictures can be named as long as it runs.
    _names: Vec<Named>,
    last: Option<Progress>,
}

impl Going {
    /// At the beginning, or where `resume` says.
    pub(super) fn start(
        makings: Arc<Makings>,
        request: Value,
        resume: Option<&Path>,
    ) -> Result<Going> {
        let look = Look::new(&makings, None)?;
        let mut going = Going {
            plan: look.plan(0, &makings.there()),
            makings,
            request,
            look,
            at: 0,
            given: Vec::new(),
            done: 0,
            made: Vec::new(),
            running: None,
            saved: None,
            together: true,
            ahead: None,
            more_ahead: false,
            tallies: vec![Tally::default()],
            rungs: 0,
            again: false,
            wanted: true,
        };
        if let Some(file) = resume {
            going.restore(file)?;
        }
        Ok(going)
    }

    fn restore(&mut self, file: &Path) -> Result<()> {
        let Saved {
            state,
            given,
            made,
            runs,
        } = Saved::open(file, &self.request, self.makings.links.len())?;
        let pictures = self.makings.links[state.at].pictures;
        let given_right = given.len() == if state.at == 0 { 0 } else { pictures };
        if !given_right
            || state.done + state.group > pictures
            || state.tallies.len() != state.at + 1
        {
            return Err(Error::request(
                "session",
                "is damaged: counts that do not agree",
            ));
        }
        self.at = state.at;
        self.given = given.into_iter().map(Arc::from).collect();
        self.done = state.done;
        self.made = made;
        self.tallies = state.tallies;
        self.saved = (!runs.0.is_empty()).then_some((state.group, runs));
        Ok(())
    }

    fn tally(&mut self) -> &mut Tally {
        &mut self.tallies[self.at]
    }

    /// Begins the run of the next pictures of the present step.
    fn begin(&mut self) -> Result<()> {
        let makings = self.makings.clone();
        let link = &makings.links[self.at];
        self.settle_ahead();
        // What is there by now decides what stays and what arrives next.
        self.plan = self.look.plan(self.at, &makings.there());
        let plan = &self.plan.steps[0];
        let planned = report::planned((&link.kind, &link.model), (self.at, plan), &makings.names);
        let keep: Vec<_> = plan.beside.clone();
        for model in (0..makings.names.len()).filter(|&model| model != link.uses) {
            let share = keep.iter().find(|share| share.model == model);
            makings.shrink(model, share.map_or(Bytes::ZERO, |share| share.bytes));
        }
        self.more_ahead = !plan.ahead.is_empty();
        let tally = self.tally();
        if tally.planned.is_null() {
            tally.planned = planned;
        }
        let running = match self.run() {
            Err(Error::DoesNotFit(_)) if self.make_all_room() => self.run(),
            other => other,
        };
        let running = match running {
            Err(Error::DoesNotFit(_)) if self.together && link.pictures > 1 => {
                self.together = false;
                self.run()
            }
            other => other,
        };
        self.running = Some(running.map_err(|error| self.named(error))?);
        Ok(())
    }

    /// Starts the run of the pictures whose turn it is.
    fn run(&mut self) -> Result<Running> {
        let makings = self.makings.clone();
        let link = &makings.links[self.at];
        let batches = self.look.forecasts[self.at].batch.is_some();
        let left = link.pictures - self.done;
        let (count, files) = match self.saved.take() {
            Some((group, files)) => (group.clamp(1, left), files),
            None if self.together && batches => (left, Files::default()),
            None => (1, Files::default()),
        };
        let pictures = self.done..self.done + count;
        let mut names = Vec::new();
        let orders = pictures.clone().enumerate().map(|(member, picture)| {
            let mut request = link.request.clone();
            if let Some(file) = self.given.get(picture) {
                let name = makings.handed.name(file.clone());
                request[IMAGE] = name.name.clone().into();
                names.push(name);
            }
            seed_of(&mut request, picture);
            Order {
                request,
                resume: files.0.get(member).map(std::path::PathBuf::as_path),
            }
        });
        let orders = orders.collect();
        let run = link.opened.start(orders)?;
        Ok(Running {
            run,
            pictures,
            _names: names,
            last: None,
        })
    }

    /// Lets every other model of the chain go. Whether that gave anything back.
    fn make_all_room(&mut self) -> bool {
        let uses = self.makings.links[self.at].uses;
        let models = 0..self.makings.names.len();
        let others = models.filter(|&model| model != uses);
        let back: Bytes = others
            .map(|model| self.makings.shrink(model, Bytes::ZERO))
            .sum();
        back > Bytes::ZERO
    }

    /// Says in which step an error was.
    fn named(&self, error: Error) -> Error {
        match error {
            Error::DoesNotFit(mut numbers) => {
                numbers.phase = format!("{}, {}", self.makings.called(self.at), numbers.phase);
                Error::DoesNotFit(numbers)
            }
            other => within(self.at, other),
        }
    }

    /// Goes on reading ahead within what the present run cedes. What the present run itself waits for comes first.
    fn read_ahead(&mut self) {
        if self
            .running
            .as_ref()
            .is_some_and(|running| running.run.arriving())
        {
            return;
        }
        if self.ahead.is_none() && self.more_ahead {
            self.more_ahead = false;
            let now = self.at;
            let wanted = self.plan.steps[0].ahead.iter().map(|ahead| {
                let step = now + ahead.step;
                Wanted {
                    step,
                    opened: self.makings.links[step].opened.clone(),
                    request: with_stand_in(&self.makings, step),
                    forecast: self.look.forecasts[step].clone(),
                    bytes: self.to_read(ahead),
                }
            });
            // Without a thread the steps read themselves.
            self.ahead = Ahead::begin(wanted.collect()).ok();
        }
        if let (Some(ahead), Some(running)) = (&self.ahead, &mut self.running) {
            let ceded = running.run.cede(ahead.wanted + SLACK);
            ahead.grant(ceded.saturating_sub(SLACK));
        }
    }

    /// Bytes that are to be read for a step of the plan. For the very next one time was only a guess: whatever there is
    /// room for is worth reading.
    fn to_read(&self, ahead: &lowtide_core::Ahead) -> Bytes {
        let cost = &self.look.costs[self.at + ahead.step];
        let most = match ahead.step {
            1 => cost.stays,
            _ => ahead.bytes,
        };
        most.saturating_sub(self.makings.there()[cost.model])
    }

    /// Stops reading ahead, and notes what arrived.
    fn settle_ahead(&mut self) {
        let Some(ahead) = self.ahead.take() else {
            return;
        };
        let (arrived, waited) = ahead.stop();
        for one in arrived {
            while self.tallies.len() <= one.step {
                self.tallies.push(Tally::default());
            }
            self.tallies[one.step].arrived(one.brought.bytes, one.brought.reading);
        }
        self.tally().waiting_s += waited.as_secs_f64();
    }

    /// A run is over: what it made, and what comes next. `None`: the chain goes on.
    fn collect(&mut self, products: Vec<Option<Product>>) -> Result<Option<Product>> {
        let running = self.running.take().expect("it has just finished");
        self.rungs += running.run.rungs_taken();
        let pictures = running.pictures.clone();
        drop(running);
        let mut made = 0;
        let mut report = None;
        for product in products.into_iter().flatten() {
            made += product.files.len();
            self.made.extend(product.files);
            report.get_or_insert(product.report);
        }
        self.tally().add(&report.unwrap_or_default(), made);
        self.done = pictures.end;
        self.again = false;
        if self.done < self.makings.links[self.at].pictures {
            return Ok(None);
        }
        if self.at + 1 < self.makings.links.len() {
            return self.next_step().map(|()| None);
        }
        self.settle_ahead();
        let files = std::mem::take(&mut self.made);
        // Told when the time of this very step is known.
        let report = Value::Null;
        Ok(Some(Product { files, report }))
    }

    fn next_step(&mut self) -> Result<()> {
        let made = std::mem::take(&mut self.made);
        let expected = self.makings.links[self.at + 1].pictures;
        if made.len() != expected {
            let called = self.makings.called(self.at);
            let problem = format!(
                "made {} files where {expected} pictures were expected",
                made.len()
            );
            return Err(Error::request(called, problem));
        }
        self.given = made
            .into_iter()
            .map(|file| Arc::from(file.content))
            .collect();
        self.at += 1;
        self.done = 0;
        self.together = true;
        if self.tallies.len() <= self.at {
            self.tallies.push(Tally::default());
        }
        Ok(())
    }

    fn advance(&mut self) -> Result<Stepped> {
        if self.running.is_none() {
            self.begin()?;
            self.read_ahead();
        }
        let running = self.running.as_mut().expect("just begun");
        match running.run.step() {
            Ok(Stepped::Progress(progress)) => {
                running.last = Some(progress);
                self.read_ahead();
                Ok(Stepped::Progress(progress))
            }
            Ok(Stepped::Finished(products)) => {
                let last = running.last;
                Ok(match self.collect(products)? {
                    Some(product) => Stepped::Finished(vec![Some(product)]),
                    None => Stepped::Progress(handed_over(last)),
                })
            }
            // Every rung was tried beside what was read ahead and kept; once more with nothing beside.
            Err(Error::OutOfMemory { .. }) if !self.again => {
                self.again = true;
                let last = self.running.take().and_then(|running| running.last);
                self.settle_ahead();
                self.make_all_room();
                Ok(Stepped::Progress(handed_over(last)))
            }
            Err(error) => Err(self.named(error)),
        }
    }
}

/// Picture k of a step is drawn from the seed of the step and k, as picture k of a job is.
fn seed_of(request: &mut Value, picture: usize) {
    let each = request["count"].as_u64().unwrap_or(1);
    if let Some(seed) = request["seed"].as_u64() {
        request["seed"] = json!(seed.wrapping_add(each * picture as u64));
    }
}

/// What is told between two runs.
fn handed_over(last: Option<Progress>) -> Progress {
    let done = last.map_or(1, |last| last.total);
    Progress {
        phase: last.map_or("start", |last| last.phase),
        done,
        total: done,
        elapsed: Duration::ZERO,
        memory: last.map_or(Bytes::ZERO, |last| last.memory),
    }
}

impl Run for Going {
    fn step(&mut self) -> Result<Stepped> {
        if !self.wanted {
            return Ok(Stepped::Finished(vec![None]));
        }
        let start = Instant::now();
        let at = self.at;
        let mut stepped = self.advance();
        let took = start.elapsed().as_secs_f64();
        self.tallies[at].total_s += took;
        if let Ok(Stepped::Finished(products)) = &mut stepped
            && let Some(product) = products.iter_mut().flatten().next()
        {
            product.report = report::whole(&self.makings, &self.look, &self.tallies);
        }
        stepped
    }

    fn park(&mut self) {
        self.settle_ahead();
        self.more_ahead = false;
        // What arrived makes way first: whoever this is done for needs room, and the present step before a later one.
        for later in self.at + 1..self.makings.links.len() {
            let uses = self.makings.links[later].uses;
            if uses != self.makings.links[self.at].uses {
                self.makings.shrink(uses, Bytes::ZERO);
            }
        }
        if let Some(running) = &mut self.running {
            running.run.park();
        }
    }

    fn save(&self, _: usize, file: &Path) -> Result<bool> {
        if !self.wanted {
            return Ok(false);
        }
        let run = self.running.as_ref();
        let reached = Reached {
            request: &self.request,
            at: self.at,
            done: self.done,
            // What was read ahead of later steps is not there for whoever goes on.
            tallies: &self.tallies[..=self.at],
            given: self.given.iter().map(|file| &file[..]).collect(),
            made: &self.made,
            run: run.map(|running| (&*running.run, running.pictures.len())),
        };
        reached.save(file)
    }

    fn drop_member(&mut self, _: usize) {
        self.wanted = false;
        self.ahead = None;
        self.running = None;
    }

    fn preview(&self, member: usize) -> Option<File> {
        self.running.as_ref()?.run.preview(member)
    }

    fn plan(&self) -> Option<&Plan> {
        match &self.running {
            Some(running) => running.run.plan(),
            None => self.look.forecasts[self.at].plan.as_ref(),
        }
    }

    fn remaining_s(&self) -> f64 {
        let steps = &self.plan.steps;
        let later: f64 = steps.iter().skip(1).map(|step| step.seconds).sum();
        let Some(running) = &self.running else {
            return later + steps.first().map_or(0.0, |step| step.seconds);
        };
        let all = self.makings.links[self.at].pictures;
        let waiting = (all - running.pictures.end) as f64 / all as f64;
        later + running.run.remaining_s() + waiting * steps.first().map_or(0.0, |step| step.seconds)
    }

    fn holds(&self) -> Bytes {
        self.kept_files()
            + self
                .running
                .as_ref()
                .map_or(Bytes::ZERO, |one| one.run.holds())
    }

    fn keeps(&self) -> Bytes {
        self.kept_files()
            + self
                .running
                .as_ref()
                .map_or(Bytes::ZERO, |one| one.run.keeps())
    }

    fn peak(&self) -> Bytes {
        let later = self.look.costs[self.at..]
            .iter()
            .skip(1)
            .map(|cost| cost.peak);
        let now = match &self.running {
            Some(running) => running.run.peak() + self.kept_files(),
            None => self.look.costs[self.at].peak,
        };
        later.max().unwrap_or_default().max(now)
    }

    fn rungs_taken(&self) -> usize {
        self.rungs
            + self
                .running
                .as_ref()
                .map_or(0, |running| running.run.rungs_taken())
    }

    fn stage(&self) -> Option<Stage> {
        let link = &self.makings.links[self.at];
        let mut using = vec![link.model.clone()];
        for &step in self.ahead.iter().flat_map(|ahead| &ahead.steps) {
            let model = &self.makings.links[step].model;
            if !using.contains(model) {
                using.push(model.clone());
            }
        }
        Some(Stage {
            step: self.at + 1,
            steps: self.makings.links.len(),
            kind: link.kind.clone(),
            model: link.model.clone(),
            using,
            later: self.makings.links[self.at + 1..]
                .iter()
                .map(|later| later.model.clone())
                .collect(),
        })
    }
}

impl Going {
    /// Bytes of pictures between two steps, as far as they are where steps compute.
    fn kept_files(&self) -> Bytes {
        let given = self.given.iter().map(|file| file.len());
        let made = self.made.iter().map(|file| file.content.len());
        ground::of_host(Bytes::from(given.chain(made).sum::<usize>()))
    }
}
