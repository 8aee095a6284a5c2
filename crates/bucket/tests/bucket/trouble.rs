//! What goes wrong with a bucket, and what is said then.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use lowtide_bucket::{Bucket, BucketKeys, BucketOptions};
use lowtide_core::job::Moment;
use lowtide_jobs::{ArtifactStore, StoreError};

use crate::server::S3;

#[track_caller]
fn refused(options: &BucketOptions, says: &[&str]) {
    let error = Bucket::open(options).unwrap_err();
    let text = error.to_string();
    for part in says {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!text.contains("wrong-secret"), "{text}");
    assert!(!format!("{options:?}").contains("wrong-secret"));
}

#[test]
fn a_start_says_what_is_wrong_and_what_to_do() {
    let Some(s3) = S3::start("a_start_says_what_is_wrong_and_what_to_do") else {
        return;
    };
    let mut options = s3.options("x");
    options.keys.secret = "wrong-secret".to_owned();
    refused(&options, &["s3://studio/x/", "AWS_SECRET_ACCESS_KEY"]);
    let mut options = s3.options("x");
    options.keys.id = "NOBODY".to_owned();
    // Servers have several words for it.
    let text = Bucket::open(&options).unwrap_err().to_string();
    assert!(text.contains("key"), "{text}");
}

#[test]
fn a_server_that_is_away_is_waited_for() {
    let Some(mut s3) = S3::start("a_server_that_is_away_is_waited_for") else {
        return;
    };
    let artifacts = Bucket::open(&s3.options("away")).unwrap().artifacts();
    let kept = artifacts.put("image/png", b"abc", Moment(1)).unwrap();
    s3.kill();
    let written = std::thread::scope(|scope| {
        let writing = scope.spawn(|| artifacts.put("image/png", b"def", Moment(2)));
        std::thread::sleep(Duration::from_millis(300));
        assert!(s3.restart());
        writing.join().unwrap()
    });
    assert_eq!(artifacts.read(&written.unwrap()).unwrap(), b"def");
    assert_eq!(artifacts.read(&kept).unwrap(), b"abc");
}

#[test]
fn nobody_there_is_told_after_a_while() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let keys = BucketKeys {
        id: "id".to_owned(),
        secret: "wrong-secret".to_owned(),
        token: None,
    };
    let options = BucketOptions {
        endpoint: Some(format!("http://127.0.0.1:{port}")),
        patience: Duration::from_millis(300),
        ..BucketOptions::new("s3://studio", keys)
    };
    let began = Instant::now();
    let error = Bucket::open(&options).unwrap_err();
    assert!(matches!(error, StoreError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains(&format!("127.0.0.1:{port}")));
    assert!(began.elapsed() < Duration::from_secs(5));
    for (endpoint, says) in [
        ("not an address", "server.files_endpoint"),
        ("ftp://host", "http://"),
    ] {
        let options = BucketOptions {
            endpoint: Some(endpoint.to_owned()),
            ..options.clone()
        };
        refused(&options, &[says]);
    }
    let options = BucketOptions {
        authority: Some("/no/such/file.pem".into()),
        ..options
    };
    refused(&options, &["/no/such/file.pem"]);
}

/// Somebody who says the same to everybody; its port.
fn answering(head: &'static str, body: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            // Who closes with bytes unread breaks the connection off.
            let mut request = [0; 64 << 10];
            let _ = stream.read(&mut request);
            let length = body.len();
            let _ = write!(
                stream,
                "HTTP/1.1 {head}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
            );
        }
    });
    port
}

#[test]
fn answers_that_are_no_success_are_told_by_what_they_mean() {
    let keys = BucketKeys {
        id: "id".to_owned(),
        secret: "wrong-secret".to_owned(),
        token: None,
    };
    for (head, body, says) in [
        (
            "404 Not Found",
            "<html>It works!</html>",
            "server.files_endpoint",
        ),
        ("200 OK", "<html>It works!</html>", "no S3 server"),
        (
            "404 Not Found",
            "<Error><Code>NoSuchBucket</Code><Message>no</Message></Error>",
            "create it",
        ),
        (
            "403 Forbidden",
            "<Error><Code>AccessDenied</Code><Message>no</Message></Error>",
            "s3:PutObject",
        ),
        (
            "301 Moved\r\nx-amz-bucket-region: eu-west-1",
            "<Error><Code>PermanentRedirect</Code></Error>",
            "eu-west-1",
        ),
    ] {
        let options = BucketOptions {
            endpoint: Some(format!("http://127.0.0.1:{}", answering(head, body))),
            ..BucketOptions::new("s3://studio", keys.clone())
        };
        refused(&options, &["s3://studio/", says]);
    }
    let busy = answering(
        "503 Slow Down",
        "<Error><Code>SlowDown</Code><Message>Please reduce</Message></Error>",
    );
    let options = BucketOptions {
        endpoint: Some(format!("http://127.0.0.1:{busy}")),
        patience: Duration::from_millis(200),
        ..BucketOptions::new("s3://studio", keys)
    };
    let error = Bucket::open(&options).unwrap_err();
    assert!(matches!(error, StoreError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains("SlowDown"), "{error}");
}
