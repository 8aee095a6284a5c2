//! An opened model on a device: plans jobs and starts sessions.

mod describe;
mod passes;
mod share;
mod weights;

use std::path::Path;
use std::sync::Arc;

use lowtide_core::{
    Budget, Bytes, DeviceProfile, Offload, Plan, PlanError, Quality, UnknownVariable, plan,
};
use lowtide_kernels as kernels;
use lowtide_models::{Compute, Precision};
use lowtide_weights::ModelFolder;

use self::passes::places;
use crate::adapters::Active;
use crate::course::Course;
use crate::defaults::{self, Variant};
use crate::device::{cpu, figures, ground};
use crate::job::{self, Habits, Job, Planned, Shared};
use crate::lora_files::{self, Added, LoraFiles};
use crate::pipeline::{self, Pass, Pipeline, Shape};
use crate::precision::PrecisionChoice;
use crate::processor::{CacheFigures, Files, NoFiles};
use crate::prompt_cache::PromptCache;
use crate::request::{ImageRequest, Upscaler};
use crate::session::work::{TextKey, Work};
use crate::session::{Makings, Saved, Session};
use crate::{Error, Result, siblings};

/// How an engine uses its device.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Bytes the process may ever use; by default what is free, less the reserve.
    pub budget: Option<Bytes>,
    /// Bytes left for others when there is no budget; by default a sixteenth of the memory, at most 1 GiB.
    pub reserve: Option<Bytes>,
    /// Threads of the kernels; by default one a core.
    pub threads: Option<usize>,
    /// What products are multiplied in.
    pub precision: PrecisionChoice,
    /// Whether weights stay in memory after the phase that used them, as far as the budget allows, for the next job.
    pub keep_weights: bool,
    /// What the user says about weights that are not in use.
    pub offload: Offload,
    /// Bytes of what was made of prompts that are kept for jobs that say the same; by default 64 MiB, 0 is none.
    pub prompt_cache: Option<Bytes>,
}

/// What is kept of prompts unless the options say otherwise: some hundreds of them, of a large model.
const PROMPT_CACHE_DEFAULT: Bytes = Bytes::mib(64);

/// One job of a session.
#[derive(Clone, Debug)]
pub struct Start<'a> {
    /// What is asked.
    pub request: ImageRequest,
    /// A file that [`Session::save`] wrote for the same request, to go on from.
    pub resume: Option<&'a Path>,
}

/// An opened model on what pipelines compute on.
pub struct Engine {
    model: Arc<dyn Pipeline>,
    folder: Arc<ModelFolder>,
    options: Options,
    compute: Compute,
    profile: DeviceProfile,
    prompts: Arc<PromptCache>,
    /// Whether it is a smaller variant of another model.
    variant: Option<Variant>,
    loras: LoraFiles,
}

impl Engine {
    /// Opens a model: reads configurations and headers, no weights.
    ///
    /// # Errors
    /// When the folder is not a model that can be run, the threads cannot be set, or products are wanted in what pipelines
    /// do not have here.
    pub fn open(folder: ModelFolder, options: Options) -> Result<Engine> {
        Engine::with_files(folder, options, Arc::new(NoFiles))
    }

    /// As [`Engine::open`], with files that requests may name.
    ///
    /// # Errors
    /// As [`Engine::open`].
    pub fn with_files(
        folder: ModelFolder,
        options: Options,
        files: Arc<dyn Files>,
    ) -> Result<Engine> {
        let precision = options.precision.resolve()?;
        cpu::settle_allocator();
        if let Some(threads) = options.threads {
            kernels::set_threads(threads).map_err(|e| Error::Threads(e.to_string()))?;
        }
        let folder = Arc::new(folder);
        let model = siblings::one_of(pipeline::open(&folder, &files)?, &files);
        let loras = LoraFiles::new(files);
        let profile = ground::profile(precision);
        let variant = defaults::variant_of(&folder)?;
        Ok(Engine {
            model,
            variant,
            folder,
            options,
            compute: Compute { precision },
            profile,
            loras,
            prompts: Arc::new(PromptCache::new(
                options.prompt_cache.unwrap_or(PROMPT_CACHE_DEFAULT),
            )),
        })
    }

