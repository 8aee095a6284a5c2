//! `text-to-image`: pictures from a text, by a diffusion model in a folder.

pub(super) mod given;
mod loras;
mod prepared;
mod refiner;
pub(super) mod request;
pub(super) mod schema;

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use lowtide_core::{Budget, Bytes, Plan, Quality};
use lowtide_media::Pixels;
use lowtide_weights::ModelFolder;
use serde_json::{Map, Value, json};

use crate::defaults::Defaults;
use crate::device::cpu::precision_word;
use crate::early;
use crate::parameters::MadeBy;
use crate::processor::{
    BatchForecast, BatchKey, Brought, CacheFigures, Card, File, Files, Forecast, Opened, Order,
    Processor, Product, Run, Setup, Stepped,
};
use crate::request::{Image, Outcome, Progress, Report};
use crate::session::Session;
use crate::shared::Counted;
use crate::{Engine, Error, ImageRequest, Result, STEPS_MAX, Start, Step};
pub use prepared::Prepared;
pub use refiner::Refiner;
use refiner::{give_way, joined};
use request::{Against, Request};

/// What the sides of a picture are divisible by, whatever the model.
const SIDE_MULTIPLE_MIN: usize = 8;

/// The kind.
pub(super) struct TextToImages;

impl Processor for TextToImages {
    fn kind(&self) -> &'static str {
        "text-to-image"
    }

    fn about(&self) -> &'static str {
        "Draws pictures from a text"
    }

    fn schema(&self) -> Value {
        schema::schema()
    }

    fn runs(&self, folder: &ModelFolder) -> bool {
        crate::pipeline::runs(&folder.class_name)
    }

    fn check_unseen(&self, request: &Value, files: &dyn Files) -> Result<Value> {
        // Sizes of any model are multiples of these, and no model does more steps.
        let defaults = Defaults {
            steps: STEPS_MAX as u32,
            ..Defaults::default()
        };
        let against = Against {
            defaults: &defaults,
            multiple: SIDE_MULTIPLE_MIN,
            files,
            quality: Quality::Exact,
        };
        let read = Request::read(request, against)?;
        let mut request = request.clone();
        if request["seed"].is_null() {
            request["seed"] = read.engine.seed.into();
        }
        Ok(request)
    }

    fn open(
        &self,
        model: &str,
        folder: Option<ModelFolder>,
        setup: Setup,
    ) -> Result<Arc<dyn Opened>> {
        let folder = folder.ok_or_else(|| Error::Incomplete {
            model: model.to_owned(),
            what: "text-to-image needs a model's folder".to_owned(),
        })?;
        let defaults = Defaults::of(&folder)?;
        let engine = Engine::with_files(folder, setup.options, setup.files.clone())?;
        let name = model.to_owned();
        Ok(Arc::new(Painter(Arc::new(Studio {
            engine,
            defaults,
            files: setup.files,
            name,
            refiner: Mutex::new(None),
        }))))
    }
}

/// An opened model and what it is called.
struct Studio {
    engine: Engine,
    defaults: Defaults,
    files: Arc<dyn Files>,
    name: String,
    /// The model that went the rest of the way last.
    refiner: Mutex<Option<Arc<Refiner>>>,
}

impl Studio {
    /// The model that goes the rest of the way, opened; one is kept.
    fn refiner(&self, request: &Request) -> Result<Option<Arc<Refiner>>> {
        let Some(rest) = &request.rest else {
            return Ok(None);
        };
        let mut kept = self.refiner.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(refiner) = kept.as_ref().filter(|kept| kept.name() == rest.model) {
            return Ok(Some(Arc::clone(refiner)));
        }
        let refiner = Arc::new(Refiner::open(&rest.model, &self.engine)?);
        *kept = Some(Arc::clone(&refiner));
        Ok(Some(refiner))
    }

    fn kept_refiner(&self) -> Option<Arc<Refiner>> {
        let kept = self.refiner.lock().unwrap_or_else(PoisonError::into_inner);
        kept.clone()
    }

    fn read(&self, request: &Value) -> Result<Request> {
        let against = Against {
            defaults: &self.defaults,
            multiple: self.engine.model().multiple(),
            files: &*self.files,
            quality: self.engine.quality(),
        };
        Request::read(request, against)
    }

    /// The same with an empty picture for the one it names: what decides about the cost, without reading a file.
    fn read_sizes(&self, request: &Value) -> Result<Request> {
        let mut request = self.read(request)?;
        if let Some(given) = &request.given {
            let size = (request.engine.width, request.engine.height);
            request.engine.source = Some(Arc::new(given.blank(size)?));
        }
        Ok(request)
    }
}

