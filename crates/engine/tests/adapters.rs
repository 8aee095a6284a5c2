//! Promises about LoRAs: the same bytes whether blocks stay or stream, the file read once, and told apart by content.

#![allow(clippy::unwrap_used, reason = "an unwrap in a test is an assertion")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lowtide_core::{
    BlockLayout, Bytes, Cause, ComponentLayout, Dtype, Offload, PhasePlan, Placement, Reason,
    TensorLayout, Vars,
};
use lowtide_engine::Blame;
use lowtide_engine::adapters::{Active, Chosen, Lora, LoraCache, Target};
use lowtide_engine::stream::{Blocks, Stream};
use lowtide_models::{Adapters, BlockSource, Compute, Precision, Tensor};
use lowtide_weights::{Checkpoint, SafetensorsWriter};

const DIM: usize = 48;
const BLOCKS: usize = 3;

/// Values of about -0.3 to 0.3 from a seed.
fn values(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed;
    let next = |_| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32 * 0.6 - 0.3
    };
    (0..count).map(next).collect()
}

/// A file of f32 tensors.
fn write(path: &Path, tensors: &[(String, Vec<usize>)], seed: u64) {
    let layouts: Vec<TensorLayout> = tensors
        .iter()
        .map(|(name, shape)| TensorLayout {
            name: name.clone(),
            dtype: Dtype::F32,
            shape: shape.clone(),
        })
        .collect();
    let mut file = SafetensorsWriter::create(path, &layouts).unwrap();
    for (i, layout) in layouts.iter().enumerate() {
        let count = layout.shape.iter().product();
        let bytes: Vec<u8> = values(seed + i as u64, count)
            .into_iter()
            .flat_map(f32::to_le_bytes)
            .collect();
        file.write(&layout.name, &bytes).unwrap();
    }
    file.finish().unwrap();
}

/// A component of three blocks, each one layer.
fn base(folder: &Path) -> (ComponentLayout, Arc<Checkpoint>) {
    let tensors: Vec<(String, Vec<usize>)> = (0..BLOCKS)
        .map(|i| (format!("blocks.{i}.proj.weight"), vec![DIM, DIM]))
        .collect();
    let path = folder.join("base.safetensors");
    write(&path, &tensors, 1);
    let block = |(name, shape): &(String, Vec<usize>)| BlockLayout {
        name: name.clone(),
        tensors: vec![TensorLayout {
            name: name.clone(),
            dtype: Dtype::F32,
            shape: shape.clone(),
        }],
    };
    let layout = ComponentLayout {
        name: "unet".to_owned(),
        blocks: tensors.iter().map(block).collect(),
        tables: Vec::new(),
    };
    (layout, Arc::new(Checkpoint::open(&path).unwrap()))
}

/// A LoRA for layers given as `component/module`, all of them `DIM` by `inputs`.
fn lora_file(folder: &Path, name: &str, layers: &[&str], inputs: usize, seed: u64) -> PathBuf {
    let mut tensors = Vec::new();
    for layer in layers {
        tensors.push((format!("{layer}.lora_B"), vec![DIM, 4]));
        tensors.push((format!("{layer}.lora_A"), vec![4, inputs]));
    }
    let path = folder.join(format!("{name}.safetensors"));
    write(&path, &tensors, seed);
    path
}

fn read(path: &Path) -> lowtide_engine::Result<Lora> {
    let checkpoint = Checkpoint::open(path).unwrap();
    let targets: Vec<Target> = checkpoint
        .tensors()
        .filter_map(|down| {
            let layer = down.name.strip_suffix(".lora_A")?;
            let (component, module) = layer.split_once('/').unwrap();
            Some(Target {
                component: component.to_owned(),
                module: module.to_owned(),
                down: down.clone(),
                mid: None,
                up: checkpoint.get(&format!("{layer}.lora_B")).unwrap().clone(),
                scale: 0.5,
            })
        })
        .collect();
    let lora = Lora::read("style", &checkpoint, &targets)?;
    assert_eq!(lora.bytes(), Lora::bytes_needed(&targets));
    Ok(lora)
}

fn chosen(lora: &Arc<Lora>, strength: f32, text_strength: f32) -> Chosen {
    Chosen {
        lora: lora.clone(),
        strength,
        text_strength,
    }
}

