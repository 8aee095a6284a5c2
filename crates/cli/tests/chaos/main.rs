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
    dead_code,
    reason = "a failed test may panic, its output is for people, and it shares files with another test"
)]

mod expected;
mod ordeal;
mod service;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lowtide_jobs::FolderArtifacts;

use ordeal::{Clients, Random};
use service::Service;

/// Jobs in all.
const JOBS: usize = 500;
/// Kills at least.
const KILLS_MIN: u64 = 40;
/// A client rests so long between two jobs.
const PAUSE: Duration = Duration::from_millis(20);
/// How long all of it may take.
const PATIENCE: Duration = Duration::from_secs(540);

#[test]
fn each_job_is_done_once_and_whole_whatever_is_killed() {
    let random = Random::seeded();
    let start = Instant::now();
    let service = Arc::new(Service::new());
    service.start();
    let over = Arc::new(AtomicBool::new(false));
    let clients = {
        let service = service.clone();
        Clients::start(JOBS, PAUSE, PATIENCE, move |body, key| {
            service.post("/v1/jobs", body, Some(key))
        })
    };
    let killer = {
        let (service, over) = (service.clone(), over.clone());
        std::thread::spawn(move || kill_now_and_then(&service, random, &over))
    };
    let accepted = clients.done();
    let store = service.store();
    let left = PATIENCE.saturating_sub(start.elapsed());
    ordeal::wait_for_all(&*store, &accepted, left);
    over.store(true, Ordering::SeqCst);
    let (kills, stale) = killer.join().unwrap();
    println!(
        "{JOBS} jobs, {kills} kills, {:.0} s",
        start.elapsed().as_secs_f64()
    );
    assert!(kills >= KILLS_MIN, "only {kills} kills");
    assert!(stale, "a worker was stopped past its lease");
    let artifacts = FolderArtifacts::open(&service.folder().join("artifacts")).unwrap();
    let kept = ordeal::verify(&*store, &artifacts, &accepted);
    let resumed = service
        .log()
        .matches("goes on from where it was saved")
        .count();
    println!(
        "{} attempts for {JOBS} jobs, {resumed} of them from a saved session",
        kept.attempts
    );
    assert!(
        resumed > 0,
        "some jobs went on where they had been interrupted"
    );
    service.stop();
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
