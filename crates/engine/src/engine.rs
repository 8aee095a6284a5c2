//! An opened model on a device: plans jobs and starts sessions.

use std::path::Path;
use std::sync::Arc;

use lowtide_core::{Budget, Bytes, DeviceProfile, Plan, plan};
use lowtide_kernels as kernels;
use lowtide_kernels::memory;
use lowtide_models::{Compute, Precision};
use lowtide_weights::ModelFolder;

use crate::device::cpu;
use crate::device::memory::Memory;
use crate::job::Job;
use crate::pipeline::z_image::ZImage;
use crate::prompt::PromptEncoder;
use crate::request::TextToImage;
use crate::session::{Saved, Session};
use crate::stream::Failure;
use crate::{Error, Result};

/// What products are multiplied in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PrecisionChoice {
    /// Single precision.
    F32,
    /// Operands rounded to bf16, sums in single precision.
    Bf16,
    /// Bf16 where the machine multiplies it natively, else single precision.
    #[default]
    Auto,
}

impl PrecisionChoice {
    /// What it means on this machine.
    pub fn resolve(self) -> Precision {
        match self {
            PrecisionChoice::F32 => Precision::F32,
            PrecisionChoice::Bf16 => Precision::Bf16,
            PrecisionChoice::Auto if kernels::native_bf16() => Precision::Bf16,
            PrecisionChoice::Auto => Precision::F32,
        }
    }
}

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
}

/// An opened model on the CPU.
pub struct Engine {
    model: Arc<ZImage>,
    folder: ModelFolder,
    options: Options,
    compute: Compute,
    profile: DeviceProfile,
}

impl Engine {
    /// Opens a model: reads configurations and headers, no weights.
    ///
    /// # Errors
    /// When the folder is not a model that can be run, or the threads cannot be set.
    pub fn open(folder: ModelFolder, options: Options) -> Result<Engine> {
        cpu::settle_allocator();
        if let Some(threads) = options.threads {
            kernels::set_threads(threads).map_err(|e| Error::Threads(e.to_string()))?;
        }
        let model = Arc::new(ZImage::open(&folder)?);
        let precision = options.precision.resolve();
        let profile = cpu::profile(precision);
        Ok(Engine {
            model,
            folder,
            options,
            compute: Compute { precision },
            profile,
        })
    }

    /// The model.
    pub fn model(&self) -> &ZImage {
        &self.model
    }

    /// The device's rates.
    pub fn profile(&self) -> &DeviceProfile {
        &self.profile
    }

    /// What products are multiplied in.
    pub fn precision(&self) -> Precision {
        self.compute.precision
    }

    /// The budget in force now.
    pub fn budget(&self) -> Budget {
        // The kernels' scratch is part of every phase's own bytes, whether it exists already or not; kept weights are
        // forgotten as soon as a phase needs their room.
        let not_ours_to_count = kernels::scratch_allocated() as u64 + self.kept().0;
        let in_use = Bytes(memory::live().saturating_sub(not_ours_to_count));
        let total = self
            .options
            .budget
            .unwrap_or_else(|| free_budget(in_use, self.options.reserve));
        Budget { total, in_use }
    }

    /// Plans a job without running it.
    ///
    /// # Errors
    /// When the request cannot be, or nothing fits.
    pub fn plan(&self, request: &TextToImage) -> Result<Plan> {
        Ok(self.prepare(request.clone(), false)?.plan)
    }

    /// Plans a job and starts it; `keep_values` keeps latents and f32 pictures in the outcome.
    ///
    /// # Errors
    /// As [`Engine::plan`].
    pub fn start(&self, request: TextToImage, keep_values: bool) -> Result<Session> {
        let job = self.prepare(request, keep_values)?;
        Ok(self.session(job))
    }

    fn session(&self, job: Job) -> Session {
        Session::new(
            self.model.clone(),
            self.compute,
            self.profile.clone(),
            job,
            self.options.keep_weights,
        )
    }

