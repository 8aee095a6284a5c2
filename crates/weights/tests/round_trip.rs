//! What is written is what is read: random tensors, one file and several, whole and by rows.

#![allow(
    clippy::unwrap_used,
    reason = "a test that meets an error should say where"
)]

use std::fs;
use std::path::Path;

use lowtide_core::{Bytes, Dtype, TensorLayout};
use lowtide_weights::{Checkpoint, ModelFolder, SafetensorsWriter, ShardedWriter};
use proptest::prelude::*;

const DTYPES: [Dtype; 15] = [
    Dtype::F64,
    Dtype::F32,
    Dtype::F16,
    Dtype::Bf16,
    Dtype::F8E4M3,
    Dtype::F8E5M2,
    Dtype::I64,
    Dtype::I32,
    Dtype::I16,
    Dtype::I8,
    Dtype::U64,
    Dtype::U32,
    Dtype::U16,
    Dtype::U8,
    Dtype::Bool,
];

/// Up to 20 tensors of any type, of 0 to 5 dimensions, some without elements, with names as odd as they come.
fn layouts() -> impl Strategy<Value = Vec<TensorLayout>> {
    let name = prop_oneof![4 => "[a-z]{1,8}(\\.[0-9]{1,2})?\\.weight", 1 => "\\PC{0,20}", 1 => any::<String>()];
    let shape = proptest::collection::vec(0usize..6, 0..=5);
    let tensor = (name, proptest::sample::select(&DTYPES[..]), shape);
    proptest::collection::vec(tensor, 0..20).prop_map(|tensors| {
        let mut seen = std::collections::HashSet::from(["__metadata__".to_owned()]);
        let new = tensors
            .into_iter()
            .filter(|(name, ..)| seen.insert(name.clone()));
        new.map(|(name, dtype, shape)| TensorLayout { name, dtype, shape })
            .collect()
    })
}

/// Bytes that differ from tensor to tensor and from place to place.
fn content(number: usize, layout: &TensorLayout) -> Vec<u8> {
    (0..layout.bytes().as_usize())
        .map(|i| (i * 31 + number * 7) as u8)
        .collect()
}

fn check(checkpoint: &Checkpoint, layouts: &[TensorLayout]) {
    let read: Vec<TensorLayout> = checkpoint.tensors().map(|t| t.layout()).collect();
    assert_eq!(read, layouts, "the order of the file");
    assert_eq!(
        checkpoint.bytes(),
        layouts.iter().map(TensorLayout::bytes).sum()
    );
    for (number, layout) in layouts.iter().enumerate() {
        let expected = content(number, layout);
        let entry = checkpoint.get(&layout.name).unwrap();
        let mut all = vec![0; expected.len()];
        checkpoint.read(entry, &mut all).unwrap();
        assert_eq!(all, expected, "{}", layout.name);
        let (begin, end) = (expected.len() / 3, expected.len() * 2 / 3);
        let mut part = vec![0; end - begin];
        checkpoint
            .read_range(entry, begin as u64, &mut part)
            .unwrap();
        assert_eq!(part, expected[begin..end], "{}", layout.name);
    }
    let summary = checkpoint.summary();
    assert_eq!(
        summary.blocks.iter().map(|b| b.tensors).sum::<usize>(),
        layouts.len()
    );
    assert_eq!(
        summary.blocks.iter().map(|b| b.bytes).sum::<Bytes>(),
        checkpoint.bytes()
    );
    assert!(
        !summary.to_string().contains('\u{1b}'),
        "a name does not command the terminal"
    );
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = folder
        .read_dir()
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn one_file(layouts in layouts(), piece in 1usize..50) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let mut writer = SafetensorsWriter::with_metadata(&path, &layouts, &[("format", "pt")]).unwrap();
        for (number, layout) in layouts.iter().enumerate() {
            for part in content(number, layout).chunks(piece) {
                writer.write(&layout.name, part).unwrap();
            }
        }
        prop_assert!(!path.exists(), "not before it is whole");
        writer.finish().unwrap();
        prop_assert_eq!(names(folder.path()), ["model.safetensors"]);
        check(&Checkpoint::open(&path).unwrap(), &layouts);
        check(&Checkpoint::open(folder.path()).unwrap(), &layouts);
        let bytes = fs::read(&path).unwrap();
        prop_assert_eq!(u64::from_le_bytes(bytes[..8].try_into().unwrap()) % 8, 0, "data begins aligned");
        check(&Checkpoint::from_memory("built in", bytes).unwrap(), &layouts);
    }

    #[test]
    fn several_files(layouts in layouts(), limit in 1u64..600) {
        let folder = tempfile::tempdir().unwrap();
        let base = "diffusion_pytorch_model";
        let mut writer = ShardedWriter::create(folder.path(), base, &layouts, Bytes(limit)).unwrap();
        let files = writer.file_names();
        for (number, layout) in layouts.iter().enumerate() {
            writer.write(&layout.name, &content(number, layout)).unwrap();
        }
        writer.finish().unwrap();
        let mut expected = files.clone();
        if files.len() > 1 {
            expected.push(format!("{base}.safetensors.index.json"));
        }
        expected.sort();
        prop_assert_eq!(names(folder.path()), expected);
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        prop_assert_eq!(checkpoint.sources().len(), files.len());
        for number in 0..files.len() {
            let sizes: Vec<u64> = checkpoint.tensors().filter(|t| t.source == number).map(|t| t.bytes).collect();
            let many = sizes.iter().filter(|&&bytes| bytes > 0).count() > 1;
            prop_assert!(!many || sizes.iter().sum::<u64>() <= limit, "{sizes:?} in a shard of {limit}");
        }
        check(&checkpoint, &layouts);
    }
}

