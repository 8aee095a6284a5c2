//! What pipelines promise, on a GPU: near the CPU's numbers in every type of products, the same bytes at any budget, never over
//! it, memory that goes back at once, a hundred jobs of two models under a cap. One test, since a process has one such device.
//!
//! Computes in builds with the kernels (feature `cuda-kernels`); says that it is skipped where there is no GPU. The tree is
//! `LOWTIDE_TREE`, where the program was carried to another place.

#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used, reason = "an unwrap in a test is an assertion")]

#[path = "accelerator/asked.rs"]
mod asked;
#[path = "accelerator/enlarged.rs"]
mod enlarged;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lowtide_core::{Bytes, Placement};
use lowtide_engine::device::{cuda, ground};
use lowtide_engine::upscale::Enlarged;
use lowtide_engine::{Engine, ImageRequest, Options, PrecisionChoice};
use lowtide_media::{Original, Region};
use lowtide_weights::ModelFolder;

use asked::{request, run, with_second_pass};
use enlarged::{NETWORKS, enlarged, enlarger};

/// A model for a real GPU, and one for a GPU that is simulated, which takes a thousand times as long.
const Z_IMAGE: [&str; 2] = [
    "crates/cli/demo",
    "crates/engine/tests/fixtures/z-image/plain-bf16/checkpoint",
];
const STABLE_DIFFUSION: [&str; 2] = [
    "crates/engine/tests/fixtures/stable-diffusion/sd15/checkpoint",
    "crates/engine/tests/fixtures/stable-diffusion/sdxl/checkpoint",
];

/// The device may use so much in this test.
const CAP: Bytes = Bytes::gib(2);

/// Whether the GPU is that of `scripts/simulated-gpu`.
fn is_simulated() -> bool {
    cuda::shown().is_ok_and(|shown| shown.contains("simulated"))
}

fn z_image() -> &'static str {
    Z_IMAGE[usize::from(is_simulated())]
}

/// What is asked for; less of it where every number takes a thousand times as long.
fn asked(request: ImageRequest) -> ImageRequest {
    match is_simulated() {
        true => ImageRequest {
            count: 1,
            steps: 2,
            ..request
        },
        false => request,
    }
}

fn tree() -> PathBuf {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
    std::env::var_os("LOWTIDE_TREE").map_or(here, PathBuf::from)
}

fn engine(folder: &str, precision: PrecisionChoice, budget: Option<Bytes>) -> Engine {
    let options = Options {
        budget,
        precision,
        prompt_cache: Some(Bytes::ZERO),
        keep_weights: budget.is_none(),
        ..Options::default()
    };
    Engine::open(ModelFolder::open(&tree().join(folder)).unwrap(), options).unwrap()
}

/// The largest difference of latents, in their standard deviations.
fn difference(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let mean = b.iter().map(|&x| f64::from(x)).sum::<f64>() / b.len() as f64;
    let spread = b
        .iter()
        .map(|&x| (f64::from(x) - mean).powi(2))
        .sum::<f64>()
        / b.len() as f64;
    let pairs = a.iter().zip(b);
    let worst = pairs.map(|(&a, &b)| (f64::from(a) - f64::from(b)).abs());
    worst.fold(0.0, f64::max) / spread.sqrt()
}

fn skip(reason: &str) {
    eprintln!("skipped: {reason}");
    if let Some(path) = std::env::var_os("LOWTIDE_TEST_SKIPS") {
        let file = std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(path);
        writeln!(file.unwrap(), "cuda: {reason}").unwrap();
    }
}

