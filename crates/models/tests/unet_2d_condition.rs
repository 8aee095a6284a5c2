//! What the U-Net promises: the reference's prediction, the same bytes however it is cut, and the memory it names.

// The lint's exception for tests does not reach the functions that tests share.
#![allow(clippy::unwrap_used)]

#[path = "unet_2d_condition/lora.rs"]
mod lora;
#[path = "shadow/device.rs"]
mod shadow;
#[path = "unet_2d_condition/store.rs"]
mod store;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use lowtide_core::{Dtype, Vars};
use lowtide_kernels::memory;
use lowtide_models::unet_2d_condition::{BATCH, CHUNK_ROWS, Config, Job, modes};
use lowtide_models::{Compute, Precision, Tensor};
use serde_json::{Value, json};

use store::{Inputs, Store};

#[global_allocator]
static ALLOCATOR: memory::CountingAllocator = memory::CountingAllocator;

const F32: Compute = Compute {
    precision: Precision::F32,
};
const BF16: Compute = Compute {
    precision: Precision::Bf16,
};

/// Where the process's memory is counted, nothing else may run.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn fixture(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/unet-2d-condition")
        .join(case)
}

fn json_file(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// A recorded network and what it is asked.
fn recorded(case: &str) -> (Store, Inputs) {
    let store = Store::new(&json_file(&fixture(case).join("config.json")), Dtype::F32);
    let inputs = Inputs::new(&store.config, &json_file(&fixture(case).join("case.json")));
    (store, inputs)
}

/// What the reference made of it, all sequences one after the other.
fn expected(case: &str) -> Vec<f32> {
    std::fs::read(fixture(case).join("expected.f32"))
        .unwrap()
        .chunks_exact(4)
        .map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()))
        .collect()
}

/// The largest difference, in standard deviations of what is expected.
fn difference(found: &[Tensor], expected: &[f32]) -> f32 {
    let found: Vec<f32> = found.iter().flat_map(|map| map.data().to_vec()).collect();
    assert_eq!(found.len(), expected.len());
    let count = expected.len() as f32;
    let mean = expected.iter().sum::<f32>() / count;
    let variance = expected
        .iter()
        .map(|v| (v - mean) * (v - mean))
        .sum::<f32>()
        / count;
    let largest = found
        .iter()
        .zip(expected)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max);
    largest / variance.sqrt()
}

fn bits(maps: &[Tensor]) -> Vec<u32> {
    let values = maps.iter().flat_map(|map| map.data());
    values.map(|value| value.to_bits()).collect()
}

const CASES: [&str; 10] = [
    "sd15",
    "sd15-batch",
    "sd21",
    "inpaint-odd",
    "lcm",
    "sdxl",
    "sdxl-odd",
    "refiner",
    "half-size",
    "rare",
];

const WHOLE: usize = 1 << 30;

#[test]
fn every_family_predicts_as_the_reference() {
    let _alone = alone();
    for case in CASES {
        let (mut store, inputs) = recorded(case);
        let all = inputs.sequences();
        let exact = difference(&store.predict((F32, WHOLE), &inputs, &all), &expected(case));
        assert!(exact < 1e-4, "{case}: {exact}");
        assert!(
            store
                .visits
                .iter()
                .copied()
                .eq(0..store.layout.blocks.len()),
            "{case} visits {:?}",
            store.visits
        );
        let rounded = difference(
            &store.predict((BF16, WHOLE), &inputs, &all),
            &expected(case),
        );
        assert!(
            rounded > exact && rounded < 0.2,
            "{case}: {rounded} with rounded factors"
        );
    }
}

