//! Opening models: as each kind of job uses them.

use std::sync::Arc;

use lowtide_engine::Options;
use lowtide_engine::chain::Handed;
use lowtide_engine::processor::{self, Opened, Processor};
use lowtide_weights::ModelFolder;
use serde_json::Value;

use super::Shelf;

impl Shelf {
    /// The opened model, as jobs of this kind use it.
    pub(crate) fn opened(
        &mut self,
        name: &str,
        kind: &str,
    ) -> lowtide_engine::Result<Arc<dyn Opened>> {
        let missing = || lowtide_engine::Error::Incomplete {
            model: name.to_owned(),
            what: format!("is not a model for '{kind}' jobs"),
        };
        let model = self.models.get(name).ok_or_else(missing)?;
        if let Some(opened) = model.opened.get(kind) {
            return Ok(opened.clone());
        }
        let runs = |processor: &&Arc<dyn Processor>| processor.kind() == kind;
        let processor = model
            .processors
            .iter()
            .find(runs)
            .ok_or_else(missing)?
            .clone();
        let folder = if processor.own_models().contains(&name) {
            None
        } else {
            let opened = self.makings.folders.open(name);
            Some(opened.map_err(|what| lowtide_engine::Error::Incomplete {
                model: name.to_owned(),
                what,
            })?)
        };
        let opened = self.open_with(name, &processor, folder)?;
        let model = self.models.get_mut(name).ok_or_else(missing)?;
        model.opened.insert(processor.kind(), opened.clone());
        Ok(opened)
    }

    pub(super) fn open_with(
        &self,
        name: &str,
        processor: &Arc<dyn Processor>,
        folder: Option<ModelFolder>,
    ) -> lowtide_engine::Result<Arc<dyn Opened>> {
        let setup = processor::Setup {
            options: self.options(),
            files: self.handed.clone(),
        };
        processor.open(name, folder, setup)
    }

    /// What models are opened with.
    pub(crate) fn options(&self) -> Options {
        Options {
            keep_weights: true,
            ..self.makings.device
        }
    }

    pub(crate) fn handed(&self) -> Arc<Handed> {
        self.handed.clone()
    }

    /// The schema of requests of this kind.
    pub(crate) fn schema(&self, kind: &str) -> Option<Value> {
        let mut all = self.makings.processors.iter();
        all.find(|one| one.kind() == kind).map(|one| one.schema())
    }
}
