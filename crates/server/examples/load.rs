//! Measures a running server: durable submissions a second from many clients, and how soon jobs begin.
//!
//! ```text
//! lowtide serve --set kinds.enabled=no-op
//! cargo run --release -p lowtide-server --example load -- 127.0.0.1:7860 --clients 64 --seconds 10
//! cargo run --release -p lowtide-server --example load -- 127.0.0.1:7860 --clients 64 --rate 500 --seconds 20
//! ```
//!
//! Each client keeps one connection and sends its next submission when the last one was accepted; with `--rate` all of
//! them together send so many a second. The first figures are of the answers (`202` means the job is on the disk), the
//! others come from the records: milliseconds from submission to the first attempt.

#![allow(clippy::print_stdout, reason = "its output is for people")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Job records asked for at once.
const PAGE: usize = 100;

#[derive(Clone)]
struct Options {
    address: String,
    clients: usize,
    seconds: f64,
    /// Submissions a second of all clients together; none for as many as there can be.
    rate: Option<f64>,
    body: String,
}

fn options() -> Options {
    let mut options = Options {
        address: "127.0.0.1:7860".to_owned(),
        clients: 64,
        seconds: 10.0,
        rate: None,
        body: r#"{"kind":"no-op","request":{}}"#.to_owned(),
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || {
            let value = words.next();
            value.unwrap_or_else(|| panic!("{word} needs a value"))
        };
        match word.as_str() {
            "--clients" => options.clients = value().parse().expect("a number of clients"),
            "--seconds" => options.seconds = value().parse().expect("a number of seconds"),
            "--rate" => options.rate = Some(value().parse().expect("submissions a second")),
            "--body" => options.body = value(),
            _ => options.address = word,
        }
    }
    options
}

/// One connection that is kept.
struct Client {
    stream: BufReader<TcpStream>,
    host: String,
}

impl Client {
    fn connect(address: &str) -> Client {
        let stream = TcpStream::connect(address).expect("the server listens");
        stream.set_nodelay(true).expect("a socket option");
        Client {
            stream: BufReader::new(stream),
            host: address.to_owned(),
        }
    }

    /// The status and the body of the answer.
    fn send(&mut self, method: &str, path: &str, body: &str) -> (u16, Vec<u8>) {
        let (host, length) = (&self.host, body.len());
        let kind = match length {
            0 => "",
            _ => "Content-Type: application/json\r\n",
        };
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\n{kind}Content-Length: {length}\r\n\r\n{body}"
        );
        let sent = self.stream.get_mut().write_all(request.as_bytes());
        sent.expect("the server reads");
        let mut status = 0;
        let mut length = 0;
        let mut line = String::new();
        loop {
            line.clear();
            self.stream.read_line(&mut line).expect("an answer");
            let text = line.trim_end();
            if text.is_empty() {
                break;
            }
            if let Some(rest) = text.strip_prefix("HTTP/1.1 ") {
                status = rest[..3].parse().expect("a status");
            } else if let Some((name, value)) = text.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse().expect("a length");
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).expect("the whole answer");
        (status, body)
    }

    fn json(&mut self, path: &str) -> Value {
        let (status, body) = self.send("GET", path, "");
        assert_eq!(status, 200, "{path}: {}", String::from_utf8_lossy(&body));
        serde_json::from_slice(&body).expect("JSON")
    }
}

/// The value below which this share of the sorted values lies.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    let place = (last as f64 * share).round() as usize;
    sorted.get(place).copied().unwrap_or(f64::NAN)
}