    /// The model.
    pub(crate) fn model(&self) -> &dyn Pipeline {
        &*self.model
    }

    /// Files that requests may name.
    pub(crate) fn files(&self) -> &Arc<dyn Files> {
        self.loras.files()
    }

    /// How it was opened.
    pub(crate) fn options(&self) -> Options {
        self.options
    }

    /// The noise, or what stands for it, of a job that was saved before it made latents of it.
    ///
    /// # Errors
    /// When the file is no session of this request, model and precision.
    pub(crate) fn saved_noise(
        &self,
        file: &Path,
        request: &ImageRequest,
    ) -> Result<Option<Vec<f32>>> {
        Ok(self.open_saved(file, request)?.request().noise)
    }

    /// The device's rates.
    pub fn profile(&self) -> &DeviceProfile {
        &self.profile
    }

    /// What requests mean that do not speak of quality: exact, where the model has exact pictures.
    pub fn quality(&self) -> Quality {
        match self.variant {
            Some(_) => Quality::Auto,
            None => Quality::Exact,
        }
    }

    /// What products are multiplied in.
    pub fn precision(&self) -> Precision {
        self.compute.precision
    }

    /// The budget in force now.
    pub fn budget(&self) -> Budget {
        // The kernels' scratch is part of every phase's own bytes, whether it exists already or not; kept weights are
        // forgotten as soon as a phase needs their room, but for those that another model holds as well.
        let ours = self.model.ours().bytes() + self.loras.kept();
        let not_ours_to_count = ground::scratch_allocated() + ours.0;
        let in_use = Bytes(ground::live().saturating_sub(not_ours_to_count));
        figures::of_pipelines(self.options.budget, self.options.reserve, in_use)
    }

    /// Plans a job without running it.
    ///
    /// # Errors
    /// When the request cannot be, or nothing fits.
    pub fn plan(&self, request: &ImageRequest) -> Result<Plan> {
        self.check(request)?;
        let active = self.loras.active(&*self.model, request)?;
        let prompts = self.texts(&[request], active.as_deref())?;
        let members = std::iter::once(request.clone()).zip(prompts).collect();
        let (passes, courses) = self.passes(request)?;
        let work = Work::new(members, passes, self.model.text_stages().len());
        Ok(self
            .planned(&work, (courses, active), (false, Bytes::ZERO))?
            .plan)
    }

    /// Checks a request against the model.
    ///
    /// # Errors
    /// [`Error::Request`].
    pub fn check(&self, request: &ImageRequest) -> Result<()> {
        request.check(self.model.multiple())?;
        if let (Some(variant), Quality::Exact) = (&self.variant, request.quality) {
            let of = variant.of.as_deref();
            let problem = format!(
                "is exact, and {} is a {} of {}, whose pictures it only comes near to; ask that model, or with quality auto",
                self.model.name(),
                variant.name,
                of.unwrap_or("another model"),
            );
            return Err(Error::request("quality", problem));
        }
        let hires_pixels = request
            .hires
            .filter(|hires| hires.upscaler == Upscaler::Lanczos);
        if (request.source.is_some() || hires_pixels.is_some()) && !self.model.vae().encodes() {
            let problem = format!(
                "needs the VAE's encoder, which {} does not have; fetch the model again",
                self.model.name()
            );
            return Err(Error::request("image", problem));
        }
        self.model.check(request)
    }

    fn shape(
        &self,
        request: &ImageRequest,
        (texts, members): (Vec<usize>, Vec<Vec<usize>>),
        (passes, courses): (&[Pass], &[Course]),
        (added, keep_values): (Added, bool),
    ) -> Result<Shape> {
        let last = passes.last().expect("a job has a pass");
        let shape = Shape {
            width: last.width,
            height: last.height,
            count: request.count * members.len(),
            texts,
            members,
            keep_values,
            masked: request
                .source
                .as_ref()
                .is_some_and(|source| source.mask.is_some()),
            passes: passes.to_vec(),
            added: added.bytes,
            added_scratch: added.scratch,
            history: courses.iter().map(Course::history).max().unwrap_or(0),
        };
        self.model.check_shape(&shape)?;
        Ok(shape)
    }

