//! Pictures made larger by a network: plans, and a step machine.
//!
//! An [`Enlarger`] is an opened network. A picture goes through it whole where there is room, else in bands or tiles that
//! overlap: as far as results depend on their surroundings where that does not cost too much, which gives the bytes of the
//! whole, else by less, which is named. Each way is a rung of the plan, so a budget decides how a picture is cut.
//! What can be seen through goes through the same network, apart from the colours.

mod cut;
mod enlarging;
mod saved;

use std::sync::Arc;

use lowtide_core::{Budget, Bytes, DeviceProfile, Formula, Plan, Quality, Vars, plan};
use lowtide_kernels as kernels;
use lowtide_kernels::memory::OutOfMemory;
use lowtide_media::{Depth, Original, Size};
use lowtide_models::upscaler::Network;
use lowtide_models::{Compute, Precision};
use lowtide_weights::ModelFolder;

use crate::device::{cpu, figures, ground};
use crate::engine::Options;
use crate::job::Habits;
use crate::pipeline::{Opener, Part, SMALL_THINGS_BYTES, phase};
use crate::processor::Brought;
use crate::shared::Counted;
use crate::stream::{self, Failure};
use crate::{Error, Result, early};
use cut::{Cut, cuts};
pub use cut::{TILE_MAX, TILE_MIN};
pub use enlarging::{Enlarged, Enlarging, EnlargingReport, EnlargingStep};

/// The component's name, and the phase's.
const COMPONENT: &str = "upscaler";
const PHASE: &str = "upscale";
/// The most pixels of a result: 16,384 x 16,384.
const PIXELS_MAX: f64 = 268_435_456.0;
/// The largest factor that is asked for.
pub const SCALE_MAX: f64 = 16.0;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Enlargement {
    /// Pixels a side of the result for each of the picture; by default the network's own factor. Another factor is the
    /// network's result resized.
    pub scale: Option<f64>,
    /// Sides of tiles, in pixels of the picture; by default whatever the budget allows.
    pub tile: Option<usize>,
    /// Whether tiles may overlap by less than results depend on.
    pub quality: Quality,
}

impl Default for Enlargement {
    fn default() -> Enlargement {
        Enlargement {
            scale: None,
            tile: None,
            quality: Quality::Auto,
        }
    }
}

/// An opened network, which computes on what pipelines compute on.
pub struct Enlarger {
    name: String,
    network: Network,
    part: Part,
    options: Options,
    compute: Compute,
    profile: DeviceProfile,
}

/// A plan and what it means.
#[derive(Clone)]
struct Planned {
    plan: Plan,
    cut: Cut,
}

impl Enlarger {
    /// Whether a model is such a network.
    pub fn runs(folder: &ModelFolder) -> bool {
        Network::CLASSES.contains(&&folder.class_name[..])
    }

    /// Opens a network: reads headers, no weights.
    ///
    /// # Errors
    /// When the model is none, the threads cannot be set, or products are wanted in what only GPUs have.
    pub fn open(folder: &ModelFolder, options: Options) -> Result<Arc<Enlarger>> {
        let precision = options.precision.resolve()?;
        cpu::settle_allocator();
        if let Some(threads) = options.threads {
            kernels::set_threads(threads).map_err(|e| Error::Threads(e.to_string()))?;
        }
        let opener = Opener { folder };
        let wrap = opener.wrap(COMPONENT);
        let network = Network::read(&folder.class_name, opener.config(COMPONENT)?).map_err(wrap)?;
        let checkpoint = opener.checkpoint(COMPONENT)?;
        let part = opener.part(COMPONENT, &checkpoint, |headers| {
            network.layout(headers, COMPONENT)
        })?;
        Ok(Arc::new(Enlarger {
            name: folder.name.clone(),
            network,
            part,
            options,
            compute: Compute { precision },
            profile: ground::profile(precision),
        }))
    }

    /// What a user calls it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The network's own factor.
    pub fn scale(&self) -> usize {
        self.network.scale()
    }

    /// What products are multiplied in.
    pub fn precision(&self) -> Precision {
        self.compute.precision
    }

    /// Blocks of its weights, and their bytes.
    pub fn weights(&self) -> (usize, Bytes) {
        (self.part.layout.blocks.len(), self.part.layout.bytes())
    }

