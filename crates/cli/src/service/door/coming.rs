//! Jobs whose model is not here, and comes from the hub.

use lowtide_engine::processor::{Forecast, Processor};
use lowtide_jobs::report::Hints;
use lowtide_server::{Checked, Downloads, Refused};
use serde_json::Value;

use super::{Desk, refused};
use crate::service::downloads::Fetcher;

/// Predicted seconds of a job whose model is not here.
const UNSEEN_S: f64 = 1.0;

/// What came of a look at a request.
pub(super) enum Looked {
    /// Its model is here.
    Here(Box<(Checked, Forecast)>),
    /// Its model is fetched first, and what it needs is not known before.
    Coming(Checked),
}

impl Desk {
    /// The name of a model that is not here and can be fetched; `None` where it can be none of a hub.
    pub(super) fn coming(
        &self,
        processor: &dyn Processor,
        asked: Option<&str>,
    ) -> Result<Option<String>, Refused> {
        let name = asked.map(|asked| self.aliases.get(asked).map_or(asked, String::as_str));
        let wanted = name.and_then(Fetcher::wanted);
        // A kind that brings its own models has no use for others.
        let Some(wanted) = wanted.filter(|_| processor.own_models().is_empty()) else {
            return Ok(None);
        };
        let model = wanted.to_string();
        if self.catalog.open(&model).is_ok() {
            return Ok(None);
        }
        match self.fetcher.forbidden() {
            Some(problem) => Err(Refused::NotHere { model, problem }),
            None => Ok(Some(model)),
        }
    }

    /// A request whose model is fetched first.
    pub(super) fn unseen(
        &self,
        processor: &dyn Processor,
        model: String,
        request: Value,
    ) -> Result<Looked, Refused> {
        let request = self.with_preset(&processor.schema(), request)?;
        let files = &*self.setup.files;
        let request = processor.check_unseen(&request, files).map_err(refused)?;
        self.find_loras(&request)?;
        Ok(Looked::Coming(Checked {
            model,
            request,
            hints: Hints {
                seconds: UNSEEN_S,
                ..Hints::default()
            },
        }))
    }
}
