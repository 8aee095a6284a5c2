//! `detail`: faces, hands or whatever a detector finds in a picture are drawn anew, one by one, at the size the model
//! draws best, and put back: what ADetailer does in web UIs, by whatever image model there is.

mod masks;
mod pass;
mod request;
mod run;
mod saved;
mod schema;
mod texts;
mod told;

use std::sync::Arc;
use std::time::Instant;

use lowtide_core::{Budget, Bytes, Plan};
use lowtide_media::Picture;
use lowtide_weights::ModelFolder;
use serde_json::{Value, json};

use super::text_to_image::given;
use super::text_to_image::request::Against;
use crate::defaults::Defaults;
use crate::detector::{Detector, Detectors, Search, keeps, meant};
use crate::pipeline::Part;
use crate::processor::{
    Brought, CacheFigures, Card, Files, Forecast, Opened, Order, Processor, Run, Setup,
};
use crate::shared::Counted;
use crate::{Engine, Error, Options, Result, early};
use pass::Pass;
use request::{Request, of_pass};
use run::Repair;

/// Things that are expected of a pass where nobody knows.
const THINGS_EXPECTED: usize = 1;

/// The kind.
pub(super) struct Detail;

impl Processor for Detail {
    fn kind(&self) -> &'static str {
        "detail"
    }

    fn about(&self) -> &'static str {
        "Draws faces, hands or other things of a picture anew, each at full size"
    }

    fn schema(&self) -> Value {
        schema::schema()
    }

    fn runs(&self, folder: &ModelFolder) -> bool {
        crate::pipeline::runs(&folder.class_name)
    }

    fn open(
        &self,
        model: &str,
        folder: Option<ModelFolder>,
        setup: Setup,
    ) -> Result<Arc<dyn Opened>> {
        let folder = folder.ok_or_else(|| Error::Incomplete {
            model: model.to_owned(),
            what: "detail needs a model's folder".to_owned(),
        })?;
        let defaults = Defaults::of(&folder)?;
        let engine = Engine::with_files(folder, setup.options, setup.files.clone())?;
        Ok(Arc::new(Repairer(Arc::new(Studio {
            engine,
            defaults,
            files: setup.files,
            options: setup.options,
            name: model.to_owned(),
            detectors: Detectors::default(),
        }))))
    }
}

/// An opened model, what it is called, and the detectors that were used with it.
struct Studio {
    engine: Engine,
    defaults: Defaults,
    files: Arc<dyn Files>,
    options: Options,
    name: String,
    detectors: Detectors,
}

/// A picture as it was given, and what its file says it was made with.
struct Given {
    picture: Picture,
    text: Option<String>,
}

impl Studio {
    fn against(&self) -> Against<'_> {
        Against {
            defaults: &self.defaults,
            multiple: self.engine.model().multiple(),
            files: &*self.files,
            quality: self.engine.quality(),
        }
    }

    fn read(&self, request: &Value) -> Result<Request> {
        // What a picture was drawn from is drawn again where nothing else is said.
        let prompt = |image: &str| {
            let file = self.files.input(image, given::PICTURE_BYTES_MAX).ok()?;
            let text = lowtide_media::text_of(&file).ok()??;
            Some(prompt_in(&text))
        };
        Request::read(request, self.against(), prompt)
    }

    fn given(&self, request: &Request) -> Result<Given> {
        let picture = given::read(&*self.files, "image", &request.image)?.picture;
        let file = self.files.input(&request.image, given::PICTURE_BYTES_MAX);
        let text = file
            .ok()
            .and_then(|file| lowtide_media::text_of(&file).ok());
        Ok(Given {
            picture,
            text: text.flatten(),
        })
    }

    /// The detector of a pass, and what it is to look for.
    fn search(&self, pass: &Pass) -> Result<(Arc<Detector>, Search)> {
        let (detector, meant_classes) = meant(&self.detectors, &*self.files, &pass.detector)?;
        let classes = match pass.classes.is_empty() {
            true => meant_classes,
            false => pass.classes.clone(),
        };
        detector.classes(&classes)?;
        let search = Search {
            confidence: pass.confidence,
            side: pass.size,
            classes,
            ..Search::default()
        };
        Ok((detector, search))
    }

    /// How all passes over a picture of this size run, one after the other; `budget` as in [`Opened::forecast`].
    fn plan(&self, request: &Request, size: (u32, u32), budget: Option<Budget>) -> Result<Plan> {
        let mut all: Option<Plan> = None;
        // Weights of either give way to the other.
        let budget = budget.unwrap_or_else(|| {
            let budget = self.engine.budget();
            let in_use = budget.in_use.saturating_sub(self.detectors.held());
            Budget { in_use, ..budget }
        });
        for (at, pass) in request.passes.iter().enumerate() {
            let (detector, search) = self.search(pass).map_err(|error| of_pass(at, error))?;
            let how = (budget, keeps(&self.options));
            let looks = detector.plan(size, search.side, how, self.engine.profile())?;
            let blank = request.blank(pass, self.against())?;
            let draws = self.engine.forecast(&blank, 1, Some(budget))?;
            for (plan, times) in [(looks, 1), (draws, expected(pass))] {
                let all = all.get_or_insert_with(|| Plan {
                    model: self.name.clone(),
                    phases: Vec::new(),
                    seconds: 0.0,
                    approximate: Vec::new(),
                    ..plan.clone()
                });
                all.seconds += plan.seconds * times as f64;
                all.peak = all.peak.max(plan.peak);
                all.phases.extend(plan.phases);
                let new = plan.approximate.into_iter();
                let new: Vec<String> = new.filter(|one| !all.approximate.contains(one)).collect();
                all.approximate.extend(new);
            }
        }
        Ok(all.expect("a request has a pass"))
    }
}