    /// The budget in force now.
    pub fn budget(&self) -> Budget {
        let ours = stream::ours([&self.part.blocks]).bytes();
        let not_others = ground::scratch_allocated() + ours.0;
        let in_use = Bytes(ground::live().saturating_sub(not_others));
        figures::of_pipelines(self.options.budget, self.options.reserve, in_use)
    }

    /// Width and height of the result for a picture of this size.
    ///
    /// # Errors
    /// [`Error::Request`].
    pub fn result_size(&self, size: &Size, asked: &Enlargement) -> Result<(u32, u32)> {
        let scale = asked.scale.unwrap_or(self.scale() as f64);
        // A little above, so that thirds come out whole.
        let side = |side: u32| ((f64::from(side) * scale + 1e-6).floor()).max(1.0);
        let (width, height) = (side(size.width), side(size.height));
        if width * height > PIXELS_MAX {
            let problem = format!("gives {width} x {height} pixels; at most {PIXELS_MAX} are made");
            return Err(Error::request("scale", problem));
        }
        Ok((width as u32, height as u32))
    }

    /// Plans a picture without running it. `budget`: what the device allows; `None`: as things are in this process, the
    /// picture not yet unpacked.
    ///
    /// # Errors
    /// [`Error::DoesNotFit`] with the numbers, [`Error::Request`].
    pub fn plan(&self, size: &Size, asked: &Enlargement, budget: Option<Budget>) -> Result<Plan> {
        let (budget, shared) = match budget {
            Some(budget) => (budget, Vec::new()),
            None => (self.budget(), self.shared()),
        };
        Ok(self.planned(size, asked, (budget, shared))?.plan)
    }

    /// Blocks that other models hold as well.
    fn shared(&self) -> Vec<usize> {
        let ours = stream::ours([&self.part.blocks]);
        let shared = self.part.blocks.shared(&ours).into_iter().enumerate();
        shared
            .filter(|(_, shared)| *shared)
            .map(|(at, _)| at)
            .collect()
    }

    fn habits(&self) -> Habits {
        Habits {
            offload: self.options.offload,
            reuse: self.options.keep_weights,
        }
    }

    /// Bytes of the picture, of the result as the network gives it, and of that in the size asked for, with what is
    /// between: all of it on the host.
    fn held(&self, size: &Size, asked: &Enlargement) -> Result<Bytes> {
        let own = Enlargement {
            scale: None,
            ..*asked
        };
        let (given, made, wanted) = (
            (size.width, size.height),
            self.result_size(size, &own).map_err(|_| {
                let (width, height) = (size.width, size.height);
                let factor = self.scale();
                Error::request(
                    "image",
                    format!(
                        "has {width} x {height} pixels, and {factor} times as many a side are more than {PIXELS_MAX}, \
                         whatever the factor asked for; make it smaller first"
                    ),
                )
            })?,
            self.result_size(size, asked)?,
        );
        let depth = if size.deep {
            Depth::Sixteen
        } else {
            Depth::Eight
        };
        let pixel = depth.bytes() as u64 * if size.alpha { 4 } else { 3 };
        let bytes = |(width, height): (u32, u32)| pixel * u64::from(width) * u64::from(height);
        let resized = match made == wanted {
            true => 0,
            false => bytes(wanted) + bytes((wanted.0, made.1)),
        };
        Ok(Bytes(bytes(given) + bytes(made) + resized))
    }

    fn planned(
        &self,
        size: &Size,
        asked: &Enlargement,
        (budget, shared): (Budget, Vec<usize>),
    ) -> Result<Planned> {
        let cuts = cuts(&self.network, (size.width, size.height), asked);
        let scratch = ground::scratch_bytes() as f64 + SMALL_THINGS_BYTES;
        let pictures = ground::of_host(self.held(size, asked)?);
        let held = Formula::constant(pictures.0 as f64 + scratch);
        let layout = &self.part.layout;
        let passes = if size.alpha { 2 } else { 1 };
        let modes = cuts
            .iter()
            .map(|cut| cut.mode(&self.network, layout.blocks.len()))
            .collect();
        let mut phase = phase(PHASE, layout, passes, held, modes);
        let habits = self.habits();
        (phase.reuse, phase.offload, phase.shared) = (habits.reuse, habits.offload, shared);
        let pipeline = lowtide_core::PipelineLayout {
            model: self.name.clone(),
            phases: vec![phase],
        };
        let plan = plan(
            &pipeline,
            &Vars::new(),
            &self.profile,
            &budget,
            asked.quality,
        )?;
        let cut = cuts[plan.phases[0].mode_index].clone();
        Ok(Planned { plan, cut })
    }