struct Painter(Arc<Studio>);

/// A side as keys and callers have it.
fn size(side: usize) -> u32 {
    u32::try_from(side).expect("sides have a bound far below 2^32")
}

impl Opened for Painter {
    fn card(&self) -> Card {
        let components = self.0.engine.components();
        let Defaults {
            width,
            height,
            steps,
            guidance,
        } = self.0.defaults;
        Card {
            bytes: components.iter().map(|&(_, _, bytes)| bytes).sum(),
            components,
            defaults: json!({
                "width": width, "height": height, "steps": steps, "guidance": guidance, "count": 1,
                "quality": request::quality_word(self.0.engine.quality()), "output_format": "png",
            }),
        }
    }

    fn check(&self, request: &Value) -> Result<Value> {
        Ok(self.0.read(request)?.json())
    }

    fn forecast(&self, request: &Value, budget: Option<Budget>) -> Result<Forecast> {
        let request = self.0.read_sizes(request)?;
        let engine = &self.0.engine;
        let budget = budget.unwrap_or_else(|| engine.budget());
        let mut plan = engine.forecast(&request.engine, 1, Some(budget))?;
        let (mut more, mut more_seconds) = engine.one_more(&request.engine, &plan)?;
        if let Some(refiner) = self.0.refiner(&request)? {
            let (engine, rest) = (refiner.engine(), refiner.request(&request.engine));
            let second = engine.forecast(&rest, 1, Some(budget))?;
            let (beside, seconds) = engine.one_more(&rest, &second)?;
            (more, more_seconds) = (more.max(beside), more_seconds + seconds);
            plan = joined(plan, second);
        }
        let key = BatchKey {
            size: [size(request.engine.width), size(request.engine.height)],
            settings: request.settings(),
        };
        Ok(Forecast {
            seconds: plan.seconds,
            peak: plan.peak.saturating_sub(plan.budget.in_use),
            batch: Some(BatchForecast {
                key,
                more,
                more_seconds,
            }),
            plan: Some(plan),
        })
    }

    fn start(&self, orders: Vec<Order<'_>>) -> Result<Box<dyn Run>> {
        let began = Instant::now();
        let mut requests = Vec::with_capacity(orders.len());
        let mut starts = Vec::with_capacity(orders.len());
        let mut under = Vec::with_capacity(orders.len());
        for order in &orders {
            let mut request = self.0.read(&order.request)?;
            let prepared = Prepared::fetch(request.clone(), &*self.0.files)?;
            request.engine = prepared.request.clone();
            starts.push(Start {
                request: prepared.request.clone(),
                resume: order.resume,
            });
            requests.push(request);
            under.push(prepared);
        }
        let refiner = match requests.first() {
            Some(request) => self.0.refiner(request)?,
            None => None,
        };
        let mut painting = |session, next| Painting {
            studio: self.0.clone(),
            requests: std::mem::take(&mut requests),
            under: std::mem::take(&mut under),
            session,
            next,
            refiner: refiner.clone(),
            first: None,
            reached: None,
            start_s: began.elapsed().as_secs_f64(),
        };
        let Some(refiner) = &refiner else {
            let session = self.0.engine.start_all(starts, false)?;
            return Ok(Box::new(painting(session, None)));
        };
        if let [
            Start {
                request,
                resume: Some(file),
            },
        ] = &starts[..]
        {
            // It may have been saved with either of the two.
            let request = refiner.request(request);
            if let Ok(noise) = refiner.engine().saved_noise(file, &request) {
                give_way(&self.0.engine, refiner.engine());
                let request = ImageRequest { noise, ..request };
                let resume = Some(*file);
                let start = vec![Start { request, resume }];
                let session = refiner.engine().start_all(start, false)?;
                return Ok(Box::new(painting(session, None)));
            }
        }
        give_way(refiner.engine(), &self.0.engine);
        let rest = refiner.request(&starts[0].request);
        let budget = Some(self.0.engine.budget());
        let plan = refiner.engine().forecast(&rest, starts.len(), budget)?;
        let session = self.0.engine.start_all(starts, true)?;
        Ok(Box::new(painting(session, Some(plan))))
    }

    fn held(&self) -> Bytes {
        self.held_beside(&mut Counted::default())
    }

    fn held_beside(&self, counted: &mut Counted) -> Bytes {
        let refiner = self.0.kept_refiner();
        let first = self.0.engine.held_beside(counted);
        first + refiner.map_or(Bytes::ZERO, |refiner| refiner.engine().held_beside(counted))
    }