    /// Predicts what `members` requests like this one cost together, without opening the tokenizer: tokens are bounded
    /// by the bytes of the texts, so the true cost is not above this. `budget`: what the device allows; `None`: as things
    /// are in this process.
    ///
    /// # Errors
    /// As [`Engine::plan`].
    pub fn forecast(
        &self,
        request: &ImageRequest,
        members: usize,
        budget: Option<Budget>,
    ) -> Result<Plan> {
        self.check(request)?;
        let (passes, courses) = self.passes(request)?;
        let bounds = self.bounds(request, members)?;
        let added = self
            .loras
            .forecast(&*self.model, request, places(&passes))?;
        let shape = self.shape(request, bounds, (&passes, &courses), (added, false))?;
        // What others hold is among what is in use only where that was looked at here.
        let (budget, shared) = match budget {
            None => (self.budget(), job::shared(&*self.model, &shape)),
            Some(budget) => (budget, vec![Vec::new(); shape.phases(&*self.model).len()]),
        };
        Ok(self
            .planned_for((shape, courses, None), request.quality, (budget, shared))?
            .plan)
    }

    /// What each further member adds to the peak of a job that is planned so, and to its seconds, when they share the
    /// batch.
    ///
    /// # Errors
    /// As [`Engine::plan`].
    pub fn one_more(&self, request: &ImageRequest, plan: &Plan) -> Result<(Bytes, f64)> {
        let (passes, courses) = self.passes(request)?;
        let cost = |members: usize| -> Result<(Vec<Bytes>, f64)> {
            let bounds = self.bounds(request, members)?;
            let about = (Added::default(), false);
            let shape = self.shape(request, bounds, (&passes, &courses), about)?;
            let vars = pipeline::vars(&*self.model, &shape);
            let (mut bytes, mut flops) = (Vec::new(), 0.0);
            let layouts = pipeline::layouts(&*self.model, &shape).phases;
            for (layout, planned) in layouts.iter().zip(&plan.phases) {
                let mode = &layout.modes[planned.mode_index];
                let mut vars = vars.clone();
                for ladder in &mode.ladders {
                    let value = planned.vars.get(&ladder.var).unwrap_or(ladder.full);
                    vars.set(ladder.var.clone(), value);
                }
                vars.set("batch", shape.count as u64);
                let formula = |error: UnknownVariable| {
                    Error::Plan(PlanError::Formula {
                        phase: layout.name.clone(),
                        source: error,
                    })
                };
                let held = layout.held.bytes(&vars).map_err(formula)?;
                bytes.push(held + mode.activation.bytes(&vars).map_err(formula)?);
                flops += mode.flops.eval(&vars).map_err(formula)? * layout.passes as f64;
            }
            Ok((bytes, flops))
        };
        let ((one, flops_one), (two, flops_two)) = (cost(1)?, cost(2)?);
        let more = one
            .iter()
            .zip(&two)
            .map(|(one, two)| two.saturating_sub(*one))
            .max();
        let seconds = (flops_two - flops_one).max(0.0) / self.profile.flops_per_s;
        Ok((more.unwrap_or_default(), seconds))
    }

    /// Upper bounds of the token counts of `members` requests like this one, and who uses which text.
    fn bounds(
        &self,
        request: &ImageRequest,
        members: usize,
    ) -> Result<(Vec<usize>, Vec<Vec<usize>>)> {
        let one = self.model.texts_bound(request)?;
        let mut texts = Vec::new();
        let mut uses = Vec::new();
        for _ in 0..members {
            let first = texts.len();
            texts.extend(&one);
            uses.push((first..texts.len()).collect());
        }
        Ok((texts, uses))
    }

