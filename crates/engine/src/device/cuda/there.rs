//! A GPU behind the engine's words: [`lowtide_cuda`] as an [`Accelerator`].
//!
//! The GPU stays in one place behind a lock, with the buffers it gave out; what leaves are addresses. Calls only queue work,
//! so that the lock is held for moments: the thread that computes and the one that loads do not wait for each other, and
//! nobody waits for the GPU with the lock in hand, but for the little that is brought back.

mod operations;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use lowtide_core::{Bytes, DeviceProfile};
use lowtide_cuda::telemetry::Telemetry;
use lowtide_cuda::{
    Buffer, Context, DeviceInfo, Error, Event, Gpu, Pinned, Rates, Ring, Span, SpanMut, ops,
};
use lowtide_kernels::{Activation, Precision, Stored};
use lowtide_models::device::{Device, Done, Failure, Span as Part};

use crate::device::ground::{Accelerator, AcceleratorFigures, Activity, Fill, HostBytes, Mark};
use crate::device::memory::reserve_of;

/// The link is measured with buffers of this size.
const MEASURED_BYTES: usize = 64 << 20;

/// A first read may have to come from a disk; an ordinary NVMe drive reads about this fast.
const COLD_SPEED_BYTES_PER_S: f64 = 3.0e9;

/// What kernels take beside their operands: keys and values of a group of heads in the products' type (64 MiB; more where one
/// head alone needs it, as a VAE's does in large pictures, which then gives way to buffers), and for products by a library
/// activations in it (32 MiB) and a second product (64 MiB).
const SCRATCH_BYTES: u64 = 160 << 20;

/// Starting a block: launches of some dozen kernels.
const BLOCK_OVERHEAD_S: f64 = 100e-6;

/// The GPUs that can be used, or why there are none.
fn usable() -> Result<Vec<DeviceInfo>, String> {
    match lowtide_cuda::devices() {
        Ok(devices) if devices.is_empty() => Err("the driver shows no GPU".to_owned()),
        Ok(_) if !lowtide_cuda::has_kernels() => Err(
            "this build knows GPUs but has no kernels for them; build it with scripts/build-cuda"
                .to_owned(),
        ),
        Ok(devices) => Ok(devices),
        Err(error) => Err(error.to_string()),
    }
}

/// Why no GPU can be used; `None` where one can.
pub fn absent() -> Option<String> {
    usable().err()
}

/// The numbers of the GPUs that can be used.
pub fn ordinals() -> Vec<usize> {
    let devices = usable().unwrap_or_default();
    devices.iter().map(|device| device.ordinal).collect()
}

/// The memory of a GPU that can be used.
pub fn total(ordinal: usize) -> Option<Bytes> {
    let devices = usable().unwrap_or_default();
    let found = devices.iter().find(|device| device.ordinal == ordinal);
    found.map(|device| Bytes(device.total))
}

/// The GPUs that can be used, in words, or why there are none.
///
/// # Errors
/// In words for the user.
pub fn shown() -> Result<String, String> {
    let one = |device: &DeviceInfo| {
        let (major, minor) = device.compute;
        let (free, total) = (Bytes(device.free), Bytes(device.total));
        format!(
            "cuda:{} is {} (compute capability {major}.{minor}), {free} free of {total}",
            device.ordinal, device.name
        )
    };
    Ok(usable()?.iter().map(one).collect::<Vec<_>>().join("; "))
}

/// Opens a GPU for pipelines, tests that it computes what it should, and measures it.
///
/// # Errors
/// When it is not there, has too little memory, or fails; in words for the user.
pub fn open(
    ordinal: usize,
    budget: Option<Bytes>,
    reserve: Option<Bytes>,
) -> Result<Arc<dyn Accelerator>, String> {
    Cuda::open(usable()?, ordinal, (budget, reserve))
        .map(|cuda| Arc::new(cuda) as Arc<dyn Accelerator>)
        .map_err(|error| error.to_string())
}

/// The GPU, and the buffers that it gave out, by address.
pub(super) struct State {
    // Buffers go before the GPU they are of.
    buffers: HashMap<u64, Buffer>,
    gpu: Gpu,
    budget: u64,
}

/// A [`State`] that may be used by any thread, one at a time.
struct Kept(State);

// SAFETY: a `Gpu` is bound to a thread because clones of it count themselves without a lock. All clones of this one are
// in this state (the buffers hold them), and the state is used under one lock alone; nothing that is handed out holds one.
// Every call binds the context to the thread that makes it.
#[allow(unsafe_code, reason = "the argument above is beyond the compiler")]
unsafe impl Send for Kept {}

