//! What a pipeline promises on a device with memory of its own, shown on one that pretends: the bytes of the host at any
//! budget, never more than the budget, weights read from the file once and brought from memory after that, and nothing left
//! behind. One test, since a process has one such device.

#![allow(clippy::unwrap_used, reason = "an unwrap in a test is an assertion")]

#[path = "accelerator/asked.rs"]
mod asked;
#[path = "accelerator/enlarged.rs"]
mod enlarged;
#[path = "accelerator/late.rs"]
mod late;
#[path = "accelerator/others.rs"]
mod others;
#[path = "../../models/tests/shadow/device.rs"]
mod shadow;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use lowtide_core::{Bytes, Placement};
use lowtide_engine::device::ground;
use lowtide_engine::upscale::Enlarged;
use lowtide_engine::{Engine, Options, PrecisionChoice};
use lowtide_media::Original;
use lowtide_weights::ModelFolder;

use asked::{request, run, with_second_pass};
use enlarged::{NETWORKS, enlarged, enlarger};
use late::Late;

/// The host has no room for all weights.
const HOST: u64 = 30 << 20;

fn engine(folder: &str, budget: Option<Bytes>, keep_weights: bool) -> Engine {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let options = Options {
        budget,
        precision: PrecisionChoice::F32,
        threads: Some(2),
        prompt_cache: Some(Bytes::ZERO),
        keep_weights,
        ..Options::default()
    };
    Engine::open(ModelFolder::open(&folder).unwrap(), options).unwrap()
}

const DEMO: &str = "../cli/demo";
const STABLE_DIFFUSION: [&str; 2] = [
    "tests/fixtures/stable-diffusion/sd15/checkpoint",
    "tests/fixtures/stable-diffusion/sdxl/checkpoint",
];

#[test]
fn a_device_with_memory_of_its_own_gives_the_bytes_of_the_host_within_any_budget() {
    let host = run(&engine(DEMO, None, false), request());
    let hosts =
        STABLE_DIFFUSION.map(|folder| run(&engine(folder, None, false), with_second_pass()));
    let networks = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/upscale");
    let picture = enlarged::picture(&networks);
    let larger =
        NETWORKS.map(|file| enlarged(&enlarger(&networks, file, None), &picture).expect("it fits"));
    let late = Arc::new(Late::new(48 << 20, HOST));
    let folder = tempfile::tempdir().unwrap();
    assert!(ground::put_among(late.clone(), folder.path()).unwrap());
    let idle = late.shadow().live();

    let roomy = engine(DEMO, None, true);
    let there = run(&roomy, request());
    assert!(there.images == host.images && there.latents == host.latents);
    assert!(late.shadow().calls() > 1000, "it was computed elsewhere");
    let kept = late.shadow().live() - idle;
    assert!(kept > 20 << 20, "weights stay: {kept}");
    assert_eq!(roomy.forget_weights(), Bytes(kept));
    assert_eq!(late.shadow().live(), idle, "released is forgotten at once");

    // What the host keeps is brought again without a look at the file.
    let again = late.loaded.load(Ordering::Relaxed);
    let second = run(&roomy, request());
    assert!(second.images == host.images);
    assert!(late.loaded.load(Ordering::Relaxed) > again);
    assert!(
        late.fed.load(Ordering::Relaxed) > 0,
        "not all was kept there"
    );
    assert!(late.host_kept() <= HOST, "{} of {HOST}", late.host_kept());
    drop(roomy);
    assert_eq!(late.shadow().live(), idle, "nothing is left on the device");
    assert_eq!(late.host_kept(), 0, "nothing is left on the host");

    let most = there.report.plan.peak;
    let mut streamed = 0;
    for sixteenths in [15, 12, 9, 6, 4] {
        let budget = Bytes(most.0 * sixteenths / 16);
        late.shadow().reset_peak();
        let small = engine(DEMO, Some(budget), false);
        let outcome = match small.start(request(), true) {
            Ok(session) => {
                drop(session);
                run(&small, request())
            }
            Err(lowtide_engine::Error::DoesNotFit(_)) => continue,
            Err(other) => panic!("{other}"),
        };
        assert!(outcome.images == host.images, "pictures at {budget}");
        assert_eq!(outcome.report.rungs_taken, 0, "at {budget}");
        assert!(
            late.shadow().peak() <= budget.0,
            "{} of {budget}",
            late.shadow().peak()
        );
        let phases = outcome.report.plan.phases.iter();
        streamed += phases
            .filter(|phase| matches!(phase.placement, Placement::Streamed { .. }))
            .count();
    }
    assert!(streamed > 0, "no budget made it stream");
    assert_eq!(late.shadow().live(), idle);

    // Reserves count where nobody names a budget.
    let alone = engine(DEMO, None, true);
    others::a_program_that_takes_memory_gets_it(&late, &alone, &there);
    others::a_neighbour_that_waits_gets_its_share(&late, (&alone, &there), folder.path());
    others::a_job_waits_for_its_share(&late, (&alone, &there), folder.path());
    drop(alone);
    assert_eq!(late.shadow().live(), idle);

    for (folder, host) in STABLE_DIFFUSION.into_iter().zip(&hosts) {
        let there = run(&engine(folder, None, false), with_second_pass());
        assert!(there.images == host.images, "{folder}");
    }
    assert_eq!(late.shadow().live(), idle);
    for (file, host) in NETWORKS.into_iter().zip(&larger) {
        pictures_are_made_larger_there(&late, (&networks, file), (&picture, host));
    }
}

/// The bytes of the host, whole and in parts, within any budget.
fn pictures_are_made_larger_there(
    late: &Late,
    (networks, file): (&Path, &str),
    (picture, host): (&Arc<Original>, &Enlarged),
) {
    let (idle, calls) = (late.shadow().live(), late.shadow().calls());
    let whole = enlarged(&enlarger(networks, file, None), picture).expect("it fits");
    assert!(whole.picture == host.picture, "{file}");
    assert!(
        late.shadow().calls() > calls + 5,
        "it was computed elsewhere"
    );
    assert_eq!(late.shadow().live(), idle, "{file}");
    let mut cuts = vec![whole.report.cut];
    for sixteenths in (3..16).rev() {
        let budget = Bytes(whole.report.plan.peak.0 * sixteenths / 16);
        late.shadow().reset_peak();
        let Some(small) = enlarged(&enlarger(networks, file, Some(budget)), picture) else {
            continue;
        };
        assert_eq!(small.report.rungs_taken, 0, "{file} at {budget}");
        let peak = late.shadow().peak();
        assert!(peak <= budget.0, "{file}: {peak} of {budget}");
        if small.report.exact {
            assert!(small.picture == host.picture, "{file} at {budget}");
            cuts.push(small.report.cut);
        }
    }
    cuts.dedup();
    assert!(cuts.len() > 1, "{file}: {cuts:?}");
    assert_eq!(late.shadow().live(), idle, "{file}");
}
