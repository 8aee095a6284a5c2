//! Folders that are not what they say: models, components, shards, indices.

use std::fs;
use std::path::Path;

use lowtide_core::{Dtype, TensorLayout};
use lowtide_weights::{Checkpoint, ModelFolder, Result, SafetensorsWriter};

use super::Case;

pub(crate) fn layout(name: &str) -> TensorLayout {
    TensorLayout {
        name: name.to_owned(),
        dtype: Dtype::U8,
        shape: vec![4],
    }
}

pub(crate) fn write(path: &Path, names: &[&str]) {
    let layouts: Vec<TensorLayout> = names.iter().map(|name| layout(name)).collect();
    let mut writer = SafetensorsWriter::create(path, &layouts).unwrap();
    for name in names {
        writer.write(name, &[1, 2, 3, 4]).unwrap();
    }
    writer.finish().unwrap();
}

/// A new folder under `root` with these text files.
pub(crate) fn folder(root: &Path, name: &str, files: &[(&str, &str)]) -> std::path::PathBuf {
    let path = root.join(name);
    fs::create_dir_all(&path).unwrap();
    for (file, text) in files {
        let file = path.join(file);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    }
    path
}

/// Label, variant, file, tensor, what the message must say, and what was tried.
pub(crate) struct Wrong<T>(
    pub(crate) &'static str,
    pub(crate) &'static str,
    pub(crate) &'static str,
    pub(crate) Option<&'static str>,
    pub(crate) &'static [&'static str],
    pub(crate) Result<T>,
);

pub(crate) fn case<T>(wrong: Wrong<T>) -> Case {
    let Wrong(label, variant, file, tensor, says, result) = wrong;
    let error = result
        .err()
        .unwrap_or_else(|| panic!("{label}: was accepted"));
    Case {
        label,
        variant,
        says,
        file,
        tensor,
        error,
    }
}

pub(crate) fn cases(root: &Path) -> Vec<Case> {
    let mut cases = models(root);
    cases.extend(weights(root));
    cases.extend(texts(root));
    cases
}

/// A file with the least that is a U-Net, and nothing else.
fn bare(root: &Path) -> std::path::PathBuf {
    let path = root.join("bare.safetensors");
    let layer = "transformer_blocks.0";
    let resnet = |at: &str| (format!("{at}.0.out_layers.3.weight"), vec![32, 32, 3, 3]);
    let crossed = |at: &str| {
        [
            (format!("{at}.1.{layer}.norm1.weight"), vec![32]),
            (format!("{at}.1.{layer}.attn2.to_k.weight"), vec![32, 64]),
        ]
    };
    let mut tensors = vec![
        ("input_blocks.0.0.weight".to_owned(), vec![32, 4, 3, 3]),
        resnet("input_blocks.1"),
        ("out.2.weight".to_owned(), vec![4, 32, 3, 3]),
    ];
    for at in [
        "input_blocks.1",
        "middle_block",
        "output_blocks.0",
        "output_blocks.1",
    ] {
        tensors.extend(crossed(at));
    }
    let layouts: Vec<TensorLayout> = tensors
        .into_iter()
        .map(|(name, shape)| TensorLayout {
            name: format!("model.diffusion_model.{name}"),
            dtype: Dtype::U8,
            shape,
        })
        .collect();
    let mut writer = SafetensorsWriter::create(&path, &layouts).unwrap();
    for layout in &layouts {
        writer
            .write(&layout.name, &vec![0; layout.bytes().0 as usize])
            .unwrap();
    }
    writer.finish().unwrap();
    path
}

const INDEX: &str = "model_index.json";

