//! What a server may do to us.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lowtide_core::job::{JobId, JobState, Moment};
use lowtide_jobs::{
    Durability, EventId, Happening, JobStore, Listing, Outcome, RedisOptions, RedisStore,
    Retention, StoreError, Submission, TlsFiles, WorkerId, random_job_id,
};

use crate::server::{DURABLE, Server, skip};

const LEASE: Duration = Duration::from_secs(30);

fn open(url: &str) -> Result<RedisStore, StoreError> {
    RedisStore::open(RedisOptions::new(url))
}

fn submit(store: &RedisStore) -> Result<JobId, StoreError> {
    let id = random_job_id(Moment(1));
    let submission = Submission::new(id, "kind", "demo", "{\"a\":1}");
    store
        .submit(submission, Moment(1))
        .map(|accepted| accepted.job)
}

/// A whole life, and everything that is asked about it.
fn live(store: &RedisStore) {
    let worker: WorkerId = "w".parse().unwrap();
    let id = submit(store).unwrap();
    assert_eq!(store.candidates(9, Moment(2)).unwrap().jobs[0].id, id);
    let lease = store.claim(id, &worker, LEASE, Moment(2)).unwrap().lease;
    store.renew(&lease, LEASE, Moment(3)).unwrap();
    store
        .complete(&lease, Outcome::default(), Moment(4))
        .unwrap();
    store.sweep(Moment(5)).unwrap();
    let listing = Listing {
        limit: 10,
        ..Listing::default()
    };
    assert_eq!(store.list(&listing).unwrap()[0].id, id);
    assert_eq!(store.stats(Moment(5)).unwrap().in_state(JobState::Done), 1);
    let events = store.events_after(EventId(0), Some(id), 10).unwrap().events;
    assert_eq!(
        events.last().map(|event| &event.what),
        Some(&Happening::Done)
    );
    let all = Retention {
        jobs_max: Some(0),
        ..Retention::default()
    };
    assert_eq!(store.retain(&all, Moment(6)).unwrap().jobs, 1);
}

#[test]
fn a_server_that_may_forget_is_refused_unless_nobody_minds() {
    for settings in ["appendonly no\n", "appendonly yes\nappendfsync everysec\n"] {
        let Some(server) = Server::start("a_server_that_may_forget", settings) else {
            return;
        };
        let error = match open(&server.url()) {
            // From 7.2 on such a server says when something is on its disk.
            Ok(store) if settings.contains("everysec") => {
                submit(&store).unwrap();
                return;
            }
            Ok(_) => panic!("it was accepted with {settings}"),
            Err(error) => error,
        };
        assert!(matches!(error, StoreError::Denied { .. }), "{error}");
        assert!(error.to_string().contains("append"), "{error}");
        let relaxed = RedisOptions {
            durability: Durability::Relaxed,
            ..RedisOptions::new(&server.url())
        };
        live(&RedisStore::open(relaxed).unwrap());
    }
}

#[test]
fn jobs_are_not_thrown_away_when_memory_is_short() {
    let settings = format!("{DURABLE}maxmemory 100mb\nmaxmemory-policy allkeys-lru\n");
    if let Some(server) = Server::start("jobs_are_not_thrown_away", &settings) {
        let error = open(&server.url()).err().unwrap();
        assert!(error.to_string().contains("allkeys-lru"), "{error}");
    }
    let settings = format!("{DURABLE}maxmemory 3mb\nmaxmemory-policy noeviction\n");
    if let Some(server) = Server::start("jobs_are_not_thrown_away", &settings) {
        let store = open(&server.url()).unwrap();
        let first = submit(&store).unwrap();
        let large = format!("\"{}\"", "a".repeat(500_000));
        let error = (0..100).find_map(|_| {
            let id = random_job_id(Moment(1));
            let submission = Submission::new(id, "kind", "demo", &large);
            store.submit(submission, Moment(1)).err()
        });
        let error = error.expect("three mebibytes are not fifty");
        assert!(matches!(error, StoreError::NoRoom { .. }), "{error}");
        assert!(error.is_retryable());
        assert_eq!(store.job(first).unwrap().request, "{\"a\":1}");
    }
}

