use super::*;
use crate::RepoPath;
use serde_json::json;

fn listing(paths: &[&str]) -> Listing {
    let mut listing = Listing {
        commit: "a".repeat(40),
        files: Vec::new(),
        refused: Vec::new(),
    };
    for path in paths {
        match RepoPath::new(path) {
            Ok(path) => listing.files.push(Listed {
                path,
                size: Some(1),
                checksum: None,
            }),
            Err(why) => listing.refused.push(((*path).to_owned(), why)),
        }
    }
    listing
}

fn names(chosen: &Chosen) -> Vec<&str> {
    let mut names: Vec<&str> = chosen.files.iter().map(|file| file.path.as_str()).collect();
    names.sort_unstable();
    names
}

const STABLE_DIFFUSION: [&str; 27] = [
    ".gitattributes",
    "README.md",
    "LICENSE.md",
    "model_index.json",
    "v1-5-pruned-emaonly.ckpt",
    "v1-5-pruned-emaonly.safetensors",
    "feature_extractor/preprocessor_config.json",
    "safety_checker/config.json",
    "safety_checker/model.safetensors",
    "safety_checker/pytorch_model.bin",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.fp16.safetensors",
    "text_encoder/model.safetensors",
    "text_encoder/pytorch_model.bin",
    "text_encoder/flax_model.msgpack",
    "tokenizer/merges.txt",
    "tokenizer/vocab.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.bin",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "unet/diffusion_pytorch_model.non_ema.safetensors",
    "unet/diffusion_pytorch_model.safetensors",
    "unet/model.onnx",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
    "vae/notes/x.json",
];

fn index() -> Value {
    json!({
        "_class_name": "StableDiffusionPipeline", "requires_safety_checker": true,
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "image_encoder": [null, null],
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    })
}

fn choice(variant: &str) -> Choice {
    Choice {
        variant: (!variant.is_empty()).then(|| variant.to_owned()),
        include: Vec::new(),
    }
}

#[test]
fn a_pipeline_takes_its_components_in_one_format_and_variant() {
    let chosen = choose(&listing(&STABLE_DIFFUSION), Some(&index()), &choice("")).unwrap();
    assert_eq!(
        names(&chosen),
        [
            "LICENSE.md",
            "feature_extractor/preprocessor_config.json",
            "model_index.json",
            "safety_checker/config.json",
            "scheduler/scheduler_config.json",
            "text_encoder/config.json",
            "text_encoder/model.safetensors",
            "tokenizer/merges.txt",
            "tokenizer/vocab.json",
            "unet/config.json",
            "unet/diffusion_pytorch_model.safetensors",
            "vae/config.json",
            "vae/diffusion_pytorch_model.safetensors",
        ]
    );
    assert!(chosen.notes.is_empty());
}

#[test]
fn a_variant_is_taken_where_it_is_and_said_where_it_is_not() {
    let chosen = choose(&listing(&STABLE_DIFFUSION), Some(&index()), &choice("fp16")).unwrap();
    let names = names(&chosen);
    assert!(names.contains(&"unet/diffusion_pytorch_model.fp16.safetensors"));
    assert!(!names.contains(&"unet/diffusion_pytorch_model.safetensors"));
    assert!(names.contains(&"vae/diffusion_pytorch_model.safetensors"));
    assert_eq!(chosen.notes.len(), 1);
    assert!(chosen.notes[0].starts_with("vae: there is no variant 'fp16'"));
}

#[test]
fn shards_come_with_their_index() {
    let one = |name: &str| json!({ name: ["diffusers", "X"] });
    let files = [
        "model_index.json",
        "transformer/diffusion_pytorch_model-00001-of-00002.safetensors",
        "transformer/diffusion_pytorch_model-00002-of-00002.safetensors",
        "transformer/diffusion_pytorch_model.safetensors.index.json",
        "transformer/diffusion_pytorch_model.fp16-00001-of-00001.safetensors",
        "transformer/diffusion_pytorch_model.safetensors.index.fp16.json",
        "transformer/diffusion_pytorch_model.bin.index.json",
    ];
    let plain = choose(&listing(&files), Some(&one("transformer")), &choice("")).unwrap();
    assert_eq!(names(&plain), files[..4]);
    let half = choose(&listing(&files), Some(&one("transformer")), &choice("fp16")).unwrap();
    assert_eq!(names(&half).len(), 3);
    assert!(half.notes.is_empty());
}

