//! One prediction of a U-Net whose weights follow from their names: what `tools/reference/unet.py` compares and times.
//!
//! `predict_unet FOLDER [f32|bf16] [THREADS] [TIMES]`: FOLDER has config.json, case.json and perhaps lora.json;
//! `output.f32` is written there, and the seconds of each prediction are printed, the process's (where it is known) and
//! the clock's. Weights are stored in the precision that is asked for when it is timed.

#![allow(clippy::print_stdout, reason = "what it says is what it is for")]

// Its tests look at more of it.
#[path = "../tests/unet_2d_condition/lora.rs"]
mod lora;
#[path = "../tests/shadow/device.rs"]
mod shadow;
#[allow(dead_code)]
#[path = "../tests/unet_2d_condition/store.rs"]
mod store;

use std::path::Path;
use std::time::Instant;

use lowtide_core::Dtype;
use lowtide_kernels::memory;
use lowtide_models::{Compute, Precision};
use serde_json::Value;

use store::{Inputs, Store};

#[global_allocator]
static ALLOCATOR: memory::CountingAllocator = memory::CountingAllocator;

/// Seconds that all threads together have computed, by the system's count of hundredths; 0 where it has none.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let fields = after_name.split_whitespace().skip(11).take(2);
    fields
        .filter_map(|field| field.parse::<f64>().ok())
        .sum::<f64>()
        / 100.0
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let argument = |index: usize, default: &str| match arguments.get(index) {
        Some(argument) => argument.clone(),
        None => default.to_owned(),
    };
    let folder = argument(0, ".");
    let json = |name: &str| -> Result<Value, Box<dyn std::error::Error>> {
        Ok(serde_json::from_slice(&std::fs::read(
            Path::new(&folder).join(name),
        )?)?)
    };
    let precision = match argument(1, "f32").as_str() {
        "bf16" => Precision::Bf16,
        _ => Precision::F32,
    };
    lowtide_kernels::set_threads(argument(2, "1").parse()?)?;
    let times: usize = argument(3, "0").parse()?;
    let dtype = match precision {
        Precision::Bf16 if times > 0 => Dtype::Bf16,
        _ => Dtype::F32,
    };
    let (config, case) = (json("config.json")?, json("case.json")?);
    let mut store = Store::new(&config, dtype);
    if Path::new(&folder).join("lora.json").exists() {
        store.adapters = Some(lora::adapters(&json("lora.json")?));
    }
    let inputs = Inputs::new(&store.config, &case);
    let chunk_rows = case["chunk_rows"].as_u64().unwrap_or(4096) as usize;
    let mut values = Vec::new();
    for _ in 0..times.max(1) {
        let before = memory::reset_peak();
        let (start, start_cpu) = (Instant::now(), cpu_seconds());
        let all = inputs.sequences();
        let maps = store.predict((Compute { precision }, chunk_rows), &inputs, &all);
        let (wall, cpu) = (start.elapsed().as_secs_f64(), cpu_seconds() - start_cpu);
        let bytes = memory::peak() - before;
        println!("{bytes} bytes, seconds {cpu:.2} {wall:.2}");
        values = maps.iter().flat_map(|map| map.data().to_vec()).collect();
    }
    let bytes: Vec<u8> = values.into_iter().flat_map(f32::to_le_bytes).collect();
    std::fs::write(Path::new(&folder).join("output.f32"), bytes)?;
    Ok(())
}
