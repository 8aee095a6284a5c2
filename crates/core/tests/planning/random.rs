//! Random jobs: components of blocks of mixed sizes, modes, ladders, devices.

use std::ops::RangeInclusive;

use lowtide_core::{
    BlockLayout, Budget, Bytes, ComponentLayout, DeviceProfile, Dtype, Formula, Ladder, Mode,
    Offload, PhaseLayout, PipelineLayout, Quality, TensorLayout, Vars,
};
use proptest::prelude::*;

/// Everything `plan` takes but the budget's total.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) pipeline: PipelineLayout,
    pub(crate) vars: Vars,
    pub(crate) device: DeviceProfile,
    pub(crate) quality: Quality,
    pub(crate) in_use: Bytes,
}

impl Job {
    /// A budget that is about `share` of what would hold the largest phase whole.
    pub(crate) fn budget(&self, share: f64) -> Budget {
        let whole = self
            .pipeline
            .phases
            .iter()
            .map(|phase| phase.component.bytes())
            .max()
            .unwrap_or(Bytes::ZERO);
        let total = (whole.as_f64() + 3e5) * share;
        Budget {
            total: Bytes(total as u64) + self.in_use,
            in_use: self.in_use,
        }
    }
}

/// A job of one to three phases of at most `blocks_max` blocks each.
pub(crate) fn job(blocks_max: usize) -> impl Strategy<Value = Job> {
    let phases = prop::collection::vec(phase(0..=blocks_max, 2), 1..=3);
    (phases, device(), any::<bool>(), 0..100_000u64).prop_map(|(phases, device, exact, in_use)| {
        let quality = if exact { Quality::Exact } else { Quality::Auto };
        assemble(phases, device, quality, Bytes(in_use))
    })
}

/// A job of one phase whose number of blocks is in `blocks`, with at most `ladders_max` ladders a mode.
pub(crate) fn sized_job(
    blocks: RangeInclusive<usize>,
    ladders_max: usize,
) -> impl Strategy<Value = Job> {
    (phase(blocks, ladders_max), device())
        .prop_map(|(phase, device)| assemble(vec![phase], device, Quality::Auto, Bytes(1000)))
}

fn assemble(
    mut phases: Vec<PhaseLayout>,
    device: DeviceProfile,
    quality: Quality,
    in_use: Bytes,
) -> Job {
    for (phase, name) in phases.iter_mut().zip(["encode", "denoise", "decode"]) {
        phase.name = name.to_owned();
    }
    let pipeline = PipelineLayout {
        model: "random".into(),
        phases,
    };
    Job {
        pipeline,
        vars: Vars::new().with("width", 64),
        device,
        quality,
        in_use,
    }
}

fn device() -> impl Strategy<Value = DeviceProfile> {
    let overlap = prop_oneof![Just(1.0), Just(0.0), 0.0..1.0f64];
    let overhead = prop_oneof![Just(0.0), 0.0..1e-4f64];
    (4.5..7.5f64, 0.05..1.5f64, overlap, overhead).prop_map(|(link, cold, overlap, overhead)| {
        DeviceProfile {
            name: "random".into(),
            link_bytes_per_s: 10f64.powf(link),
            cold_bytes_per_s: 10f64.powf(link) * cold,
            flops_per_s: 1e8,
            block_overhead_s: overhead,
            overlap,
        }
    })
}

fn blocks(count: RangeInclusive<usize>) -> impl Strategy<Value = Vec<BlockLayout>> {
    // All alike, of a few kinds, or each of its own size.
    let any_size = prop_oneof![1..200usize, 1..20_000usize];
    (prop::collection::vec((any_size, 0..3usize), count), 0..3u8).prop_map(|(drawn, kind)| {
        let kinds: Vec<usize> = drawn
            .iter()
            .map(|(elements, _)| *elements)
            .take(3)
            .collect();
        let size = |(elements, index): (usize, usize)| match kind {
            0 => kinds[0],
            1 => kinds[index.min(kinds.len() - 1)],
            _ => elements,
        };
        let block = |(index, drawn): (usize, (usize, usize))| BlockLayout {
            name: format!("layers.{index}"),
            tensors: vec![TensorLayout {
                name: "weight".into(),
                dtype: Dtype::F32,
                shape: vec![size(drawn)],
            }],
        };
        drawn.into_iter().enumerate().map(block).collect()
    })
}

fn mode(index: usize, ladders_max: usize) -> impl Strategy<Value = Mode> {
    let rows = (1..300u64, 1..40u64, 1..20u64);
    let batch = 1..6u64;
    let coefficients = (0.0..5.7f64, 0.0..20.0f64, 0.0..8.0f64);
    (
        rows,
        batch,
        0..=ladders_max,
        coefficients,
        any::<bool>(),
        prop::option::of(0..3usize),
    )
        .prop_map(
            move |(
                (full, floor, step),
                batch,
                ladders,
                (per_row, per_width, work),
                exact,
                required,
            )| {
                let mut all = vec![
                    Ladder::new("rows", full, floor, step),
                    Ladder::new("batch", batch, 1, 1),
                ];
                all.truncate(ladders);
                // The first is always exact, so that every job can be planned; approximate ones need less memory.
                let exact = exact || index == 0;
                let per_row = 10f64.powf(per_row) * if exact { 1.0 } else { 0.05 };
                let mut activation = Formula::constant(per_row);
                if ladders >= 1 {
                    activation = activation.plus(per_row / 10.0, &["rows"]);
                }
                if ladders >= 2 {
                    activation = activation.plus(per_width, &["batch", "width"]);
                }
                Mode {
                    name: format!("mode {index}"),
                    exact,
                    activation: activation.or(Formula::sum(&[(per_width, &["width"])])),
                    flops: Formula::constant(10f64.powf(work)).plus(1000.0, &["width"]),
                    ladders: all,
                    resident_blocks: required.into_iter().collect(),
                }
            },
        )
}

fn phase(count: RangeInclusive<usize>, ladders_max: usize) -> impl Strategy<Value = PhaseLayout> {
    let modes = (
        mode(0, ladders_max),
        prop::option::weighted(0.8, mode(1, ladders_max)),
    );
    let passes = prop_oneof![Just(1u64), 1..5u64, 5..40u64];
    (
        blocks(count),
        modes,
        passes,
        any::<bool>(),
        any::<bool>(),
        0.0..1000.0f64,
        0.5..2.0f64,
    )
        .prop_map(
            |(blocks, (first, second), passes, batched, reuse, held, correction)| {
                let mut modes: Vec<Mode> = [Some(first), second].into_iter().flatten().collect();
                for mode in &mut modes {
                    mode.resident_blocks.retain(|&block| block < blocks.len());
                }
                // Rounds need the variable in every mode.
                let batched = batched && modes.iter().all(|mode| mode.ladders.len() == 2);
                PhaseLayout {
                    name: String::new(),
                    component: ComponentLayout {
                        name: "net".into(),
                        blocks,
                        tables: Vec::new(),
                    },
                    passes,
                    rounds_over: batched.then(|| ("batch".into(), 5)),
                    held: Formula::constant(held),
                    modes,
                    correction,
                    reuse,
                    offload: Offload::Auto,
                    beside: Bytes::ZERO,
                    shared: Vec::new(),
                }
            },
        )
}
