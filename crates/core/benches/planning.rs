//! How long planning takes: a large component, many modes, long ladders, mixed and equal blocks.
//! `cargo bench -p lowtide-core` prints the milliseconds of one plan by budget.

#![allow(clippy::print_stdout, reason = "printing is what it is for")]

use std::time::Instant;

use lowtide_core::{
    BlockLayout, Budget, Bytes, ComponentLayout, DeviceProfile, Dtype, Formula, Ladder, Mode,
    Offload, PhaseLayout, PipelineLayout, Quality, TensorLayout, Vars, plan,
};

/// The best of this many is shown, so that other work on the machine disturbs little.
const REPEATS: usize = 7;

fn main() {
    for (name, mixed) in [
        ("60 equal blocks", 1),
        ("60 blocks of 3 sizes", 3),
        ("60 blocks of 60 sizes", 60),
    ] {
        for reuse in [false, true] {
            for gib in [3, 5, 8, 11, 13, 20] {
                let pipeline = pipeline(mixed, reuse);
                let vars = Vars::new().with("tokens", 4096);
                let budget = Budget::of(Bytes::gib(gib));
                let device = device(gib % 2 == 0);
                let mut ms = f64::INFINITY;
                let mut planned = None;
                for _ in 0..REPEATS {
                    let begin = Instant::now();
                    planned = Some(plan(&pipeline, &vars, &device, &budget, Quality::Exact));
                    ms = ms.min(begin.elapsed().as_secs_f64() * 1e3);
                }
                let planned = planned.expect("it is repeated at least once");
                let said = planned.map_or_else(
                    |refused| refused.to_string(),
                    |plan| plan.phases[0].reason.to_string(),
                );
                println!("{ms:7.2} ms  {name}, reuse {reuse}, {gib} GiB: {said}");
            }
        }
    }
}

fn device(slow: bool) -> DeviceProfile {
    DeviceProfile {
        name: "bench".into(),
        link_bytes_per_s: if slow { 3e9 } else { 12e9 },
        cold_bytes_per_s: 2e9,
        flops_per_s: 5e12,
        block_overhead_s: 2e-4,
        overlap: if slow { 0.7 } else { 1.0 },
    }
}

/// One phase of 60 blocks with about 12 GiB of weights, six exact modes, two ladders of eight values each.
fn pipeline(sizes: usize, reuse: bool) -> PipelineLayout {
    let block = |index: usize| {
        let more = index * 7919 % sizes * 100 / sizes;
        let shape = vec![1024, 1024, 75 + more];
        let tensors = vec![TensorLayout {
            name: "weight".into(),
            dtype: Dtype::Bf16,
            shape,
        }];
        BlockLayout {
            name: format!("layers.{index}"),
            tensors,
        }
    };
    let mode = |index: usize| Mode {
        name: format!("mode {index}"),
        exact: true,
        activation: Formula::sum(&[(4.0 + index as f64, &["rows", "tokens"]), (2e4, &["strip"])])
            .or(Formula::constant(3e8 / (index + 1) as f64)),
        flops: Formula::sum(&[(1.2e10 * (1.0 + 0.03 * index as f64), &["tokens"])]),
        ladders: vec![
            Ladder::new("rows", 16384, 128, 64),
            Ladder::new("strip", 2048, 16, 16),
        ],
        resident_blocks: Vec::new(),
    };
    let phase = PhaseLayout {
        name: "denoise".into(),
        component: ComponentLayout {
            name: "transformer".into(),
            blocks: (0..60).map(block).collect(),
            tables: Vec::new(),
        },
        passes: 9,
        rounds_over: None,
        held: Formula::constant(1e7),
        modes: (0..6).map(mode).collect(),
        correction: 1.0,
        reuse,
        offload: Offload::Auto,
        beside: Bytes::ZERO,
        shared: Vec::new(),
    };
    PipelineLayout {
        model: "bench".into(),
        phases: vec![phase],
    }
}
