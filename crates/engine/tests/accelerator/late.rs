//! The shadow device as an accelerator: loads happen on a thread of their own, late and in order, and what is being
//! written is noise until they have.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use lowtide_core::DeviceProfile;
use lowtide_engine::device::ground::{
    Accelerator, AcceleratorFigures, Activity, Fill, HostBytes, Mark,
};
use lowtide_kernels::Precision;
use lowtide_models::device::{Device, Done, Span};

use crate::shadow::Shadow;

/// Something that has happened or has not.
#[derive(Debug, Default)]
struct Moment {
    past: Mutex<bool>,
    told: Condvar,
}

impl Moment {
    fn tell(&self) {
        *self.past.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.told.notify_all();
    }

    fn wait(&self) {
        let past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
        drop(
            self.told
                .wait_while(past, |past| !*past)
                .unwrap_or_else(PoisonError::into_inner),
        );
    }
}

struct Load {
    to: Span,
    bytes: Vec<u8>,
    done: Arc<Moment>,
}

/// Bytes of a piece that is asked for.
const PIECE: usize = 1000;

/// The accelerator.
#[derive(Debug)]
pub(crate) struct Late {
    shadow: Arc<Shadow>,
    budget: AtomicU64,
    loads: Mutex<Sender<Load>>,
    /// Bytes of the host that may be kept.
    host: u64,
    host_kept: Arc<AtomicU64>,
    pub(crate) loaded: AtomicU64,
    /// Bytes that could not be kept on the host.
    pub(crate) fed: AtomicU64,
    waited: AtomicU64,
    /// The budget that was set.
    asked: AtomicU64,
    /// Bytes that another program uses.
    pub(crate) taken: AtomicU64,
}

/// Memory of the host that counts itself.
struct Kept {
    bytes: Vec<u8>,
    kept: Arc<AtomicU64>,
}

impl HostBytes for Kept {
    fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.kept
            .fetch_sub(self.bytes.len() as u64, Ordering::Relaxed);
    }
}

impl Late {
    pub(crate) fn new(budget: u64, host: u64) -> Late {
        let shadow = Arc::new(Shadow::new(budget));
        let (loads, asked) = channel::<Load>();
        let there = shadow.clone();
        std::thread::spawn(move || {
            for (i, load) in asked.iter().enumerate() {
                there
                    .upload(load.to, &vec![0xa5; load.to.bytes])
                    .expect("room");
                std::thread::sleep(Duration::from_micros(200 * (i as u64 % 7)));
                there.upload(load.to, &load.bytes).expect("room");
                load.done.tell();
            }
        });
        Late {
            shadow,
            budget: AtomicU64::new(budget),
            loads: Mutex::new(loads),
            host,
            host_kept: Arc::default(),
            loaded: AtomicU64::new(0),
            fed: AtomicU64::new(0),
            waited: AtomicU64::new(0),
            asked: AtomicU64::new(u64::MAX),
            taken: AtomicU64::new(0),
        }
    }

    /// Bytes kept on the host.
    pub(crate) fn host_kept(&self) -> u64 {
        self.host_kept.load(Ordering::Relaxed)
    }

    fn begin(&self, to: Span, bytes: Vec<u8>) -> Mark {
        let done = Arc::new(Moment::default());
        let load = Load {
            to,
            bytes,
            done: done.clone(),
        };
        let loads = self.loads.lock().unwrap_or_else(PoisonError::into_inner);
        loads.send(load).expect("the thread lives");
        Mark(done)
    }

    /// Another program has so many bytes from now on.
    pub(crate) fn take(&self, bytes: u64) {
        self.taken.store(bytes, Ordering::Relaxed);
        self.bound();
    }

    /// Nobody can have what others have, whatever the budget.
    fn bound(&self) {
        let left = self.total() - self.taken.load(Ordering::Relaxed);
        self.shadow
            .set_budget(left.min(self.asked.load(Ordering::Relaxed)));
    }

    /// Bytes of the device.
    pub(crate) fn total(&self) -> u64 {
        self.budget.load(Ordering::Relaxed)
    }

    /// What it computes on, to be held by others.
    #[allow(dead_code, reason = "one of the tests that share it has such others")]
    pub(crate) fn shadow_itself(&self) -> Arc<Shadow> {
        self.shadow.clone()
    }

