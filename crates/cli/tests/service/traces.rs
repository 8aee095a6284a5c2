//! What takes time in a job's life, as a collector hears it.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::sync::mpsc::{Receiver, channel};

use serde_json::{Value, json};

use crate::{LONG, Place, Server};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

/// A collector: its address, and the spans that reach it.
fn collector() -> (String, Receiver<Value>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let (sender, spans) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, sender) = (stream.unwrap(), sender.clone());
            std::thread::spawn(move || {
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                while let Some(body) = request(&mut reader) {
                    let answer = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
                    stream.write_all(answer.as_bytes()).unwrap();
                    for resource in body["resourceSpans"].as_array().unwrap() {
                        let service = &resource["resource"]["attributes"][0]["value"];
                        assert_eq!(service["stringValue"], "lowtide");
                        let spans = resource["scopeSpans"][0]["spans"].as_array().unwrap();
                        for span in spans.clone() {
                            let _ = sender.send(span);
                        }
                    }
                }
            });
        }
    });
    (address, spans)
}

/// The body of a request to the place where spans go.
fn request(reader: &mut impl BufRead) -> Option<Value> {
    let (mut length, mut first) = (0, String::new());
    reader.read_line(&mut first).ok().filter(|len| *len > 0)?;
    assert!(first.starts_with("POST /v1/traces "), "{first}");
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        if let Some(text) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = text.trim().parse().unwrap();
        }
        if line.trim().is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(serde_json::from_slice(&body).unwrap())
}

#[test]
fn a_job_is_traced_from_its_submission_to_its_file() {
    let (place, (address, spans)) = (Place::new(), collector());
    let variables = [("OTEL_EXPORTER_OTLP_ENDPOINT", address)];
    let server = Server::start_with(&place, "", &variables);
    let request = json!({ "kind": "noise", "request": { "seed": 1, "strips": 3 } });
    let mut answer = ureq::post(format!("{}/v1/jobs", server.url))
        .header("traceparent", format!("00-{TRACE}-{PARENT}-01"))
        .send_json(request)
        .unwrap();
    let job: Value = answer.body_mut().read_json().unwrap();
    let id = job["id"].as_str().unwrap();
    assert_eq!(server.over(id)["state"], "done");
    let mut told: Vec<Value> = Vec::new();
    let name = |span: &Value| span["name"].as_str().unwrap().to_owned();
    while !told.iter().any(|span| name(span) == "publish") || told.len() < 6 {
        let span = spans.recv_timeout(LONG);
        told.push(span.unwrap_or_else(|_| panic!("no further span: {told:#?}")));
    }
    let submit = told.iter().find(|span| name(span) == "submit").unwrap();
    assert_eq!(submit["parentSpanId"], PARENT);
    for wanted in ["claim", "load", "step", "publish"] {
        assert!(told.iter().any(|span| name(span) == wanted), "{told:#?}");
    }
    let number =
        |span: &Value, field: &str| -> u128 { span[field].as_str().unwrap().parse().unwrap() };
    for span in &told {
        assert_eq!(span["traceId"], TRACE, "{span}");
        assert!(number(span, "startTimeUnixNano") <= number(span, "endTimeUnixNano"));
        let of = json!({ "key": "lowtide.job", "value": { "stringValue": id } });
        assert!(
            span["attributes"].as_array().unwrap().contains(&of),
            "{span}"
        );
        if span != submit {
            assert_eq!(span["parentSpanId"], submit["spanId"], "{span}");
        }
    }
    server.stop();
    place.refused(
        "serve --set log.traces=collector",
        2,
        &["http://collector:4318"],
    );
}
