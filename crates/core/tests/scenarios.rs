//! Plans with the numbers of real machines, and what the simulated device does when things go wrong.

#![allow(
    clippy::unwrap_used,
    reason = "a test that meets an error should say where"
)]

use lowtide_core::{
    BlockLayout, Budget, Bytes, Cause, ComponentLayout, DeviceProfile, DoesNotFit, Dtype, Fault,
    Formula, Ladder, Mode, Offload, PhaseLayout, PipelineLayout, Placement, Plan, PlanError,
    Quality, SimDevice, SimError, TensorLayout, Vars, plan,
};

const MB: u64 = 1_000_000;

fn component(name: &str, blocks: usize, block_bytes: u64) -> ComponentLayout {
    let tensor = TensorLayout {
        name: "weight".into(),
        dtype: Dtype::U8,
        shape: vec![block_bytes as usize],
    };
    let block = |index| BlockLayout {
        name: format!("layers.{index}"),
        tensors: vec![tensor.clone()],
    };
    ComponentLayout {
        name: name.into(),
        blocks: (0..blocks).map(block).collect(),
        tables: Vec::new(),
    }
}

fn mode(name: &str, activation: Formula, gflop: f64) -> Mode {
    Mode {
        name: name.into(),
        exact: true,
        activation,
        flops: Formula::constant(gflop * 1e9),
        ladders: Vec::new(),
        resident_blocks: Vec::new(),
    }
}

fn phase(name: &str, component: ComponentLayout, passes: u64, modes: Vec<Mode>) -> PhaseLayout {
    PhaseLayout {
        name: name.into(),
        component,
        passes,
        rounds_over: None,
        held: Formula::zero(),
        modes,
        correction: 1.0,
        reuse: false,
        offload: Offload::Auto,
        beside: Bytes::ZERO,
        shared: Vec::new(),
    }
}

fn pipeline(phases: Vec<PhaseLayout>) -> PipelineLayout {
    PipelineLayout {
        model: "test".into(),
        phases,
    }
}

/// 30 blocks of 200 MB visited 9 times, 2 s of computing a pass, 500 MB of activations.
fn denoise() -> PipelineLayout {
    let mode = mode("whole", Formula::constant(500e6), 2000.0);
    pipeline(vec![phase(
        "denoise",
        component("transformer", 30, 200 * MB),
        9,
        vec![mode],
    )])
}

/// 2 GB/s warm, 1 GB/s cold, 1 TFLOP/s, copies hide.
fn device() -> DeviceProfile {
    DeviceProfile {
        name: "test".into(),
        link_bytes_per_s: 2e9,
        cold_bytes_per_s: 1e9,
        flops_per_s: 1e12,
        block_overhead_s: 0.0,
        overlap: 1.0,
    }
}

fn planned(pipeline: &PipelineLayout, total: u64) -> Plan {
    plan(
        pipeline,
        &Vars::new(),
        &device(),
        &Budget::of(Bytes(total)),
        Quality::Exact,
    )
    .unwrap()
}

fn refused(pipeline: &PipelineLayout, total: u64, quality: Quality) -> DoesNotFit {
    match plan(
        pipeline,
        &Vars::new(),
        &device(),
        &Budget::of(Bytes(total)),
        quality,
    ) {
        Err(PlanError::DoesNotFit(numbers)) => numbers,
        other => panic!("not refused: {other:?}"),
    }
}

/// The same job of two components under a word about offload, with what the other component weighs beside each.
fn offloaded(offload: Offload) -> PipelineLayout {
    let encoder = component("text_encoder", 10, 100 * MB);
    let other = mode("whole", Formula::constant(100e6), 10.0);
    let mut both = pipeline(vec![
        phase("encode", encoder, 1, vec![other]),
        denoise().phases.remove(0),
    ]);
    let sizes: Vec<Bytes> = both.phases.iter().map(|p| p.component.bytes()).collect();
    for (own, phase) in both.phases.iter_mut().enumerate() {
        phase.offload = offload;
        if offload == Offload::Never {
            phase.beside = sizes[1 - own];
        }
    }
    both
}

