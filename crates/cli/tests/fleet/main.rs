//! Three machines, one Redis: nothing accepted is lost, and nothing is done twice, whatever is killed.
//!
//! Each machine is a process with a data folder of its own: a server with its worker, and two more workers. Finished files,
//! inputs and saved sessions are in a folder all of them share, or in a bucket of an S3 server and nowhere else. Jobs are
//! submitted over HTTP while server, workers and Redis itself are killed (-9) at random moments, Redis stands still for
//! longer than a lease, one worker is stopped and another one cut off from the network for longer than its own. In the end
//! each job has one artifact, whole, with the bytes that an undisturbed run gives, and one `done` in the log.
//!
//! The seed is printed; `LOWTIDE_CHAOS_SEED` repeats the same choices (not the same moments: those are the machine's).
//! `LOWTIDE_CHAOS_JOBS` sets how many jobs there are, `LOWTIDE_CHAOS_MINUTES` how long they may take.
#![cfg(unix)]
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    dead_code,
    reason = "a failed test may panic, its output is for people, and it shares files with other tests"
)]

#[path = "../../../bucket/tests/bucket/server.rs"]
mod bucket;
#[path = "../chaos/expected.rs"]
mod expected;
mod handing_over;
mod machines;
#[path = "../chaos/ordeal.rs"]
mod ordeal;
#[path = "../../../bucket/tests/bucket/proxy.rs"]
mod proxy;
#[path = "../../../jobs/tests/redis/server.rs"]
mod server;
mod together;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use machines::{Files, LEASE, Machines};
use ordeal::{Clients, Random, number};

/// Jobs in all, unless `LOWTIDE_CHAOS_JOBS` says otherwise.
const JOBS: usize = 200;
/// Those over a bucket: each file there takes many requests to a server that shares the machine.
const BUCKET_JOBS: usize = 100;
/// A client rests so long between two jobs.
const PAUSE: Duration = Duration::from_millis(60);
/// How many minutes all of it may take, unless `LOWTIDE_CHAOS_MINUTES` says otherwise.
const MINUTES: u64 = 9;

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
    /// Another one was cut off from the network until somebody else had its job.
    cut: bool,
}

impl Harm {
    fn is_enough(&self) -> bool {
        self.servers > 0 && self.workers > 2 && self.stores > 1 && self.stalls > 0
    }
}

#[test]
fn each_job_is_done_once_and_whole_whatever_is_killed() {
    let name = "each_job_is_done_once_and_whole_whatever_is_killed";
    if let Some(machines) = Machines::new(name, Files::Folder) {
        ordeal_of(machines, JOBS);
    }
}

#[test]
fn each_job_is_done_once_and_whole_in_a_bucket() {
    let name = "each_job_is_done_once_and_whole_in_a_bucket";
    if let Some(machines) = Machines::new(name, Files::Bucket) {
        ordeal_of(machines, BUCKET_JOBS);
    }
}

fn ordeal_of(machines: Machines, jobs: usize) {
    let random = Random::seeded();
    let jobs = number("LOWTIDE_CHAOS_JOBS").map_or(jobs, |jobs| jobs as usize);
    let minutes = number("LOWTIDE_CHAOS_MINUTES").unwrap_or(MINUTES);
    let patience = Duration::from_secs(60 * minutes);
    let start = Instant::now();
    let machines = Arc::new(machines);
    machines.start();
    let over = Arc::new(AtomicBool::new(false));
    let clients = {
        let machines = machines.clone();
        Clients::start(jobs, PAUSE, patience, move |body, key| {
            machines.post("/v1/jobs", body, Some(key))
        })
    };
    let killer = {
        let (machines, over) = (machines.clone(), over.clone());
        std::thread::spawn(move || harm(&machines, random, &over))
    };
    let accepted = clients.done();
    let store = machines.store();
    let left = patience.saturating_sub(start.elapsed());
    ordeal::wait_for_all(&*store, &accepted, left);
    over.store(true, Ordering::SeqCst);
    let harm = killer.join().unwrap();
    let seconds = start.elapsed().as_secs_f64();
    println!("{jobs} jobs, {harm:?}, {seconds:.0} s");
    assert!(harm.is_enough(), "{harm:?}");
    assert!(harm.stopped, "a worker was stopped past its lease");
    assert!(harm.cut, "a worker was cut off past its lease");
    let kept = ordeal::verify(&*store, &*machines.artifacts(), &accepted);
    println!(
        "{} attempts for {jobs} jobs by {} workers, {} of them from a saved session",
        kept.attempts,
        kept.workers.len(),
        machines.resumed()
    );
    let hosts = &kept.workers;
    assert!(hosts.len() >= 3, "each machine worked: {hosts:?}");
    machines.stop();
}

/// Kills at random moments until all jobs are over, and until each kind of harm was done.
fn harm(machines: &Machines, mut random: Random, over: &AtomicBool) -> Harm {
    let mut harm = Harm::default();
    let mut round = 0;
    while !over.load(Ordering::SeqCst) || !harm.is_enough() {
        std::thread::sleep(Duration::from_millis(random.between(150, 900)));
        round += 1;
        let working = !over.load(Ordering::SeqCst);
        if round >= 4 && !harm.stopped && working {
            harm.stopped = machines.stop_a_worker_past_its_lease();
        } else if round >= 6 && !harm.cut && working {
            harm.cut = machines.cut_a_worker_off_past_its_lease();
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
