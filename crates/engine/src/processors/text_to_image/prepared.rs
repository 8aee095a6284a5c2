//! A request, read and with the pictures it names.

use std::sync::Arc;

use lowtide_core::Plan;
use serde_json::Value;

use super::given::Under;
use super::refiner::{Refiner, joined};
use super::request::{Against, Request};
use crate::defaults::Defaults;
use crate::processor::Files;
use crate::request::Image;
use crate::{Engine, ImageRequest, Result};

/// A request of this kind that is read, with the pictures it names: for whoever drives a session himself.
pub struct Prepared {
    /// What the engine is asked.
    pub request: ImageRequest,
    /// The model that goes the rest of the way from what that gives, opened.
    pub refiner: Option<Arc<Refiner>>,
    under: Option<Under>,
}

impl Prepared {
    /// Reads a request for this model and fetches the pictures it names.
    ///
    /// # Errors
    /// [`crate::Error::Request`] with the field's name.
    pub fn read(
        engine: &Engine,
        defaults: &Defaults,
        files: &dyn Files,
        request: &Value,
    ) -> Result<Prepared> {
        let multiple = engine.model().multiple();
        let against = Against {
            defaults,
            multiple,
            files,
            quality: engine.quality(),
        };
        let request = Request::read(request, against)?;
        let refiner = request.rest.as_ref();
        let refiner = refiner.map(|rest| Refiner::open(&rest.model, engine));
        let refiner = refiner.transpose()?.map(Arc::new);
        Ok(Prepared {
            refiner,
            ..Prepared::fetch(request, files)?
        })
    }

    pub(super) fn fetch(request: Request, files: &dyn Files) -> Result<Prepared> {
        let Request {
            mut engine, given, ..
        } = request;
        let size = (engine.width, engine.height);
        let ready = given.map(|given| given.ready(files, size)).transpose()?;
        let mut under = None;
        if let Some((source, below)) = ready {
            engine.source = Some(Arc::new(source));
            under = below;
        }
        Ok(Prepared {
            request: engine,
            refiner: None,
            under,
        })
    }

    /// The plan of all of it.
    ///
    /// # Errors
    /// As [`Engine::plan`].
    pub fn plan(&self, engine: &Engine) -> Result<Plan> {
        let plan = engine.plan(&self.request)?;
        match &self.refiner {
            None => Ok(plan),
            Some(refiner) => {
                let second = refiner.engine().plan(&refiner.request(&self.request))?;
                Ok(joined(plan, second))
            }
        }
    }

    /// What was drawn, put over the given picture where only a part of it was to change.
    ///
    /// # Errors
    /// [`crate::Error::Picture`].
    pub fn over(&self, image: Image) -> Result<Image> {
        match &self.under {
            Some(under) => under.over(image),
            None => Ok(image),
        }
    }
}
