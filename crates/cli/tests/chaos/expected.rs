//! The jobs, and the bytes each gives when nothing disturbs it: computed in this process, by the same processors.

use std::collections::HashMap;

use lowtide_engine::Options;
use lowtide_engine::processor::{Order, Stepped};
use serde_json::{Value, json};

/// Different requests; job `n` is number `n` modulo this. Each is drawn by several jobs, so that what was disturbed at
/// different moments is compared.
const DIFFERENT: usize = 25;

/// The body of a submission.
pub(crate) fn body(number: usize) -> Value {
    let priority = match number % 10 {
        0 => "urgent",
        1..=6 => "normal",
        _ => "batch",
    };
    json!({ "kind": "noise", "model": "noise", "request": request(number), "priority": priority })
}

/// Steps that take between some milliseconds and a third of a second in all, so that kills hit the middle of jobs.
fn request(number: usize) -> Value {
    let different = number % DIFFERENT;
    let step_ms = [2, 5, 10, 20, 40][different % 5];
    json!({
        "width": 64 + 16 * (different % 4),
        "height": 64 + 16 * (different % 3),
        "seed": 1000 + different,
        "strips": 4 + different % 5,
        "step_ms": step_ms,
    })
}

/// Bytes by request, each computed once.
pub(crate) struct Expected(HashMap<usize, Vec<u8>>);

impl Expected {
    pub(crate) fn new() -> Expected {
        Expected(HashMap::new())
    }

    pub(crate) fn bytes(&mut self, number: usize) -> &[u8] {
        self.0
            .entry(number % DIFFERENT)
            .or_insert_with(|| undisturbed(number))
    }
}

fn undisturbed(number: usize) -> Vec<u8> {
    let processors = lowtide_engine::processors::all();
    let noise = processors.iter().find(|one| one.kind() == "noise").unwrap();
    let opened = noise
        .open("noise", None, Options::default().into())
        .unwrap();
    let mut request = request(number);
    request["step_ms"] = json!(0);
    let request = opened.check(&request).unwrap();
    let order = Order {
        request,
        resume: None,
    };
    let mut run = opened.start(vec![order]).unwrap();
    loop {
        if let Stepped::Finished(products) = run.step().unwrap() {
            let product = products.into_iter().next().flatten().unwrap();
            return product.files.into_iter().next().unwrap().content;
        }
    }
}