    pub(crate) fn shadow(&self) -> &Shadow {
        &self.shadow
    }
}

fn moment(mark: &Mark) -> &Moment {
    mark.0.downcast_ref().expect("a mark of this device")
}

impl Accelerator for Late {
    fn name(&self) -> String {
        "late".to_owned()
    }

    fn profile(&self, _: Precision) -> DeviceProfile {
        DeviceProfile {
            name: "late".to_owned(),
            link_bytes_per_s: 1e9,
            cold_bytes_per_s: 1e9,
            flops_per_s: 1e10,
            block_overhead_s: 1e-4,
            overlap: 1.0,
        }
    }

    fn place_on_machine(&self) -> Option<String> {
        None
    }

    fn figures(&self) -> AcceleratorFigures {
        let live = self.shadow.live();
        let total = self.budget.load(Ordering::Relaxed);
        let taken = self.taken.load(Ordering::Relaxed);
        AcceleratorFigures {
            live,
            peak: self.shadow.peak(),
            held: live,
            total,
            free: (total - taken).saturating_sub(live),
            most: total,
        }
    }

    fn activity(&self) -> Activity {
        Activity::default()
    }

    fn live(&self) -> u64 {
        self.shadow.live()
    }

    fn peak(&self) -> u64 {
        self.shadow.peak()
    }

    fn reset_peak(&self) {
        self.shadow.reset_peak();
    }

    fn set_budget(&self, budget: Option<u64>) {
        self.asked
            .store(budget.unwrap_or(u64::MAX), Ordering::Relaxed);
        self.bound();
    }

    fn trim(&self) {}

    fn scratch_bytes(&self) -> u64 {
        0
    }

    fn scratch_allocated(&self) -> u64 {
        0
    }

    fn mark(&self) -> Done<Mark> {
        // What is computed here is done when the call returns.
        let moment = Moment::default();
        moment.tell();
        Ok(Mark(Arc::new(moment)))
    }

    fn feed(&self, to: Span, fill: Fill<'_>, after: Option<&Mark>) -> Done<Option<Mark>> {
        if let Some(after) = after {
            moment(after).wait();
        }
        let mut bytes = vec![0; to.bytes];
        // Pieces that no tensor fits into.
        for (i, piece) in bytes.chunks_mut(PIECE).enumerate() {
            if fill(i * PIECE, piece).is_break() {
                return Ok(None);
            }
        }
        self.fed.fetch_add(to.bytes as u64, Ordering::Relaxed);
        Ok(Some(self.begin(to, bytes)))
    }

    fn wait_begins(&self) -> Done<Mark> {
        Ok(Mark(Arc::new(Instant::now())))
    }

    fn wait_ends(&self, since: Mark) -> Done {
        let since: &Instant = since.0.downcast_ref().expect("of `wait_begins`");
        let took = since.elapsed().as_nanos() as u64;
        self.waited.fetch_add(took, Ordering::Relaxed);
        Ok(())
    }

    fn waited(&self) -> Duration {
        Duration::from_nanos(self.waited.load(Ordering::Relaxed))
    }

    fn load(&self, to: Span, from: &dyn HostBytes, after: Option<&Mark>) -> Done<Mark> {
        if let Some(after) = after {
            moment(after).wait();
        }
        self.loaded.fetch_add(to.bytes as u64, Ordering::Relaxed);
        Ok(self.begin(to, from.bytes()[..to.bytes].to_vec()))
    }

    fn wait(&self, mark: &Mark) -> Done {
        moment(mark).wait();
        Ok(())
    }

    fn settle(&self, mark: &Mark) -> Done {
        self.wait(mark)
    }

    fn host_bytes(&self, bytes: usize) -> Option<Box<dyn HostBytes>> {
        let kept = self.host_kept.fetch_add(bytes as u64, Ordering::Relaxed);
        let host = Kept {
            bytes: vec![0x5a; bytes],
            kept: self.host_kept.clone(),
        };
        if kept + bytes as u64 > self.host {
            return None;
        }
        Some(Box::new(host))
    }

    fn as_device(self: Arc<Self>) -> Arc<dyn Device> {
        self.shadow.clone()
    }
}
