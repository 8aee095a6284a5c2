//! A device that exists only in numbers: a virtual clock, a ledger, and faults that are planned.
//!
//! It runs a [`PhasePlan`] event by event, charges every byte when it would be allocated, and checks what a plan
//! promises: no slot is overwritten before its block is computed, no block is computed before it is there, and the
//! ledger balances after every event.

use crate::ledger::{Kind, Ledger, LedgerError};
use crate::pipeline::{Budget, DeviceProfile, PhaseLayout, PipelineLayout};
use crate::plan::{PhasePlan, Placement, Plan};
use crate::search::compute_seconds;
use crate::timeline::{Course, Load, Watch};
use crate::{Bytes, UnknownVariable};

/// Who holds what was in use before the device was ours.
const OTHERS: &str = "others";

/// Something that goes wrong, planned.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// An allocation fails although the budget has room, as when another process took the memory.
    OutOfMemory {
        /// Which one, counted from 0 since the device was made. Each resident block, each slot, the activations and
        /// the held bytes of a phase are one allocation each.
        allocation: u64,
    },
    /// Loads that begin from a moment on take longer.
    SlowLink {
        /// The moment, in seconds of the virtual clock.
        from_s: f64,
        /// How many times longer.
        factor: f64,
    },
    /// The device answers no more from a moment on.
    Dead {
        /// The moment, in seconds of the virtual clock.
        from_s: f64,
    },
}

/// Why a run ended early. All but a dead device can be used again: what the run held is given back.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SimError {
    /// The ledger refused: the plan outgrew the budget.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// A planned fault.
    #[error("out of memory at allocation {allocation}, {at_s} s")]
    OutOfMemory {
        /// Which allocation.
        allocation: u64,
        /// When.
        at_s: f64,
    },
    /// A planned fault.
    #[error("the device is dead since {since_s} s")]
    Dead {
        /// Since when.
        since_s: f64,
    },
    /// The plan does not belong to the layout.
    #[error("phase {phase}: {what}")]
    Mismatch {
        /// Where.
        phase: String,
        /// What does not belong.
        what: &'static str,
    },
    /// The plan's variables do not suffice for the layout's formulas.
    #[error(transparent)]
    Formula(#[from] UnknownVariable),
    /// The course broke a rule: this is a bug in the timeline or in the plan.
    #[error("at {at_s} s: {what}: this is a bug")]
    Broken {
        /// When.
        at_s: f64,
        /// Which rule.
        what: &'static str,
    },
}

/// What a run of one phase took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SimRun {
    /// Seconds of the virtual clock.
    pub seconds: f64,
    /// Seconds of them beyond undisturbed computing.
    pub stall_seconds: f64,
    /// The most bytes in use, others' included.
    pub peak: Bytes,
    /// Bytes loaded.
    pub bytes_moved: Bytes,
}

/// The simulated device.
#[derive(Clone, Debug)]
pub struct SimDevice {
    profile: DeviceProfile,
    ledger: Ledger,
    clock_s: f64,
    load_latency_s: f64,
    faults: Vec<Fault>,
    allocations: u64,
}

impl SimDevice {
    /// A device with `profile`'s rates, on which `budget.in_use` bytes are taken already.
    ///
    /// # Errors
    /// When more is in use than the budget has.
    pub fn new(profile: DeviceProfile, budget: &Budget) -> Result<SimDevice, SimError> {
        let mut ledger = Ledger::new(budget.total);
        ledger.charge(OTHERS, Kind::Activation, budget.in_use)?;
        Ok(SimDevice {
            profile,
            ledger,
            clock_s: 0.0,
            load_latency_s: 0.0,
            faults: Vec::new(),
            allocations: 0,
        })
    }

    /// Every load takes `seconds` longer than its bytes do. A plan knows nothing of it.
    #[must_use]
    pub fn with_load_latency(mut self, seconds: f64) -> SimDevice {
        self.load_latency_s = seconds;
        self
    }

    /// Plans a fault.
    #[must_use]
    pub fn with_fault(mut self, fault: Fault) -> SimDevice {
        self.faults.push(fault);
        self
    }

    /// The books.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Seconds since the device was made.
    pub fn clock_s(&self) -> f64 {
        self.clock_s
    }