fn models(root: &Path) -> Vec<Case> {
    let open = |name: &str, files: &[(&str, &str)]| ModelFolder::open(&folder(root, name, files));
    let class = r#"{"_class_name":"P","vae":["diffusers","AutoencoderKL"]}"#;
    fs::write(root.join("a-file"), "text").unwrap();
    let sd = r#"{"_class_name":"P","vae":["diffusers","AutoencoderKL"],"_name":"x","flag":true,"safety":[null,null]}"#;
    let good = open("m-good", &[(INDEX, sd), ("vae/config.json", "{}")]).unwrap();
    assert_eq!(
        (good.components.len(), good.name.as_str()),
        (1, "m-good"),
        "settings and null pairs are no components"
    );
    vec![
        case(Wrong(
            "no folder",
            "NotFound",
            "nowhere",
            None,
            &["check the path"],
            ModelFolder::open(&root.join("nowhere")),
        )),
        case(Wrong(
            "a file of text",
            "Truncated",
            "a-file",
            None,
            &["half a download"],
            ModelFolder::open(&root.join("a-file")),
        )),
        case(Wrong(
            "a file of something else",
            "UnknownCheckpoint",
            "other.safetensors",
            None,
            &["not those of"],
            {
                let path = root.join("other.safetensors");
                write(&path, &["a"]);
                ModelFolder::open(&path)
            },
        )),
        case(Wrong(
            "a component of something else",
            "UnknownCheckpoint",
            "other.safetensors",
            None,
            &["config.json"],
            ModelFolder::open(&root.join("m-good"))
                .unwrap()
                .with_component("unet", &root.join("other.safetensors")),
        )),
        case(Wrong(
            "a file without a part",
            "ComponentNotInFile",
            "bare.safetensors",
            None,
            &["has no vae"],
            ModelFolder::open(&bare(root)).unwrap().check_complete(),
        )),
        case(Wrong(
            "empty folder",
            "NotAModel",
            "m-empty",
            None,
            &["no model_index.json", "transformer/"],
            open("m-empty", &[]),
        )),
        case(Wrong(
            "an array",
            "NotAModel",
            "m-array",
            None,
            &["not an object"],
            open("m-array", &[(INDEX, "[]")]),
        )),
        case(Wrong(
            "no class",
            "NotAModel",
            "m-class",
            None,
            &["_class_name"],
            open("m-class", &[(INDEX, "{}")]),
        )),
        case(Wrong(
            "no components",
            "NotAModel",
            "m-none",
            None,
            &["no components"],
            open("m-none", &[(INDEX, r#"{"_class_name":"P"}"#)]),
        )),
        case(Wrong(
            "broken",
            "Json",
            "model_index.json",
            None,
            &["line 2, column 3"],
            open("m-broken", &[(INDEX, "{\n  oops")]),
        )),
        case(Wrong(
            "twice",
            "DuplicateKey",
            "model_index.json",
            Some("vae"),
            &[],
            {
                open(
                    "m-twice",
                    &[(
                        INDEX,
                        r#"{"_class_name":"P","vae":["a","b"],"vae":["c","d"]}"#,
                    )],
                )
            },
        )),
        case(Wrong(
            "half of it",
            "ComponentFolderMissing",
            "m-half",
            Some("vae"),
            &["half a download"],
            open("m-half", &[(INDEX, class)]),
        )),
        case(Wrong(
            "upwards",
            "UnsafePath",
            "model_index.json",
            Some("../m-good"),
            &["inside the folder"],
            {
                open(
                    "m-up",
                    &[(INDEX, r#"{"_class_name":"P","../m-good":["a","b"]}"#)],
                )
            },
        )),
        case(Wrong(
            "config broken",
            "Json",
            "vae/config.json",
            None,
            &["EOF"],
            open("m-config", &[(INDEX, class), ("vae/config.json", "{")]),
        )),
        case(Wrong(
            "no such component",
            "NoSuchComponent",
            "m-good",
            Some("unet"),
            &["it has vae"],
            good.checkpoint("unet"),
        )),
        case(Wrong(
            "component without weights",
            "NoWeights",
            "m-good/vae",
            None,
            &["found config.json"],
            good.checkpoint("vae"),
        )),
        case(Wrong(
            "summary without weights",
            "NoWeights",
            "m-good/vae",
            None,
            &[],
            good.summary(),
        )),
        case(Wrong(
            "text outside",
            "UnsafePath",
            "m-good",
            Some("../a-file"),
            &[],
            good.read_text("../a-file"),
        )),
        case(Wrong(
            "text by absolute path",
            "UnsafePath",
            "m-good",
            Some("/etc/hostname"),
            &[],
            good.read_text("/etc/hostname"),
        )),
    ]
}

fn weights(root: &Path) -> Vec<Case> {
    let open = |name: &str, files: &[(&str, &str)]| Checkpoint::open(&folder(root, name, files));
    let pickle = [("pytorch_model.bin", ""), ("config.json", "{}")];
    let part = [("diffusion_pytorch_model.safetensors.part", "half")];
    fs::write(root.join("x.safetensors.incomplete"), "half").unwrap();
    let cut = root.join("cut.safetensors");
    write(&cut, &["a", "b"]);
    let whole = fs::read(&cut).unwrap();
    fs::write(&cut, &whole[..whole.len() - 3]).unwrap();
    let inside = root.join("inside.safetensors");
    fs::write(&inside, &whole[..20]).unwrap();
    let mut cases = vec![
        case(Wrong(
            "nothing",
            "NotFound",
            "none.safetensors",
            None,
            &[],
            Checkpoint::open(&root.join("none.safetensors")),
        )),
        case(Wrong(
            "empty",
            "NoWeights",
            "w-empty",
            None,
            &["found nothing"],
            open("w-empty", &[]),
        )),
        case(Wrong(
            "an empty file of torch",
            "Truncated",
            "pytorch_model.bin",
            None,
            &["half a download"],
            open("w-bin", &pickle),
        )),
        case(Wrong(
            "half a download",
            "HalfDownloaded",
            "diffusion_pytorch_model.safetensors.part",
            None,
            &["finish"],
            open("w-part", &part),
        )),
        case(Wrong(
            "the half itself",
            "HalfDownloaded",
            "x.safetensors.incomplete",
            None,
            &[],
            Checkpoint::open(&root.join("x.safetensors.incomplete")),
        )),
        case(Wrong(
            "cut in the data",
            "OutOfRange",
            "cut.safetensors",
            Some("b"),
            &["byte 8", "holds 5"],
            Checkpoint::open(&cut),
        )),
        case(Wrong(
            "cut in the header",
            "HeaderBeyondFile",
            "inside.safetensors",
            None,
            &["20 in all"],
            Checkpoint::open(&inside),
        )),
        case(Wrong(
            "git-lfs",
            "GitLfsPointer",
            "model.safetensors",
            None,
            &["git lfs pull"],
            {
                open(
                    "w-lfs",
                    &[(
                        "model.safetensors",
                        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
                    )],
                )
            },
        )),
    ];
    cases.extend(unix_only(root));
    cases
}

/// A pipe would block whoever opens it; a link may lead nowhere.
#[cfg(unix)]
fn unix_only(root: &Path) -> Vec<Case> {
    let dangling = folder(root, "w-link", &[]);
    std::os::unix::fs::symlink("../blobs/none", dangling.join("model.safetensors")).unwrap();
    vec![
        case(Wrong(
            "a device",
            "NotAFile",
            "/dev/null",
            None,
            &["not a regular file"],
            Checkpoint::open(Path::new("/dev/null")),
        )),
        case(Wrong(
            "a link to nothing",
            "HalfDownloaded",
            "w-link/model.safetensors",
            None,
            &[],
            Checkpoint::open(&dangling),
        )),
    ]
}

#[cfg(not(unix))]
fn unix_only(_: &Path) -> Vec<Case> {
    Vec::new()
}

fn texts(root: &Path) -> Vec<Case> {
    let class = r#"{"_class_name":"P","t":["transformers","T"]}"#;
    let path = folder(
        root,
        "t-model",
        &[(INDEX, class), ("t/tokenizer_config.json", "{}")],
    );
    fs::write(path.join("t/latin1.txt"), b"caf\xe9").unwrap();
    fs::write(
        path.join("t/lfs.json"),
        "version https://git-lfs.github.com/spec/v1\n",
    )
    .unwrap();
    fs::File::create(path.join("t/large.json"))
        .unwrap()
        .set_len((64 << 20) + 1)
        .unwrap();
    let model = ModelFolder::open(&path).unwrap();
    assert_eq!(model.read_text("t/none.json").unwrap(), None);
    assert_eq!(
        model
            .read_text("t/tokenizer_config.json")
            .unwrap()
            .as_deref(),
        Some("{}")
    );
    vec![
        case(Wrong(
            "too large",
            "TooLarge",
            "t/large.json",
            None,
            &["64.0 MiB"],
            model.read_text("t/large.json"),
        )),
        case(Wrong(
            "not UTF-8",
            "NotUtf8",
            "t/latin1.txt",
            None,
            &["byte 3"],
            model.read_text("t/latin1.txt"),
        )),
        case(Wrong(
            "git-lfs",
            "GitLfsPointer",
            "t/lfs.json",
            None,
            &[],
            model.read_text("t/lfs.json"),
        )),
        case(Wrong(
            "a folder",
            "NotAFile",
            "t-model/t",
            None,
            &[],
            model.read_text("t"),
        )),
    ]
}