/// A GPU that pipelines compute on.
pub(super) struct Cuda {
    state: Mutex<Kept>,
    /// What weights pass through that cannot stay in page-locked memory; made when the first of them comes.
    ring: Mutex<Option<Ring>>,
    waits: Mutex<Waits>,
    context: Arc<Context>,
    telemetry: Option<Telemetry>,
    name: String,
    /// Where it is on the bus.
    pci: String,
    total: u64,
    budget: u64,
    ordinal: usize,
    link_bytes_per_s: f64,
    flops_per_s: [f64; 2],
    /// In tf32 and f16, once somebody asked.
    flops_if_asked: [OnceLock<f64>; 2],
}

/// So many waits are noted before those that are over are counted.
const WAITS_OPEN_MAX: usize = 64;

/// Two events that follow each other at once are about this far apart.
const NO_WAIT: Duration = Duration::from_micros(5);

/// The moments between which the GPU waited, and the sum of those that were looked at.
#[derive(Default)]
struct Waits {
    open: VecDeque<(Mark, Mark)>,
    total: Duration,
}

impl Waits {
    fn count(&mut self, (begin, end): &(Mark, Mark)) -> Result<(), Error> {
        let ms = event(end)?.elapsed_ms(event(begin)?)?;
        let took = Duration::from_secs_f32(ms.max(0.0) / 1e3);
        self.total += took.saturating_sub(NO_WAIT);
        Ok(())
    }

    /// Counts those that are over, or waits for all of them.
    fn count_them(&mut self, all: bool) -> Result<(), Error> {
        while let Some(first) = self.open.pop_front() {
            if !all && !event(&first.1)?.is_past()? {
                self.open.push_front(first);
                break;
            }
            self.count(&first)?;
        }
        Ok(())
    }
}

impl std::fmt::Debug for Cuda {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cuda").field("name", &self.name).finish()
    }
}

/// A failure of the GPU in the models' words.
pub(super) fn failure(error: Error) -> Failure {
    match error {
        Error::OutOfMemory {
            asked,
            used,
            budget,
        } => Failure::OutOfMemory {
            asked,
            used,
            budget,
        },
        Error::DriverOutOfMemory { asked, free, .. } => Failure::OutOfMemory {
            asked,
            used: 0,
            budget: free,
        },
        other if other.is_poisoned() => Failure::Lost(Box::new(other)),
        other => Failure::Other(Box::new(other)),
    }
}

impl Cuda {
    fn open(
        devices: Vec<DeviceInfo>,
        ordinal: usize,
        (budget, reserve): (Option<Bytes>, Option<Bytes>),
    ) -> Result<Cuda, Error> {
        let count = devices.len();
        let info = devices
            .into_iter()
            .find(|device| device.ordinal == ordinal)
            .ok_or(Error::NoDevice { ordinal, count })?;
        // What others use now they may give back: how much is free, contexts not counted, is asked again before each job.
        let reserve = reserve.unwrap_or_else(|| reserve_of(Bytes(info.total))).0;
        let most = info.total.saturating_sub(reserve);
        let budget = budget.map_or(most, |budget| budget.0);
        let gpu = Gpu::open(ordinal, budget)?;
        lowtide_cuda::self_test(&gpu)?;
        let bytes = MEASURED_BYTES.min(budget as usize / 4);
        let rates = Rates::measure(&gpu, bytes)?;
        let flops_per_s = [
            measure_flops(&gpu, Precision::F32)?,
            measure_flops(&gpu, Precision::Bf16)?,
        ];
        gpu.forget_scratch();
        gpu.trim()?;
        gpu.reset_peak();
        let context = gpu.context().clone();
        let state = State {
            buffers: HashMap::new(),
            gpu,
            budget,
        };
        Ok(Cuda {
            state: Mutex::new(Kept(state)),
            ring: Mutex::new(None),
            waits: Mutex::default(),
            context,
            telemetry: Telemetry::open(&info.pci).ok(),
            name: info.name,
            pci: info.pci,
            total: info.total,
            budget,
            ordinal,
            link_bytes_per_s: rates.pinned_up,
            flops_per_s,
            flops_if_asked: [OnceLock::new(), OnceLock::new()],
        })
    }

    /// A mark behind all computing that was asked for; only `timed` ones say when they were past.
    fn mark_here(&self, timed: bool) -> Done<Mark> {
        self.with(|state| {
            let event = Event::new(&state.gpu, timed)?;
            state.gpu.record(&event)?;
            Ok(Mark(Arc::new(event)))
        })
    }