#[test]
fn a_word_about_offload_binds_the_plan() {
    let roomy = 20_000 * MB;
    let plan = |offload| planned(&offloaded(offload), roomy);
    let never = plan(Offload::Never);
    assert!(
        never
            .phases
            .iter()
            .all(|p| p.placement == Placement::Resident)
    );
    assert_eq!(never.peak, Bytes(7500 * MB));
    assert_eq!(
        never.phases[1].reason.to_string(),
        "denoise: all 30 blocks stay (5.59 GiB) beside 953.7 MiB of the other components, as offload 'never' asks; \
         the budget of 18.63 GiB leaves 17.23 GiB for weights beside 476.8 MiB of activations"
    );
    let components = plan(Offload::Components);
    assert!(
        components
            .phases
            .iter()
            .all(|p| p.placement == Placement::Resident)
    );
    assert_eq!(components.peak, Bytes(6500 * MB));
    let stream = plan(Offload::Stream);
    assert_eq!(stream.peak, Bytes(900 * MB));
    assert_eq!(stream.phases[1].reason.resident_blocks, 0);
    assert_eq!(stream.phases[1].reason.cause, Cause::Asked);
    assert!(
        stream.phases[1].reason.to_string().starts_with(
            "denoise: all 30 blocks (5.59 GiB) stream through 2 slots of 190.7 MiB at each of 9 passes, as offload \
             'stream' asks; the budget"
        ),
        "{}",
        stream.phases[1].reason
    );
    // The planner's own choice is as fast as any of them.
    let auto = plan(Offload::Auto).seconds;
    for other in [never, components, stream] {
        assert!(auto <= other.seconds * 1.001);
    }
}

#[test]
fn a_word_about_offload_that_cannot_be_kept_is_refused_with_its_numbers() {
    for (offload, smallest) in [
        (Offload::Auto, 900),
        (Offload::Stream, 900),
        (Offload::Components, 6500),
        (Offload::Never, 7500),
    ] {
        let pipeline = offloaded(offload);
        let numbers = refused(&pipeline, smallest * MB - 1, Quality::Exact);
        assert_eq!(numbers.smallest, Bytes(smallest * MB), "{offload:?}");
        planned(&pipeline, smallest * MB);
    }
}

#[test]
fn thirty_blocks_from_two_to_eight_gigabytes() {
    let pipeline = denoise();
    let mut before = f64::INFINITY;
    let mut residents = Vec::new();
    for gb in 2..=8 {
        let plan = planned(&pipeline, gb * 1000 * MB);
        assert!(plan.seconds <= before);
        before = plan.seconds;
        residents.push(plan.phases[0].reason.resident_blocks);
    }
    // Two slots and the activations leave room for (budget - 900 MB) / 200 MB blocks. A pass copies the others in
    // 0.1 s each, which hides behind 2 s of computing from 10 resident blocks on.
    assert_eq!(residents[0], 5);
    assert_eq!(residents[1], 10);
    assert_eq!(residents[6], 10, "more would not be faster");
    assert_eq!(
        planned(&pipeline, 8000 * MB).phases[0].reason.cause,
        Cause::Hidden
    );
    let mut kept = pipeline.clone();
    kept.phases[0].reuse = true;
    let whole = planned(&kept, 8000 * MB);
    assert_eq!(whole.phases[0].placement, Placement::Resident);
    assert_eq!(whole.phases[0].weights, Bytes(6000 * MB));
    // 6 s of loading, the last block's computing, and 8 passes.
    assert!(
        (whole.seconds - (6.0 + 2.0 / 30.0 + 16.0)).abs() < 1e-6,
        "{}",
        whole.seconds
    );
    let tight = planned(&pipeline, 2000 * MB);
    // Every pass but the first copies 25 blocks in 2.5 s, and hides nearly all computing.
    assert!(
        (tight.seconds - (6.0 + 8.0 * 2.5)).abs() < 0.3,
        "{}",
        tight.seconds
    );
    assert!(tight.phases[0].stall_seconds > 7.0);
    assert_eq!(tight.phases[0].bytes_moved, Bytes((6000 + 8 * 5000) * MB));
}

#[test]
fn the_smallest_budget_is_two_slots_and_the_activations() {
    let smallest = 900 * MB;
    let refusal = refused(&denoise(), smallest - 1, Quality::Auto);
    assert_eq!(
        (refusal.smallest, refusal.needed),
        (Bytes(smallest), Bytes(smallest))
    );
    assert_eq!(
        (refusal.exact_only, refusal.smallest_approximate),
        (false, None)
    );
    assert_eq!(planned(&denoise(), smallest).peak, Bytes(smallest));
    assert_eq!(
        refusal.to_string(),
        "does not fit: denoise needs at least 858.4 MiB but the budget is 858.3 MiB; the smallest budget that would \
         do is 858.4 MiB"
    );
}

#[test]
fn what_is_visited_once_streams_unless_it_is_used_again() {
    let encode = phase(
        "encode",
        component("text_encoder", 36, 200 * MB),
        1,
        vec![mode("whole", Formula::zero(), 10.0)],
    );
    let mut pipeline = pipeline(vec![encode]);
    let plan = planned(&pipeline, 16_000 * MB);
    assert_eq!(plan.phases[0].reason.cause, Cause::UsedOnce);
    assert_eq!(plan.peak, Bytes(400 * MB));
    pipeline.phases[0].reuse = true;
    let kept = planned(&pipeline, 16_000 * MB);
    assert_eq!(kept.phases[0].placement, Placement::Resident);
    assert!(kept.seconds <= plan.seconds);
}

