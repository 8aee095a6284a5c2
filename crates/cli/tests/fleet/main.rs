//! Three machines, one Redis: nothing accepted is lost, and nothing is done twice, whatever is killed.
//!
//! Each machine is a process with a data folder of its own: a server with its worker, and two more workers; finished
//! files, inputs and saved sessions are in a folder all of them share. Jobs are submitted over HTTP while server,
//! workers and Redis itself are killed (-9) at random moments, Redis stands still for longer than a lease, and one worker
//! is stopped for longer than its own. In the end each job has one artifact, whole, with the bytes that an undisturbed
//! run gives, and one `done` in the log.
//!
//! The seed is printed; `LOWTIDE_CHAOS_SEED` repeats the same choices (not the same moments: those are the machine's).
//! `LOWTIDE_CHAOS_JOBS` sets how many jobs there are.
#![cfg(unix)]
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    dead_code,
    reason = "a failed test may panic, its output is for people, and it shares files with other tests"
)]

#[path = "../chaos/expected.rs"]
mod expected;
mod machines;
#[path = "../../../jobs/tests/redis/server.rs"]
mod server;
mod together;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use lowtide_core::job::{JobId, JobState};
use lowtide_jobs::{ArtifactStore, AttemptEnd, EventId, FolderArtifacts, Happening, JobStore};

use expected::Expected;
use machines::{LEASE, Machines, Random, wait};

/// Jobs in all, unless `LOWTIDE_CHAOS_JOBS` says otherwise.
const JOBS: usize = 200;
/// Clients that submit.
const CLIENTS: usize = 4;
/// How long all of it may take.
const PATIENCE: Duration = Duration::from_secs(540);

/// What was accepted: the id, by the number of the request.
type Accepted = Arc<Mutex<BTreeMap<usize, JobId>>>;

/// What was done to them.
#[derive(Debug, Default)]
struct Harm {
    servers: u64,
    workers: u64,
    stores: u64,
    /// The store stood still for longer than a lease.
    stalls: u64,
    /// A worker was stopped until somebody else had its job.
    stopped: bool,
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

#[test]
fn each_job_is_done_once_and_whole_whatever_is_killed() {
    let Some(machines) = Machines::new("each_job_is_done_once_and_whole") else {
        return;
    };
    let seed = number("LOWTIDE_CHAOS_SEED");
    let seed = seed.unwrap_or_else(|| u64::from(std::process::id()) ^ 0x9e37_79b9_7f4a_7c15);
    let jobs = number("LOWTIDE_CHAOS_JOBS").map_or(JOBS, |jobs| jobs as usize);
    println!("LOWTIDE_CHAOS_SEED={seed}");
    let start = Instant::now();
    let machines = Arc::new(machines);
    machines.start();
    let accepted: Accepted = Arc::default();
    let over = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let (machines, accepted) = (machines.clone(), accepted.clone());
            std::thread::spawn(move || submit(&machines, (client, jobs), &accepted))
        })
        .collect();
    let killer = {
        let (machines, over) = (machines.clone(), over.clone());
        std::thread::spawn(move || harm(&machines, Random(seed), &over))
    };
    for client in clients {
        client.join().unwrap();
    }
    let accepted = accepted.lock().unwrap().clone();
    assert_eq!(accepted.len(), jobs, "each request was accepted in the end");
    let store = machines.store();
    let all_over = || {
        let over = |id: &JobId| store.job(*id).is_ok_and(|job| job.state.is_final());
        // The latest first: most of the others are over then, too.
        accepted.values().rev().all(over).then_some(())
    };
    let left = PATIENCE.saturating_sub(start.elapsed());
    wait("all jobs to be over", left, all_over);
    over.store(true, Ordering::SeqCst);
    let harm = killer.join().unwrap();
    let seconds = start.elapsed().as_secs_f64();
    println!("{jobs} jobs, {harm:?}, {seconds:.0} s");
    assert!(
        harm.servers > 0 && harm.workers > 2 && harm.stores > 1 && harm.stalls > 0,
        "{harm:?}"
    );
    assert!(harm.stopped, "a worker was stopped past its lease");
    verify(&machines, &accepted);
    machines.stop();
}

/// Submits this client's share, each under its key until it is accepted.
fn submit(machines: &Machines, (client, jobs): (usize, usize), accepted: &Accepted) {
    for number in (client..jobs).step_by(CLIENTS) {
        let body = expected::body(number);
        let key = format!("chaos-{number}");
        let id = wait("a job to be accepted", PATIENCE, || {
            let answer = machines.post("/v1/jobs", &body, Some(&key))?;
            let id: JobId = answer["id"].as_str()?.parse().ok()?;
            Some(id)
        });
        accepted.lock().unwrap().insert(number, id);
        // The queue fills slowly enough that kills hit every part of a life.
        std::thread::sleep(Duration::from_millis(60));
    }
}

/// Kills at random moments until all jobs are over, and until each kind of harm was done.
fn harm(machines: &Machines, mut random: Random, over: &AtomicBool) -> Harm {
    let mut harm = Harm::default();
    let enough =
        |harm: &Harm| harm.servers > 0 && harm.workers > 2 && harm.stores > 1 && harm.stalls > 0;
    let mut round = 0;
    while !over.load(Ordering::SeqCst) || !enough(&harm) {
        std::thread::sleep(Duration::from_millis(random.between(150, 900)));
        round += 1;
        let working = !over.load(Ordering::SeqCst);
        if round >= 4 && !harm.stopped && working {
            harm.stopped = machines.stop_a_worker_past_its_lease();
        } else if round >= 8 && harm.stalls == 0 {
            machines.stall_the_store(LEASE * 2);
            harm.stalls += 1;
        } else {
            match random.between(0, 9) {
                0 => {
                    // All at once, as by a power cut.
                    machines.kill_the_store();
                    harm.stores += 1;
                    harm.servers += machines.kill_server();
                    harm.workers += machines.kill_workers(None);
                }
                1..=2 => {
                    machines.kill_the_store();
                    harm.stores += 1;
                }
                3..=4 => harm.servers += machines.kill_server(),
                _ => harm.workers += machines.kill_workers(Some(random.between(0, 2) as usize)),
            }
        }
        machines.revive();
    }
    harm
}

fn verify(machines: &Machines, accepted: &BTreeMap<usize, JobId>) {
    let store = machines.store();
    let artifacts = FolderArtifacts::open(&machines.shared().join("artifacts")).unwrap();
    let done_events = done_events(&*store);
    let mut expected = Expected::new();
    let (mut files, mut hosts) = (BTreeSet::new(), BTreeSet::new());
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
        hosts.extend(job.history.iter().map(|one| one.worker.clone()));
    }
    let jobs = accepted.len();
    println!(
        "{attempts} attempts for {jobs} jobs by {} workers",
        hosts.len()
    );
    assert!(hosts.len() >= 3, "each machine worked: {hosts:?}");
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