    fn load(&self) -> Result<Bytes> {
        self.0.engine.preload()
    }

    fn forget(&self) -> Bytes {
        let refiner = self.0.kept_refiner();
        let refined = refiner.map_or(Bytes::ZERO, |refiner| refiner.engine().forget_weights());
        refined + self.0.engine.forget_weights()
    }

    fn shrink(&self, most: Bytes) -> Bytes {
        // What goes the rest of the way is needed last.
        let refiner = self.0.kept_refiner();
        let refined = refiner.map_or(Bytes::ZERO, |refiner| refiner.engine().shrink(Bytes::ZERO));
        refined + self.0.engine.shrink(most)
    }

    fn stays(&self, request: &Value, forecast: &Forecast) -> Result<Bytes> {
        let Some(plan) = &forecast.plan else {
            return Ok(Bytes::ZERO);
        };
        let request = self.0.read_sizes(request)?;
        Ok(early::stays(
            &self.0.engine.parts_of(&request.engine)?,
            plan,
        ))
    }

    fn bring(
        &self,
        request: &Value,
        forecast: &Forecast,
        more: &dyn Fn(Bytes) -> bool,
    ) -> Result<Brought> {
        let Some(plan) = &forecast.plan else {
            return Ok(Brought::default());
        };
        let request = self.0.read_sizes(request)?;
        early::bring(&self.0.engine.parts_of(&request.engine)?, plan, more)
    }

    fn result_size(&self, request: &Value, given: Option<[u32; 2]>) -> Option<[u32; 2]> {
        let Ok(request) = self.0.read(request) else {
            return given;
        };
        let (width, height) = request.engine.result_size();
        Some([size(width), size(height)])
    }

    fn prompt_cache(&self) -> CacheFigures {
        self.0.engine.prompt_cache()
    }
}

/// Jobs in progress.
struct Painting {
    studio: Arc<Studio>,
    requests: Vec<Request>,
    /// What results are put over, where a part of a given picture is drawn.
    under: Vec<Prepared>,
    session: Session,
    /// The plan of what a second model does after this session.
    next: Option<Plan>,
    /// The second model, where there is one.
    refiner: Option<Arc<Refiner>>,
    /// What the first session took, once it is over.
    first: Option<Report>,
    /// The latest step.
    reached: Option<Progress>,
    /// Seconds it took to read prompts and plan.
    start_s: f64,
}

impl Painting {
    /// The first session is over: the second model goes on.
    fn go_on(&mut self, outcome: Outcome) -> Result<Stepped> {
        let refiner = self.refiner.as_ref().expect("a plan is a second model's");
        let prepared = self.under.iter();
        let first: Vec<ImageRequest> = prepared.map(|one| one.request.clone()).collect();
        self.session = refiner.go_on((&self.studio.engine, &first), &outcome, false)?;
        self.first = Some(outcome.report);
        let reached = self.reached.take();
        // A job of one step has no progress before that.
        let reached = reached.unwrap_or(Progress {
            phase: "denoise",
            done: 1,
            total: 1,
            elapsed: std::time::Duration::ZERO,
            memory: Bytes(lowtide_kernels::memory::live()),
        });
        Ok(Stepped::Progress(Progress {
            done: reached.total,
            ..reached
        }))
    }

    fn products(&self, outcome: &Outcome) -> Result<Vec<Option<Product>>> {
        let product = |member: usize, images: &Option<std::ops::Range<usize>>| {
            let Some(range) = images.clone() else {
                return Ok(None);
            };
            let images = outcome.images[range].iter().cloned();
            let images = images.map(|image| self.under[member].over(image));
            let images = images.collect::<Result<Vec<_>>>()?;
            let product = self.product(&self.requests[member], &images, outcome)?;
            Ok(Some(product))
        };
        let members = outcome.members.iter().enumerate();
        members.map(|(k, images)| product(k, images)).collect()
    }

    fn product(&self, request: &Request, images: &[Image], outcome: &Outcome) -> Result<Product> {
        let began = Instant::now();
        let made = MadeBy {
            model: &self.studio.name,
            precision: self.studio.engine.precision(),
            approximate: &outcome.report.plan.approximate,
            refiner: self.refiner.as_ref().map(|refiner| refiner.name()),
        };
        let file = |image: &Image| {
            let text = made.parameters(&request.engine, image);
            File::picture(pixels(image), request.format, &text)
        };
        let files = images.iter().map(file).collect::<Result<_>>()?;
        let report = self.report(images, outcome, began.elapsed().as_secs_f64());
        Ok(Product { files, report })
    }

