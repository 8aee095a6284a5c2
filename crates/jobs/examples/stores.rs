//! How fast a store is: `bench/service/stores.sh` calls it.
//!
//! ```text
//! stores submit  STORE THREADS SECONDS [BATCH]
//! stores work    STORE WORKERS SECONDS RATE
//! stores fill    STORE JOBS
//! stores history STORE
//! ```
//! STORE: `redis://host`, or the path of a file for SQLite. `RELAXED=1` waits for no disk.

// Numbers for people; what goes wrong ends it.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lowtide_core::job::{JobId, JobState, Moment, Priority};
use lowtide_jobs::{
    Artifact, ArtifactId, Durability, EventId, JobStore, Listing, Outcome, Policy, RedisOptions,
    RedisStore, Retention, SqliteOptions, SqliteStore, StoreError, Submission, WorkerId,
    random_job_id,
};

const LEASE: Duration = Duration::from_secs(60);

fn open(store: &str) -> Arc<dyn JobStore> {
    let policy = Policy {
        waiting_max: 100_000_000,
        ..Policy::default()
    };
    let durability = match std::env::var("RELAXED") {
        Ok(_) => Durability::Relaxed,
        Err(_) => Durability::Full,
    };
    match store.contains("://") {
        true => Arc::new(
            RedisStore::open(RedisOptions {
                policy,
                durability,
                ..RedisOptions::new(store)
            })
            .unwrap(),
        ),
        false => Arc::new(
            SqliteStore::open(
                store.as_ref(),
                SqliteOptions {
                    policy,
                    durability,
                    size_max: None,
                },
            )
            .unwrap(),
        ),
    }
}

fn now() -> Moment {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    Moment(since.as_millis() as u64)
}

fn submission() -> Submission {
    let request =
        r#"{"prompt":"a lighthouse at low tide","width":512,"height":512,"steps":20,"seed":7}"#;
    Submission {
        hints: Some(r#"{"seconds":0.001,"peak":1048576}"#.to_owned()),
        ..Submission::new(random_job_id(now()), "no-op", "no-op", request)
    }
}

/// Milliseconds that half, 99 of 100 and all stay below.
fn spread(mut times: Vec<f64>) -> String {
    times.sort_by(f64::total_cmp);
    let at = |share: f64| {
        let place = (times.len() as f64 * share) as usize;
        times
            .get(place.min(times.len().saturating_sub(1)))
            .copied()
            .unwrap_or_default()
    };
    format!(
        "p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms",
        at(0.5),
        at(0.99),
        at(1.0)
    )
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

/// Threads that submit, one job or a batch at a time, each waiting for its answer.
fn submit(store: &str, threads: usize, seconds: u64, batch: usize) {
    let store = open(store);
    let (over, times) = (AtomicBool::new(false), Mutex::new(Vec::new()));
    let count = AtomicU64::new(0);
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut mine = Vec::new();
                while !over.load(Ordering::Relaxed) {
                    let jobs = (0..batch).map(|_| submission()).collect();
                    let one = Instant::now();
                    store.submit_all(jobs, now()).unwrap();
                    mine.push(ms(one));
                    count.fetch_add(batch as u64, Ordering::Relaxed);
                }
                times.lock().unwrap().extend(mine);
            });
        }
        std::thread::sleep(Duration::from_secs(seconds));
        over.store(true, Ordering::Relaxed);
    });
    println!(
        "submit: {threads} threads, batches of {batch}: {:.0} jobs/s, a call {}",
        count.into_inner() as f64 / began.elapsed().as_secs_f64(),
        spread(times.into_inner().unwrap())
    );
}

/// Workers with a store of their own each, as processes would have, that claim and complete; jobs come at a rate, or as
/// fast as they are done where that is 0.
fn work(url: &str, workers: usize, seconds: u64, rate: u64) {
    let (over, done) = (AtomicBool::new(false), AtomicU64::new(0));
    let (submitted, waits) = (Mutex::new(HashMap::new()), Mutex::new(Vec::new()));
    let began = Instant::now();
    std::thread::scope(|scope| {
        for number in 0..workers {
            let (over, done, submitted, waits) = (&over, &done, &submitted, &waits);
            scope.spawn(move || {
                let store = open(url);
                let me: WorkerId = format!("w{number}").parse().unwrap();
                while !over.load(Ordering::Relaxed) {
                    one_look(&*store, &me, (submitted, waits), done);
                }
            });
        }
        scope.spawn(|| feed(url, rate, (&over, &submitted), &done));
        std::thread::sleep(Duration::from_secs(seconds));
        over.store(true, Ordering::Relaxed);
    });
    println!(
        "work: {workers} workers, {rate} jobs/s wanted: {:.0} jobs/s done, submission to claim {}",
        done.into_inner() as f64 / began.elapsed().as_secs_f64(),
        spread(waits.into_inner().unwrap())
    );
}

