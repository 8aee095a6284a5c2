//! Nothing accepted is lost, and nothing is done twice, whatever is killed.
//!
//! 500 jobs are submitted over HTTP while server and workers are killed (-9) at random moments, at least 40 times, and one
//! worker is stopped for longer than its lease. In the end each job has one artifact, whole, with the bytes that an
//! undisturbed run gives, and one `done` in the log.
//!
//! The seed is printed; `LOWTIDE_CHAOS_SEED` repeats the same choices (not the same moments: those are the machine's).
#![cfg(unix)]
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a failed test may panic, and its output is for people"
)]

mod expected;
mod service;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use lowtide_core::job::{JobId, JobState};
use lowtide_jobs::{ArtifactStore, AttemptEnd, EventId, FolderArtifacts, Happening, JobStore};

use expected::Expected;
use service::{Random, Service, wait};

/// Jobs in all.
const JOBS: usize = 500;
/// Kills at least.
const KILLS_MIN: u64 = 40;
/// Clients that submit.
const CLIENTS: usize = 4;
/// How long all of it may take.
const PATIENCE: Duration = Duration::from_secs(540);

/// What was accepted: the id, by the number of the request.
type Accepted = Arc<Mutex<BTreeMap<usize, JobId>>>;

#[test]
fn each_job_is_done_once_and_whole_whatever_is_killed() {
    let seed = std::env::var("LOWTIDE_CHAOS_SEED")
        .ok()
        .and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from(std::process::id()) ^ 0x9e37_79b9_7f4a_7c15);
    println!("LOWTIDE_CHAOS_SEED={seed}");
    let start = Instant::now();
    let service = Arc::new(Service::new());
    service.start();
    let accepted: Accepted = Arc::default();
    let over = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let (service, accepted) = (service.clone(), accepted.clone());
            std::thread::spawn(move || submit(&service, client, &accepted))
        })
        .collect();
    let killer = {
        let (service, over) = (service.clone(), over.clone());
        std::thread::spawn(move || kill_now_and_then(&service, Random(seed), &over))
    };
    for client in clients {
        client.join().unwrap();
    }
    let accepted = accepted.lock().unwrap().clone();
    assert_eq!(accepted.len(), JOBS, "each request was accepted in the end");
    let store = service.store();
    let all_over = || {
        let over = |id: &JobId| store.job(*id).is_ok_and(|job| job.state.is_final());
        // The latest first: most of the others are over then, too.
        accepted.values().rev().all(over).then_some(())
    };
    wait(
        "all jobs to be over",
        PATIENCE.saturating_sub(start.elapsed()),
        all_over,
    );
    over.store(true, Ordering::SeqCst);
    let (kills, stale) = killer.join().unwrap();
    println!(
        "{JOBS} jobs, {kills} kills, {:.0} s",
        start.elapsed().as_secs_f64()
    );
    assert!(kills >= KILLS_MIN, "only {kills} kills");
    assert!(stale, "a worker was stopped past its lease");
    verify(&service, &accepted);
    service.stop();
}

/// Submits this client's share, each under its key until it is accepted.
fn submit(service: &Service, client: usize, accepted: &Accepted) {
    for number in (client..JOBS).step_by(CLIENTS) {
        let body = expected::body(number);
        let key = format!("chaos-{number}");
        let id = wait("a job to be accepted", PATIENCE, || {
            let answer = service.post("/v1/jobs", &body, Some(&key))?;
            let id: JobId = answer["id"].as_str()?.parse().ok()?;
            Some(id)
        });
        accepted.lock().unwrap().insert(number, id);
        // The queue fills slowly enough that kills hit every part of a life.
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Kills server or worker at random moments until all jobs are over, at least as often as promised. Returns the number of
/// kills, and whether a worker was stopped past its lease.
fn kill_now_and_then(service: &Service, mut random: Random, over: &AtomicBool) -> (u64, bool) {
    let kills = AtomicU64::new(0);
    let mut stopped = false;
    while !over.load(Ordering::SeqCst) || kills.load(Ordering::SeqCst) < KILLS_MIN {
        std::thread::sleep(Duration::from_millis(random.between(150, 900)));
        let done = kills.load(Ordering::SeqCst);
        if !stopped && done >= 10 && !over.load(Ordering::SeqCst) {
            stopped = service.stop_a_worker_past_its_lease();
            continue;
        }
        let killed = match random.between(0, 9) {
            // Both at once, as by a power cut.
            0..=1 => service.kill_all(),
            2..=4 => service.kill_server(),
            _ => service.kill_worker(),
        };
        kills.fetch_add(killed, Ordering::SeqCst);
        service.revive();
    }
    (kills.load(Ordering::SeqCst), stopped)
}

fn verify(service: &Service, accepted: &BTreeMap<usize, JobId>) {
    let store = service.store();
    let artifacts = FolderArtifacts::open(&service.folder().join("artifacts")).unwrap();
    let done_events = done_events(&*store);
    let mut expected = Expected::new();
    let mut files = BTreeSet::new();
    let mut attempts = 0;
    for (number, id) in accepted {
        let job = store.job(*id).unwrap();
        let error = job.error.as_deref().unwrap_or("no error");
        assert_eq!(
            job.state,
            JobState::Done,
            "job {number} ({id}): {error}; {:#?}",
            job.history
        );
        let outcome = job.outcome.as_ref().expect("a done job has an outcome");
        assert_eq!(outcome.artifacts.len(), 1, "one artifact for job {number}");
        let artifact = &outcome.artifacts[0];
        assert!(files.insert(artifact.id), "an artifact belongs to one job");
        // Reading checks length and sum.
        let content = artifacts.read(artifact).unwrap();
        assert_eq!(
            content,
            expected.bytes(*number),
            "the bytes of job {number} ({id}): {:#?}",
            job.history
        );
        assert_eq!(done_events.get(id), Some(&1), "one `done` for job {number}");
        let ends = job
            .history
            .iter()
            .filter(|one| one.end == Some(AttemptEnd::Done));
        assert_eq!(ends.count(), 1);
        attempts += u64::from(job.attempt);
    }
    let resumed = service
        .log()
        .matches("goes on from where it was saved")
        .count();
    println!("{attempts} attempts for {JOBS} jobs, {resumed} of them from a saved session");
    assert!(
        resumed > 0,
        "some jobs went on where they had been interrupted"
    );
}

/// How often each job was done, by the log.
fn done_events(store: &dyn JobStore) -> BTreeMap<JobId, u64> {
    let mut done = BTreeMap::new();
    let mut after = EventId(0);
    loop {
        let page = store.events_after(after, None, 1000).unwrap();
        assert!(!page.gap, "nothing of the log was thrown away");
        let Some(last) = page.events.last() else {
            return done;
        };
        after = last.id;
        for event in page.events {
            if let (Happening::Done, Some(job)) = (event.what, event.job) {
                *done.entry(job).or_insert(0) += 1;
            }
        }
    }
}