#[test]
fn pickles_only_where_there_is_nothing_else() {
    let files = [
        "model_index.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.bin",
    ];
    let index = json!({ "unet": ["diffusers", "X"] });
    let chosen = choose(&listing(&files), Some(&index), &choice("")).unwrap();
    assert_eq!(names(&chosen), files);
    assert!(chosen.notes[0].contains("PyTorch pickles"));
    let only_half = [
        "model_index.json",
        "unet/diffusion_pytorch_model.fp16.safetensors",
    ];
    let chosen = choose(&listing(&only_half), Some(&index), &choice("")).unwrap();
    assert!(chosen.notes[0].contains("only the variant 'fp16'"));
}

#[test]
fn patterns_name_files_and_nothing_else() {
    let include = |patterns: &[&str]| Choice {
        variant: None,
        include: patterns.iter().map(|&pattern| pattern.to_owned()).collect(),
    };
    let all = listing(&STABLE_DIFFUSION);
    let chosen = choose(&all, Some(&index()), &include(&["*.ckpt", "vae/"])).unwrap();
    assert_eq!(names(&chosen).len(), 4);
    let none = choose(&all, None, &include(&["*.gguf"])).unwrap_err();
    assert!(
        none.contains("*.gguf") && none.contains("README.md"),
        "{none}"
    );
    for (pattern, path, is) in [
        ("*", "a/b", true),
        ("a*c", "abbbc", true),
        ("a*c*e", "a-c-d", false),
        ("?.json", "a.json", true),
        ("?.json", "aa.json", false),
        ("", "", true),
        ("a", "", false),
        (
            "*****************b",
            "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            false,
        ),
    ] {
        assert_eq!(matches(pattern, path), is, "{pattern} {path}");
    }
}

#[test]
fn what_is_no_pipeline_is_one_component_or_one_file() {
    let lora = listing(&["README.md", "style.safetensors"]);
    assert_eq!(
        names(&choose(&lora, None, &choice("")).unwrap()),
        ["style.safetensors"]
    );
    let encoder = listing(&[
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "pytorch_model.bin",
        "x.onnx",
    ]);
    let chosen = choose(&encoder, None, &choice("")).unwrap();
    assert_eq!(
        names(&chosen),
        ["config.json", "model.safetensors", "tokenizer.json"]
    );
    let several = listing(&["a.safetensors", "b.safetensors"]);
    let refused = choose(&several, None, &choice("")).unwrap_err();
    assert!(
        refused.contains("--include") && refused.contains("b.safetensors"),
        "{refused}"
    );
    assert!(choose(&listing(&["a.onnx"]), None, &choice("")).is_err());
}

#[test]
fn hostile_paths_end_it_only_where_they_are_wanted() {
    let index = json!({ "vae": ["diffusers", "X"] });
    let fine = [
        "model_index.json",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
        "other/../../x",
    ];
    assert!(choose(&listing(&fine), Some(&index), &choice("")).is_ok());
    let inside = [
        "model_index.json",
        "vae/config.json",
        "vae/../../../.bashrc",
    ];
    let refused = choose(&listing(&inside), Some(&index), &choice("")).unwrap_err();
    assert!(refused.contains("leads out of its folder"), "{refused}");
    let both = [
        "model_index.json",
        "vae/config.json",
        "vae/config.json/x.json",
    ];
    let include = Choice {
        variant: None,
        include: vec!["*".to_owned()],
    };
    let refused = choose(&listing(&both), None, &include).unwrap_err();
    assert!(refused.contains("a file and a folder"), "{refused}");
    for index in [json!([]), json!({}), json!({ "../x": ["a", "b"] })] {
        assert!(
            choose(&listing(&fine), Some(&index), &choice("")).is_err(),
            "{index}"
        );
    }
}
