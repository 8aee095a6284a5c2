//! A base model and a refiner in one job: the first goes part of the way from noise to picture, the second the rest. Each
//! has a session and a plan of its own; what passes between them are latents.

use lowtide_core::{Bytes, Plan};

use crate::processors::fields::Fields;
use crate::request::{Outcome, Report, Stretch, as_written};
use crate::session::Session;
use crate::{Engine, Error, ImageRequest, Result, Start};

/// Longest name of a model.
pub(super) const NAME_BYTES_MAX: usize = 256;

/// Where a refiner takes over unless a request says otherwise.
pub(super) const START_DEFAULT: f32 = 0.8;

/// Which model goes the rest of the way, and from where.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::processors) struct Rest {
    pub(super) model: String,
    pub(super) start: f32,
}

impl Rest {
    /// Reads the fields; without a model the place means nothing.
    pub(super) fn read(fields: &mut Fields<'_>, engine: &mut ImageRequest) -> Result<Option<Rest>> {
        let model = fields.text("refiner", NAME_BYTES_MAX)?;
        let start = fields.number("refiner_start", 0.0..=1.0)?;
        let Some(model) = model.filter(|model| !model.is_empty()) else {
            fields.none_of(
                &["refiner_start"],
                "without 'refiner'; name a model or leave it out",
            )?;
            return Ok(None);
        };
        let why =
            "beside 'refiner', which goes on from what was drawn from noise; leave one of them out";
        fields.none_of(&["image", "hires_scale"], why)?;
        let start = start.unwrap_or(START_DEFAULT);
        engine.part = Some(Stretch::Before(as_written(start)));
        Ok(Some(Rest {
            model: model.to_owned(),
            start,
        }))
    }
}

/// The model that goes the rest of the way.
pub struct Refiner {
    engine: Engine,
    name: String,
}

impl Refiner {
    /// Opens the model of this name, to go on from what `first` draws.
    ///
    /// # Errors
    /// [`Error::Request`] where there is none, or one that draws other latents.
    pub(super) fn open(name: &str, first: &Engine) -> Result<Refiner> {
        let shown: String = name.chars().take(80).collect();
        let wrong = |problem: String| Error::request("refiner", format!("'{shown}': {problem}"));
        let folder = first.files().model(name).map_err(wrong)?;
        let engine = Engine::with_files(folder, first.options(), first.files().clone())?;
        let latents = |engine: &Engine| {
            let config = &engine.model().vae().config;
            (
                (config.latent_channels, config.scale()),
                (config.scaling_factor, config.shift_factor),
            )
        };
        if latents(first) != latents(&engine) || engine.model().inpaints() {
            let problem =
                "it does not go on from what this model draws; a refiner is of the same family";
            return Err(wrong(problem.to_owned()));
        }
        Ok(Refiner {
            engine,
            name: name.to_owned(),
        })
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// It, opened.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// What it is asked, by what the first model is asked.
    pub(super) fn request(&self, first: &ImageRequest) -> ImageRequest {
        let start = match first.part {
            Some(Stretch::Before(end)) => end,
            Some(Stretch::After(_)) | None => 1.0,
        };
        ImageRequest {
            part: Some(Stretch::After(start)),
            // They belong to the first model.
            loras: Vec::new(),
            ..first.clone()
        }
    }

    /// Begins where the first model's session ended.
    ///
    /// # Errors
    /// As [`Engine::start_all`].
    pub fn go_on(
        &self,
        first: (&Engine, &[ImageRequest]),
        outcome: &Outcome,
        keep_values: bool,
    ) -> Result<Session> {
        give_way(first.0, &self.engine);
        let [_, channels, h, w] = outcome.latents_shape;
        let values = channels * h * w;
        let starts = first.1.iter().zip(&outcome.members);
        let starts = starts.map(|(request, pictures)| {
            let latents = match pictures {
                Some(pictures) => {
                    outcome.latents[pictures.start * values..pictures.end * values].to_vec()
                }
                None => vec![0.0; request.count * values],
            };
            Start {
                request: ImageRequest {
                    noise: Some(latents),
                    ..self.request(request)
                },
                resume: None,
            }
        });
        let mut session = self.engine.start_all(starts.collect(), keep_values)?;
        for (member, pictures) in outcome.members.iter().enumerate() {
            if pictures.is_none() {
                session.drop_member(member);
            }
        }
        Ok(session)
    }
}

/// Weights that `from` keeps go where those of `to` would not fit beside them. Where they do both stay, and what both
/// models have in common is not read again.
pub(super) fn give_way(from: &Engine, to: &Engine) {
    if from.kept() > Bytes::ZERO && to.budget().available() < to.model().bytes() {
        from.forget_weights();
    }
}

/// A phase of the second model, as it is told.
fn named(phase: &str) -> &'static str {
    match phase {
        "encode" => "refiner encode",
        "encode_2" => "refiner encode_2",
        "denoise" => "refiner denoise",
        "decode" => "decode",
        _ => "refiner",
    }
}

/// Two plans, one after the other.
pub(super) fn joined(first: Plan, second: Plan) -> Plan {
    let mut phases = first.phases;
    phases.extend(second.phases.into_iter().map(|mut phase| {
        phase.name = named(&phase.name).to_owned();
        phase
    }));
    let mut approximate = first.approximate;
    for word in second.approximate {
        if !approximate.contains(&word) {
            approximate.push(word);
        }
    }
    Plan {
        phases,
        approximate,
        peak: first.peak.max(second.peak),
        seconds: first.seconds + second.seconds,
        ..first
    }
}

impl Report {
    /// What both sessions of a job took, `first` the one before.
    pub fn after(self, first: Report) -> Report {
        fn both<T>(
            first: std::collections::BTreeMap<&'static str, T>,
            second: std::collections::BTreeMap<&'static str, T>,
        ) -> std::collections::BTreeMap<&'static str, T> {
            let second = second.into_iter();
            let second = second.map(|(phase, value)| (named(phase), value));
            first.into_iter().chain(second).collect()
        }
        let mut notes = first.notes;
        notes.extend(self.notes);
        Report {
            plan: joined(first.plan, self.plan),
            seconds: both(first.seconds, self.seconds),
            waited: both(first.waited, self.waited),
            reading: both(first.reading, self.reading),
            peak: both(first.peak, self.peak),
            bytes_read: first.bytes_read + self.bytes_read,
            rungs_taken: first.rungs_taken + self.rungs_taken,
            prompts: first.prompts + self.prompts,
            prompts_cached: first.prompts_cached + self.prompts_cached,
            notes,
        }
    }
}
