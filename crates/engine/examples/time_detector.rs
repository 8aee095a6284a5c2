//! How long a detector takes: `time_detector MODEL PICTURE [SIDE] [ROUNDS]` prints the median and the least seconds of whole
//! looks (letterbox, network, boxes), weights in memory, and how many things there are.

#![allow(clippy::print_stdout, reason = "it is what an example is for")]

use std::path::Path;
use std::time::Instant;

use lowtide_engine::Options;
use lowtide_engine::detector::{Detector, SIDE_DEFAULT, Search};
use lowtide_media::{Limits, decode};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, picture, rest @ ..] = &arguments[..] else {
        return Err("time_detector MODEL PICTURE [SIDE] [ROUNDS]".into());
    };
    let number = |at: usize, otherwise: usize| rest.get(at).map_or(Ok(otherwise), |n| n.parse());
    let (side, rounds) = (number(0, SIDE_DEFAULT)?, number(1, 20)?);
    let detector = Detector::open(Path::new(model))?;
    let picture = decode(&std::fs::read(picture)?, &Limits::default())?.picture;
    let options = Options {
        keep_weights: true,
        ..Options::default()
    };
    let search = Search {
        side,
        confidence: 0.25,
        ..Search::default()
    };
    let prepared = detector.prepare(&picture, &search, &options)?;
    let mut seconds = Vec::with_capacity(rounds);
    let mut things = 0;
    for _ in 0..=rounds {
        let start = Instant::now();
        things = prepared.look(&picture)?.things.len();
        seconds.push(start.elapsed().as_secs_f64());
    }
    // The first one reads the weights.
    seconds.remove(0);
    seconds.sort_by(f64::total_cmp);
    let median = seconds[seconds.len() / 2];
    println!("median {median:.4} least {:.4} things {things}", seconds[0]);
    Ok(())
}
