//! What networks that make pictures larger promise on a device with memory of its own, shown on one that pretends: the bytes of
//! the host within every budget, through pauses and refusals, and nothing left behind. One test, since a process has one such
//! device.

#![allow(
    clippy::unwrap_used,
    dead_code,
    reason = "an unwrap in a test is an assertion, and it shares files with another test"
)]

#[path = "accelerator/enlarging.rs"]
mod enlarging;
#[path = "accelerator/late.rs"]
mod late;
#[path = "../../models/tests/shadow/device.rs"]
mod shadow;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use lowtide_core::Bytes;
use lowtide_engine::device::ground;
use lowtide_engine::upscale::{Enlarged, EnlargingStep};
use lowtide_engine::{Blame, PrecisionChoice};
use lowtide_media::Original;
use lowtide_models::device::{Allocation, Device};

use enlarging::{NETWORKS, by_budget, exact, finished};
use late::Late;

const HOST: u64 = 40 << 20;

#[test]
fn pictures_are_made_larger_on_a_device_to_the_bytes_of_the_host() {
    let picture = enlarging::picture(40, 240);
    let enlarged = NETWORKS.map(|network| {
        let enlarger = enlarging::open(here(), network, FREE, false);
        finished(enlarger.start(picture.clone(), exact()).unwrap())
    });
    let late = Arc::new(Late::new(1 << 30, HOST));
    assert!(ground::put(late.clone()));
    for (network, host) in NETWORKS.into_iter().zip(&enlarged) {
        whole_and_kept(&late, network, &picture, host);
        cut(&late, network, &picture, host);
    }
    paused_and_refused(&late, &picture, &enlarged);
}

fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

const FREE: (PrecisionChoice, Option<Bytes>) = (PrecisionChoice::F32, None);

/// The host's bytes, computed there, and weights that stay until they are forgotten.
fn whole_and_kept(late: &Late, network: &str, picture: &Arc<Original>, host: &Enlarged) {
    let idle = late.shadow().live();
    let enlarger = enlarging::open(here(), network, FREE, true);
    let before = late.shadow().calls();
    let there = finished(enlarger.start(picture.clone(), exact()).unwrap());
    assert!(late.shadow().calls() > before + 20, "{network}");
    assert_eq!(there.report.cut, "whole", "{network}");
    assert!(there.picture == host.picture, "{network}");
    let kept = Bytes(late.shadow().live() - idle);
    assert!(kept > Bytes::ZERO && enlarger.held_weights() <= kept);
    assert_eq!(enlarger.forget_weights(), enlarger.weights().1);
    assert_eq!(late.shadow().live(), idle, "{network}");
    let loaded = late.loaded.load(Ordering::Relaxed);
    assert!(enlarger.preload().unwrap() > Bytes::ZERO);
    assert!(late.loaded.load(Ordering::Relaxed) > loaded);
    drop(enlarger);
    assert_eq!((late.shadow().live(), late.host_kept()), (idle, 0));
}

/// The same bytes within every budget, which counts no picture of the host.
fn cut(late: &Late, network: &str, picture: &Arc<Original>, host: &Enlarged) {
    let idle = late.shadow().live();
    let open = |budget| {
        late.shadow().reset_peak();
        enlarging::open(here(), network, (PrecisionChoice::F32, budget), false)
    };
    let mut cuts = by_budget(picture, open, |budget, there| {
        let cut = &there.report.cut;
        assert!(there.picture == host.picture, "{network}, {cut}");
        let peak = late.shadow().peak();
        assert!(peak <= budget.0, "{network}, {cut}: {peak} of {budget}");
        assert_eq!(late.shadow().live(), idle, "{network}, {cut}");
    });
    cuts.dedup();
    // Results of those whose grid is coarser than the picture depend on too much around them to be cut so small.
    let coarse = ["dense-2.pth", "dense-1.safetensors"].contains(&network);
    assert!(cuts.len() >= 2 || coarse, "{network}: {cuts:?}");
}

/// Pauses between all steps, and memory that others took when nobody expected it, change no byte.
fn paused_and_refused(late: &Late, picture: &Arc<Original>, host: &[Enlarged]) {
    let device: Arc<dyn Device> = late.shadow_itself();
    let (idle, mut tried) = (late.shadow().live(), 0);
    for (network, host) in NETWORKS.into_iter().zip(host) {
        let enlarger = enlarging::open(here(), network, FREE, false);
        let mut run = enlarger.start(picture.clone(), exact()).unwrap();
        let paused = loop {
            run.park();
            let kept = Bytes(late.shadow().live() - idle);
            assert!(kept <= run.keeps(), "{network}: {kept} of {}", run.keeps());
            if let EnlargingStep::Finished(enlarged) = run.step().unwrap() {
                break enlarged;
            }
        };
        assert!(paused.picture == host.picture, "{network}");
        assert_eq!(late.shadow().live(), idle, "{network}");

        // Others have so much that what it took just now is a little too much.
        let most = paused.report.plan.peak;
        let tight = (PrecisionChoice::F32, Some(most));
        let enlarger = enlarging::open(here(), network, tight, false);
        let mut run = enlarger.start(picture.clone(), exact()).unwrap();
        let taken = (most.0 - paused.report.peak.0 + 64) as usize;
        let others = Allocation::new(&device, taken).unwrap();
        let end = loop {
            match run.step() {
                Ok(EnlargingStep::Progress(_)) => {}
                Ok(EnlargingStep::Finished(enlarged)) => break Some(enlarged),
                Err(error) => {
                    assert_eq!(error.blame(), Blame::Fit, "{network}: {error}");
                    break None;
                }
            }
        };
        drop((others, run));
        assert_eq!(late.shadow().live(), idle, "{network}");
        if let Some(refused) = end {
            assert!(refused.report.rungs_taken > 0, "{network}");
            assert!(refused.picture == host.picture, "{network}");
            tried += 1;
        }
    }
    assert!(tried >= 4, "rungs of {tried} networks");
}