    fn report(&self, images: &[Image], outcome: &Outcome, write_s: f64) -> Value {
        let report = &outcome.report;
        let plan = &report.plan;
        let mut seconds = Map::new();
        seconds.insert("start".to_owned(), self.start_s.into());
        for phase in &plan.phases {
            let spent = report
                .seconds
                .get(&phase.name[..])
                .copied()
                .unwrap_or_default();
            seconds.insert(phase.name.clone(), spent.into());
        }
        seconds.insert("write".to_owned(), write_s.into());
        let predicted: Map<String, Value> = plan
            .phases
            .iter()
            .map(|phase| (phase.name.clone(), phase.peak.0.into()))
            .collect();
        let measured: Map<String, Value> = report
            .peak
            .iter()
            .map(|(phase, peak)| ((*phase).to_owned(), peak.0.into()))
            .collect();
        let reasons: Vec<String> = plan
            .phases
            .iter()
            .map(|phase| phase.reason.to_string())
            .collect();
        json!({
            "seeds": images.iter().map(|image| image.seed).collect::<Vec<_>>(),
            "model": self.studio.name,
            "refiner": self.refiner.as_ref().map(|refiner| refiner.name()),
            "precision": precision_word(self.studio.engine.precision()),
            "seconds": seconds,
            "waited_seconds": report.waited,
            "load_seconds": report.waited.values().sum::<f64>(),
            "memory": {
                "budget": plan.budget.total.0,
                "in_use_before": plan.budget.in_use.0,
                "predicted_peak": predicted,
                "measured_peak": measured,
            },
            "reading_seconds": report.reading.values().sum::<f64>(),
            "bytes_read": report.bytes_read,
            "rungs_taken": report.rungs_taken,
            "batch": self.requests.len(),
            "prompts": { "needed": report.prompts, "remembered": report.prompts_cached },
            "quality": if plan.approximate.is_empty() { "exact" } else { "approximate" },
            "approximate": plan.approximate,
            "notes": report.notes,
            "reasons": reasons,
        })
    }
}

fn pixels(image: &Image) -> Pixels<'_> {
    Pixels {
        width: image.width as u32,
        height: image.height as u32,
        rgb: &image.rgb,
    }
}

impl Run for Painting {
    fn step(&mut self) -> Result<Stepped> {
        match self.session.step()? {
            Step::Progress(progress) => {
                self.reached = Some(progress);
                Ok(Stepped::Progress(progress))
            }
            Step::Finished(outcome) if self.next.take().is_some() => self.go_on(*outcome),
            Step::Finished(mut outcome) => {
                if let Some(first) = self.first.take() {
                    outcome.report = outcome.report.clone().after(first);
                }
                Ok(Stepped::Finished(self.products(&outcome)?))
            }
        }
    }

    fn park(&mut self) {
        self.session.park();
    }

    fn save(&self, member: usize, file: &Path) -> Result<bool> {
        self.session.save(member, file)
    }

    fn drop_member(&mut self, member: usize) {
        self.session.drop_member(member);
    }

    fn preview(&self, member: usize) -> Option<File> {
        let sketch = self.session.sketch(member)?;
        let pixels = Pixels {
            width: sketch.width as u32,
            height: sketch.height as u32,
            rgb: sketch.rgb,
        };
        File::preview(pixels)
    }

    fn plan(&self) -> Option<&Plan> {
        Some(self.session.plan())
    }

    fn remaining_s(&self) -> f64 {
        let next = self.next.as_ref().map_or(0.0, |plan| plan.seconds);
        self.session.remaining_s() + next
    }

    fn holds(&self) -> Bytes {
        self.session.holds()
    }

    fn peak(&self) -> Bytes {
        let next = self.next.as_ref();
        let next = next.map_or(Bytes::ZERO, |plan| {
            plan.peak.saturating_sub(plan.budget.in_use)
        });
        self.session.peak().max(next)
    }

    fn rungs_taken(&self) -> usize {
        let first = self.first.as_ref().map_or(0, |first| first.rungs_taken);
        first + self.session.rungs_taken()
    }

    fn cede(&mut self, wanted: Bytes) -> Bytes {
        // What the refiner will need is not given away.
        let room = self
            .next
            .as_ref()
            .map_or(wanted, |plan| plan.budget.total.saturating_sub(plan.peak));
        self.session.cede(wanted.min(room))
    }

    fn arriving(&self) -> bool {
        self.session.arriving()
    }
}