/// Waits until the driver says that `bytes` more are free than `before`; how long it took.
fn free_again(before: u64, bytes: u64) -> Option<Duration> {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(2) {
        let free = ground::accelerator().unwrap().figures().free;
        if free >= before + bytes {
            return Some(start.elapsed());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    None
}

#[test]
fn pipelines_on_a_gpu_keep_their_promises() {
    match cuda::shown() {
        Ok(shown) => eprintln!("{shown}"),
        Err(why) => return skip(&why),
    }
    let f32 = PrecisionChoice::F32;
    let host = run(&engine(z_image(), f32, None), asked(request()));
    let host_bf16 = run(
        &engine(z_image(), PrecisionChoice::Bf16, None),
        asked(request()),
    );
    let others =
        STABLE_DIFFUSION.map(|folder| run(&engine(folder, f32, None), asked(with_second_pass())));
    let networks = tree().join("crates/engine/tests/fixtures/upscale");
    let picture = enlarged::picture(&networks);
    let larger = NETWORKS.map(|file| enlarged(&enlarger(&networks, file, None), &picture).unwrap());
    assert!(ground::put(cuda::open(0, Some(CAP), None).unwrap()));
    let gpu = ground::accelerator().unwrap();
    let idle = gpu.live();

    let there = run(&engine(z_image(), f32, None), asked(request()));
    let near = difference(&there.latents, &host.latents);
    eprintln!("Z-Image, f32: {near:.1e} of a standard deviation from the CPU");
    assert!(near < 2e-3, "{near}");
    for (folder, host) in STABLE_DIFFUSION.into_iter().zip(&others) {
        let there = run(&engine(folder, f32, None), asked(with_second_pass()));
        let near = difference(&there.latents, &host.latents);
        eprintln!("{folder}, f32: {near:.1e}");
        assert!(near < 2e-2, "{folder}: {near}");
    }
    larger_pictures(&networks, &larger, idle);
    near_in_every_type(&host.latents, &host_bf16.latents);
    budgets(idle);
    released(idle);
    hundred_jobs(idle);
}

/// Pictures made larger are those of the CPU but for the last bit, and the same whole and in parts.
fn larger_pictures(networks: &Path, hosts: &[Enlarged], idle: u64) {
    let gpu = ground::accelerator().unwrap();
    let picture = enlarged::picture(networks);
    // The first is the largest.
    let skipped = usize::from(is_simulated());
    for (file, host) in NETWORKS.into_iter().zip(hosts).skip(skipped) {
        let whole = enlarged(&enlarger(networks, file, None), &picture).unwrap();
        let far = distance(&whole.picture, &host.picture);
        assert!(far <= 1.01, "{file}: {far} of 255");
        let scratch = gpu.scratch_bytes();
        let rest = whole.report.plan.peak.0 - scratch;
        let mut parts = 0;
        for sixteenths in (5..16).rev() {
            let budget = Bytes(scratch + rest * sixteenths / 16);
            let Some(small) = enlarged(&enlarger(networks, file, Some(budget)), &picture) else {
                continue;
            };
            if small.report.exact && small.report.cut != whole.report.cut {
                assert!(small.picture == whole.picture, "{file} at {budget}");
                parts += 1;
                break;
            }
        }
        eprintln!("{file}: at most {far:.2} of 255 from the CPU; {parts} ways in parts");
        assert!(parts > 0, "{file}");
    }
    gpu.trim();
    assert_eq!(gpu.live(), idle);
}

/// The largest distance of two pictures, in steps of 8 bits.
fn distance(a: &Original, b: &Original) -> f32 {
    let planes = |picture: &Original| {
        let (width, height) = (picture.width(), picture.height());
        let mut planes = vec![0.0; 3 * width as usize * height as usize];
        let region = Region {
            left: 0,
            top: 0,
            width,
            height,
        };
        picture.planes(region, false, &mut planes);
        planes
    };
    let (a, b) = (planes(a), planes(b));
    assert_eq!(a.len(), b.len());
    let pairs = a.iter().zip(&b);
    255.0 * pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// How far a type is from the CPU's f32, by how far the CPU's own bf16 is: its factors are rounded by up to 2^-8 of
/// themselves, those of tf32 and f16 by 2^-11.
fn near_in_every_type(host: &[f32], host_bf16: &[f32]) {
    let usual = difference(host_bf16, host);
    eprintln!("Z-Image on the CPU, bf16: {usual:.1e} of a standard deviation from f32");
    for (precision, share) in [
        (PrecisionChoice::Bf16, 3.0),
        (PrecisionChoice::Tf32, 0.5),
        (PrecisionChoice::F16, 0.5),
    ] {
        let there = run(&engine(z_image(), precision, None), asked(request()));
        let near = difference(&there.latents, host);
        eprintln!("Z-Image, {precision:?}: {near:.1e}");
        assert!(
            near < usual * share,
            "{precision:?}: {near}, {usual} in bf16"
        );
        assert!(near > 0.0, "{precision:?} rounds nothing");
    }
}

/// The same bytes at any budget, in every type of products, and never over it.
fn budgets(idle: u64) {
    let gpu = ground::accelerator().unwrap();
    for precision in [
        PrecisionChoice::F32,
        PrecisionChoice::Bf16,
        PrecisionChoice::Tf32,
        PrecisionChoice::F16,
    ] {
        let free = run(&engine(z_image(), precision, None), asked(request()));
        // Scratch is the same whatever the budget.
        let scratch = gpu.scratch_bytes();
        let rest = free.report.plan.peak.0 - scratch;
        let mut streamed = 0;
        for sixteenths in (4..16).rev().step_by(2) {
            if is_simulated() && streamed > 0 {
                break;
            }
            let budget = Bytes(scratch + rest * sixteenths / 16);
            let small = engine(z_image(), precision, Some(budget));
            let Ok(session) = small.start(asked(request()), true) else {
                continue;
            };
            drop(session);
            gpu.reset_peak();
            let outcome = run(&small, asked(request()));
            assert!(outcome.images == free.images, "pictures at {budget}");
            assert!(outcome.latents == free.latents, "latents at {budget}");
            assert!(gpu.peak() <= budget.0, "{} of {budget}", gpu.peak());
            let phases = outcome.report.plan.phases.iter();
            streamed += phases
                .filter(|phase| matches!(phase.placement, Placement::Streamed { .. }))
                .count();
        }
        assert!(streamed > 0, "no budget made it stream");
        eprintln!("{precision:?}: {streamed} phases streamed, bytes as without a budget");
    }
    gpu.trim();
    assert_eq!(gpu.live(), idle);
}

/// Memory that is released is visible to the driver within a tenth of a second.
fn released(idle: u64) {
    let gpu = ground::accelerator().unwrap();
    let roomy = engine(z_image(), PrecisionChoice::Bf16, None);
    drop(run(&roomy, asked(request())));
    let kept = gpu.live() - idle;
    let before = gpu.figures().free;
    let start = Instant::now();
    assert!(roomy.forget_weights() > Bytes::ZERO);
    gpu.trim();
    let took = start.elapsed();
    let seen = free_again(before, kept / 2).expect("the driver sees it");
    eprintln!(
        "{} released in {took:?}, seen by the driver after {seen:?} more",
        Bytes(kept)
    );
    assert!(
        took + seen < Duration::from_millis(100),
        "{took:?} {seen:?}"
    );
    assert_eq!(gpu.live(), idle);
}

/// A hundred jobs alternating two models: nothing grows, nothing fails.
fn hundred_jobs(idle: u64) {
    let gpu = ground::accelerator().unwrap();
    let mut first = None;
    let jobs = if is_simulated() { 10 } else { 100 };
    for job in 0..jobs {
        let folder = [z_image(), STABLE_DIFFUSION[0]][job % 2];
        let request = ImageRequest {
            steps: 1,
            count: 1,
            ..request()
        };
        drop(run(&engine(folder, PrecisionChoice::Bf16, None), request));
        gpu.trim();
        assert_eq!(gpu.live(), idle, "after job {job}");
        let free = gpu.figures().free;
        let first = *first.get_or_insert(free);
        let grown = first.saturating_sub(free);
        assert!(
            grown <= 64 << 20,
            "{} less free after job {job}",
            Bytes(grown)
        );
    }
    eprintln!("{jobs} jobs alternating two models: nothing left behind");
}