    fn waits(&self) -> MutexGuard<'_, Waits> {
        // What a panic leaves uncounted is no harm.
        self.waits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Multiplications and additions a second. Few choose the last two types, so that they are measured when they are asked
    /// for, which is as a model is opened.
    fn flops_per_s(&self, precision: Precision) -> f64 {
        let ([f32, bf16], [tf32, f16]) = (self.flops_per_s, &self.flops_if_asked);
        let (known, at_least) = match precision {
            Precision::F32 => return f32,
            Precision::Bf16 => return bf16,
            Precision::Tf32 => (tf32, f32),
            Precision::F16 => (f16, bf16),
        };
        if let Some(known) = known.get() {
            return *known;
        }
        let measured = self.with(|state| {
            let measured = measure_flops(&state.gpu, precision)?;
            state.gpu.forget_scratch();
            Ok(measured)
        });
        // Where there is no room for it now, it is tried again the next time.
        measured.map_or(at_least, |measured| *known.get_or_init(|| measured))
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        // A panic in the middle of a call leaves a GPU that still counts what it gave out.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with the GPU.
    pub(super) fn with<T>(&self, act: impl FnOnce(&mut State) -> Result<T, Error>) -> Done<T> {
        act(&mut self.kept().0).map_err(failure)
    }
}

impl State {
    /// A part of memory that this GPU gave out.
    pub(super) fn span(&self, part: Part) -> Span<'_> {
        self.assert_ours(part);
        // SAFETY: it lies within a buffer that lives: see above.
        #[allow(unsafe_code, reason = "addresses come back from outside the lock")]
        unsafe {
            Span::from_raw(&self.gpu, part.address, part.bytes)
        }
    }

    /// The same, to be written.
    pub(super) fn span_mut(&self, part: Part) -> SpanMut<'_> {
        self.assert_ours(part);
        // SAFETY: as above; work is queued in order, so that nobody writes it at the same time.
        #[allow(unsafe_code, reason = "addresses come back from outside the lock")]
        unsafe {
            SpanMut::from_raw(&self.gpu, part.address, part.bytes)
        }
    }

    /// In builds that check, a part must lie in one of the buffers; elsewhere whoever holds an `Allocation` is believed.
    fn assert_ours(&self, part: Part) {
        if cfg!(debug_assertions) && part.bytes > 0 {
            let holds = |(first, buffer): (&u64, &Buffer)| {
                *first <= part.address
                    && part.address + part.bytes as u64 <= first + buffer.len() as u64
            };
            assert!(
                self.buffers.iter().any(holds),
                "{part:?} is no memory of this GPU"
            );
        }
    }
}

/// A product that takes longer than this says enough of how fast a GPU multiplies.
const MEASURED_S: f64 = 0.02;

/// Multiplications and additions a second in a large product, or in a small one where that takes long.
fn measure_flops(gpu: &Gpu, precision: Precision) -> Result<f64, Error> {
    let mut rate = 0.0;
    for (rows, dim) in [(128, 256), (512, 1024), (2048, 4096)] {
        let seconds = time_product(gpu, (rows, dim), precision)?.max(1e-9);
        rate = 2.0 * (rows * dim) as f64 * dim as f64 / seconds;
        if seconds > MEASURED_S {
            break;
        }
    }
    Ok(rate)
}

