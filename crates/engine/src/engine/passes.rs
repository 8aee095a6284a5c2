//! The ways from noise, or from a picture, to latents that a job has, and their schedules.

use super::Engine;
use crate::course::Course;
use crate::pipeline::{Origin, Pass};
use crate::request::{ImageRequest, Stretch, Upscaler};
use crate::{Error, Result};

impl Engine {
    /// The passes of a job, and their schedules.
    pub(super) fn passes(&self, request: &ImageRequest) -> Result<(Vec<Pass>, Vec<Course>)> {
        let scale = self.model.vae().config.scale();
        let pass = |(width, height): (usize, usize), origin| Pass {
            width,
            height,
            latent: (height / scale, width / scale),
            evaluations: 0,
            origin,
            decodes: true,
        };
        let first = match request.source {
            Some(_) => Origin::Given,
            None => Origin::Noise,
        };
        let mut passes = vec![pass((request.width, request.height), first)];
        if let Some(hires) = request.hires {
            let origin = match hires.upscaler {
                Upscaler::Lanczos => Origin::Picture,
                latent => Origin::Latents(latent),
            };
            passes[0].decodes = origin == Origin::Picture;
            passes.push(pass((hires.width, hires.height), origin));
        }
        if let Some(Stretch::Before(_)) = request.part {
            passes[0].decodes = false;
        }
        let mut courses = Vec::with_capacity(passes.len());
        for (k, pass) in passes.iter_mut().enumerate() {
            let course = self.model.course(request, k, pass.latent)?;
            pass.evaluations = course.evaluations();
            if pass.evaluations == 0 {
                let (what, problem) = match request.part {
                    Some(_) => (
                        "refiner-start",
                        "leaves no step to one of the models; use more steps",
                    ),
                    None => (
                        ["strength", "hires-strength"][k],
                        "leaves no step to be done; use more of it, or more steps",
                    ),
                };
                return Err(Error::request(what, problem));
            }
            courses.push(course);
        }
        Ok((passes, courses))
    }
}

/// Latent pixels of the largest pass, which is as many rows as a layer ever has.
pub(super) fn places(passes: &[Pass]) -> usize {
    let places = passes.iter().map(|pass| pass.latent.0 * pass.latent.1);
    places.max().unwrap_or(0)
}