    /// Runs every phase of `plan`, one after the other.
    ///
    /// # Errors
    /// As [`SimDevice::run_phase`].
    pub fn run(&mut self, pipeline: &PipelineLayout, plan: &Plan) -> Result<Vec<SimRun>, SimError> {
        if pipeline.phases.len() != plan.phases.len() {
            return Err(SimError::Mismatch {
                phase: plan.model.clone(),
                what: "the plan has other phases",
            });
        }
        pipeline
            .phases
            .iter()
            .zip(&plan.phases)
            .map(|(layout, phase)| self.run_phase(layout, phase))
            .collect()
    }

    /// Runs one phase from nothing loaded to everything given back.
    ///
    /// # Errors
    /// A planned fault, a budget outgrown, or a plan that does not belong to `layout`.
    pub fn run_phase(
        &mut self,
        layout: &PhaseLayout,
        plan: &PhasePlan,
    ) -> Result<SimRun, SimError> {
        let sizes: Vec<Bytes> = layout
            .component
            .blocks
            .iter()
            .map(|block| block.bytes())
            .collect();
        let resident = residents(layout, plan)?;
        let streamed: Vec<usize> = (0..sizes.len()).filter(|&block| !resident[block]).collect();
        let mode = &layout.modes[plan.mode_index];
        let compute_s = compute_seconds(layout, mode, &plan.vars, &self.profile)?;
        let seconds_at = |rate: f64| {
            sizes
                .iter()
                .map(|size| size.as_f64() / rate)
                .collect::<Vec<f64>>()
        };
        let (cold_s, warm_s) = (
            seconds_at(self.profile.cold_bytes_per_s),
            seconds_at(self.profile.link_bytes_per_s),
        );
        let course = Course {
            resident: &resident,
            streamed: &streamed,
            slots: plan.slots.len(),
            cold_s: &cold_s,
            warm_s: &warm_s,
            compute_s: &compute_s,
            visits: plan.visits,
            overlap: self.profile.overlap,
        };
        self.ledger.reset_peak();
        let holder = format!("{}/{}", layout.name, layout.component.name);
        let mut run = Run {
            holder: &holder,
            sizes: &sizes,
            slots: plan
                .slots
                .iter()
                .map(|&bytes| Slot { bytes, load: None })
                .collect(),
            loaded: vec![None; sizes.len()],
            began_s: self.clock_s,
            bytes_moved: 0,
            device: self,
        };
        let seconds = run.begin(plan).and_then(|()| course.run(&mut run));
        let bytes_moved = Bytes(run.bytes_moved);
        let peak = self.ledger.peak();
        if self.ledger.holding(&holder).on_device() > Bytes::ZERO {
            self.ledger.release_all(&holder)?;
        }
        self.ledger.assert_balanced();
        let seconds = seconds?;
        self.clock_s += seconds;
        let undisturbed_s = compute_s.iter().sum::<f64>() * plan.visits as f64;
        Ok(SimRun {
            seconds,
            stall_seconds: (seconds - undisturbed_s).max(0.0),
            peak,
            bytes_moved,
        })
    }

    fn alive(&self, at_s: f64) -> Result<(), SimError> {
        for fault in &self.faults {
            match *fault {
                Fault::Dead { from_s } if at_s >= from_s => {
                    return Err(SimError::Dead { since_s: from_s });
                }
                Fault::Dead { .. } | Fault::OutOfMemory { .. } | Fault::SlowLink { .. } => {}
            }
        }
        Ok(())
    }

    fn allocate(
        &mut self,
        at_s: f64,
        holder: &str,
        kind: Kind,
        bytes: Bytes,
    ) -> Result<(), SimError> {
        let allocation = self.allocations;
        self.allocations += 1;
        if self.faults.contains(&Fault::OutOfMemory { allocation }) {
            return Err(SimError::OutOfMemory { allocation, at_s });
        }
        self.ledger.charge(holder, kind, bytes)?;
        self.ledger.assert_balanced();
        Ok(())
    }

    fn load_s(&self, at_s: f64, planned_s: f64) -> f64 {
        let slower: f64 = self
            .faults
            .iter()
            .map(|fault| match *fault {
                Fault::SlowLink { from_s, factor } if at_s >= from_s => factor,
                Fault::SlowLink { .. } | Fault::OutOfMemory { .. } | Fault::Dead { .. } => 1.0,
            })
            .product();
        planned_s * slower + self.load_latency_s
    }
}