#[test]
fn phases_share_memory_and_the_most_demanding_one_is_named() {
    let mut pipeline = denoise();
    let modes = vec![mode("whole", Formula::constant(3e9), 100.0)];
    pipeline
        .phases
        .push(phase("decode", component("vae", 4, 10 * MB), 1, modes));
    let plan = planned(&pipeline, 4000 * MB);
    assert_eq!(
        plan.peak,
        plan.phases.iter().map(|phase| phase.peak).max().unwrap()
    );
    let refusal = refused(&pipeline, 3000 * MB, Quality::Exact);
    assert_eq!(
        (refusal.phase.as_str(), refusal.smallest),
        ("decode", Bytes(3020 * MB))
    );
}

/// A decoder: whole, in strips down to 64 rows (exact), or tiled (approximate).
fn decode() -> PipelineLayout {
    let vae = || component("vae", 4, 10 * MB);
    let mut strips = mode(
        "strips",
        Formula::sum(&[(1e6, &["rows"]), (1e8, &[])]),
        100.0,
    );
    strips.ladders.push(Ladder::new("rows", 1024, 64, 8));
    let mut tiled = mode("tiled", Formula::constant(5e7), 150.0);
    tiled.exact = false;
    pipeline(vec![phase(
        "decode",
        vae(),
        1,
        vec![mode("whole", Formula::constant(2e9), 100.0), strips, tiled],
    )])
}

#[test]
fn rungs_go_down_only_as_far_as_they_must() {
    // A piece costs an overhead, so that more rows are faster.
    let device = DeviceProfile {
        block_overhead_s: 0.01,
        ..device()
    };
    let rows = |total: u64| {
        let plan = plan(
            &decode(),
            &Vars::new(),
            &device,
            &Budget::of(Bytes(total)),
            Quality::Auto,
        )
        .unwrap();
        (
            plan.phases[0].mode.clone(),
            plan.phases[0].vars.get("rows"),
            plan.approximate,
        )
    };
    assert_eq!(
        rows(4000 * MB),
        ("strips".into(), Some(1024), vec![]),
        "as fast as whole, in less memory"
    );
    assert_eq!(rows(1000 * MB), ("strips".into(), Some(512), vec![]));
    assert_eq!(rows(200 * MB), ("strips".into(), Some(64), vec![]));
    assert_eq!(
        rows(100 * MB),
        ("tiled".into(), None, vec!["decode: tiled".to_owned()])
    );
}

#[test]
fn a_refusal_says_that_an_approximate_mode_would_fit() {
    let refusal = refused(&decode(), 100 * MB, Quality::Exact);
    assert_eq!(
        (refusal.smallest, refusal.smallest_approximate),
        (Bytes(184 * MB), Some(Bytes(70 * MB)))
    );
    assert!(refusal.exact_only);
    assert!(!refused(&decode(), 60 * MB, Quality::Exact).exact_only);
    let nothing = refused(&decode(), 60 * MB, Quality::Auto);
    assert_eq!(
        (nothing.smallest, nothing.smallest_approximate),
        (Bytes(70 * MB), None)
    );
}

#[test]
fn rounds_repeat_the_passes() {
    let mut pipeline = denoise();
    pipeline.phases[0].rounds_over = Some(("batch".into(), 4));
    pipeline.phases[0].modes[0]
        .ladders
        .push(Ladder::new("batch", 4, 1, 1));
    pipeline.phases[0].modes[0].activation = Formula::sum(&[(5e8, &["batch"])]);
    pipeline.phases[0].modes[0].flops = Formula::sum(&[(2e12, &["batch"])]);
    let one_by_one = planned(&pipeline, 900 * MB);
    assert_eq!(
        (
            one_by_one.phases[0].visits,
            one_by_one.phases[0].vars.get("batch")
        ),
        (36, Some(1))
    );
    let together = planned(&pipeline, 2400 * MB);
    assert_eq!(
        (
            together.phases[0].visits,
            together.phases[0].vars.get("batch")
        ),
        (9, Some(4))
    );
    assert!(
        together.seconds < one_by_one.seconds,
        "weights are copied for four pictures at once"
    );
}