#[test]
fn a_user_of_its_own_has_rights_for_nothing_else() {
    let settings = format!(
        "{DURABLE}user default off\n\
         user lowtide on >p@ss ~lowtide:* &lowtide:* +@read +@write +@connection +@pubsub +@scripting +info +config|get\n\
         user quiet on >p@ss ~other:* &* +@all\n"
    );
    let Some(server) = Server::start("a_user_of_its_own", &settings) else {
        return;
    };
    let url = |who: &str| format!("redis://{who}@127.0.0.1:{}", server.port);
    live(&open(&url("lowtide:p%40ss")).unwrap());
    for who in ["lowtide:wrong", "nobody:p%40ss", "quiet:p%40ss"] {
        let error = open(&url(who)).err().unwrap();
        assert!(matches!(error, StoreError::Denied { .. }), "{who}: {error}");
        for secret in ["p@ss", "p%40ss", ":wrong"] {
            assert!(!error.to_string().contains(secret), "{error}");
        }
    }
    let error = open(&server.url()).err().unwrap();
    assert!(matches!(error, StoreError::Denied { .. }), "{error}");
}

#[test]
fn keys_of_a_queue_are_in_one_slot_of_a_cluster() {
    let settings = format!("{DURABLE}cluster-enabled yes\n");
    let Some(server) = Server::start("keys_of_a_queue", &settings) else {
        return;
    };
    let added = server.ask("CLUSTER ADDSLOTSRANGE 0 16383");
    assert_eq!(added.as_deref(), Some("+OK"));
    // The cluster takes a moment to see that it is whole; until then it says so, and is asked again.
    let store = loop {
        match open(&server.url()) {
            Ok(store) => break store,
            Err(StoreError::Unreachable { .. }) => {
                std::thread::park_timeout(Duration::from_millis(50));
            }
            Err(error) => panic!("{error}"),
        }
    };
    live(&store);
}

#[test]
fn queues_share_a_server_without_meeting() {
    let Some(server) = Server::start("queues_share_a_server", DURABLE) else {
        return;
    };
    let queue = |name: &str| {
        let options = RedisOptions {
            queue: name.to_owned(),
            ..RedisOptions::new(&server.url())
        };
        RedisStore::open(options)
    };
    let (one, two) = (queue("one").unwrap(), queue("two").unwrap());
    let id = submit(&one).unwrap();
    assert_eq!(two.job(id), Err(StoreError::NotFound { job: id }));
    assert_eq!(two.candidates(9, Moment(2)).unwrap().jobs, []);
    for name in ["", "a b", "{a}", &"a".repeat(65)] {
        let error = queue(name).err().unwrap();
        assert!(matches!(error, StoreError::Invalid { .. }), "{error}");
    }
}

#[test]
fn scripts_that_a_server_lost_are_sent_again() {
    let Some(server) = Server::start("scripts_that_a_server_lost", DURABLE) else {
        return;
    };
    let store = open(&server.url()).unwrap();
    live(&store);
    assert_eq!(server.ask("SCRIPT FLUSH").as_deref(), Some("+OK"));
    live(&store);
}

#[test]
fn tls_is_spoken_and_strangers_are_not_believed() {
    let name = "tls_is_spoken";
    let folder = tempfile::tempdir().unwrap();
    let made = std::process::Command::new("openssl")
        .args([
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
        ])
        .args(["-subj", "/CN=localhost", "-addext"])
        .arg("subjectAltName=DNS:localhost")
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .args(["-keyout", "key.pem", "-out", "cert.pem"])
        .current_dir(folder.path())
        .output();
    if !made.is_ok_and(|made| made.status.success()) {
        return skip(name, "openssl is not installed");
    }
    let settings = format!(
        "{DURABLE}tls-port TLSPORT\ntls-cert-file {folder}/cert.pem\ntls-key-file {folder}/key.pem\n\
         tls-ca-cert-file {folder}/cert.pem\ntls-auth-clients no\n",
        folder = folder.path().display()
    );
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let settings = settings.replace("TLSPORT", &port.to_string());
    let Some(_server) = Server::start(name, &settings) else {
        return;
    };
    let url = format!("rediss://localhost:{port}");
    let with = |authority| {
        RedisStore::open(RedisOptions {
            tls: TlsFiles {
                authority,
                identity: None,
            },
            ..RedisOptions::new(&url)
        })
    };
    live(&with(Some(folder.path().join("cert.pem"))).unwrap());
    let error = with(None).err().unwrap();
    assert!(matches!(error, StoreError::Unreachable { .. }), "{error}");
    let error = with(Some(folder.path().join("none.pem"))).err().unwrap();
    assert!(error.to_string().contains("none.pem"), "{error}");
    let error = with(Some(folder.path().join("key.pem"))).err().unwrap();
    assert!(error.to_string().contains("no certificate"), "{error}");
}

