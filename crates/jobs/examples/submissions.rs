//! Durable submissions a second, beside the disk's own rate of fsync: `submissions [folder] [threads] [seconds]`.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use lowtide_core::job::Moment;
use lowtide_jobs::{
    JobStore, Outcome, Policy, SqliteOptions, SqliteStore, Submission, WorkerId, random_job_id,
};

type Anyhow<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn now() -> Moment {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    Moment(since.map_or(0, |since| since.as_millis() as u64))
}

/// The disk alone: a page written and synced, again and again.
fn fsyncs_a_second(folder: &Path, time: Duration) -> Anyhow<f64> {
    let path = folder.join("fsync-rate");
    let mut file = File::create(&path)?;
    let (began, mut count) = (Instant::now(), 0);
    while began.elapsed() < time {
        file.seek(SeekFrom::Start(4096 * (count % 1024)))?;
        file.write_all(&[count as u8; 4096])?;
        file.sync_all()?;
        count += 1;
    }
    let rate = count as f64 / began.elapsed().as_secs_f64();
    std::fs::remove_file(path)?;
    Ok(rate)
}

fn percentile(times: &mut [Duration], share: f64) -> f64 {
    times.sort();
    let place = ((times.len() as f64 * share) as usize).min(times.len().saturating_sub(1));
    times
        .get(place)
        .map_or(0.0, |time| time.as_secs_f64() * 1e3)
}

/// `threads` submitters, each with one submission at a time.
fn submissions(
    store: &SqliteStore,
    threads: usize,
    time: Duration,
) -> Anyhow<(f64, Vec<Duration>)> {
    let request = format!("{{\"prompt\":\"{}\"}}", "a red heart ".repeat(20));
    let stop = AtomicBool::new(false);
    let began = Instant::now();
    let mut all = Vec::new();
    std::thread::scope(|scope| -> Anyhow<()> {
        let submitters: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| -> Anyhow<Vec<Duration>> {
                    let mut times = Vec::new();
                    while !stop.load(Ordering::Relaxed) {
                        let (one, at) = (Instant::now(), now());
                        let id = random_job_id(at);
                        store.submit(Submission::new(id, "text-to-image", "demo", &request), at)?;
                        times.push(one.elapsed());
                    }
                    Ok(times)
                })
            })
            .collect();
        std::thread::sleep(time);
        stop.store(true, Ordering::Relaxed);
        for submitter in submitters {
            all.extend(submitter.join().expect("a submitter does not panic")?);
        }
        Ok(())
    })?;
    Ok((all.len() as f64 / began.elapsed().as_secs_f64(), all))
}

/// One at a time: look, claim, complete.
fn rounds(store: &SqliteStore, time: Duration) -> Anyhow<(f64, Vec<Duration>, Vec<Duration>)> {
    let worker: WorkerId = "bench".parse()?;
    let (mut looks, mut claims) = (Vec::new(), Vec::new());
    let began = Instant::now();
    while began.elapsed() < time {
        let one = Instant::now();
        let found = store.candidates(64, now())?;
        looks.push(one.elapsed());
        let Some(first) = found.jobs.first() else {
            break;
        };
        let one = Instant::now();
        let claimed = store.claim(first.id, &worker, Duration::from_secs(30), now())?;
        claims.push(one.elapsed());
        store.complete(&claimed.lease, Outcome::default(), now())?;
    }
    Ok((
        claims.len() as f64 / began.elapsed().as_secs_f64(),
        looks,
        claims,
    ))
}

fn main() -> Anyhow<()> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments
        .next()
        .map_or_else(std::env::temp_dir, PathBuf::from);
    let threads = arguments.next().map_or(Ok(64), |text| text.parse())?;
    let seconds = arguments.next().map_or(Ok(5), |text| text.parse())?;
    let time = Duration::from_secs(seconds);
    let folder = folder.join(format!("lowtide-submissions-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;

    let mut out = std::io::stdout().lock();
    let before = fsyncs_a_second(&folder, Duration::from_secs(1))?;
    let options = SqliteOptions {
        policy: Policy {
            waiting_max: u64::MAX / 2,
            ..Policy::default()
        },
        ..SqliteOptions::default()
    };
    let store = SqliteStore::open(&folder.join("jobs.sqlite"), options)?;
    let (rate, mut times) = submissions(&store, threads, time)?;
    let after = fsyncs_a_second(&folder, Duration::from_secs(1))?;
    writeln!(out, "fsync alone: {before:.0}/s before, {after:.0}/s after")?;
    writeln!(
        out,
        "{threads} threads: {rate:.0} durable submissions/s, p50 {:.1} ms, p99 {:.1} ms",
        percentile(&mut times, 0.5),
        percentile(&mut times, 0.99)
    )?;
    let (rate, mut looks, mut claims) = rounds(&store, time)?;
    writeln!(
        out,
        "one worker: {rate:.0} jobs/s; candidates p50 {:.2} ms p99 {:.2} ms; claim p50 {:.2} ms p99 {:.2} ms",
        percentile(&mut looks, 0.5),
        percentile(&mut looks, 0.99),
        percentile(&mut claims, 0.5),
        percentile(&mut claims, 0.99)
    )?;
    drop(store);
    std::fs::remove_dir_all(folder)?;
    Ok(())
}