/// Seconds of a product of `rows` rows with `dim` times `dim` weights, the best of three.
fn time_product(
    gpu: &Gpu,
    (rows, dim): (usize, usize),
    precision: Precision,
) -> Result<f64, Error> {
    let x = Buffer::zeroed(gpu, rows * dim * 4)?;
    let weights = Buffer::zeroed(gpu, dim * dim * 2)?;
    let mut out = Buffer::new(gpu, rows * dim * 4)?;
    let stored = match precision {
        Precision::F16 => Stored::F16,
        _ => Stored::Bf16,
    };
    let matrix = ops::Matrix {
        stored,
        data: weights.span(),
        rows: dim,
        cols: dim,
        scales: None,
    };
    let mut best = f64::INFINITY;
    for _ in 0..3 {
        gpu.synchronise_compute()?;
        let start = Instant::now();
        let from = ops::Rows::new(x.span(), rows, dim);
        let to = ops::RowsMut::new(out.span_mut(), rows, dim);
        ops::linear(from, &matrix, None, Activation::None, precision, to)?;
        gpu.synchronise_compute()?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(best)
}

fn event(mark: &Mark) -> Result<&Event, Error> {
    mark.0.downcast_ref().ok_or_else(|| Error::Host {
        what: "a mark",
        reason: "is another device's (this is a bug)".to_owned(),
    })
}

/// Page-locked memory of the host.
struct PinnedBytes(Pinned);

impl HostBytes for PinnedBytes {
    fn bytes(&self) -> &[u8] {
        self.0.as_slice()
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        self.0.as_mut_slice()
    }
}

impl Accelerator for Cuda {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn profile(&self, precision: Precision) -> DeviceProfile {
        DeviceProfile {
            name: format!("cuda:{}", self.ordinal),
            link_bytes_per_s: self.link_bytes_per_s,
            cold_bytes_per_s: COLD_SPEED_BYTES_PER_S.min(self.link_bytes_per_s),
            flops_per_s: self.flops_per_s(precision),
            block_overhead_s: BLOCK_OVERHEAD_S,
            overlap: 1.0,
        }
    }

    fn place_on_machine(&self) -> Option<String> {
        Some(self.pci.clone())
    }

    fn figures(&self) -> AcceleratorFigures {
        let kept = self.kept();
        let gpu = &kept.0.gpu;
        AcceleratorFigures {
            live: gpu.used(),
            peak: gpu.peak(),
            held: gpu.reserved(),
            total: self.total,
            free: gpu.free(),
            most: self.budget,
        }
    }

    fn activity(&self) -> Activity {
        let activity = self.telemetry.as_ref().and_then(|it| it.activity().ok());
        let busy = activity.and_then(|it| it.busy);
        let watts = activity.and_then(|it| it.watts);
        Activity {
            busy: busy.map(|percent| percent * 10),
            milliwatts: watts.map(|watts| (watts * 1000.0) as u64),
        }
    }

    fn live(&self) -> u64 {
        self.kept().0.gpu.used()
    }

    fn peak(&self) -> u64 {
        self.kept().0.gpu.peak()
    }

    fn reset_peak(&self) {
        self.kept().0.gpu.reset_peak();
    }

    fn set_budget(&self, budget: Option<u64>) {
        self.kept().0.budget = budget.map_or(self.budget, |budget| budget.min(self.budget));
    }

    fn trim(&self) {
        let kept = self.kept();
        kept.0.gpu.forget_scratch();
        // A GPU that fails here says so at the next call that can.
        let _ = kept.0.gpu.trim();
    }

    fn scratch_bytes(&self) -> u64 {
        SCRATCH_BYTES
    }

    fn scratch_allocated(&self) -> u64 {
        self.kept().0.gpu.scratch_bytes()
    }

    fn mark(&self) -> Done<Mark> {
        self.mark_here(false)
    }

    fn load(&self, to: Part, from: &dyn HostBytes, after: Option<&Mark>) -> Done<Mark> {
        self.with(|state| {
            let copies = state.gpu.copies();
            if let Some(after) = after {
                copies.wait(event(after)?)?;
            }
            let bytes = &from.bytes()[..to.bytes];
            #[allow(
                unsafe_code,
                reason = "that is what `Accelerator::load` asks of its callers"
            )]
            // SAFETY: who calls keeps `from` until it was told of the mark, lets nothing use `to` before it is past, and
            // named the last use of `to` by `after`.
            unsafe {
                copies.start(state.span_mut(to), bytes)?;
            }
            let event = Event::new(&state.gpu, false)?;
            copies.record(&event)?;
            Ok(Mark(Arc::new(event)))
        })
    }

    fn feed(&self, to: Part, fill: Fill<'_>, after: Option<&Mark>) -> Done<Option<Mark>> {
        // Without the other lock: filling takes long.
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let mut feed = |ring: &mut Option<Ring>| {
            if ring.is_none() {
                *ring = Some(Ring::new(&self.context)?);
            }
            let ring = ring.as_mut().expect("made above");
            let after = after.map(event).transpose()?;
            #[allow(unsafe_code, reason = "as `Accelerator::load`")]
            // SAFETY: who calls lets nothing use `to` before the mark is past, and named its last use by `after`.
            unsafe {
                ring.feed((to.address, to.bytes), after, fill)
            }
        };
        let done = feed(&mut ring).map_err(failure)?;
        Ok(done.map(|event| Mark(Arc::new(event))))
    }

    fn wait(&self, mark: &Mark) -> Done {
        self.with(|state| state.gpu.wait(event(mark)?))
    }

    fn wait_begins(&self) -> Done<Mark> {
        self.mark_here(true)
    }

    fn wait_ends(&self, since: Mark) -> Done {
        let end = self.wait_begins()?;
        let mut waits = self.waits();
        waits.open.push_back((since, end));
        if waits.open.len() > WAITS_OPEN_MAX {
            waits.count_them(false).map_err(failure)?;
        }
        Ok(())
    }

    fn waited(&self) -> Duration {
        let mut waits = self.waits();
        // A GPU that fails here says so at the next call that can.
        let _ = waits.count_them(true);
        waits.total
    }

    fn settle(&self, mark: &Mark) -> Done {
        // Without the lock: others may go on.
        event(mark).and_then(Event::synchronise).map_err(failure)
    }

    fn host_bytes(&self, bytes: usize) -> Option<Box<dyn HostBytes>> {
        let pinned = Pinned::new(&self.context, bytes).ok()?;
        Some(Box::new(PinnedBytes(pinned)))
    }

    fn as_device(self: Arc<Self>) -> Arc<dyn Device> {
        self
    }
}