#[test]
fn a_socket_of_the_machine_will_do() {
    let Some(server) = Server::start("a_socket_of_the_machine", DURABLE) else {
        return;
    };
    let socket = server.folder().join("socket");
    live(&open(&format!("redis+unix://{}", socket.display())).unwrap());
}

/// Callers that come while the server is away wait, and what was accepted is there, once, however often it is killed.
#[test]
fn a_killed_server_loses_nothing_and_callers_wait_for_the_next() {
    let Some(mut server) = Server::start("a_killed_server", DURABLE) else {
        return;
    };
    let store = open(&server.url()).unwrap();
    let (over, accepted) = (AtomicBool::new(false), Mutex::new(BTreeSet::new()));
    let limit = Instant::now() + Duration::from_secs(120);
    std::thread::scope(|scope| {
        let submitters: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut count = 0;
                    // Bounded, in case nobody is left to end it.
                    while !over.load(Ordering::Relaxed) && Instant::now() < limit {
                        let id = submit(&store).unwrap();
                        assert!(accepted.lock().unwrap().insert(id));
                        count += 1;
                    }
                    count
                })
            })
            .collect();
        for _ in 0..3 {
            let (before, began) = (accepted.lock().unwrap().len(), Instant::now());
            while accepted.lock().unwrap().len() < before + 50 {
                assert!(
                    began.elapsed() < Duration::from_secs(60),
                    "jobs are accepted"
                );
                std::thread::park_timeout(Duration::from_millis(1));
            }
            server.kill();
            assert!(server.restart());
        }
        over.store(true, Ordering::Relaxed);
        let counts: Vec<u32> = submitters
            .into_iter()
            .map(|submitter| submitter.join().unwrap())
            .collect();
        assert!(counts.iter().all(|&count| count > 0));
    });
    let accepted = accepted.into_inner().unwrap();
    let stats = store.stats(Moment(2)).unwrap();
    assert_eq!(stats.in_state(JobState::Queued), accepted.len() as u64);
    for id in accepted {
        let events = store.events_after(EventId(0), Some(id), 10).unwrap().events;
        assert_eq!(events.len(), 1, "{id} was accepted once");
    }
}

/// Nobody waits for ever, and everybody is told why; afterwards all goes on by itself.
#[test]
fn a_server_that_does_not_answer_is_told_and_comes_back() {
    let Some(server) = Server::start("a_server_that_does_not_answer", DURABLE) else {
        return;
    };
    let options = RedisOptions {
        patience: Duration::from_millis(600),
        ..RedisOptions::new(&server.url())
    };
    let store = RedisStore::open(options).unwrap();
    let other = open(&server.url()).unwrap();
    let id = submit(&store).unwrap();
    assert_eq!(store.trouble(), None);
    server.signal("STOP");
    let error = store.job(id).unwrap_err();
    assert!(matches!(error, StoreError::Unreachable { .. }), "{error}");
    assert!(error.is_retryable());
    assert!(
        store
            .trouble()
            .is_some_and(|trouble| trouble.to_string().contains("unreachable"))
    );
    server.signal("CONT");
    let worker: WorkerId = "w".parse().unwrap();
    let claimed = loop {
        match store.claim(id, &worker, LEASE, Moment(2)) {
            Err(StoreError::Unreachable { .. }) => {}
            answer => break answer,
        }
    };
    assert_eq!(claimed.unwrap().lease.attempt, 1);
    assert_eq!(store.job(id).unwrap().attempt, 1);
    assert_eq!(store.trouble(), None);
    // News comes again as well.
    let seen = store.change_mark().unwrap();
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| store.wait_change(seen, Duration::from_secs(20)));
        submit(&other).unwrap();
        assert_ne!(waits.join().unwrap().unwrap(), seen);
    });
}

#[test]
fn nobody_there_is_told_with_the_address() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let error = open(&format!("redis://a:secret@127.0.0.1:{port}"))
        .err()
        .unwrap();
    assert!(matches!(error, StoreError::Unreachable { .. }), "{error}");
    let text = error.to_string();
    assert!(
        text.contains(&port.to_string()) && !text.contains("secret"),
        "{text}"
    );
}