    /// Plans a job and starts it; `keep_values` keeps latents and f32 pictures in the outcome.
    ///
    /// # Errors
    /// As [`Engine::plan`].
    pub fn start(&self, request: ImageRequest, keep_values: bool) -> Result<Session> {
        let start = Start {
            request,
            resume: None,
        };
        self.start_all(vec![start], keep_values)
    }

    /// The same beside others who will hold `in_use` bytes in all, though they may hold less of them now.
    ///
    /// # Errors
    /// As [`Engine::plan`].
    pub(crate) fn start_beside(&self, request: ImageRequest, in_use: Bytes) -> Result<Session> {
        self.check(&request)?;
        let active = self.loras.active(&*self.model, &request)?;
        let prompts = self.texts(&[&request], active.as_deref())?;
        let members = std::iter::once(request).zip(prompts).collect();
        self.begin(members, (vec![None], active), (false, in_use))
    }

    /// Starts several jobs in one session, which agree in everything but texts and seeds. Each gives the bytes it would
    /// give alone.
    ///
    /// # Errors
    /// As [`Engine::plan`]; and as [`Engine::resume`] for those that go on from a file.
    pub fn start_all(&self, starts: Vec<Start<'_>>, keep_values: bool) -> Result<Session> {
        let Some(first) = starts.first() else {
            return Err(Error::request("orders", "are none (this is a bug)"));
        };
        if !starts
            .iter()
            .all(|start| first.request.agrees_with(&start.request))
        {
            return Err(Error::request(
                "orders",
                "differ in more than texts and seeds (this is a bug)",
            ));
        }
        let mut saved = Vec::with_capacity(starts.len());
        for start in &starts {
            self.check(&start.request)?;
            let open = |file| self.open_saved(file, &start.request);
            saved.push(start.resume.map(open).transpose()?);
        }
        let active = self.loras.active(&*self.model, &first.request)?;
        let fresh: Vec<&ImageRequest> = starts
            .iter()
            .zip(&saved)
            .filter(|(_, saved)| saved.is_none())
            .map(|(start, _)| &start.request)
            .collect();
        let mut fresh = self.texts(&fresh, active.as_deref())?.into_iter();
        let prompts = saved.iter().map(|saved| match saved {
            Some(saved) => saved.prompts(),
            None => fresh.next().expect("one for each that is not saved"),
        });
        let prompts: Vec<_> = prompts.collect();
        let requests = starts.into_iter().map(|start| start.request);
        self.begin(
            requests.zip(prompts).collect(),
            (saved, active),
            (keep_values, Bytes::ZERO),
        )
    }

    fn texts(
        &self,
        requests: &[&ImageRequest],
        active: Option<&Active>,
    ) -> Result<Vec<Vec<TextKey>>> {
        if requests.is_empty() {
            return Ok(Vec::new());
        }
        let mut texts = self.model.texts(requests)?;
        if let Some(digest) = active.and_then(Active::text_digest) {
            for text in texts.iter_mut().flatten() {
                text.adapters = Some(digest);
            }
        }
        Ok(texts)
    }

    fn open_saved(&self, file: &Path, request: &ImageRequest) -> Result<Saved> {
        let saved = Saved::open(file, &*self.model, self.compute)?;
        let same = ImageRequest {
            noise: request.noise.clone(),
            source: request.source.clone(),
            ..saved.request()
        };
        let source = request.source.as_ref().map(|source| source.digest());
        match same == *request && source == saved.source() {
            true => Ok(saved),
            false => {
                let problem = format!("{}: belongs to another request", file.display());
                Err(Error::request("session", problem))
            }
        }
    }

