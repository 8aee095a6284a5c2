//! What holds when processes are killed or stopped: the tests start themselves again as another process.
#![cfg(unix)]
// What stands outside a test function may unwrap as tests may.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lowtide_core::job::{JobState, Moment};
use lowtide_jobs::{
    Artifact, ArtifactStore, EventId, FolderArtifacts, Happening, JobStore, Outcome, Policy,
    SqliteOptions, SqliteStore, StoreError, Submission, WorkerId, random_job_id,
};

const ROLE: &str = "LOWTIDE_TEST_ROLE";
const FOLDER: &str = "LOWTIDE_TEST_FOLDER";
const LEASE: Duration = Duration::from_secs(30);

fn store(folder: &Path) -> SqliteStore {
    let policy = Policy {
        waiting_max: 1_000_000,
        ..Policy::default()
    };
    let options = SqliteOptions {
        policy,
        ..SqliteOptions::default()
    };
    SqliteStore::open(&folder.join("jobs.sqlite"), options).unwrap()
}

fn artifacts(folder: &Path) -> FolderArtifacts {
    FolderArtifacts::open(&folder.join("artifacts")).unwrap()
}

fn now() -> Moment {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    Moment(u64::try_from(since.as_millis()).unwrap())
}

/// A line at once, whatever the test harness does with what is printed.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    out.write_all(format!("\n@{line}\n").as_bytes()).unwrap();
    out.flush().unwrap();
}

/// This test program as another process, with a shell around it that may set limits first.
fn start(role: &str, folder: &Path, limits: &str) -> Child {
    let me = std::env::current_exe().unwrap();
    Command::new("sh")
        .arg("-c")
        .arg(format!(
            "{limits} exec \"$0\" --ignored --exact another_process --nocapture"
        ))
        .arg(me)
        .env(ROLE, role)
        .env(FOLDER, folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// What it says, line by line.
fn lines(child: &mut Child) -> impl Iterator<Item = String> + use<> {
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    lines
        .map_while(Result::ok)
        .filter_map(|line| line.strip_prefix('@').map(str::to_owned))
}

fn signal(name: &str, child: &Child) {
    let command = format!("kill -{name} {}", child.id());
    assert!(
        Command::new("sh")
            .args(["-c", &command])
            .status()
            .unwrap()
            .success()
    );
}

#[test]
#[ignore = "the other process of the tests beside it"]
fn another_process() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let folder = std::env::var(FOLDER).unwrap();
    let folder = Path::new(&folder);
    match role.as_str() {
        "work" => work(folder),
        "stall" => stall(folder),
        "fill" => fill(folder),
        other => panic!("there is no role {other}"),
    }
}

/// Submits and completes until it is killed, and says what it was told.
fn work(folder: &Path) {
    let (store, artifacts) = (store(folder), artifacts(folder));
    let me: WorkerId = format!("w{}", std::process::id()).parse().unwrap();
    let submitted = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                // Bounded, in case nobody is left to end it.
                while submitted.fetch_add(1, Ordering::Relaxed) < 20_000 {
                    let id = random_job_id(now());
                    store
                        .submit(Submission::new(id, "kind", "demo", "{}"), now())
                        .unwrap();
                    say(&format!("accepted {id}"));
                }
            });
        }
        scope.spawn(|| {
            while submitted.load(Ordering::Relaxed) < 20_000 {
                for job in store.candidates(8, now()).unwrap().jobs {
                    let Ok(claimed) = store.claim(job.id, &me, LEASE, now()) else {
                        continue;
                    };
                    let content = job.id.to_string().repeat(2_000);
                    let outcome = Outcome {
                        artifacts: vec![
                            artifacts
                                .put("text/plain", content.as_bytes(), now())
                                .unwrap(),
                        ],
                        report: None,
                    };
                    store.complete(&claimed.lease, outcome, now()).unwrap();
                    say(&format!("done {}", job.id));
                }
            }
        });
    });
}