    /// Goes on with a session that [`Session::save`] wrote, on the plan that fits now; the result is the same to the
    /// byte.
    ///
    /// # Errors
    /// When the file is no session of this model and precision, or nothing fits.
    pub fn resume(&self, file: &Path) -> Result<Session> {
        let saved = Saved::open(file, &self.model, self.compute)?;
        let job = self.planned(saved.request(), saved.prompts(), saved.keep_values())?;
        saved.restore(self.session(job))
    }

    /// Bytes of weights kept in memory between phases and jobs.
    pub fn kept(&self) -> Bytes {
        self.model
            .parts()
            .map(|part| part.blocks.kept())
            .into_iter()
            .sum()
    }

    /// Forgets all kept weights and says how many bytes that gave back. Weights that a running session uses go when it
    /// is done with them.
    pub fn forget_weights(&self) -> Bytes {
        let kept = self.kept();
        for part in self.model.parts() {
            part.blocks.forget_unless(|_| false);
        }
        memory::trim();
        kept
    }

    /// Loads weights ahead of any job, the transformer first, as long as the budget has room for a component.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn preload(&self) -> Result<Bytes> {
        for part in self.model.parts() {
            let budget = self.budget();
            let room = budget.available().saturating_sub(self.kept());
            if part.layout.bytes() > room {
                continue;
            }
            match part.blocks.preload() {
                Ok(()) | Err(Failure::Memory(_)) => {}
                Err(Failure::File(error)) => return Err(error.into()),
                Err(Failure::Stopped | Failure::OutOfOrder { .. }) => {
                    return Err(Error::LoaderStopped);
                }
            }
        }
        Ok(self.kept())
    }

    fn prepare(&self, request: TextToImage, keep_values: bool) -> Result<Job> {
        request.check(self.model.multiple())?;
        let prompts = self.tokenize(&request)?;
        self.planned(request, prompts, keep_values)
    }

    fn planned(
        &self,
        request: TextToImage,
        prompts: Vec<Vec<u32>>,
        keep_values: bool,
    ) -> Result<Job> {
        let lengths = prompts.iter().map(Vec::len).collect();
        let shape = self.model.shape(&request, lengths, keep_values)?;
        if let Some(noise) = &request.noise {
            let expected = self.model.transformer_config.channels
                * shape.latent.0
                * shape.latent.1
                * shape.count;
            if noise.len() != expected {
                let problem = format!(
                    "holds {} values; this size and count need {expected}",
                    noise.len()
                );
                return Err(Error::request("noise", problem));
            }
        }
        let vars = self.model.vars(&shape);
        let mut pipeline = self.model.pipeline(&shape);
        for phase in &mut pipeline.phases {
            phase.reuse = self.options.keep_weights;
        }
        let plan = plan(
            &pipeline,
            &vars,
            &self.profile,
            &self.budget(),
            request.quality,
        )?;
        Ok(Job {
            request,
            shape,
            vars,
            plan,
            prompts,
        })
    }

    /// The tokenizer lives only here: it is large beside a small model.
    fn tokenize(&self, request: &TextToImage) -> Result<Vec<Vec<u32>>> {
        let encoder = PromptEncoder::open(&self.folder)?;
        let mut prompts = vec![encoder.encode(&request.prompt)?];
        if request.guided() {
            prompts.push(encoder.encode(request.negative.as_deref().unwrap_or(""))?);
        }
        Ok(prompts)
    }
}

/// What is free, less the reserve, and with what this process already holds.
fn free_budget(in_use: Bytes, reserve: Option<Bytes>) -> Bytes {
    let Some(memory) = Memory::read() else {
        return Bytes(u64::MAX / 2);
    };
    let reserve = reserve.unwrap_or_else(|| memory.reserve_default());
    memory.free().saturating_sub(reserve) + in_use
}
