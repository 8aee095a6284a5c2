//! Chains at the door: their steps name kinds and models as jobs do.

use std::sync::Arc;

use lowtide_core::Budget;
use lowtide_engine::chain::{self, Chain, Models, Outlook};
use lowtide_engine::processor::Opened;
use lowtide_engine::{Error, Result};
use lowtide_jobs::report::StepHints;
use lowtide_server::{Checked, Kind, Planned, Refused};
use serde_json::{Map, Value};

use super::door::{Desk, hints, refused};
use crate::plan_view;

impl Models for Desk {
    fn schema(&self, kind: &str) -> Option<Value> {
        self.processor(kind).ok().map(|one| one.schema())
    }

    fn complete(&self, kind: &str, request: Map<String, Value>) -> Result<Value> {
        let schema = Models::schema(self, kind).unwrap_or_default();
        self.with_preset(&schema, Value::Object(request))
            .map_err(as_field)
    }

    fn open(&self, kind: &str, model: Option<&str>) -> Result<(String, Arc<dyn Opened>)> {
        let processor = self.processor(kind).map_err(as_field)?;
        let name = self.name_of(processor.as_ref(), model).map_err(as_field)?;
        let opened = self.opened(processor.as_ref(), &name).map_err(as_field)?;
        Ok((name, opened))
    }
}

/// What was refused of a step, as a complaint about its field.
fn as_field(refused: Refused) -> Error {
    let list = |known: Vec<String>| match known.is_empty() {
        true => "there is none".to_owned(),
        false => format!("there are {}", known.join(", ")),
    };
    let shown = |name: &str| name.chars().take(80).collect::<String>();
    match refused {
        Refused::UnknownKind { kind, known } => Error::request(
            "kind",
            format!("'{}' is unknown; {}", shown(&kind), list(known)),
        ),
        Refused::UnknownModel { model, known } => Error::request(
            "model",
            format!("'{}' is unknown; {}", shown(&model), list(known)),
        ),
        Refused::NotHere { model, problem } => Error::request(
            "model",
            format!("'{}' is not here: {problem}", shown(&model)),
        ),
        Refused::Invalid { field, problem } => Error::request(field, problem),
        Refused::DoesNotFit { sentence, .. } | Refused::Broken { sentence } => {
            Error::request("model", sentence)
        }
    }
}

impl Desk {
    /// The kind, as the server offers it.
    pub(super) fn chain_kind(&self) -> Kind {
        Kind {
            name: chain::KIND.to_owned(),
            about: chain::ABOUT.to_owned(),
            schema: chain::schema(),
            // Steps name their own.
            model_default: Some(String::new()),
        }
    }

    /// Checks a chain and looks at what it will cost. `model` is what the first step means where it names none.
    pub(super) fn look_at_chain(
        &self,
        model: Option<&str>,
        mut request: Value,
        budget: Option<Budget>,
    ) -> std::result::Result<(Checked, Outlook), Refused> {
        let first = request
            .pointer_mut("/steps/0")
            .and_then(Value::as_object_mut);
        if let (Some(model), Some(first)) = (model, first)
            && first.get("model").is_none_or(Value::is_null)
        {
            first.insert("model".to_owned(), model.into());
        }
        let chain = Chain::open(&request, self, self.handed(), self.options()).map_err(refused)?;
        let request = chain.request();
        for step in request["steps"].as_array().into_iter().flatten() {
            self.find_loras(&step["request"])?;
        }
        let outlook = chain.outlook(budget).map_err(refused)?;
        let mut hints = hints(&outlook.forecast);
        let steps = outlook.steps.iter().map(|(kind, model)| StepHints {
            kind: kind.clone(),
            model: model.clone(),
        });
        hints.steps = steps.collect();
        let checked = Checked {
            model: chain.model().to_owned(),
            request,
            hints,
        };
        Ok((checked, outlook))
    }

    /// A chain with its plan.
    pub(super) fn plan_of_chain(
        &self,
        model: Option<&str>,
        request: Value,
        budget: Option<Budget>,
    ) -> std::result::Result<Planned, Refused> {
        let (checked, outlook) = self.look_at_chain(model, request, budget)?;
        let plan = outlook.forecast.plan.as_ref();
        let mut reasons = outlook.sentences();
        reasons.extend(plan.map(plan_view::reasons).unwrap_or_default());
        let mut shown = plan.map_or_else(|| Value::Object(Map::new()), plan_view::json);
        shown["chain"] = outlook.json();
        Ok(Planned {
            checked,
            plan: shown,
            reasons,
            approximate: plan.map_or_else(Vec::new, |plan| plan.approximate.clone()),
        })
    }
}