#[test]
fn what_was_acknowledged_survives_kill_9() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    // Made before the processes are, so that two of them do not only race for that.
    drop(store(folder));
    let seed = now().0;
    let (mut accepted, mut done) = (BTreeSet::new(), BTreeSet::new());
    for round in 0..8 {
        let mut pair = [start("work", folder, ""), start("work", folder, "")];
        // Somewhere in the middle of what the first one says; the second one is caught wherever it is.
        let limit = 1 + (seed.wrapping_mul(6_364_136_223_846_793_005) >> (20 + round)) % 60;
        let readers = pair.each_mut().map(lines);
        let mut said = Vec::new();
        for (index, mut reader) in readers.into_iter().enumerate() {
            if index == 0 {
                said.extend(reader.by_ref().take(usize::try_from(limit).unwrap()));
                pair.iter_mut().for_each(|child| child.kill().unwrap());
            }
            said.extend(reader);
        }
        for child in &mut pair {
            child.wait().unwrap();
        }
        for line in said {
            match line.split_once(' ') {
                // The last line may be cut.
                Some((what, id)) if id.len() == 26 => {
                    let id = id.parse().unwrap();
                    if what == "done" {
                        done.insert(id)
                    } else {
                        accepted.insert(id)
                    };
                }
                _ => {}
            }
        }
    }
    assert!(
        accepted.len() > 16 && !done.is_empty(),
        "seed {seed}: {} {}",
        accepted.len(),
        done.len()
    );
    let (store, artifacts) = (store(folder), artifacts(folder));
    store.check().unwrap();
    for id in &accepted {
        store
            .job(*id)
            .unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
    for id in &done {
        assert_eq!(store.job(*id).unwrap().state, JobState::Done, "seed {seed}");
    }
    // What was interrupted goes on elsewhere, and then everything is done once, with one whole artifact.
    let later = now() + LEASE + LEASE;
    store.sweep(later).unwrap();
    let later = later + Policy::default().retry.backoff_max;
    finish(&store, &artifacts, later);
    let mut known = Vec::new();
    for id in accepted {
        let job = store.job(id).unwrap();
        assert_eq!(job.state, JobState::Done, "seed {seed}: {job:?}");
        let [artifact]: [Artifact; 1] = job.outcome.unwrap().artifacts.try_into().unwrap();
        assert_eq!(
            artifacts.read(&artifact).unwrap(),
            id.to_string().repeat(2_000).as_bytes()
        );
        let events = store
            .events_after(EventId(0), Some(id), 1_000)
            .unwrap()
            .events;
        let times = events
            .iter()
            .filter(|event| event.what == Happening::Done)
            .count();
        assert_eq!(times, 1, "seed {seed}");
        known.push(artifact.id);
    }
    // Files of attempts that never published are found and can go.
    let found = artifacts.finished_before(later).unwrap();
    let published = store.known_artifacts(&found).unwrap();
    assert!(published.len() >= known.len());
    for artifact in found
        .iter()
        .filter(|artifact| !published.contains(artifact))
    {
        artifacts.remove(*artifact).unwrap();
    }
    assert_eq!(
        artifacts.finished_before(later).unwrap().len(),
        published.len()
    );
    assert_eq!(
        std::fs::read_dir(folder.join("artifacts")).unwrap().count(),
        published.len()
    );
}

/// Does everything that waits.
fn finish(store: &SqliteStore, artifacts: &FolderArtifacts, now: Moment) {
    let me: WorkerId = "last".parse().unwrap();
    loop {
        let jobs = store.candidates(1_000, now).unwrap().jobs;
        if jobs.is_empty() {
            return;
        }
        for job in jobs {
            let claimed = store.claim(job.id, &me, LEASE, now).unwrap();
            let content = job.id.to_string().repeat(2_000);
            let artifact = artifacts
                .put("text/plain", content.as_bytes(), job.submitted)
                .unwrap();
            let outcome = Outcome {
                artifacts: vec![artifact],
                report: None,
            };
            store.complete(&claimed.lease, outcome, now).unwrap();
        }
    }
}

/// Claims a job, waits for a word, and then says it is done.
fn stall(folder: &Path) {
    let store = store(folder);
    let job = store.candidates(1, Moment(0)).unwrap().jobs.remove(0).id;
    let me: WorkerId = "stalled".parse().unwrap();
    let lease = store.claim(job, &me, LEASE, Moment(0)).unwrap().lease;
    say("claimed");
    let mut word = String::new();
    std::io::stdin().read_line(&mut word).unwrap();
    let late = Moment(word.trim().parse().unwrap());
    for result in [
        store.renew(&lease, LEASE, late).map(|_| ()),
        store.complete(&lease, Outcome::default(), late),
    ] {
        match result {
            Err(StoreError::LeaseLost { .. }) => say("lost"),
            other => say(&format!("{other:?}")),
        }
    }
}

#[test]
fn a_worker_stopped_past_its_lease_publishes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let job = random_job_id(Moment(0));
    store
        .submit(Submission::new(job, "kind", "demo", "{}"), Moment(0))
        .unwrap();
    let mut child = start("stall", folder.path(), "");
    let mut said = lines(&mut child);
    assert_eq!(said.next().as_deref(), Some("claimed"));
    signal("STOP", &child);
    let end = Moment(0) + LEASE;
    assert_eq!(store.sweep(end).unwrap().leases_ended, 1);
    let again = store.job(job).unwrap().not_before.unwrap();
    let me: WorkerId = "other".parse().unwrap();
    let lease = store.claim(job, &me, LEASE, again).unwrap().lease;
    signal("CONT", &child);
    writeln!(child.stdin.take().unwrap(), "{}", again.0 + 1).unwrap();
    assert_eq!(said.collect::<Vec<_>>(), ["lost", "lost"]);
    child.wait().unwrap();
    assert_eq!(store.job(job).unwrap().outcome, None);
    store.complete(&lease, Outcome::default(), again).unwrap();
    assert_eq!(store.job(job).unwrap().attempt, 2);
}

/// Writes a file for which there is no room.
fn fill(folder: &Path) {
    let artifacts = artifacts(folder);
    let small = artifacts.put("text/plain", b"small", Moment(1)).unwrap();
    match artifacts.put("text/plain", &vec![7; 1 << 20], Moment(1)) {
        Err(StoreError::NoRoom { .. }) => say("no room"),
        other => say(&format!("{other:?}")),
    }
    assert_eq!(artifacts.read(&small).unwrap(), b"small");
    say("the small one is there");
}

#[test]
fn a_file_for_which_there_is_no_room_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    // Files of at most 64 KiB (blocks of 512 or 1024 bytes, as the shell has it), and an error instead of a signal.
    let mut child = start("fill", folder.path(), "trap '' XFSZ; ulimit -f 64;");
    let said: Vec<String> = lines(&mut child).collect();
    child.wait().unwrap();
    assert_eq!(said, ["no room", "the small one is there"]);
    let left = std::fs::read_dir(folder.path().join("artifacts")).unwrap();
    assert_eq!(left.count(), 1);
}
