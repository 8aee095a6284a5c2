//! Leaving a job to another worker that begins it sooner: one that has the job's model on its device already.

use std::fmt;

use super::{Candidate, ModelView};
use crate::explain::seconds;
use crate::job::{JobId, Moment};

/// Another worker, as far as leaving jobs to it needs to know it.
#[derive(Clone, Debug, PartialEq)]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// Predicted seconds until it has done what it has begun; 0 for an idle one.
    pub free_in_s: f64,
    /// The models on its device.
    pub on_device: Vec<String>,
}

/// A job that is left to another worker.
#[derive(Clone, Debug, PartialEq)]
pub struct Left {
    /// The job.
    pub job: JobId,
    /// To whom.
    pub peer: String,
    /// Predicted seconds until that one is free for it.
    pub wait_s: f64,
    /// Predicted seconds to load its model here.
    pub load_s: f64,
}

/// The jobs that a worker should leave to others: each has its model on the device of a peer that is free for it sooner
/// than the model is loaded here, what that peer was left before included.
///
/// Nothing is left for longer than loading here takes: whatever keeps the peer from it, such as a hand or other jobs, a
/// job loses no more time than it could have gained.
pub fn left_to_peers(
    candidates: &[Candidate],
    models: &[ModelView],
    peers: &[Peer],
    now: Moment,
) -> Vec<Left> {
    let mut free_in_s: Vec<f64> = peers.iter().map(|peer| peer.free_in_s).collect();
    let mut left = Vec::new();
    for job in candidates {
        if job.not_before.is_some_and(|moment| moment > now) {
            continue;
        }
        let here = models.iter().find(|model| model.name == job.model);
        let Some(load_s) = here.map(ModelView::load_s).filter(|&load_s| load_s > 0.0) else {
            continue;
        };
        let since = job.not_before.unwrap_or(job.submitted).max(job.submitted);
        if now.seconds_since(since) >= load_s {
            continue;
        }
        let warm = peers.iter().zip(&mut free_in_s).filter(|(peer, _)| {
            let has_it = |model: &String| *model == job.model;
            peer.on_device.iter().any(has_it)
        });
        let soonest = warm.min_by(|(_, a), (_, b)| a.total_cmp(b));
        if let Some((peer, wait_s)) = soonest.filter(|(_, wait_s)| **wait_s < load_s) {
            left.push(Left {
                job: job.id,
                peer: peer.name.clone(),
                wait_s: *wait_s,
                load_s,
            });
            *wait_s += job.seconds.max(0.0);
        }
    }
    left
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Left {
            job,
            peer,
            wait_s,
            load_s,
        } = self;
        write!(
            f,
            "{job} is left to {peer}, which has its model and is free in {}: loading it here takes {}",
            seconds(*wait_s),
            seconds(*load_s)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Bytes;
    use crate::job::Priority;
    use crate::lifecycle::Residency;

    fn job(number: u128, model: &str, submitted: u64) -> Candidate {
        Candidate {
            id: JobId(number),
            kind: "image".to_owned(),
            model: model.to_owned(),
            priority: Priority::Normal,
            submitted: Moment(submitted),
            not_before: None,
            deadline: None,
            seconds: 4.0,
            peak: Bytes::ZERO,
            batch: None,
        }
    }

    fn model(name: &str, residency: Residency) -> ModelView {
        ModelView {
            name: name.to_owned(),
            residency,
            device: Bytes::ZERO,
            host: Bytes::ZERO,
            host_full: Bytes::ZERO,
            in_flight: 0,
            last_used: Moment(0),
            from_host_s: 1.0,
            from_file_s: 10.0,
        }
    }

    fn peer(name: &str, free_in_s: f64, on_device: &[&str]) -> Peer {
        Peer {
            name: name.to_owned(),
            free_in_s,
            on_device: on_device.iter().map(|&name| name.to_owned()).collect(),
        }
    }

    /// Numbers of the jobs that are left, and to whom.
    fn left(jobs: &[Candidate], residency: Residency, peers: &[Peer], now: u64) -> Vec<String> {
        let models = [model("a", residency), model("b", Residency::Device)];
        let left = left_to_peers(jobs, &models, peers, Moment(now));
        left.iter()
            .map(|left| format!("{} to {}", left.job.0, left.peer))
            .collect()
    }

    #[test]
    fn a_job_goes_where_its_model_is_if_that_is_sooner() {
        let cold = Residency::Unloaded;
        let one = [job(1, "a", 0)];
        let nothing: [String; 0] = [];
        for (residency, peers, expected) in [
            (cold, vec![peer("w", 0.0, &["a"])], &["1 to w"][..]),
            (cold, vec![peer("w", 9.9, &["a"])], &["1 to w"]),
            (cold, vec![peer("w", 10.0, &["a"])], &[]),
            (cold, vec![peer("w", 0.0, &["b"])], &[]),
            (cold, vec![], &[]),
            (Residency::Host, vec![peer("w", 2.0, &["a"])], &[]),
            (Residency::Device, vec![peer("w", 0.0, &["a"])], &[]),
            (
                cold,
                vec![peer("v", 3.0, &["a"]), peer("w", 2.0, &["a"])],
                &["1 to w"],
            ),
        ] {
            assert_eq!(left(&one, residency, &peers, 0), expected);
        }
        assert_eq!(
            left(
                &[job(1, "unknown", 0)],
                cold,
                &[peer("w", 0.0, &["unknown"])],
                0
            ),
            nothing
        );
    }

    #[test]
    fn a_peer_is_left_no_more_than_it_can_do_in_time() {
        let jobs: Vec<Candidate> = (1..=5).map(|number| job(number, "a", 0)).collect();
        let peers = [peer("v", 0.0, &["a"]), peer("w", 5.0, &["a"])];
        // v is free at 0, 4, 8; w at 5, 9.
        assert_eq!(
            left(&jobs, Residency::Unloaded, &peers, 0),
            ["1 to v", "2 to v", "3 to w", "4 to v", "5 to w"]
        );
        assert_eq!(
            left(&jobs, Residency::Unloaded, &peers[..1], 0),
            ["1 to v", "2 to v", "3 to v"]
        );
    }

    #[test]
    fn nothing_is_left_for_longer_than_loading_takes() {
        let peers = [peer("w", 0.0, &["a"])];
        let jobs = [job(1, "a", 5_000)];
        assert_eq!(left(&jobs, Residency::Unloaded, &peers, 14_999).len(), 1);
        assert_eq!(left(&jobs, Residency::Unloaded, &peers, 15_000).len(), 0);
        let again = [Candidate {
            not_before: Some(Moment(20_000)),
            ..job(1, "a", 5_000)
        }];
        assert_eq!(left(&again, Residency::Unloaded, &peers, 19_000).len(), 0);
        assert_eq!(left(&again, Residency::Unloaded, &peers, 20_000).len(), 1);
    }

    #[test]
    fn it_is_said_with_the_numbers() {
        let models = [model("a", Residency::Unloaded)];
        let left = left_to_peers(
            &[job(1, "a", 0)],
            &models,
            &[peer("w", 2.0, &["a"])],
            Moment(0),
        );
        let said = left[0].to_string();
        assert!(
            said.contains("is left to w") && said.contains("2.0 s") && said.contains("10"),
            "{said}"
        );
    }
}