#[test]
fn what_the_network_is_told_shows() {
    let _alone = alone();
    for (case, key, value) in [
        ("sd15", "timestep", json!(600.0)),
        ("lcm", "guidance", json!(1.5)),
        ("sd15", "text_tokens", json!([7, 10])),
        (
            "sdxl",
            "time_ids",
            json!([[1024, 768, 0, 16, 1024, 1024], [0, 0, 0, 0, 0, 0]]),
        ),
    ] {
        let (mut store, inputs) = recorded(case);
        let mut other = json_file(&fixture(case).join("case.json"));
        other[key] = value;
        let other = Inputs::new(&store.config, &other);
        let all = inputs.sequences();
        let changed = store.predict((F32, WHOLE), &other, &all);
        let difference = difference(&changed, &expected(case));
        assert!(difference > 2e-3, "{case} {key}: {difference}");
        drop(store.predict((F32, WHOLE), &inputs, &all));
    }
}

#[test]
fn any_chunk_and_any_split_of_a_batch_give_the_same_bytes() {
    let _alone = alone();
    for case in ["sd15-batch", "sdxl-odd", "half-size", "rare"] {
        let (mut store, inputs) = recorded(case);
        let all = inputs.sequences();
        for compute in [F32, BF16] {
            let whole = store.predict((compute, WHOLE), &inputs, &all);
            for chunk_rows in [1, 64, 65, 100, 128, 193, 300] {
                let chunked = store.predict((compute, chunk_rows), &inputs, &all);
                assert!(
                    bits(&chunked) == bits(&whole),
                    "{case} {compute:?} {chunk_rows}"
                );
            }
            for (s, map) in whole.iter().enumerate() {
                let alone = store.predict((compute, 100), &inputs, &[s]);
                assert!(
                    bits(&alone)[..] == bits(std::slice::from_ref(map))[..],
                    "{case} {s}"
                );
            }
            let mut backwards = all.clone();
            backwards.reverse();
            let mut reversed = store.predict((compute, WHOLE), &inputs, &backwards);
            reversed.reverse();
            assert!(bits(&reversed) == bits(&whole), "{case} backwards");
        }
    }
}

const THREADS: &str = "LOWTIDE_TEST_THREADS";

