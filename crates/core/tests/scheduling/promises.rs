//! The promises of the whole, on a simulated service.

use std::time::{Duration, Instant};

use lowtide_core::Bytes;
use lowtide_core::job::{JobId, Moment, Priority};
use lowtide_core::lifecycle::{AfterJob, KeepAlive, LifePolicy, Order};
use lowtide_core::schedule::{BatchKey, Policy};

use crate::service::{Job, Model, Outcome, Outside, Random, World, run};

fn model(name: &'static str, weights_mib: u64, after: &str) -> Model {
    // A disk of 1.5 GB/s and a link of 6 GB/s.
    let bytes = Bytes::mib(weights_mib);
    let from_host_s = bytes.as_f64() / 6e9;
    let life = LifePolicy {
        keep_alive: (after == "auto").then_some(KeepAlive::Auto),
        after_job: match after {
            "offload" => AfterJob::Offload,
            "release" => AfterJob::Release,
            _ => AfterJob::Keep,
        },
        idle: Some(Duration::from_secs(120)),
        from_host_s,
        host_room: true,
    };
    Model {
        name,
        weights: bytes,
        from_host_s,
        from_file_s: bytes.as_f64() / 1.5e9 + 1.0,
        life,
    }
}

/// `count` jobs that arrive at random, so many that `workers` are busy computing for `load` of the time.
fn jobs(
    random: &mut Random,
    count: usize,
    models: &[Model],
    load: f64,
    workers: usize,
) -> Vec<Job> {
    const MEAN_S: f64 = 4.6;
    let mut at_s = 0.0;
    let mut jobs = Vec::with_capacity(count);
    for index in 0..count {
        at_s += random.gap_s(MEAN_S / load / workers as f64);
        let at = Moment::from_secs_f64(at_s);
        let size = [256, 512, 1024][random.below(3) as usize];
        let share = random.below(10);
        let priority = match share {
            0 => Priority::Urgent,
            1..7 => Priority::Normal,
            _ => Priority::Batch,
        };
        // One in fifty is as long as a video.
        let seconds = match random.below(50) {
            0 => random.between(30.0, 120.0),
            _ => random.between(0.3, 6.0),
        };
        let model = random.below(models.len() as u64) as usize;
        let key = BatchKey {
            model: models[model].name.to_owned(),
            size: [size, size],
            settings: random.below(3),
        };
        let due_s = seconds * random.between(2.0, 60.0);
        let deadline = (random.below(20) == 0).then(|| at.plus_seconds(due_s));
        jobs.push(Job {
            id: JobId::new(at, index as u128),
            at,
            model,
            priority,
            deadline,
            seconds,
            truth: random.between(0.7, 1.5),
            steps: 2 + random.below(7) as u32,
            activation: Bytes::mib(u64::from(size) / 2 + random.below(200)),
            batch: (random.below(2) == 0).then_some(key),
        });
    }
    jobs
}

fn faults(
    random: &mut Random,
    jobs: &[Job],
    workers: usize,
    models: usize,
) -> Vec<(Moment, Outside)> {
    let end_s = jobs.last().map_or(0.0, |job| job.at.as_secs_f64());
    let mut planned = Vec::new();
    let mut at_s = 0.0;
    while at_s < end_s {
        at_s += random.gap_s(400.0);
        let worker = random.below(workers as u64) as usize;
        let at = Moment::from_secs_f64(at_s);
        let outside = match random.below(4) {
            0 => Outside::Death {
                worker,
                restart_ms: 500 + random.below(8000),
            },
            // Half of them past the lease.
            1 => Outside::Stall {
                worker,
                ms: random.below(60_000),
            },
            2 => Outside::SlowLink {
                factor: random.between(2.0, 10.0),
                until: at.plus_seconds(random.between(5.0, 60.0)),
            },
            _ => Outside::Hand {
                worker,
                model: random.below(models as u64) as usize,
                order: [Order::Offload, Order::Release][random.below(2) as usize],
            },
        };
        planned.push((at, outside));
    }
    for (index, job) in jobs.iter().enumerate() {
        if random.below(100) == 0 {
            let after_s = random.between(0.0, 20.0);
            planned.push((job.at.plus_seconds(after_s), Outside::Cancel { job: index }));
        }
    }
    planned
}