    /// Whether the host has room for what is made of a picture that is there. Plans count it only where they are the
    /// host's.
    fn check_host(&self, picture: &Original, asked: &Enlargement) -> Result<()> {
        if ground::accelerator().is_none() {
            return Ok(());
        }
        let held = self.held(&picture.size(), asked)?;
        let needed = held.saturating_sub(Bytes::from(picture.bytes()));
        let budget = figures::beside_device();
        if needed <= budget.available() {
            return Ok(());
        }
        Err(Error::OutOfMemory {
            phase: PHASE,
            source: OutOfMemory {
                needed: needed.0,
                live: budget.in_use.0,
                budget: budget.total.0,
            },
        })
    }

    /// Plans a picture and starts it.
    ///
    /// # Errors
    /// As [`Enlarger::plan`], and when the host has no room for the result.
    pub fn start(
        self: &Arc<Enlarger>,
        picture: Arc<Original>,
        asked: Enlargement,
    ) -> Result<Enlarging> {
        let size = picture.size();
        self.check_host(&picture, &asked)?;
        // The picture is there already, and is part of what the plan counts.
        let there = ground::of_host(Bytes::from(picture.bytes()));
        let mut budget = self.budget();
        budget.in_use = budget.in_use.saturating_sub(there);
        let planned = self.planned(&size, &asked, (budget, self.shared()))?;
        Ok(Enlarging::new(
            self.clone(),
            picture,
            (size, asked),
            planned,
        ))
    }

    /// Bytes of weights in memory now.
    pub fn held_weights(&self) -> Bytes {
        self.part.blocks.held()
    }

    /// The same, but for blocks that were `counted`.
    pub fn held_beside(&self, counted: &mut Counted) -> Bytes {
        self.part.blocks.held_beside(counted)
    }

    /// Brings the weights to memory as far as the budget has room for all of them; returns the bytes held.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn preload(&self) -> Result<Bytes> {
        let room = self.budget().available();
        if self.habits().keeps() && self.part.layout.bytes() <= room {
            match self.part.blocks.preload() {
                Ok(()) | Err(Failure::Memory(_)) => {}
                Err(Failure::File(error)) => return Err(error.into()),
                Err(Failure::Device(failure)) => return Err(self.wrap(failure.into())),
                Err(Failure::Stopped | Failure::OutOfOrder { .. }) => {
                    return Err(Error::LoaderStopped);
                }
            }
        }
        Ok(self.part.blocks.kept())
    }

    /// Forgets weights that nobody uses; returns the bytes that gave back.
    pub fn forget_weights(&self) -> Bytes {
        let ours = stream::ours([&self.part.blocks]).bytes();
        self.part.blocks.forget_unless(|_| false);
        cpu::give_back();
        ground::trim();
        ours
    }

    /// Forgets weights until at most `most` bytes of them are held; returns the bytes that gave back.
    pub fn shrink(&self, most: Bytes) -> Bytes {
        early::shrink(&[&self.part.blocks], most)
    }

    /// Bytes of weights that stay when a picture goes through as planned.
    pub fn stays(&self, plan: &Plan) -> Bytes {
        early::stays(&[&self.part], plan)
    }

    /// Reads the weights that stay when a picture goes through as planned, before it does. `more` is asked before each
    /// block whether so many bytes more may be taken; no picture may be on its way.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn bring(&self, plan: &Plan, more: &dyn Fn(Bytes) -> bool) -> Result<Brought> {
        early::bring(&[&self.part], plan, more)
    }

    /// Says whose error it is.
    fn wrap(&self, source: lowtide_models::Error) -> Error {
        Error::Model {
            model: self.name.clone(),
            component: COMPONENT,
            source,
        }
    }
}