    fn begin(
        &self,
        members: Vec<(ImageRequest, Vec<TextKey>)>,
        (saved, active): (Vec<Option<Saved>>, Option<Arc<Active>>),
        room: (bool, Bytes),
    ) -> Result<Session> {
        let digest = active.as_deref().and_then(Active::digest);
        for saved in saved.iter().flatten() {
            saved.check_adapters(digest)?;
        }
        let (passes, courses) = self.passes(&members[0].0)?;
        let mut work = Work::new(members, passes, self.model.text_stages().len());
        self.ask_neighbours(&work, active.as_ref(), room)?;
        let planned = match self.planned(&work, (courses, active.clone()), room) {
            // What was made of earlier prompts gives way to this job.
            Err(Error::DoesNotFit(_))
                if self.prompts.clear() + self.loras.forget() > Bytes::ZERO =>
            {
                let (_, courses) = self.passes(work.settings())?;
                self.planned(&work, (courses, active), room)?
            }
            planned => planned?,
        };
        for (member, saved) in saved.into_iter().enumerate() {
            if let Some(saved) = saved {
                saved.restore(&*self.model, &mut work, member)?;
            }
        }
        let makings = Makings {
            model: self.model.clone(),
            compute: self.compute,
            profile: self.profile.clone(),
            prompts: self.prompts.clone(),
            reserve: self.reserve(),
        };
        Ok(Session::new(makings, Job { work, planned }))
    }

    /// Goes on with a job that [`Session::save`] wrote, on the plan that fits now; the result is the same to the byte.
    ///
    /// # Errors
    /// When the file is no session of this model and precision, or nothing fits.
    pub fn resume(&self, file: &Path) -> Result<Session> {
        let saved = Saved::open(file, &*self.model, self.compute)?;
        let request = saved.request();
        let active = self.loras.active(&*self.model, &request)?;
        let members = vec![(request, saved.prompts())];
        let keep_values = saved.keep_values();
        let room = (keep_values, Bytes::ZERO);
        self.begin(members, (vec![Some(saved)], active), room)
    }

    /// The cache of what was made of prompts, in numbers.
    pub fn prompt_cache(&self) -> CacheFigures {
        self.prompts.figures()
    }

    fn planned(
        &self,
        work: &Work,
        about: (Vec<Course>, Option<Arc<Active>>),
        room: (bool, Bytes),
    ) -> Result<Planned> {
        self.planned_within(work, about, room, None)
    }

    /// As [`Engine::planned`], with so much memory in all, where that is said.
    fn planned_within(
        &self,
        work: &Work,
        (courses, active): (Vec<Course>, Option<Arc<Active>>),
        (keep_values, in_use): (bool, Bytes),
        total: Option<Bytes>,
    ) -> Result<Planned> {
        let request = work.settings();
        let texts = work.texts.iter().map(|text| text.key.tokens()).collect();
        let uses = work
            .members
            .iter()
            .map(|member| member.texts().collect())
            .collect();
        let about = (&work.passes[..], &courses[..]);
        let added = lora_files::cost(&*self.model, active.as_deref(), places(&work.passes));
        let shape = self.shape(request, (texts, uses), about, (added, keep_values))?;
        let (h, w) = work.passes[0].latent;
        let values = self.model.vae().config.latent_channels * h * w;
        for member in &work.members {
            let expected = values * request.count;
            let given = member.request.noise.as_ref().map_or(expected, Vec::len);
            if given != expected {
                let problem = format!("holds {given} values; this size and count need {expected}");
                return Err(Error::request("noise", problem));
            }
        }
        let shared = job::shared(&*self.model, &shape);
        let mut budget = self.budget();
        budget.in_use = budget.in_use.max(in_use);
        budget.total = total.unwrap_or(budget.total);
        self.planned_for((shape, courses, active), request.quality, (budget, shared))
    }

    fn planned_for(
        &self,
        (shape, courses, active): (Shape, Vec<Course>, Option<Arc<Active>>),
        quality: Quality,
        (budget, shared): (Budget, Shared),
    ) -> Result<Planned> {
        let vars = pipeline::vars(&*self.model, &shape);
        let habits = Habits {
            offload: self.options.offload,
            reuse: self.options.keep_weights,
        };
        let pipeline = job::pipeline(&*self.model, &shape, habits, &shared);
        let mut plan = plan(&pipeline, &vars, &self.profile, &budget, quality)?;
        plan.approximate
            .extend(self.variant.iter().map(|variant| variant.name.clone()));
        Ok(Planned {
            phases: shape.phases(&*self.model),
            courses,
            active,
            shape,
            vars,
            plan,
            quality,
            habits,
            shared,
        })
    }
}
