//! Making room on a device: which idle models have to go, and where to.

use crate::Bytes;
use crate::job::Moment;
use crate::lifecycle::Residency;

use super::{Device, ModelView, Session, SessionState};

/// A model that has to leave the device.
#[derive(Clone, Debug, PartialEq)]
pub struct Eviction {
    /// The model.
    pub model: String,
    /// Bytes that become free.
    pub bytes: Bytes,
    /// Where it goes: to host memory where that has room, else out.
    pub to: Residency,
    /// Seconds since it was used.
    pub idle_s: f64,
}

/// Why a job has no room at the moment.
#[derive(Clone, Debug, PartialEq)]
pub struct NoRoom {
    /// Bytes it needs besides what its model holds already.
    pub needed: Bytes,
    /// Bytes that could be free if every idle model left.
    pub reachable: Bytes,
    /// Bytes that models in use hold.
    pub models: Bytes,
    /// Bytes that open sessions hold.
    pub sessions: Bytes,
}

/// What room is made for.
pub(super) struct Want<'a> {
    pub(super) model: &'a ModelView,
    /// Peak, the model's weights included.
    pub(super) peak: Bytes,
    /// The session that is parked first.
    pub(super) park: Option<&'a Session>,
    pub(super) now: Moment,
}

/// Room for a job.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Room {
    pub(super) evict: Vec<Eviction>,
    /// Bytes left besides the job's peak.
    pub(super) left: Bytes,
}

/// Finds the models that have to leave, as few and as little missed as possible: those that no open session and no
/// queued job waits for go first (`wanted` tells by name), and of these the ones that take least to load again for the
/// time they were not used.
pub(super) fn make(
    device: &Device<'_>,
    want: &Want<'_>,
    wanted: impl Fn(&str) -> bool,
) -> Result<Room, NoRoom> {
    let needed = want.peak.saturating_sub(want.model.device);
    let parking = want
        .park
        .map_or(Bytes::ZERO, |s| s.holds.saturating_sub(s.keeps));
    let mut free = device.ledger.free() + parking;
    if needed <= free {
        return Ok(Room {
            evict: Vec::new(),
            left: free - needed,
        });
    }
    let in_use = |model: &ModelView| {
        let parked = want.park.is_some_and(|s| s.model == model.name);
        model.in_flight > u32::from(parked)
    };
    let movable: Vec<&ModelView> = device
        .models
        .iter()
        .filter(|model| model.name != want.model.name)
        .filter(|model| model.device > Bytes::ZERO && !in_use(model))
        .collect();
    let reachable = free + movable.iter().map(|model| model.device).sum();
    if needed > reachable {
        let busy = device.models.iter().filter(|model| in_use(model));
        return Err(NoRoom {
            needed,
            reachable,
            models: busy.map(|model| model.device).sum(),
            sessions: device.sessions.iter().map(|session| session.holds).sum(),
        });
    }
    let mut ordered: Vec<((u8, f64), &ModelView)> = movable
        .into_iter()
        .map(|model| (missed(device, want.now, model, wanted(&model.name)), model))
        .collect();
    ordered.sort_by(|(a, _), (b, _)| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
    let mut leaving: Vec<&ModelView> = Vec::new();
    for (_, model) in ordered {
        if needed <= free {
            break;
        }
        free += model.device;
        leaving.push(model);
    }
    // A large one chosen last can make smaller ones chosen before it needless; the most missed stays if possible.
    for index in (0..leaving.len()).rev() {
        let bytes = leaving[index].device;
        if free.saturating_sub(bytes) >= needed {
            free = free - bytes;
            leaving.remove(index);
        }
    }
    Ok(Room {
        evict: evictions(&leaving, device.host_free, want.now),
        left: free - needed,
    })
}

/// How much a model would be missed: first whether an open session or a queued job waits for it, then the seconds to
/// load it again for each second it was not used.
fn missed(device: &Device<'_>, now: Moment, model: &ModelView, wanted: bool) -> (u8, f64) {
    let open =
        |session: &Session| session.model == model.name && session.state != SessionState::Held;
    let again_s = model.from_host_s.min(model.from_file_s);
    let regret = again_s / (1.0 + now.seconds_since(model.last_used));
    let waited_for = 2 * u8::from(device.sessions.iter().any(open)) + u8::from(wanted);
    (waited_for, regret)
}

/// Where each goes, in order, as long as host memory has room.
fn evictions(leaving: &[&ModelView], mut host_free: Bytes, now: Moment) -> Vec<Eviction> {
    let evict = leaving.iter().map(|model| {
        let takes = model.host_full.saturating_sub(model.host);
        let to = match takes <= host_free {
            true => Residency::Host,
            false => Residency::Unloaded,
        };
        if to == Residency::Host {
            host_free = host_free - takes;
        }
        Eviction {
            model: model.name.clone(),
            bytes: model.device,
            to,
            idle_s: now.seconds_since(model.last_used),
        }
    });
    evict.collect()
}
