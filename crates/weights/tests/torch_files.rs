//! Files of `torch.save`: the same tensors as torch reads, out of every form; and nothing is ever run.

#![allow(
    clippy::unwrap_used,
    reason = "a test that meets an error should say where"
)]

#[path = "mutation/torch.rs"]
mod body;

use std::path::{Path, PathBuf};

use lowtide_weights::{Checkpoint, Error, Result};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/torch")
        .join(name)
}

fn contents(checkpoint: &Checkpoint) -> Vec<(String, String, Vec<usize>, Vec<u8>)> {
    let mut all: Vec<_> = checkpoint
        .tensors()
        .map(|entry| {
            let mut bytes = vec![0; entry.bytes as usize];
            checkpoint.read(entry, &mut bytes).unwrap();
            let dtype = entry.dtype.name().to_owned();
            (entry.name.clone(), dtype, entry.shape.clone(), bytes)
        })
        .collect();
    all.sort();
    all
}

#[test]
fn every_form_gives_the_tensors_that_torch_reads() {
    for (file, expected) in [
        ("zip.pt", "expected"),
        ("legacy.pt", "expected"),
        ("protocol4.pt", "expected"),
        ("trainer.ckpt", "expected"),
        ("trainer-legacy.ckpt", "expected"),
        ("net.pt", "net"),
        ("typed.pt", "typed"),
    ] {
        let read = Checkpoint::open(&fixture(file)).unwrap();
        let expected = Checkpoint::open(&fixture(&format!("{expected}.safetensors"))).unwrap();
        assert_eq!(contents(&read), contents(&expected), "{file}");
    }
}

#[test]
fn numbers_beside_the_weights_are_metadata() {
    let read = Checkpoint::open(&fixture("trainer.ckpt")).unwrap();
    assert_eq!(read.metadata("global_step"), Some("875000"));
    assert_eq!(read.metadata("epoch"), Some("4"));
}

#[test]
fn an_embedding_is_its_parameter() {
    let read = Checkpoint::open(&fixture("embedding.pt")).unwrap();
    let names: Vec<&str> = read.tensors().map(|t| t.name.as_str()).collect();
    assert_eq!(names, ["*"]);
}

#[test]
fn a_command_in_a_file_is_an_object_that_does_nothing() {
    let read = Checkpoint::open(&fixture("command.pt")).unwrap();
    assert_eq!(read.tensors().len(), 1);
    for folder in [".", env!("CARGO_MANIFEST_DIR")] {
        assert!(!Path::new(folder).join("lowtide-was-here").exists());
    }
}

#[test]
fn a_range_of_a_turned_tensor_is_that_part_of_it() {
    let read = Checkpoint::open(&fixture("legacy.pt")).unwrap();
    let expected = Checkpoint::open(&fixture("expected.safetensors")).unwrap();
    for name in ["a.turned", "b.channels_last", "a.rows"] {
        let (ours, theirs) = (read.get(name).unwrap(), expected.get(name).unwrap());
        for (offset, length) in [(0, 8), (3, 21), (ours.bytes - 5, 5)] {
            let (mut a, mut b) = (vec![0; length as usize], vec![1; length as usize]);
            read.read_range(ours, offset, &mut a).unwrap();
            expected.read_range(theirs, offset, &mut b).unwrap();
            assert_eq!(a, b, "{name} {offset}");
        }
    }
}

#[test]
fn a_folder_with_only_the_older_format_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let file = |error: Result<Checkpoint>| error.unwrap().sources()[0].name();
    std::fs::copy(fixture("zip.pt"), at("pytorch_model.fp16.bin")).unwrap();
    assert!(file(Checkpoint::open(folder.path())).ends_with("pytorch_model.fp16.bin"));
    std::fs::copy(fixture("legacy.pt"), at("diffusion_pytorch_model.bin")).unwrap();
    assert!(file(Checkpoint::open(folder.path())).ends_with("diffusion_pytorch_model.bin"));
    std::fs::copy(fixture("net.safetensors"), at("model.bf16.safetensors")).unwrap();
    assert!(file(Checkpoint::open(folder.path())).ends_with("model.bf16.safetensors"));
}

#[test]
fn tensors_in_no_order_are_refused_by_name() {
    for file in ["expanded.pt", "gaps.pt"] {
        let error = Checkpoint::open(&fixture(file)).unwrap_err();
        assert!(matches!(error, Error::TorchTensor { .. }), "{error}");
        let text = error.to_string();
        assert!(
            text.contains(file) && text.contains("'w'") && text.contains("contiguous"),
            "{text}"
        );
    }
}

/// Every byte of every file, damaged: an error or the file's own tensors with other numbers, never a panic, and never
/// more tensors than there are bytes for.
#[test]
fn damaged_files_are_refused_or_read_within_bounds() {
    for name in ["zip.pt", "legacy.pt", "trainer-legacy.ckpt", "typed.pt"] {
        let whole = std::fs::read(fixture(name)).unwrap();
        for at in (0..whole.len()).step_by(whole.len() / 1500 + 1) {
            for value in [0u8, 0x41, 0x80, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] = value;
                let _ = body::exercise(bytes);
            }
            let _ = body::exercise(whole[..at].to_vec());
        }
    }
}

/// Files that people have published, next to what torch reads from them; `tools/reference/real_torch.py` fetches them.
#[test]
#[ignore = "needs LOWTIDE_REAL_TORCH, a folder that tools/reference/real_torch.py filled"]
fn published_files_give_the_tensors_that_torch_reads() {
    let folder = std::env::var_os("LOWTIDE_REAL_TORCH").expect("LOWTIDE_REAL_TORCH is not set");
    let mut compared = 0;
    for file in Path::new(&folder).read_dir().unwrap() {
        let expected = file.unwrap().path();
        let name = expected.to_string_lossy().into_owned();
        if let Some(file) = name.strip_suffix(".safetensors") {
            let read = Checkpoint::open(Path::new(file)).unwrap();
            let expected = Checkpoint::open(&expected).unwrap();
            assert_eq!(contents(&read), contents(&expected), "{file}");
            compared += 1;
        }
    }
    assert_eq!(compared, 5);
}