type Times = Mutex<HashMap<JobId, Instant>>;

fn one_look(
    store: &dyn JobStore,
    me: &WorkerId,
    (submitted, waits): (&Times, &Mutex<Vec<f64>>),
    done: &AtomicU64,
) {
    let mark = store.change_mark().unwrap();
    let jobs = store.candidates(64, now()).unwrap().jobs;
    // Several workers look at the same list: each begins somewhere else in it.
    let from = me.as_str().bytes().map(usize::from).sum::<usize>() * 8;
    let some: Vec<JobId> = (0..jobs.len().min(8))
        .map(|place| jobs[(from + place) % jobs.len()].id)
        .collect();
    if some.is_empty() {
        store.wait_change(mark, Duration::from_millis(100)).unwrap();
        return;
    }
    for claimed in store.claim_all(&some, me, LEASE, now()).unwrap() {
        match claimed {
            Ok(claimed) => {
                let at = submitted.lock().unwrap().remove(&claimed.lease.job);
                waits.lock().unwrap().extend(at.map(ms));
                store
                    .complete(&claimed.lease, Outcome::default(), now())
                    .unwrap();
                done.fetch_add(1, Ordering::Relaxed);
            }
            Err(StoreError::NotClaimable { .. } | StoreError::NotFound { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

fn feed(url: &str, rate: u64, (over, submitted): (&AtomicBool, &Times), done: &AtomicU64) {
    let store = open(url);
    let began = Instant::now();
    let mut count = 0u64;
    while !over.load(Ordering::Relaxed) {
        let wanted = match rate {
            0 => done.load(Ordering::Relaxed) + 512,
            _ => (began.elapsed().as_secs_f64() * rate as f64) as u64,
        };
        if count >= wanted {
            std::thread::sleep(Duration::from_micros(200));
            continue;
        }
        let jobs: Vec<Submission> = (count..wanted.min(count + 64))
            .map(|_| submission())
            .collect();
        count += jobs.len() as u64;
        let at = Instant::now();
        let ids = jobs.iter().map(|job| (job.id, at));
        submitted.lock().unwrap().extend(ids);
        store.submit_all(jobs, now()).unwrap();
    }
}

/// Fills a store up to so many jobs that are over.
fn fill_up(url: &str, jobs: u64) {
    let store = open(url);
    let there = store.stats(now()).unwrap().in_state(JobState::Done);
    let began = Instant::now();
    let next = AtomicU64::new(there);
    std::thread::scope(|scope| {
        for number in 0..8 {
            let (store, next) = (&store, &next);
            scope.spawn(move || {
                let me: WorkerId = format!("w{number}").parse().unwrap();
                while next.fetch_add(200, Ordering::Relaxed) < jobs {
                    fill(&**store, &me);
                }
            });
        }
    });
    println!("filled in {:.0} s", began.elapsed().as_secs_f64());
    let stats = store.stats(now()).unwrap();
    println!(
        "{} done, {} failed",
        stats.in_state(JobState::Done),
        stats.in_state(JobState::Failed)
    );
}

/// Asks a full store what a panel asks.
fn history(url: &str) {
    let store = open(url);
    let stats = store.stats(now()).unwrap();
    let jobs = stats.in_state(JobState::Done) + stats.in_state(JobState::Failed);
    println!("{jobs} jobs are over");
    questions(&*store, jobs);
}

fn fill(store: &dyn JobStore, me: &WorkerId) {
    let jobs: Vec<Submission> = (0..200)
        .map(|number| Submission {
            owner: Some(format!("owner-{}", number % 7)),
            priority: Some(Priority::ALL[number % 3]),
            ..submission()
        })
        .collect();
    let ids: Vec<JobId> = jobs.iter().map(|job| job.id).collect();
    store.submit_all(jobs, now()).unwrap();
    let claims = store.claim_all(&ids, me, LEASE, now()).unwrap();
    for (number, claimed) in claims.into_iter().enumerate() {
        let lease = claimed.unwrap().lease;
        if number == 0 {
            store.fail(&lease, "no", false, now()).unwrap();
            continue;
        }
        let artifact = Artifact {
            id: ArtifactId::random(now()),
            media_type: "image/png".to_owned(),
            bytes: 1_000,
            sha256: "00".repeat(32),
        };
        let outcome = Outcome {
            artifacts: vec![artifact],
            report: Some(r#"{"seed":7,"seconds":1.5}"#.to_owned()),
        };
        store.complete(&lease, outcome, now()).unwrap();
    }
}

fn questions(store: &dyn JobStore, jobs: u64) {
    let page = |states: &[JobState], owner: Option<&str>, before| Listing {
        states: states.to_vec(),
        owner: owner.map(str::to_owned),
        before,
        limit: 50,
    };
    let list = |listing: Listing| store.list(&listing).unwrap().len();
    let last = &store.list(&page(&[], None, None)).unwrap()[0];
    let (id, middle) = (last.id, Some(jobs / 2));
    let ask = |name: &str, act: &dyn Fn() -> usize| {
        let mut found = 0;
        let times = (0..20).map(|_| {
            let began = Instant::now();
            found = act();
            ms(began)
        });
        println!("{name}: {}; found {found}", spread(times.collect()));
    };
    let failed = [JobState::Failed];
    let done = [JobState::Done];
    let open = [JobState::Queued, JobState::Running, JobState::Parked];
    ask("first page", &|| list(page(&[], None, None)));
    ask("page in the middle", &|| list(page(&[], None, middle)));
    ask("page of done ones", &|| list(page(&done, None, None)));
    ask("page of failed ones", &|| list(page(&failed, None, None)));
    ask("failed ones, middle", &|| list(page(&failed, None, middle)));
    ask("page of open ones", &|| list(page(&open, None, None)));
    ask("page of cancelled ones", &|| {
        list(page(&[JobState::Cancelled], None, None))
    });
    ask("page of an owner", &|| {
        list(page(&[], Some("owner-3"), None))
    });
    ask("failed ones of an owner", &|| {
        list(page(&failed, Some("owner-0"), middle))
    });
    ask("page of a stranger", &|| {
        list(page(&[], Some("nobody"), None))
    });
    ask("failed ones of a stranger", &|| {
        list(page(&failed, Some("nobody"), None))
    });
    ask("numbers", &|| store.stats(now()).unwrap().minutes.len());
    ask("one job", &|| usize::from(store.job(id).is_ok()));
    ask("candidates", &|| {
        store.candidates(256, now()).unwrap().jobs.len()
    });
    ask("latest events", &|| {
        let last = store.stats(now()).unwrap().last_event.0;
        let events = store.events_after(EventId(last.saturating_sub(500)), None, 500);
        events.unwrap().events.len()
    });
    ask("a job's events", &|| {
        store
            .events_after(EventId(0), Some(id), 500)
            .unwrap()
            .events
            .len()
    });
    ask("sweep", &|| {
        store.sweep(now()).unwrap().leases_ended as usize
    });
    ask("submit", &|| {
        usize::from(store.submit(submission(), now()).is_ok())
    });
    let keep = |jobs_max| Retention {
        jobs_max: Some(jobs_max),
        ..Retention::default()
    };
    ask("retention without work", &|| {
        store.retain(&keep(u64::MAX), now()).unwrap().jobs as usize
    });
    ask("retention, one go", &|| {
        store.retain(&keep(0), now()).unwrap().jobs as usize
    });
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let texts: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let number = |text: &str| text.parse::<u64>().unwrap();
    match texts[..] {
        ["submit", store, threads, seconds] => {
            submit(store, number(threads) as usize, number(seconds), 1);
        }
        ["submit", store, threads, seconds, batch] => submit(
            store,
            number(threads) as usize,
            number(seconds),
            number(batch) as usize,
        ),
        ["work", store, workers, seconds, rate] => {
            work(
                store,
                number(workers) as usize,
                number(seconds),
                number(rate),
            );
        }
        ["fill", store, jobs] => fill_up(store, number(jobs)),
        ["history", store] => history(store),
        _ => panic!("stores submit|work|fill|history STORE ...; see the top of this file"),
    }
}