fn report(name: &str, outcome: &Outcome) {
    let Outcome {
        done,
        failed,
        cancelled,
        load_s,
        compute_s,
        loads,
        starts,
        parked,
        batched,
        deaths,
        requeued,
        refused_writes,
        out_of_memory,
        decisions,
        deferred,
        left,
        end_s,
        waits_s: _,
        worst_of_bound,
    } = outcome;
    eprintln!(
        "{name}: {done} done, {failed} failed, {cancelled} cancelled in {end_s:.0} s; {loads} loads ({load_s:.0} s, \
         {:.1} % of the busy time beside {compute_s:.0} s of computing); {starts} starts, {batched} in batches, \
         {parked} parked; {deaths} deaths, {out_of_memory} out of memory, {requeued} queued again, {refused_writes} \
         writes refused, {deferred} orders deferred; {left} times left to another; {decisions} decisions; mean wait {:.1} s; worst wait {:.0} % of \
         its bound in starts",
        100.0 * outcome.load_share(),
        outcome.mean_wait_s(),
        100.0 * worst_of_bound,
    );
    for (class, priority) in Priority::ALL.iter().enumerate() {
        let (longest, p99) = outcome.wait_s(class);
        eprintln!("  {priority}: 99 % start within {p99:.1} s, all within {longest:.1} s");
    }
}

/// A seed of one's own, as in `LOWTIDE_SEED=7 cargo test`.
fn seed() -> u64 {
    let given = std::env::var("LOWTIDE_SEED").ok();
    given.map_or(1, |text| text.parse().expect("LOWTIDE_SEED is a number"))
}

pub(crate) fn mixed(seed: u64, count: usize, load: f64) -> World {
    let mut random = Random(seed);
    let models = vec![
        model("small", 600, "keep"),
        model("middle", 2000, "auto"),
        model("large", 4500, "keep"),
        model("rare", 1200, "offload"),
        model("once", 900, "release"),
    ];
    let jobs = jobs(&mut random, count, &models, load, 2);
    World {
        seed,
        outside: faults(&mut random, &jobs, 2, models.len()),
        models,
        jobs,
        workers: 2,
        budget: Bytes::gib(8),
        host: Bytes::gib(16),
        open_max: 2,
        policy: Policy::default(),
        out_of_memory_every: Some(500),
        fifo: false,
        leaves: false,
    }
}

#[test]
fn a_hundred_thousand_jobs_and_their_faults() {
    let world = mixed(seed(), 100_000, 0.6);
    let began = Instant::now();
    let outcome = run(world);
    report("100,000 jobs", &outcome);
    let real_s = began.elapsed().as_secs_f64();
    eprintln!("  {real_s:.1} s of real time");
    assert_eq!(outcome.done + outcome.failed + outcome.cancelled, 100_000);
    // The faults did happen.
    assert!(outcome.deaths > 50 && outcome.out_of_memory > 50 && outcome.refused_writes > 5);
    assert!(outcome.parked > 100 && outcome.batched > 300 && outcome.deferred > 10);
    assert!(
        outcome.done > 98_000,
        "faults cost few jobs: {}",
        outcome.done
    );
}

#[test]
fn more_work_than_the_devices_can_do_and_an_allocation_in_eight_fails() {
    let world = World {
        out_of_memory_every: Some(8),
        ..mixed(seed(), 8_000, 1.3)
    };
    let outcome = run(world);
    report("overload", &outcome);
    assert!(outcome.failed > 5, "some jobs use up their attempts");
    assert!(outcome.batched > 1000, "a long queue has jobs that agree");
}

/// Three models of which one device holds one, asked for in turn without order.
fn three_unlike_models(link_bytes_per_s: f64, load: f64, fifo: bool) -> World {
    let mut random = Random(seed());
    let mut models = vec![
        model("one", 5000, "keep"),
        model("two", 4800, "keep"),
        model("three", 4500, "keep"),
    ];
    for model in &mut models {
        model.from_host_s = model.weights.as_f64() / link_bytes_per_s;
    }
    let mut jobs = jobs(&mut random, 4000, &models, load, 1);
    for job in &mut jobs {
        // What batches save is not to be mistaken for what the order saves.
        (job.batch, job.deadline) = (None, None);
        job.priority = Priority::Normal;
    }
    World {
        seed: seed(),
        models,
        jobs,
        workers: 1,
        budget: Bytes::gib(6),
        host: Bytes::gib(16),
        open_max: if fifo { 1 } else { 2 },
        policy: Policy::default(),
        outside: Vec::new(),
        out_of_memory_every: None,
        fifo,
        leaves: false,
    }
}

#[test]
fn three_unlike_models_on_a_small_device_do_not_thrash() {
    // A fast link, a slow one, a disk, and a slow link with half as much again to do as can be done. The limits, as parts
    // of what first come, first served comes to: loads, share of the time that goes to loading, mean wait.
    for (gb_per_s, load, loads, share, wait) in [
        (6.0, 0.75, 0.75, 0.80, 0.95),
        (2.0, 0.75, 0.60, 0.65, 0.25),
        (1.0, 0.75, 0.45, 0.60, 0.10),
        (2.0, 1.50, 0.25, 0.32, 0.90),
    ] {
        let fifo = run(three_unlike_models(gb_per_s * 1e9, load, true));
        let ours = run(three_unlike_models(gb_per_s * 1e9, load, false));
        eprintln!("{gb_per_s} GB/s, {load} of what the device can compute");
        report("first come, first served", &fifo);
        report("scheduled", &ours);
        assert_eq!((ours.done, fifo.done), (4000, 4000));
        assert!((ours.loads as f64) < loads * fifo.loads as f64);
        assert!(ours.load_share() < share * fifo.load_share());
        assert!(ours.mean_wait_s() < wait * fifo.mean_wait_s());
    }
}