fn residents(layout: &PhaseLayout, plan: &PhasePlan) -> Result<Vec<bool>, SimError> {
    let wrong = |what| {
        Err(SimError::Mismatch {
            phase: plan.name.clone(),
            what,
        })
    };
    let count = layout.component.blocks.len();
    if layout.name != plan.name || plan.mode_index >= layout.modes.len() {
        return wrong("the plan is for another phase");
    }
    let resident = match &plan.placement {
        Placement::Resident => vec![true; count],
        Placement::Streamed { resident } if resident.len() == count => resident.clone(),
        Placement::Streamed { .. } => return wrong("the plan has another number of blocks"),
        Placement::Host => return wrong("a component on the host does not run"),
    };
    if plan.slots.is_empty() && resident.contains(&false) {
        return wrong("blocks stream but there is no slot");
    }
    if layout.modes[plan.mode_index]
        .resident_blocks
        .iter()
        .any(|&block| !resident[block])
    {
        return wrong("a block streams that the mode needs resident");
    }
    Ok(resident)
}

/// A slot, and the load whose block is in it and not yet computed.
struct Slot {
    bytes: Bytes,
    load: Option<(Load, Ready)>,
}

/// When a block is there, in seconds of the virtual clock.
#[derive(Clone, Copy)]
struct Ready(f64);

/// One phase being run.
struct Run<'a> {
    device: &'a mut SimDevice,
    holder: &'a str,
    sizes: &'a [Bytes],
    slots: Vec<Slot>,
    /// By block: when a resident one is there, once it has been asked for.
    loaded: Vec<Option<Ready>>,
    began_s: f64,
    bytes_moved: u64,
}

impl Run<'_> {
    fn begin(&mut self, plan: &PhasePlan) -> Result<(), SimError> {
        let at_s = self.began_s;
        self.device.alive(at_s)?;
        self.device
            .allocate(at_s, self.holder, Kind::Activation, plan.held)?;
        self.device
            .allocate(at_s, self.holder, Kind::Activation, plan.activation)?;
        for &bytes in &plan.slots {
            self.device
                .allocate(at_s, self.holder, Kind::Slots, bytes)?;
        }
        Ok(())
    }
}

impl Watch for Run<'_> {
    type Error = SimError;

    fn load_begins(&mut self, at_s: f64, load: Load, planned_s: f64) -> Result<f64, SimError> {
        let at_s = self.began_s + at_s;
        self.device.alive(at_s)?;
        let bytes = self.sizes[load.block];
        let seconds = self.device.load_s(at_s, planned_s);
        let ready = Ready(at_s + seconds);
        let broken = |what| Err(SimError::Broken { at_s, what });
        match load.slot {
            None if self.loaded[load.block].is_some() => {
                return broken("a resident block is loaded twice");
            }
            None => {
                self.loaded[load.block] = Some(ready);
                self.device
                    .allocate(at_s, self.holder, Kind::Weights, bytes)?;
            }
            Some(slot) => {
                let Some(slot) = self.slots.get_mut(slot) else {
                    return broken("a slot that does not exist");
                };
                if slot.load.is_some() {
                    return broken("a slot is filled before its block was computed");
                }
                if bytes > slot.bytes {
                    return broken("a block is larger than its slot");
                }
                slot.load = Some((load, ready));
            }
        }
        self.bytes_moved += bytes.0;
        Ok(seconds)
    }

    fn computed(&mut self, at_s: f64, block: usize, visit: u64) -> Result<(), SimError> {
        let at_s = self.began_s + at_s;
        self.device.alive(at_s)?;
        let holds = |slot: &Slot| {
            slot.load
                .is_some_and(|(load, _)| load.block == block && load.visit == visit)
        };
        let slot = self.slots.iter_mut().find(|slot| holds(slot));
        let ready = self.loaded[block].or_else(|| Some(slot?.load.take()?.1));
        // The clock adds seconds up in another order here than the course does.
        let forgiven_s = 1e-9 * at_s.abs();
        match ready {
            Some(Ready(ready_s)) if ready_s <= at_s + forgiven_s => {}
            _ => {
                return Err(SimError::Broken {
                    at_s,
                    what: "a block is computed before it is there",
                });
            }
        }
        self.device.ledger.assert_balanced();
        Ok(())
    }
}
