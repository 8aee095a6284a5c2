//! Models in one file, `.safetensors` and `.ckpt`, are drawn to the bytes of the diffusers folder they were made from.
//!
//! Names and shapes, and where diffusers' own conversion takes each tensor from, are those that
//! `tools/reference/single_file.py` recorded. Weights follow from their names, and the table of tokens has the rows of
//! the vocabulary that comes with the program, so that nothing of this size is kept.

#![allow(clippy::unwrap_used, reason = "an unwrap in a test is an assertion")]

#[path = "single_file/torch.rs"]
mod torch;
#[path = "single_file/weights.rs"]
mod weights;

use std::path::{Path, PathBuf};

use lowtide_core::{Bytes, Quality};
use lowtide_engine::{
    Engine, ImageRequest, Options, Outcome, PrecisionChoice, Reading, Session, Step,
};
use lowtide_weights::ModelFolder;

use weights::Recorded;

/// A scratch folder with a recorded family in each form.
struct Forms {
    folder: tempfile::TempDir,
    recorded: Recorded,
}

impl Forms {
    fn write(family: &str) -> Forms {
        let folder = tempfile::tempdir().unwrap();
        let recorded = Recorded::read(family);
        recorded.write_folder(&folder.path().join("folder"));
        Forms { folder, recorded }
    }

    /// One file with the tensors that `kept` accepts, in the form its ending names.
    fn file(&self, name: &str, kept: impl Fn(&str) -> bool) -> PathBuf {
        let path = self.folder.path().join(name);
        self.recorded.write_file(&path, kept);
        path
    }

    fn diffusers(&self) -> PathBuf {
        self.folder.path().join("folder")
    }
}

fn request() -> ImageRequest {
    ImageRequest {
        // Words of many tokens, long enough for a second chunk.
        prompt: format!(
            "a (lighthouse:1.2) on a cliff, {}[fog]",
            "storm, ".repeat(40)
        ),
        negative: Some("blurry, extraordinarily naïve".to_owned()),
        width: 48,
        height: 32,
        steps: 2,
        guidance: 4.0,
        seed: 11,
        count: 1,
        reading: Reading::Weighted,
        quality: Quality::Exact,
        ..ImageRequest::default()
    }
}

fn draw(folder: ModelFolder) -> Outcome {
    folder.check_complete().unwrap();
    let options = Options {
        precision: PrecisionChoice::F32,
        threads: Some(2),
        prompt_cache: Some(Bytes::ZERO),
        ..Options::default()
    };
    let engine = Engine::open(folder, options).unwrap();
    finish(engine.start(request(), true).unwrap())
}

fn finish(mut session: Session) -> Outcome {
    loop {
        if let Step::Finished(outcome) = session.step().unwrap() {
            return *outcome;
        }
    }
}

fn open(path: &Path) -> ModelFolder {
    ModelFolder::open(path).unwrap()
}

#[track_caller]
fn same(ours: &Outcome, expected: &Outcome, what: &str) {
    assert_eq!(ours.latents, expected.latents, "{what}: latents");
    assert_eq!(ours.images, expected.images, "{what}: pictures");
}

/// Latents that say something: numbers, and not all alike.
#[track_caller]
fn telling(outcome: &Outcome) {
    let spread = |values: &[f32]| {
        let (low, high) = values
            .iter()
            .fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), &x| {
                (low.min(x), high.max(x))
            });
        high - low
    };
    assert!(outcome.latents.iter().all(|x| x.is_finite()));
    assert!(spread(&outcome.latents) > 0.5);
    assert!(spread(&outcome.values) > 0.01);
}

fn whole_files(family: &str) {
    let forms = Forms::write(family);
    let expected = draw(open(&forms.diffusers()));
    telling(&expected);
    for name in ["model.safetensors", "model.ckpt"] {
        let file = forms.file(name, |_| true);
        same(&draw(open(&file)), &expected, &format!("{family} {name}"));
    }
}

#[test]
fn stable_diffusion_1_in_one_file_draws_as_its_folder() {
    whole_files("tiny-1");
}

#[test]
fn stable_diffusion_xl_in_one_file_draws_as_its_folder() {
    whole_files("tiny-xl");
}

#[test]
fn what_a_file_lacks_comes_from_elsewhere_to_the_same_bytes() {
    let forms = Forms::write("tiny-1");
    let expected = draw(open(&forms.diffusers()));
    let part = |prefix: &'static str| move |name: &str| name.starts_with(prefix);
    let unet = |name: &str| name.starts_with("model.diffusion_model.");
    let bare = forms.file("bare.safetensors", unet);
    assert_eq!(open(&bare).missing(), ["vae", "text_encoder"]);
    let bare_ckpt = forms.file("bare.ckpt", unet);
    let vae = forms.file("vae.safetensors", part("first_stage_model."));
    let whole = forms.file("whole.ckpt", |_| true);
    let folder = forms.diffusers();
    for (model, vae, text_encoder) in [
        // Folders of a component, a file with it alone, a whole model in a folder or a file.
        (&bare, folder.join("vae"), folder.join("text_encoder")),
        (&bare_ckpt, vae, folder.clone()),
        (&bare, whole.clone(), whole.clone()),
    ] {
        let what = format!("{} and {}", vae.display(), text_encoder.display());
        let model = open(model).with_component("vae", &vae).unwrap();
        let model = model.with_component("text_encoder", &text_encoder).unwrap();
        same(&draw(model), &expected, &what);
    }
}

#[test]
fn another_vae_takes_the_place_of_a_files_own() {
    let forms = Forms::write("tiny-1");
    let plain = draw(open(&forms.diffusers()));
    let other = Recorded::read("tiny-1").seeded("another");
    let (folder, file) = (
        forms.folder.path().join("other"),
        forms.folder.path().join("vae.ckpt"),
    );
    other.write_folder(&folder);
    other.write_file(&file, |name| name.starts_with("first_stage_model."));
    let whole = forms.file("model.safetensors", |_| true);
    let replaced = |path: &Path| draw(open(&whole).with_component("vae", path).unwrap());
    let from_folder = replaced(&folder.join("vae"));
    same(&replaced(&file), &from_folder, "the same VAE in a file");
    assert_eq!(from_folder.latents, plain.latents, "only decoding differs");
    assert_ne!(from_folder.images, plain.images);
}
