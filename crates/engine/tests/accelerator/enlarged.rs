//! Pictures made larger on a device.

use std::path::Path;
use std::sync::Arc;

use lowtide_core::Bytes;
use lowtide_engine::upscale::{Enlarged, Enlargement, Enlarger, EnlargingStep};
use lowtide_engine::{Options, PrecisionChoice};
use lowtide_media::{Filter, Limits, Original, decode_original};
use lowtide_weights::ModelFolder;

/// A network of each kind, in the folder of recorded ones.
pub(crate) const NETWORKS: [&str; 3] = ["dense-4.pth", "dense-2.pth", "compact-3.safetensors"];

/// A network of the folder.
pub(crate) fn enlarger(folder: &Path, file: &str, budget: Option<Bytes>) -> Arc<Enlarger> {
    let options = Options {
        budget,
        precision: PrecisionChoice::F32,
        threads: Some(2),
        ..Options::default()
    };
    Enlarger::open(&ModelFolder::open(&folder.join(file)).unwrap(), options).unwrap()
}

/// The recorded picture, tall enough to be cut.
pub(crate) fn picture(folder: &Path) -> Arc<Original> {
    let file = std::fs::read(folder.join("picture.png")).unwrap();
    let picture = decode_original(&file, &Limits::default()).unwrap();
    Arc::new(picture.resized(40, 200, Filter::Lanczos).unwrap())
}

/// The picture made larger; nothing where it does not fit.
pub(crate) fn enlarged(enlarger: &Arc<Enlarger>, picture: &Arc<Original>) -> Option<Enlarged> {
    let mut run = match enlarger.start(picture.clone(), Enlargement::default()) {
        Ok(run) => run,
        Err(lowtide_engine::Error::DoesNotFit(_)) => return None,
        Err(other) => panic!("{other}"),
    };
    loop {
        if let EnlargingStep::Finished(enlarged) = run.step().unwrap() {
            return Some(*enlarged);
        }
    }
}