#[test]
fn the_sentence_has_the_numbers() {
    let budget = Budget {
        total: Bytes(2500 * MB),
        in_use: Bytes(500 * MB),
    };
    let plan = plan(&denoise(), &Vars::new(), &device(), &budget, Quality::Exact).unwrap();
    assert_eq!(
        plan.to_string(),
        "denoise: 5 of 30 blocks stay (953.7 MiB of 5.59 GiB), 25 stream through 2 slots of 190.7 MiB at each of 9 \
         passes because the budget of 2.33 GiB (476.8 MiB in use) leaves 1.40 GiB for weights beside 476.8 MiB of \
         activations; 286.2 MiB more would save 1.6 s\npeak 2.24 GiB of 2.33 GiB, about 26.1 s"
    );
    let more = plan.phases[0].reason.more.unwrap();
    let wider = Budget {
        total: budget.total + more.bytes,
        ..budget
    };
    let faster =
        lowtide_core::plan(&denoise(), &Vars::new(), &device(), &wider, Quality::Exact).unwrap();
    assert!(
        (plan.seconds - faster.seconds - more.seconds).abs() < 1e-9,
        "what is offered is what is got"
    );
    let narrower = Budget {
        total: wider.total - Bytes(1),
        ..budget
    };
    let same = lowtide_core::plan(
        &denoise(),
        &Vars::new(),
        &device(),
        &narrower,
        Quality::Exact,
    )
    .unwrap();
    assert!(
        same.seconds > plan.seconds * 0.95,
        "and nothing smaller gives as much"
    );
}

#[test]
fn mistakes_in_what_is_passed_in_are_named() {
    let mut pipeline = denoise();
    let budget = Budget::of(Bytes::gib(8));
    pipeline.phases[0].modes[0].activation = Formula::sum(&[(1.0, &["tokens"])]);
    let missing = plan(&pipeline, &Vars::new(), &device(), &budget, Quality::Exact).unwrap_err();
    assert_eq!(
        missing.to_string(),
        "phase denoise: the formula needs the variable 'tokens', which is not set"
    );
    let still = DeviceProfile {
        link_bytes_per_s: 0.0,
        ..device()
    };
    let device_error = plan(&denoise(), &Vars::new(), &still, &budget, Quality::Exact).unwrap_err();
    assert_eq!(
        device_error.to_string(),
        "device test: a rate is not a positive number"
    );
    pipeline.phases[0].modes.clear();
    assert!(matches!(
        plan(&pipeline, &Vars::new(), &device(), &budget, Quality::Exact),
        Err(PlanError::Layout { .. })
    ));
}

#[test]
fn planned_faults_happen_and_give_everything_back() {
    let pipeline = denoise();
    let plan = planned(&pipeline, 2000 * MB);
    let fresh = || SimDevice::new(device(), &plan.budget).unwrap();
    let healthy = fresh().run(&pipeline, &plan).unwrap()[0].seconds;

    // 0 and 1 are held bytes and activations, 2 and 3 the slots, 4 to 8 the five blocks that stay.
    for allocation in [0, 1, 3, 8] {
        let mut device = fresh().with_fault(Fault::OutOfMemory { allocation });
        let failed = device.run(&pipeline, &plan);
        assert!(
            matches!(failed, Err(SimError::OutOfMemory { allocation: a, .. }) if a == allocation),
            "{failed:?}"
        );
        assert_eq!(device.ledger().in_use(), Bytes::ZERO);
        assert!(device.run(&pipeline, &plan).is_ok(), "the device lives on");
    }
    assert!(
        fresh()
            .with_fault(Fault::OutOfMemory { allocation: 9 })
            .run(&pipeline, &plan)
            .is_ok()
    );

    let slow = fresh()
        .with_fault(Fault::SlowLink {
            from_s: 10.0,
            factor: 3.0,
        })
        .run(&pipeline, &plan)
        .unwrap();
    assert!(slow[0].seconds > healthy + 10.0);
    assert_eq!(slow[0].peak, plan.peak, "slowness costs no memory");
    let late = fresh()
        .with_load_latency(0.01)
        .run(&pipeline, &plan)
        .unwrap();
    assert!(late[0].seconds > healthy);

    let mut dead = fresh().with_fault(Fault::Dead { from_s: 5.0 });
    assert_eq!(
        dead.run(&pipeline, &plan),
        Err(SimError::Dead { since_s: 5.0 })
    );
}

#[test]
fn the_simulated_device_refuses_a_plan_that_lies() {
    let pipeline = denoise();
    let plan = planned(&pipeline, 2000 * MB);
    let run = |plan: &Plan| {
        SimDevice::new(device(), &plan.budget)
            .unwrap()
            .run(&pipeline, plan)
    };
    let mut lie = plan.clone();
    lie.phases[0].slots[1] = Bytes(100 * MB);
    assert!(matches!(run(&lie), Err(SimError::Broken { .. })));
    let mut lie = plan.clone();
    lie.phases[0].placement = Placement::Resident;
    assert!(
        matches!(run(&lie), Err(SimError::Ledger(_))),
        "it does not fit"
    );
    let mut lie = plan.clone();
    lie.phases[0].slots.clear();
    assert!(matches!(run(&lie), Err(SimError::Mismatch { .. })));
    let mut lie = plan;
    lie.phases[0].placement = Placement::Streamed {
        resident: vec![true; 3],
    };
    assert!(matches!(run(&lie), Err(SimError::Mismatch { .. })));
}