impl Studio {
    /// Calls `what` with the parts that the phases of a forecast use, in their order, and its plan.
    fn with_parts<T: Default>(
        &self,
        request: &Value,
        forecast: &Forecast,
        what: impl FnOnce(&[&Part], &Plan) -> Result<T>,
    ) -> Result<T> {
        let Some(plan) = &forecast.plan else {
            return Ok(T::default());
        };
        let request = self.read(request)?;
        let looks = request.passes.iter().map(|pass| self.search(pass));
        let looks: Vec<_> = looks.collect::<Result<_>>()?;
        let mut parts = Vec::new();
        for (pass, (detector, _)) in request.passes.iter().zip(&looks) {
            parts.push(detector.part());
            let blank = request.blank(pass, self.against())?;
            parts.extend(self.engine.parts_of(&blank)?);
        }
        what(&parts, plan)
    }
}

/// How many things a pass is expected to find.
fn expected(pass: &Pass) -> usize {
    match pass.mask_k {
        0 => THINGS_EXPECTED,
        most => most.min(THINGS_EXPECTED),
    }
}

/// The prompt in the text of a picture's file.
fn prompt_in(text: &str) -> String {
    let lines = text.lines();
    let end = |line: &&str| line.starts_with("Negative prompt:") || line.starts_with("Steps:");
    let prompt: Vec<&str> = lines.take_while(|line| !end(line)).collect();
    prompt.join("\n")
}

struct Repairer(Arc<Studio>);

impl Opened for Repairer {
    fn card(&self) -> Card {
        let engine = &self.0.engine;
        let components = engine.components();
        let Defaults {
            steps, guidance, ..
        } = self.0.defaults;
        let face = Pass::of("face");
        Card {
            bytes: components.iter().map(|&(_, _, bytes)| bytes).sum(),
            components,
            defaults: json!({
                "steps": steps, "guidance": guidance, "quality": "exact", "output_format": "png",
                "passes": [face.json()],
            }),
        }
    }

    fn check(&self, request: &Value) -> Result<Value> {
        let request = self.0.read(request)?;
        for (at, pass) in request.passes.iter().enumerate() {
            self.0.search(pass).map_err(|error| of_pass(at, error))?;
        }
        Ok(request.json())
    }

    fn forecast(&self, request: &Value, budget: Option<Budget>) -> Result<Forecast> {
        let request = self.0.read(request)?;
        let picture = self.0.given(&request)?.picture;
        let size = (picture.width(), picture.height());
        drop(picture);
        let plan = self.0.plan(&request, size, budget)?;
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
                "are not one, and detail shares no batch (this is a bug)",
            ));
        };
        let request = self.0.read(&order.request)?;
        let given = self.0.given(&request)?;
        let size = (given.picture.width(), given.picture.height());
        let plan = self.0.plan(&request, size, None)?;
        let mut repair = Repair::new(self.0.clone(), request, given, plan);
        if let Some(file) = order.resume {
            repair.restore(file)?;
        }
        repair.started(began.elapsed());
        Ok(Box::new(repair))
    }

    fn held(&self) -> Bytes {
        self.0.engine.held() + self.0.detectors.held()
    }

    fn held_beside(&self, counted: &mut Counted) -> Bytes {
        self.0.engine.held_beside(counted) + self.0.detectors.held_beside(counted)
    }

    fn load(&self) -> Result<Bytes> {
        self.0.engine.preload()
    }

    fn forget(&self) -> Bytes {
        self.0.engine.forget_weights() + self.0.detectors.forget()
    }

    fn shrink(&self, most: Bytes) -> Bytes {
        // Detectors are small, and what looks comes first.
        let detectors = self.0.detectors.held();
        match most < detectors {
            true => self.0.detectors.forget() + self.0.engine.shrink(most),
            false => self.0.engine.shrink(most - detectors),
        }
    }

    fn stays(&self, request: &Value, forecast: &Forecast) -> Result<Bytes> {
        let stays = |parts: &[&Part], plan: &Plan| Ok(early::stays(parts, plan));
        self.0.with_parts(request, forecast, stays)
    }

    fn bring(
        &self,
        request: &Value,
        forecast: &Forecast,
        more: &dyn Fn(Bytes) -> bool,
    ) -> Result<Brought> {
        let bring = |parts: &[&Part], plan: &Plan| early::bring(parts, plan, more);
        self.0.with_parts(request, forecast, bring)
    }

    fn prompt_cache(&self) -> CacheFigures {
        self.0.engine.prompt_cache()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prompt_of_a_picture_is_what_stands_before_its_settings() {
        let text = "a face,\nred hair\nNegative prompt: blur\nSteps: 20, Sampler: Euler";
        assert_eq!(prompt_in(text), "a face,\nred hair");
        assert_eq!(prompt_in("Steps: 4"), "");
        assert_eq!(prompt_in(""), "");
    }
}