/// The pool is made once a process, so the test runs itself again with other numbers.
#[test]
fn any_number_of_threads_gives_the_same_bytes() {
    let _alone = alone();
    if let Ok(threads) = std::env::var(THREADS) {
        lowtide_kernels::set_threads(threads.parse().unwrap()).unwrap();
        let (mut store, inputs) = recorded("sdxl-odd");
        for compute in [F32, BF16] {
            let maps = store.predict((compute, 100), &inputs, &inputs.sequences());
            let digest = bits(&maps)
                .iter()
                .fold(0xcbf2_9ce4_8422_2325, |digest: u64, bits| {
                    (digest ^ u64::from(*bits)).wrapping_mul(0x0100_0000_01b3)
                });
            println!("digest {digest:x}");
        }
        return;
    }
    let digests = |threads: usize| {
        let name = "any_number_of_threads_gives_the_same_bytes";
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(THREADS, threads.to_string())
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        let lines = text.lines().filter(|line| line.contains("digest "));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let one = digests(1);
    assert_eq!(one.len(), 2, "{one:?}");
    for threads in [2, 3] {
        assert_eq!(digests(threads), one, "{threads} threads");
    }
}

#[test]
fn predicted_bytes_are_those_measured() {
    let _alone = alone();
    memory::set_cache_limit(Some(0));
    for (case, size, samples) in [
        ("sd15-batch", (24, 32), 2),
        ("inpaint-odd", (37, 29), 1),
        ("sdxl", (48, 40), 1),
        ("sdxl-batch", (33, 30), 3),
        ("refiner", (32, 48), 1),
        ("half-size", (24, 40), 2),
        ("rare", (50, 31), 1),
    ] {
        let folder = case.replace("sdxl-batch", "sdxl");
        let mut store = Store::new(
            &json_file(&fixture(&folder).join("config.json")),
            Dtype::F32,
        );
        let mut asked = json_file(&fixture(&folder).join("case.json"));
        let sequences = 2;
        asked["height"] = json!(size.0);
        asked["width"] = json!(size.1);
        asked["samples"] = json!(samples);
        asked["taken"] = (0..sequences * samples).map(|s| s % samples).collect();
        asked["text_tokens"] = vec![9; sequences * samples].into();
        if let Some(ids) = asked["time_ids"].as_array().cloned() {
            // All positive conditions, then all negative ones, each of its own.
            let ids = (0..sequences * samples).map(|s| {
                let mut ids = ids[s / samples].clone();
                ids[0] = json!(s);
                ids
            });
            asked["time_ids"] = ids.collect();
        }
        let inputs = Inputs::new(&store.config, &asked);
        let job = Job {
            size,
            samples,
            sequences,
            text_tokens: 9,
        };
        let modes = modes(&store.config, job);
        let mode = &modes[0];
        let mut batches = vec![samples, 1];
        batches.dedup();
        for batch in batches {
            let mut taken = inputs.sequences();
            taken.retain(|s| s % samples < batch);
            // A chunk beyond all rows is as one of all of them.
            let rows = mode.ladders[1].full * batch as u64 / samples as u64;
            let mut chunks = mode.ladders[1].values();
            chunks.retain(|chunk| *chunk <= rows);
            let middle = chunks.len() / 3;
            for chunk in [chunks[0], chunks[middle], chunks[chunks.len() - 1]] {
                let vars = Vars::new()
                    .with(BATCH, batch as u64)
                    .with(CHUNK_ROWS, chunk);
                let predicted = mode.activation.bytes(&vars).unwrap().0;
                let how = (F32, chunk as usize);
                // Once before, so that threads have started and their scratch is there.
                store.predict(how, &inputs, &taken);
                let scratch = lowtide_kernels::scratch_allocated();
                let before = memory::reset_peak();
                store.predict(how, &inputs, &taken);
                // A thread may have come to a kernel that it had not come to before.
                let scratch = (lowtide_kernels::scratch_allocated() - scratch) as u64;
                let measured = memory::peak() - before - scratch;
                let share = predicted as f64 / measured as f64;
                assert!(
                    (1.0..1.05).contains(&share),
                    "{case} {batch} {chunk}: {predicted} but {measured} measured"
                );
            }
        }
    }
    memory::set_cache_limit(None);
}

/// Bytes and operations of a visit of a network in its real shape.
fn cost(config: &Value, job: Job, chunk_rows: u64) -> (f64, f64) {
    let config = Config::from_json(config).unwrap();
    let modes = modes(&config, job);
    assert!(
        modes
            .iter()
            .all(|mode| mode.exact && mode.resident_blocks.is_empty())
    );
    let vars = Vars::new()
        .with(BATCH, job.samples as u64)
        .with(CHUNK_ROWS, chunk_rows);
    let bytes = modes[0].activation.eval(&vars).unwrap();
    (bytes, modes[0].flops.eval(&vars).unwrap())
}

/// config.json of Stable Diffusion 1.5 and of SDXL, what of it is not as in the absence of a word.
fn real() -> (Value, Value) {
    let small = json!({ "cross_attention_dim": 768, "attention_head_dim": 8 });
    let large = json!({
        "block_out_channels": [320, 640, 1280], "cross_attention_dim": 2048, "attention_head_dim": [5, 10, 20],
        "transformer_layers_per_block": [1, 2, 10], "use_linear_projection": true,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    });
    (small, large)
}

#[test]
fn formulas_name_what_real_networks_take() {
    let (small, large) = real();
    let job = |side: usize| Job {
        size: (side, side),
        samples: 1,
        sequences: 2,
        text_tokens: 77,
    };
    let channel = |side: usize| (side * side * 4) as f64;
    for (config, side, flops) in [
        (&small, 64, 1.5e12..1.7e12),
        (&large, 128, 13.0e12..14.0e12),
    ] {
        let (bytes, found) = cost(config, job(side), 64);
        assert!(flops.contains(&found), "{found:e}");
        // Where the finest maps of the way up begin: 640 channels, 320 to join them and 320 kept for later, of both
        // sequences; the first convolution's 320, which they share; and one sequence's 960 being joined.
        let by_hand = (2.0 * (640.0 + 320.0 + 320.0) + 320.0 + 960.0) * channel(side);
        assert!(
            (1.0..1.01).contains(&(bytes / by_hand)),
            "{bytes} {by_hand}"
        );
        let (whole, _) = cost(config, job(side), 8192);
        assert!((1.05..1.5).contains(&(whole / bytes)), "{whole} {bytes}");
        let twice = Job {
            samples: 2,
            ..job(side)
        };
        let (two, twice_the_work) = cost(config, twice, 64);
        assert!(two > 1.6 * bytes && two < 2.0 * bytes, "{two} {bytes}");
        assert_eq!(twice_the_work, 2.0 * found);
    }
}

#[test]
fn blocks_come_in_order_of_use() {
    let (store, _) = recorded("sdxl");
    let names: Vec<&str> = store
        .layout
        .blocks
        .iter()
        .map(|block| block.name.as_str())
        .collect();
    assert_eq!(
        names[..6],
        [
            "conv_in",
            "down_blocks.0.resnets.0",
            "down_blocks.0.resnets.1",
            "down_blocks.0.downsamplers.0",
            "down_blocks.1.resnets.0",
            "down_blocks.1.attentions.0.transformer_blocks.0",
        ]
    );
    assert!(names.contains(&"mid_block.attentions.0.transformer_blocks.2"));
    assert_eq!(names.last(), Some(&"conv_out"));
    let tensors = |name: &str| {
        let block = store.layout.blocks.iter().find(|block| block.name == name);
        let tensors = block.unwrap().tensors.iter();
        tensors
            .map(|tensor| tensor.name.clone())
            .collect::<Vec<_>>()
    };
    let first = tensors("down_blocks.1.attentions.0.transformer_blocks.0");
    assert!(first.contains(&"down_blocks.1.attentions.0.proj_in.weight".to_owned()));
    assert!(!first.contains(&"down_blocks.1.attentions.0.proj_out.weight".to_owned()));
    let last = tensors("down_blocks.1.attentions.0.transformer_blocks.1");
    assert!(last.contains(&"down_blocks.1.attentions.0.proj_out.weight".to_owned()));
    let count: usize = store
        .layout
        .blocks
        .iter()
        .map(|block| block.tensors.len())
        .sum();
    let mut distinct: Vec<&String> = store
        .layout
        .blocks
        .iter()
        .flat_map(|block| block.tensors.iter().map(|tensor| &tensor.name))
        .collect();
    distinct.sort();
    distinct.dedup();
    assert_eq!(distinct.len(), count, "no tensor is in two blocks");
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let good = json_file(&fixture("sdxl").join("config.json"));
    Config::from_json(&good).unwrap();
    for (key, value) in [
        ("_class_name", json!("UNet2DModel")),
        ("act_fn", json!("gelu")),
        ("class_embed_type", json!("timestep")),
        ("num_class_embeds", json!(1000)),
        ("addition_embed_type", json!("image")),
        ("addition_time_embed_dim", json!(null)),
        ("projection_class_embeddings_input_dim", json!(null)),
        ("dual_cross_attention", json!(true)),
        ("resnet_time_scale_shift", json!("scale_shift")),
        ("time_embedding_type", json!("fourier")),
        ("encoder_hid_dim", json!(64)),
        (
            "down_block_types",
            json!(["DownBlock2D", "SimpleCrossAttnDownBlock2D", "DownBlock2D"]),
        ),
        ("up_block_types", json!(["UpBlock2D"])),
        ("mid_block_type", json!("UNetMidBlock2DSimpleCrossAttn")),
        ("attention_head_dim", json!([2, 4])),
        ("attention_head_dim", json!(5)),
        ("transformer_layers_per_block", json!([1, 2, 100_000])),
        ("transformer_layers_per_block", json!([1, [2, 1], 3])),
        ("cross_attention_dim", json!([40, 40, 41])),
        ("norm_num_groups", json!(3)),
        ("norm_num_groups", json!(0)),
        ("layers_per_block", json!(1_000_000)),
        ("layers_per_block", json!(-1)),
        ("block_out_channels", json!([])),
        ("conv_in_kernel", json!(4)),
        ("downsample_padding", json!(0)),
        ("center_input_sample", json!(true)),
        ("freq_shift", json!(4)),
        ("time_cond_proj_dim", json!("wide")),
    ] {
        let mut config = good.clone();
        config[key] = value.clone();
        let text = match Config::from_json(&config) {
            Err(error) => error.to_string(),
            Ok(_) => panic!("{key} {value} is accepted"),
        };
        assert!(
            text.starts_with("unet: ") && (text.contains(key) || text.contains("reverse_")),
            "{key} {value}: {text}"
        );
    }
}

#[test]
fn loras_of_every_form_predict_as_the_reference() {
    let _alone = alone();
    for case in ["lora-linear", "lora-conv", "lora-xl"] {
        let (mut store, inputs) = recorded(case);
        let all = inputs.sequences();
        let bare = store.predict((F32, WHOLE), &inputs, &all);
        let list = json_file(&fixture(case).join("lora.json"));
        let adapters = lora::adapters(&list);
        store.adapters = Some(adapters);
        let whole = store.predict((F32, WHOLE), &inputs, &all);
        let exact = difference(&whole, &expected(case));
        let without = difference(&bare, &expected(case));
        println!("{case}: {exact:e}, without {without:e}");
        assert!(exact < 1e-4, "{case}: {exact}");
        assert!(
            without > 0.1,
            "{case}: a LoRA that does not show, {without}"
        );
        for chunk_rows in [1, 65] {
            let cut = store.predict((F32, chunk_rows), &inputs, &all);
            assert_eq!(bits(&cut), bits(&whole), "{case} in chunks of {chunk_rows}");
        }
    }
}

#[test]
fn a_device_gives_the_bytes_of_the_host() {
    let _alone = alone();
    for case in CASES {
        for compute in [F32, BF16] {
            let (mut store, inputs) = recorded(case);
            let all = inputs.sequences();
            let host = store.predict((compute, 100), &inputs, &all);
            store.bring();
            let there = store.predict((compute, 100), &inputs, &all);
            assert!(bits(&there) == bits(&host), "{case} {compute:?}");
            let device = store.there.as_ref().expect("it was brought");
            assert!(device.shadow.calls() > 50, "{case} was computed elsewhere");
        }
    }
}

#[test]
fn a_device_holds_no_more_than_before_when_a_prediction_is_done() {
    let _alone = alone();
    let (mut store, inputs) = recorded("sdxl-odd");
    store.bring();
    let live = |store: &Store| store.there.as_ref().map(|there| there.shadow.live());
    let before = live(&store);
    drop(store.predict((F32, 100), &inputs, &inputs.sequences()));
    assert_eq!(live(&store), before);
    let peak = store.there.as_ref().map(|there| there.shadow.peak());
    assert!(peak > before, "{peak:?} and {before:?}");
}

#[test]
fn loras_on_a_device_give_the_bytes_of_the_host() {
    let _alone = alone();
    for case in ["lora-linear", "lora-conv", "lora-xl"] {
        let (mut store, inputs) = recorded(case);
        let all = inputs.sequences();
        let list = json_file(&fixture(case).join("lora.json"));
        store.adapters = Some(lora::adapters(&list));
        let host = store.predict((BF16, 65), &inputs, &all);
        store.bring();
        let shadow = store.there.as_ref().map(|there| there.shadow.clone());
        store.adapters = Some(lora::adapters_on(&list, shadow.as_ref()));
        let there = store.predict((BF16, 65), &inputs, &all);
        assert!(bits(&there) == bits(&host), "{case}");
    }
}
