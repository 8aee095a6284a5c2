//! What is asked of networks that enlarge pictures, on a device.

use std::path::Path;
use std::sync::Arc;

use lowtide_core::{Bytes, Quality};
use lowtide_engine::upscale::{Enlarged, Enlargement, Enlarger, Enlarging, EnlargingStep};
use lowtide_engine::{Options, PrecisionChoice};
use lowtide_media::{Depth, Original, Region};
use lowtide_weights::ModelFolder;

/// Networks of both classes: with learned slopes, with others, of a grid of its own, of every number of doublings.
pub(crate) const NETWORKS: [&str; 7] = [
    "compact-4.pth",
    "compact-3.safetensors",
    "compact-2.safetensors",
    "dense-4.pth",
    "dense-2.pth",
    "dense-1.safetensors",
    "dense-8.pth",
];

pub(crate) fn open(
    engine: &Path,
    network: &str,
    (precision, budget): (PrecisionChoice, Option<Bytes>),
    keep_weights: bool,
) -> Arc<Enlarger> {
    let folder = ModelFolder::open(&engine.join("tests/fixtures/upscale").join(network));
    let options = Options {
        budget,
        precision,
        keep_weights,
        ..Options::default()
    };
    Enlarger::open(&folder.expect("a network"), options).expect("it opens")
}

/// A picture that can be seen through.
pub(crate) fn picture(width: u32, height: u32) -> Arc<Original> {
    let mut picture = Original::blank(width, height, Depth::Eight, true);
    let (columns, plane) = (width as usize, width as usize * height as usize);
    let region = Region {
        left: 0,
        top: 0,
        width,
        height,
    };
    for alpha in [false, true] {
        let values = (0..3 * plane).map(|at| {
            let (x, y, channel) = (at % columns, at % plane / columns, at / plane);
            let channel = if alpha { 4 } else { channel };
            let wave = ((x * (channel + 2)) as f32 / 5.0).sin() * (y as f32 / 7.0).cos();
            0.5 + 0.4 * wave + ((x * 31 + y * 17 + channel) % 13) as f32 / 130.0
        });
        let values: Vec<f32> = values.collect();
        picture.put(region, alpha, &values, (columns, (0, 0)));
    }
    Arc::new(picture)
}

/// Cut as memory allows, to the bytes of the whole.
pub(crate) fn exact() -> Enlargement {
    Enlargement {
        quality: Quality::Exact,
        ..Enlargement::default()
    }
}

pub(crate) fn finished(mut run: Enlarging) -> Enlarged {
    loop {
        if let EnlargingStep::Finished(enlarged) = run.step().expect("a step") {
            return *enlarged;
        }
    }
}

/// The picture enlarged under smaller and smaller budgets until it fits nowhere; `each` sees the network, the budget and the
/// result.
pub(crate) fn by_budget(
    picture: &Arc<Original>,
    open: impl Fn(Option<Bytes>) -> Arc<Enlarger>,
    mut each: impl FnMut(Bytes, &Enlarged),
) -> Vec<String> {
    let full = open(None).plan(&picture.size(), &exact(), None);
    let (mut total, mut cuts) = (full.expect("it fits").peak, Vec::new());
    loop {
        let enlarger = open(Some(total));
        let run = match enlarger.start(picture.clone(), exact()) {
            Ok(run) => run,
            Err(lowtide_engine::Error::DoesNotFit(_)) => return cuts,
            Err(other) => panic!("{other}"),
        };
        let enlarged = finished(run);
        let report = &enlarged.report;
        assert!(report.plan.peak <= total, "{} of {total}", report.plan.peak);
        assert!(
            report.peak <= report.plan.peak,
            "{} of {total}",
            report.peak
        );
        assert_eq!(report.rungs_taken, 0, "{}", report.cut);
        each(total, &enlarged);
        cuts.push(report.cut.clone());
        // One that this plan does not fit.
        total = Bytes(report.plan.peak.0 - 1);
    }
}
