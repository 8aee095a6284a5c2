//! Durable submissions a second over HTTP, from many clients with a connection each: `load [address] [clients] [seconds]`.
//! Start a server first, such as the example `pretend` without a worker.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

type Anyhow<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// One submission, and its answer's status.
fn submit(stream: &mut BufReader<TcpStream>, request: &[u8]) -> Anyhow<u16> {
    stream.get_mut().write_all(request)?;
    let mut line = String::new();
    stream.read_line(&mut line)?;
    let status = line.split(' ').nth(1).ok_or("no status")?.parse()?;
    let mut len = 0;
    loop {
        line.clear();
        stream.read_line(&mut line)?;
        if line == "\r\n" {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            len = value.trim().parse()?;
        }
    }
    let mut body = vec![0; len];
    stream.read_exact(&mut body)?;
    Ok(status)
}

fn client(address: &str, stop: &AtomicBool) -> Anyhow<Vec<Duration>> {
    let body = format!(
        "{{\"request\":{{\"prompt\":\"{}\"}}}}",
        "a red heart ".repeat(20)
    );
    let request = format!(
        "POST /v1/jobs HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    let mut times = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let began = Instant::now();
        let status = submit(&mut stream, request.as_bytes())?;
        if status != 202 {
            return Err(format!("status {status}").into());
        }
        times.push(began.elapsed());
    }
    Ok(times)
}

fn main() -> Anyhow<()> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments
        .next()
        .unwrap_or_else(|| "127.0.0.1:7861".to_owned());
    let clients: usize = arguments.next().map_or(Ok(64), |text| text.parse())?;
    let seconds = arguments.next().map_or(Ok(5), |text| text.parse())?;
    let stop = AtomicBool::new(false);
    let began = Instant::now();
    let mut times = Vec::new();
    std::thread::scope(|scope| -> Anyhow<()> {
        let threads: Vec<_> = (0..clients)
            .map(|_| scope.spawn(|| client(&address, &stop)))
            .collect();
        std::thread::sleep(Duration::from_secs(seconds));
        stop.store(true, Ordering::Relaxed);
        for thread in threads {
            times.extend(thread.join().expect("a client does not panic")?);
        }
        Ok(())
    })?;
    let rate = times.len() as f64 / began.elapsed().as_secs_f64();
    times.sort();
    let at = |share: f64| {
        times
            .get((times.len() as f64 * share) as usize)
            .map_or(0.0, |time| time.as_secs_f64() * 1e3)
    };
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "{clients} clients: {rate:.0} durable submissions/s, p50 {:.1} ms, p99 {:.1} ms",
        at(0.5),
        at(0.99)
    )?;
    Ok(())
}