#[test]
fn a_dropped_writer_leaves_nothing_and_a_finished_one_replaces() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    fs::write(&path, "before").unwrap();
    let layout = [TensorLayout {
        name: "x".to_owned(),
        dtype: Dtype::U8,
        shape: vec![3],
    }];
    let mut writer = SafetensorsWriter::create(&path, &layout).unwrap();
    writer.write("x", &[1, 2]).unwrap();
    assert_eq!(
        names(folder.path()).len(),
        2,
        "a temporary file beside the old one"
    );
    drop(writer);
    assert_eq!(
        (names(folder.path()), fs::read(&path).unwrap()),
        (vec!["x.safetensors".to_owned()], b"before".to_vec())
    );
    let mut writer = SafetensorsWriter::create(&path, &layout).unwrap();
    writer.write("x", &[1, 2, 3]).unwrap();
    writer.finish().unwrap();
    assert!(fs::read(&path).unwrap().ends_with(&[1, 2, 3]));
    assert_eq!(names(folder.path()), ["x.safetensors"]);
}

#[test]
fn the_plain_file_goes_before_its_variants_and_each_library_has_its_order() {
    let one = |path: &Path, value: u8| {
        let layout = [TensorLayout {
            name: "x".to_owned(),
            dtype: Dtype::U8,
            shape: vec![],
        }];
        let mut writer = SafetensorsWriter::create(path, &layout).unwrap();
        writer.write("x", &[value]).unwrap();
        writer.finish().unwrap();
    };
    let index = |path: &Path, shard: &str| {
        fs::write(path, format!(r#"{{"weight_map":{{"x":"{shard}"}}}}"#)).unwrap();
    };
    let value = |folder: &Path| {
        let checkpoint = Checkpoint::open(folder).unwrap();
        let mut out = [0];
        checkpoint
            .read(checkpoint.get("x").unwrap(), &mut out)
            .unwrap();
        out[0]
    };
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    one(&at("shard.safetensors"), 1);
    index(
        &at("model.safetensors.index.bf16.json"),
        "shard.safetensors",
    );
    assert_eq!(
        value(folder.path()),
        1,
        "a variant, where there is nothing else"
    );
    one(&at("model.fp16.safetensors"), 2);
    assert_eq!(value(folder.path()), 2);
    index(&at("model.safetensors.index.json"), "shard.safetensors");
    assert_eq!(
        value(folder.path()),
        1,
        "the plain index before any variant"
    );
    one(&at("model.safetensors"), 3);
    assert_eq!(
        value(folder.path()),
        3,
        "transformers takes the single file first"
    );
    one(&at("diffusion_pytorch_model.safetensors"), 4);
    assert_eq!(value(folder.path()), 4);
    index(
        &at("diffusion_pytorch_model.safetensors.index.json"),
        "shard.safetensors",
    );
    assert_eq!(value(folder.path()), 1, "diffusers takes the index first");
    assert_eq!(
        value(&at("model.safetensors.index.bf16.json")),
        1,
        "an index may be named itself"
    );
}

#[test]
fn a_changed_file_has_another_fingerprint() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    let write = |bytes: usize| {
        let layout = [TensorLayout {
            name: "x".to_owned(),
            dtype: Dtype::U8,
            shape: vec![bytes],
        }];
        let mut writer = SafetensorsWriter::create(&path, &layout).unwrap();
        writer.write("x", &vec![0; bytes]).unwrap();
        writer.finish().unwrap();
        Checkpoint::open(&path).unwrap().fingerprint().unwrap()
    };
    let (first, again) = (
        write(1000),
        Checkpoint::open(&path).unwrap().fingerprint().unwrap(),
    );
    assert_eq!(first, again);
    assert_ne!(first, write(2000));
}

static BUILT_IN: [(&str, &[u8]); 4] = [
    ("model_index.json", br#"{"_class_name":"P","net":["diffusers","Net"],"tok":["transformers","Tok"]}"#),
    ("net/config.json", br#"{"dim":7}"#),
    ("net/model.safetensors", b"\x35\0\0\0\0\0\0\0{\"x\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}\x05\x06"),
    ("tok/tokenizer.json", b"{}"),
];

#[test]
fn a_built_in_model_reads_like_one_on_a_disk() {
    let disk = tempfile::tempdir().unwrap();
    let root = disk.path().join("small");
    for (path, bytes) in BUILT_IN {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    for model in [
        ModelFolder::embedded("small", &BUILT_IN).unwrap(),
        ModelFolder::open(&root).unwrap(),
    ] {
        assert_eq!(
            (model.name.as_str(), model.class_name.as_str()),
            ("small", "P")
        );
        let net = model.component("net").unwrap();
        assert_eq!(
            (net.library.as_str(), net.class.as_str(), net.has_weights),
            ("diffusers", "Net", true)
        );
        assert_eq!(net.config["dim"], 7);
        let tok = model.component("tok").unwrap();
        assert!(tok.config.is_null() && !tok.has_weights);
        assert_eq!(
            model.read_text("tok/tokenizer.json").unwrap().as_deref(),
            Some("{}")
        );
        assert_eq!(model.read_text("tok/none.json").unwrap(), None);
        let checkpoint = model.checkpoint("net").unwrap();
        let mut out = [0; 2];
        checkpoint
            .read(checkpoint.get("x").unwrap(), &mut out)
            .unwrap();
        assert_eq!(out, [5, 6]);
        let summary = model.summary().unwrap();
        assert_eq!((summary.parameters(), summary.bytes()), (2, Bytes(2)));
        let text = summary.to_string();
        assert!(
            text.contains("small (P)") && text.contains("tok  Tok (transformers)  no weights"),
            "{text}"
        );
    }
}

/// Twenty gigabytes that take no room on the disk: only the header was ever written.
#[cfg(unix)]
#[test]
fn headers_alone_describe_a_large_model() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let layout = |i: usize| TensorLayout {
        name: format!("layers.{}.part{}.weight", i / 20, i % 20),
        dtype: Dtype::Bf16,
        shape: vec![5000, 3300],
    };
    let layouts: Vec<TensorLayout> = (0..606).map(layout).collect();
    let header = lowtide_weights::render_header(&layouts, &[], "header").unwrap();
    let total = layouts.iter().map(|l| l.bytes().0).sum::<u64>();
    fs::write(&path, &header).unwrap();
    fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(header.len() as u64 + total)
        .unwrap();
    let start = std::time::Instant::now();
    let summary = Checkpoint::open(&path).unwrap().summary();
    let took = start.elapsed();
    assert_eq!(summary.bytes, Bytes(606 * 33_000_000));
    assert_eq!(summary.blocks.len(), 31);
    // Reading it would take ten seconds and more; a busy machine is granted a hundred times what a quiet one needs.
    assert!(took.as_millis() < 500, "{took:?}");
}