/// Twice as many urgent jobs as the device can do, and a batch job now and then.
fn flood(turn: u32) -> World {
    let mut random = Random(seed());
    let models = vec![model("one", 500, "keep")];
    let mut jobs = jobs(&mut random, 3000, &models, 2.0, 1);
    for (index, job) in jobs.iter_mut().enumerate() {
        (job.batch, job.deadline) = (None, None);
        job.priority = match index % 20 {
            0 => Priority::Batch,
            _ => Priority::Urgent,
        };
    }
    World {
        seed: seed(),
        models,
        jobs,
        workers: 1,
        budget: Bytes::gib(6),
        host: Bytes::gib(16),
        open_max: 2,
        policy: Policy {
            turn,
            ..Policy::default()
        },
        outside: Vec::new(),
        out_of_memory_every: None,
        fifo: false,
        leaves: false,
    }
}

#[test]
fn a_flood_of_urgent_jobs_starves_nobody() {
    let fair = run(flood(Policy::default().turn));
    let unfair = run(flood(1 << 30));
    report("with the turn of the oldest", &fair);
    report("without", &unfair);
    let ((with_s, _), (without_s, _)) = (fair.wait_s(2), unfair.wait_s(2));
    assert!(with_s < 0.8 * without_s, "{with_s} s and {without_s} s");
    assert!(fair.worst_of_bound <= 1.0);
}

/// Two workers with room for one model each, and jobs for two models in turn: what is idle and has the model gets the
/// job, although the other one looks first and could load it.
#[test]
fn a_job_is_left_to_the_worker_that_has_its_model() {
    let world = |leaves| {
        let models = vec![model("a", 6_000, "keep"), model("b", 6_000, "keep")];
        let jobs = (0..40u32)
            .map(|index| {
                // The first two at once, so that each worker has a model; then one every eight seconds.
                let at = Moment::from_secs_f64(8.0 * f64::from(index - index.min(1)));
                Job {
                    id: JobId::new(at, u128::from(index)),
                    at,
                    model: (index % 2) as usize,
                    priority: Priority::Normal,
                    deadline: None,
                    seconds: 1.0,
                    truth: 1.0,
                    steps: 2,
                    activation: Bytes::mib(100),
                    batch: None,
                }
            })
            .collect();
        World {
            seed: 1,
            models,
            jobs,
            workers: 2,
            budget: Bytes::mib(7_000),
            host: Bytes::ZERO,
            open_max: 1,
            policy: Policy::default(),
            outside: Vec::new(),
            out_of_memory_every: None,
            fifo: false,
            leaves,
        }
    };
    let (alone, together) = (run(world(false)), run(world(true)));
    report("each for itself", &alone);
    report("left to the warm one", &together);
    assert_eq!((alone.done, together.done), (40, 40));
    assert_eq!(together.loads, 2, "each model is loaded once");
    assert!(together.left > 0);
    assert!(alone.loads > 10, "{}", alone.loads);
    assert!(together.mean_wait_s() <= alone.mean_wait_s());
}

/// A worker that is to get jobs and dies, or stands still, keeps none of them: they are loaded elsewhere.
#[test]
fn nothing_waits_for_a_worker_that_does_not_come() {
    let mut random = Random(7);
    let models = vec![model("a", 6_000, "keep"), model("b", 6_000, "keep")];
    let jobs = jobs(&mut random, 400, &models, 0.4, 3);
    let mut world = World {
        seed: 7,
        models,
        jobs,
        workers: 3,
        budget: Bytes::mib(8_000),
        host: Bytes::ZERO,
        open_max: 2,
        policy: Policy::default(),
        outside: Vec::new(),
        out_of_memory_every: None,
        fifo: false,
        leaves: true,
    };
    for index in 0..40 {
        let at = Moment::from_secs_f64(15.0 * f64::from(index));
        let worker = (index % 3) as usize;
        let outside = match index % 2 {
            0 => Outside::Stall { worker, ms: 45_000 },
            _ => Outside::Death {
                worker,
                restart_ms: 20_000,
            },
        };
        world.outside.push((at, outside));
    }
    let outcome = run(world);
    assert_eq!(outcome.done + outcome.failed, 400);
    assert!(outcome.left > 0 && outcome.deaths > 0);
}
