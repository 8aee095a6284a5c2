//! Jobs of several steps: which models they use, and when.

use std::cell::RefCell;
use std::sync::Arc;

use lowtide_core::lifecycle::{Event, Residency};
use lowtide_engine::chain::{Chain, KIND, Models, models_of};
use lowtide_engine::processor::Opened;
use lowtide_jobs::Job;
use serde_json::Value;

use crate::session::Open;
use crate::shelf::Shelf;

/// The models of one session, the one it begins with first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Uses(Vec<Use>);

/// How a session uses a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Use {
    pub(crate) model: String,
    /// Whether it is used now, or expected to be.
    pub(crate) now: bool,
}

impl Uses {
    /// The models of a job of this kind.
    pub(crate) fn of(kind: &str, job: &Job) -> Uses {
        let mut uses = vec![Use {
            model: job.model.clone(),
            now: true,
        }];
        if kind == KIND {
            let request = serde_json::from_str(&job.request).unwrap_or(Value::Null);
            for model in models_of(&request)
                .into_iter()
                .filter_map(|(_, model)| model)
            {
                if !uses.iter().any(|one| one.model == model) {
                    uses.push(Use { model, now: false });
                }
            }
        }
        Uses(uses)
    }

    pub(crate) fn models(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|one| &one.model[..])
    }

    /// Those that are expected to be used later.
    pub(crate) fn expected(&self) -> impl Iterator<Item = &str> {
        self.0
            .iter()
            .filter(|one| !one.now)
            .map(|one| &one.model[..])
    }

    /// Those in use, all others left out.
    pub(crate) fn in_use(&self) -> impl Iterator<Item = &str> {
        self.0
            .iter()
            .filter(|one| one.now)
            .map(|one| &one.model[..])
    }

    /// What the end of the session means for each model.
    pub(crate) fn leaving(&self, active: bool) -> Vec<(String, Event)> {
        let event = |one: &Use| match active && one.now {
            true => Event::JobEnds,
            false => Event::ParkedJobLeaves,
        };
        self.0
            .iter()
            .map(|one| (one.model.clone(), event(one)))
            .collect()
    }

    /// Takes note of what is used now and later; says what that means for the models.
    fn follow(&mut self, using: &[String], later: &[String]) -> Vec<(String, Event)> {
        let mut events = Vec::new();
        self.0.retain_mut(|one| {
            let now = using.contains(&one.model);
            let event = match (one.now, now, later.contains(&one.model)) {
                (false, true, _) => Event::JobResumes,
                (true, false, true) => Event::JobParks,
                (true, false, false) => Event::JobEnds,
                (true, true, _) | (false, false, _) => return true,
            };
            events.push((one.model.clone(), event));
            one.now = now;
            event != Event::JobEnds
        });
        events
    }
}

/// A worker's shelf as chains ask it.
struct Asked<'a>(RefCell<&'a mut Shelf>);

impl Models for Asked<'_> {
    fn schema(&self, kind: &str) -> Option<Value> {
        self.0.borrow().schema(kind)
    }

    fn open(
        &self,
        kind: &str,
        model: Option<&str>,
    ) -> lowtide_engine::Result<(String, Arc<dyn Opened>)> {
        let missing = || lowtide_engine::Error::request("model", "is missing");
        let model = model.ok_or_else(missing)?;
        let opened = self.0.borrow_mut().opened(model, kind)?;
        Ok((model.to_owned(), opened))
    }
}

impl Shelf {
    /// Whatever runs this request: of a chain its steps' models together.
    pub(crate) fn opened_for(
        &mut self,
        (kind, model): (&str, &str),
        request: &Value,
    ) -> lowtide_engine::Result<Arc<dyn Opened>> {
        if kind != KIND {
            return self.opened(model, kind);
        }
        let (handed, options) = (self.handed(), self.options());
        let asked = Asked(RefCell::new(self));
        let chain = Chain::open(request, &asked, handed, options)?;
        Ok(Arc::new(chain))
    }

    /// Tells the models of a session what it uses since its last step. Returns why a model that it goes on with could not
    /// be had.
    pub(crate) fn follow(&mut self, open: &mut Open) -> Option<lowtide_engine::Error> {
        let stage = open.stage()?;
        let mut failed = None;
        for (model, event) in open.uses.follow(&stage.using, &stage.later) {
            failed = self.tell(&model, event).failed.or(failed);
        }
        open.view.model.clone_from(&stage.model);
        // What made way for another step is no longer on the device.
        for model in open.all_models() {
            if !stage.using.contains(model) && self.is_bare(model) {
                let to = Residency::Host;
                self.tell(model, Event::MakeRoom { to });
            }
        }
        failed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_of_a_chain_are_expected_used_and_left() {
        let named = |models: &[&str]| {
            models
                .iter()
                .map(|&model| model.to_owned())
                .collect::<Vec<_>>()
        };
        let one = |model: &str, now| Use {
            model: model.to_owned(),
            now,
        };
        let mut uses = Uses(vec![one("a", true), one("b", false), one("c", false)]);
        let told = |events: Vec<(String, Event)>| {
            events
                .into_iter()
                .map(|(model, event)| format!("{model} {event:?}"))
                .collect::<Vec<_>>()
        };
        assert!(
            uses.follow(&named(&["a"]), &named(&["b", "c", "a"]))
                .is_empty()
        );
        assert_eq!(
            told(uses.follow(&named(&["a", "b"]), &named(&["b", "c", "a"]))),
            ["b JobResumes"]
        );
        assert_eq!(
            told(uses.follow(&named(&["b"]), &named(&["c", "a"]))),
            ["a JobParks"]
        );
        assert_eq!(
            told(uses.follow(&named(&["c"]), &named(&["a"]))),
            ["b JobEnds", "c JobResumes"]
        );
        assert_eq!(uses.models().collect::<Vec<_>>(), ["a", "c"]);
        assert_eq!(told(uses.leaving(true)), ["a ParkedJobLeaves", "c JobEnds"]);
        assert_eq!(
            told(uses.leaving(false)),
            ["a ParkedJobLeaves", "c ParkedJobLeaves"]
        );
    }
}