fn plan(placement: Placement) -> PhasePlan {
    let slot = Bytes::from(DIM * DIM * 4);
    let slots = match placement {
        Placement::Resident => Vec::new(),
        _ => vec![slot; 2],
    };
    PhasePlan {
        name: "denoise".to_owned(),
        mode: String::new(),
        mode_index: 0,
        exact: true,
        vars: Vars::default(),
        visits: 2,
        placement,
        slots,
        weights: Bytes::ZERO,
        activation: Bytes::ZERO,
        held: Bytes::ZERO,
        peak: Bytes::ZERO,
        seconds: 0.0,
        stall_seconds: 0.0,
        bytes_moved: Bytes::ZERO,
        reason: Reason {
            phase: String::new(),
            mode: String::new(),
            exact: true,
            blocks: BLOCKS,
            resident_blocks: 0,
            resident: Bytes::ZERO,
            component: Bytes::ZERO,
            slots: Vec::new(),
            visits: 2,
            budget: Bytes::ZERO,
            in_use: Bytes::ZERO,
            activation: Bytes::ZERO,
            held: Bytes::ZERO,
            beside: Bytes::ZERO,
            offload: Offload::Auto,
            rungs: Vec::new(),
            cause: Cause::AllFit,
            more: None,
            exact_needs: None,
        },
    }
}

/// Two visits of all blocks, one after the other on the same rows.
fn run(blocks: &Arc<Blocks>, placement: Placement, adapters: Option<Arc<Adapters>>) -> Vec<u32> {
    let mut stream = Stream::start(blocks.clone(), &plan(placement), 2)
        .unwrap()
        .with_adapters(adapters);
    let compute = Compute {
        precision: Precision::F32,
    };
    let mut x = Tensor::from_slice(&[5, DIM], &values(99, 5 * DIM)).unwrap();
    for block in (0..BLOCKS).chain(0..BLOCKS) {
        let weights = stream.block(block).unwrap();
        let layer = weights.pp("blocks").pp(block);
        let layer = layer.linear_no_bias(DIM, DIM, "proj").unwrap();
        x = layer.forward(compute, &x).unwrap();
    }
    x.data().iter().map(|v| v.to_bits()).collect()
}

#[test]
fn blocks_that_stay_and_blocks_that_stream_give_the_same_bytes_and_nothing_lasts() {
    let folder = tempfile::tempdir().unwrap();
    let (layout, checkpoint) = base(folder.path());
    let blocks = Blocks::new("model", checkpoint, &layout).unwrap();
    let layers = ["unet/blocks.0.proj", "unet/blocks.2.proj"];
    let path = lora_file(folder.path(), "style", &layers, DIM, 7);
    let lora = Arc::new(read(&path).unwrap());
    assert!(lora.check(&[&layout]).unwrap().is_empty());
    let active = Active::new(&[chosen(&lora, 0.8, 1.0)]);
    let adapters = active.component("unet");
    assert!(adapters.is_some() && active.component("vae").is_none());

    let with = run(&blocks, Placement::Resident, adapters.clone());
    let resident = vec![false, true, false];
    assert_eq!(
        with,
        run(&blocks, Placement::Streamed { resident }, adapters)
    );
    let bare = run(&blocks, Placement::Resident, None);
    assert_ne!(with, bare);
    // The shelf's blocks are those of the files: another strength, and none, need no new read of them.
    let stronger = Active::new(&[chosen(&lora, 1.5, 1.0)]).component("unet");
    assert_ne!(run(&blocks, Placement::Resident, stronger), with);
    assert_eq!(run(&blocks, Placement::Resident, None), bare);
}

#[test]
fn layers_the_model_does_not_have_are_named_and_a_lora_of_another_model_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (layout, _) = base(folder.path());
    let file = |name: &str, layers: &[&str], inputs: usize| {
        read(&lora_file(folder.path(), name, layers, inputs, 1)).unwrap()
    };
    let some = file(
        "some",
        &["unet/blocks.1.proj", "unet/mid.proj", "text_encoder/a.b"],
        DIM,
    );
    let unknown = some.check(&[&layout]).unwrap();
    assert_eq!(unknown, ["text_encoder: a.b", "unet: mid.proj"]);

    let none = file("none", &["unet/other.0.proj"], DIM);
    let refused = none.check(&[&layout]).unwrap_err();
    assert!(
        refused
            .to_string()
            .contains("adds to no layer of this model"),
        "{refused}"
    );
    assert_eq!(refused.blame(), Blame::User);
    let wide = file("wide", &["unet/blocks.0.proj"], DIM + 1);
    let refused = wide.check(&[&layout]).unwrap_err();
    assert!(
        refused
            .to_string()
            .contains("is 48 x 49 in the LoRA and 48 x 48"),
        "{refused}"
    );
    assert_eq!(refused.blame(), Blame::User);
}

