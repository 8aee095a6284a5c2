//! Other workers of the same queue, and the jobs that are left to them.

use lowtide_core::job::Moment;
use lowtide_core::schedule::{Peer, left_to_peers};
use lowtide_jobs::WorkerStatus;
use lowtide_jobs::report::{Status, WorkerState};
use serde_json::json;

use super::{Worker, clock};
use crate::log::Level;

/// What was said longer ago than this part of the time after which a worker counts as gone is not relied on.
const FRESH_PART: u64 = 5;

impl Worker {
    /// Jobs that another worker begins sooner than their models are loaded here are not looked at, for a while.
    pub(super) fn leave_to_peers(&mut self) -> lowtide_jobs::Result<()> {
        let models = self.shelf.views();
        let jobs = &self.queue.jobs;
        let cold = |name: &String| {
            let mut there = models.iter();
            there.any(|model| model.name == *name && model.load_s() > 0.0)
        };
        if !jobs.iter().any(|job| cold(&job.model)) {
            return Ok(());
        }
        let now = clock();
        let others = self.store.workers()?;
        let others = others.iter().filter(|other| other.worker != self.id);
        let peers: Vec<Peer> = others.filter_map(|other| peer(other, now)).collect();
        for left in left_to_peers(jobs, &models, &peers, now) {
            let fields = json!({ "job": left.job.to_string() });
            self.log.say(Level::Debug, left.to_string(), fields);
            self.queue.take(left.job);
        }
        Ok(())
    }
}

/// A worker that begins jobs, by what it said lately.
fn peer(of: &WorkerStatus, now: Moment) -> Option<Peer> {
    let silent_ms = now.0.saturating_sub(of.seen.0);
    let good_ms = of.expires.0.saturating_sub(of.seen.0);
    if silent_ms > good_ms / FRESH_PART {
        return None;
    }
    let status: Status = serde_json::from_str(&of.status).ok()?;
    match status.state {
        WorkerState::Idle | WorkerState::Busy => {}
        // How long a load takes it does not say.
        WorkerState::Starting
        | WorkerState::Loading
        | WorkerState::Paused
        | WorkerState::Draining => return None,
    }
    let goes_on = status.sessions.iter().filter(|one| one.state != "held");
    let on_device = status.models.iter().filter(|model| {
        let leaves = model.moving_to.as_deref().is_some_and(|to| to != "device");
        model.residency == "device" && !leaves
    });
    Some(Peer {
        name: of.worker.to_string(),
        free_in_s: goes_on.map(|session| session.remaining_s).sum(),
        on_device: on_device.map(|model| model.name.clone()).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use lowtide_jobs::report::{ModelStatus, SessionStatus};

    fn told(state: WorkerState) -> WorkerStatus {
        let model = |name: &str, residency: &str, moving_to: Option<&str>| ModelStatus {
            name: name.to_owned(),
            residency: residency.to_owned(),
            moving_to: moving_to.map(str::to_owned),
            ..ModelStatus::default()
        };
        let session = |state: &str, remaining_s| SessionStatus {
            state: state.to_owned(),
            remaining_s,
            ..SessionStatus::default()
        };
        let status = Status {
            state,
            models: vec![
                model("warm", "device", None),
                model("goes", "device", Some("host")),
                model("cold", "unloaded", None),
            ],
            sessions: vec![
                session("active", 2.0),
                session("parked", 3.0),
                session("held", 50.0),
            ],
            ..Status::default()
        };
        WorkerStatus {
            worker: "w".parse().unwrap(),
            first_seen: Moment(0),
            seen: Moment(1_000),
            expires: Moment(16_000),
            cards: None,
            status: serde_json::to_string(&status).unwrap(),
        }
    }

    #[test]
    fn a_peer_is_what_it_said_lately() {
        let found = peer(&told(WorkerState::Busy), Moment(4_000)).unwrap();
        let expected = Peer {
            name: "w".to_owned(),
            free_in_s: 5.0,
            on_device: vec!["warm".to_owned()],
        };
        assert_eq!(found, expected);
        assert_eq!(
            peer(&told(WorkerState::Busy), Moment(4_001)),
            None,
            "long ago"
        );
        for state in [
            WorkerState::Starting,
            WorkerState::Loading,
            WorkerState::Paused,
            WorkerState::Draining,
        ] {
            assert_eq!(peer(&told(state), Moment(1_000)), None, "{state:?}");
        }
    }
}