fn main() {
    let options = options();
    let over = Arc::new(AtomicBool::new(false));
    let refused = Arc::new(AtomicU64::new(0));
    let latencies = Arc::new(Mutex::new(Vec::new()));
    let mut control = Client::connect(&options.address);
    let newest = control.json("/v1/jobs?limit=1");
    let before = newest["jobs"][0]["seq"].as_u64().unwrap_or(0);
    let start = Instant::now();
    let clients: Vec<_> = (0..options.clients)
        .map(|index| {
            let (options, over) = (options.clone(), over.clone());
            let (refused, latencies) = (refused.clone(), latencies.clone());
            std::thread::spawn(move || {
                let mine = submit(&options, index, start, (&over, &refused));
                latencies.lock().expect("no client panicked").extend(mine);
            })
        })
        .collect();
    std::thread::sleep(Duration::from_secs_f64(options.seconds));
    over.store(true, Ordering::Relaxed);
    for client in clients {
        client.join().expect("no client panicked");
    }
    let passed = start.elapsed().as_secs_f64();
    let mut accepted: Vec<f64> = latencies.lock().expect("no client panicked").clone();
    accepted.sort_by(f64::total_cmp);
    println!(
        "{} submissions accepted in {passed:.2} s: {:.0}/s; answers p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms; {} refused",
        accepted.len(),
        accepted.len() as f64 / passed,
        quantile(&accepted, 0.5),
        quantile(&accepted, 0.99),
        quantile(&accepted, 1.0),
        refused.load(Ordering::Relaxed)
    );
    dispatch(&mut control, before);
}

/// Submits until it is over; milliseconds of each accepted one.
fn submit(
    options: &Options,
    index: usize,
    start: Instant,
    (over, refused): (&AtomicBool, &AtomicU64),
) -> Vec<f64> {
    let mut client = Client::connect(&options.address);
    let mut latencies = Vec::new();
    let mut sent = 0_u32;
    while !over.load(Ordering::Relaxed) {
        if let Some(rate) = options.rate {
            // This client's turns, spread evenly among the others'.
            let clients = options.clients as f64;
            let turn = (f64::from(sent) + index as f64 / clients) * clients / rate;
            let due = start + Duration::from_secs_f64(turn);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        sent += 1;
        let began = Instant::now();
        let (status, body) = client.send("POST", "/v1/jobs", &options.body);
        match status {
            202 => latencies.push(began.elapsed().as_secs_f64() * 1e3),
            429 => {
                refused.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(20));
            }
            _ => panic!("status {status}: {}", String::from_utf8_lossy(&body)),
        }
    }
    latencies
}

/// How soon the jobs of this run began, from their records.
fn dispatch(control: &mut Client, before: u64) {
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        let waiting = control.json("/v1/jobs?state=queued&limit=1");
        let none = waiting["jobs"].as_array().is_none_or(Vec::is_empty);
        if none || Instant::now() > deadline {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let mut waits = Vec::new();
    let (mut first, mut last) = (u64::MAX, 0);
    let mut path = format!("/v1/jobs?limit={PAGE}");
    'pages: loop {
        let page = control.json(&path);
        let jobs = page["jobs"].as_array().cloned().unwrap_or_default();
        for job in &jobs {
            if job["seq"].as_u64().unwrap_or(0) <= before {
                break 'pages;
            }
            let times = ["submitted_ms", "started_ms"].map(|name| job[name].as_u64());
            let [Some(submitted), Some(started)] = times else {
                continue;
            };
            waits.push(started.saturating_sub(submitted) as f64);
            first = first.min(submitted);
            last = last.max(job["finished_ms"].as_u64().unwrap_or(started));
        }
        match page["next"].as_u64() {
            Some(next) if !jobs.is_empty() => path = format!("/v1/jobs?limit={PAGE}&before={next}"),
            _ => break,
        }
    }
    waits.sort_by(f64::total_cmp);
    println!(
        "{} jobs begun: submission to first attempt p50 {:.0} ms, p99 {:.0} ms, max {:.0} ms; all done after {:.2} s",
        waits.len(),
        quantile(&waits, 0.5),
        quantile(&waits, 0.99),
        quantile(&waits, 1.0),
        last.saturating_sub(first) as f64 / 1e3
    );
}