#[test]
fn a_digest_tells_content_and_strengths_apart_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let layers = ["unet/blocks.0.proj", "text_encoder/a.b"];
    let one = |name: &str, seed| {
        Arc::new(read(&lora_file(folder.path(), name, &layers, DIM, seed)).unwrap())
    };
    let (a, copy, b) = (one("a", 7), one("copy", 7), one("b", 8));
    let active = |list: &[Chosen]| Active::new(list);
    let first = active(&[chosen(&a, 1.0, 0.5)]);
    let same = active(&[chosen(&copy, 1.0, 0.5)]);
    assert_eq!(
        (first.digest(), first.text_digest()),
        (same.digest(), same.text_digest())
    );
    assert!(first.digest().is_some() && first.digest() != first.text_digest());

    // What is encoded depends on the strength for text alone.
    let stronger = active(&[chosen(&a, 2.0, 0.5)]);
    assert_eq!(first.text_digest(), stronger.text_digest());
    assert_ne!(first.digest(), stronger.digest());
    let others = [
        active(&[chosen(&a, 1.0, 0.6)]),
        active(&[chosen(&b, 1.0, 0.5)]),
        active(&[chosen(&a, 1.0, 0.5), chosen(&b, 1.0, 0.5)]),
        active(&[chosen(&b, 1.0, 0.5), chosen(&a, 1.0, 0.5)]),
    ];
    for (i, one) in others.iter().enumerate() {
        assert_ne!(first.text_digest(), one.text_digest());
        for other in &others[..i] {
            assert_ne!(other.text_digest(), one.text_digest());
        }
    }
    let bare = active(&[chosen(&a, 1.0, 0.0)]);
    assert_eq!(bare.text_digest(), None);
    assert!(bare.component("text_encoder").is_none() && bare.component("unet").is_some());
    assert_eq!(active(&[]).digest(), None);
    assert_eq!(
        active(&[chosen(&a, 1.0, 1.0), chosen(&a, 0.2, 1.0)]).bytes(),
        a.bytes()
    );
}

#[test]
fn a_file_is_read_once_again_when_it_changed_and_the_oldest_goes_first() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, seed| lora_file(folder.path(), name, &["unet/x"], DIM, seed);
    let (a, b, c) = (file("a", 1), file("b", 2), file("c", 3));
    let each = read(&a).unwrap().bytes();
    let cache = LoraCache::new(each + each);
    let get = |path: &Path| cache.get(path, || read(path)).unwrap();
    let first = get(&a);
    get(&b);
    assert!(Arc::ptr_eq(&first, &get(&a)));
    assert_eq!((cache.reads(), cache.bytes()), (2, each + each));
    // `b` was used longest ago.
    get(&c);
    assert!(Arc::ptr_eq(&first, &get(&a)));
    assert_eq!(cache.reads(), 3);
    get(&b);
    assert_eq!(cache.reads(), 4);

    // Another content at the same place is another LoRA, also of the same size. Files are told apart by when they were
    // written, which the system notes some milliseconds at a time.
    lora_file(folder.path(), "a", &["unet/x"], DIM, 9);
    let written = std::fs::File::options().write(true).open(&a).unwrap();
    let later = std::time::SystemTime::now() + std::time::Duration::from_secs(1);
    written.set_modified(later).unwrap();
    let changed = get(&a);
    assert!(!Arc::ptr_eq(&first, &changed));
    let digest = |lora: &Arc<Lora>| Active::new(&[chosen(lora, 1.0, 1.0)]).digest();
    assert_ne!(digest(&first), digest(&changed));
    assert!(cache.bytes() <= each + each);
    assert_eq!(cache.shrink(each), each);
    cache.shrink(Bytes::ZERO);
    assert_eq!(cache.bytes(), Bytes::ZERO);

    let off = LoraCache::new(Bytes::ZERO);
    off.get(&a, || read(&a)).unwrap();
    off.get(&a, || read(&a)).unwrap();
    assert_eq!((off.reads(), off.bytes()), (2, Bytes::ZERO));
    let gone = cache
        .get(&folder.path().join("gone"), || read(&a))
        .unwrap_err();
    assert!(gone.to_string().contains("cannot be opened"), "{gone}");
}
