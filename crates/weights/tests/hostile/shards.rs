//! Indices and shards that do not belong together.

use std::fs;
use std::path::Path;

use lowtide_core::Bytes;
use lowtide_weights::{Checkpoint, Result, ShardedWriter};

use super::Case;
use super::folders::{Wrong, case, folder, layout, write};

pub(crate) fn cases(root: &Path) -> Vec<Case> {
    let index = "model.safetensors.index.json";
    let open = |name: &str, text: &str, shards: &[(&str, &[&str])]| {
        let path = folder(root, name, &[(index, text)]);
        for (shard, names) in shards {
            write(&path.join(shard), names);
        }
        Checkpoint::open(&path)
    };
    let both = r#"{"weight_map":{"a":"1.safetensors","b":"2.safetensors"}}"#;
    let many: Vec<String> = (0..513)
        .map(|i| format!(r#""t{i}":"{i}.safetensors""#))
        .collect();
    let many = format!(r#"{{"weight_map":{{{}}}}}"#, many.join(","));
    vec![
        case(Wrong(
            "a shard is missing",
            "ShardMissing",
            index,
            Some("b"),
            &["'2.safetensors'", "half a download"],
            open("s-missing", both, &[("1.safetensors", &["a"])]),
        )),
        case(Wrong(
            "not in its shard",
            "NotInShard",
            index,
            Some("b"),
            &["'2.safetensors'"],
            {
                open(
                    "s-not",
                    both,
                    &[("1.safetensors", &["a"]), ("2.safetensors", &["c"])],
                )
            },
        )),
        case(Wrong(
            "in the other shard",
            "NotInShard",
            index,
            Some("b"),
            &["'2.safetensors'"],
            {
                open(
                    "s-other",
                    both,
                    &[("1.safetensors", &["a", "b"]), ("2.safetensors", &["c"])],
                )
            },
        )),
        case(Wrong(
            "in two shards",
            "TensorInTwoShards",
            "2.safetensors",
            Some("a"),
            &["1.safetensors"],
            {
                open(
                    "s-two",
                    both,
                    &[("1.safetensors", &["a"]), ("2.safetensors", &["b", "a"])],
                )
            },
        )),
        case(Wrong(
            "named twice",
            "DuplicateKey",
            index,
            Some("a"),
            &[],
            {
                open(
                    "s-twice",
                    r#"{"weight_map":{"a":"1.safetensors","a":"2.safetensors"}}"#,
                    &[],
                )
            },
        )),
        case(Wrong(
            "upwards",
            "UnsafePath",
            index,
            Some("../s-two/1.safetensors"),
            &[],
            {
                open(
                    "s-up",
                    r#"{"weight_map":{"a":"../s-two/1.safetensors"}}"#,
                    &[],
                )
            },
        )),
        case(Wrong(
            "deeper",
            "UnsafePath",
            index,
            Some("d/1.safetensors"),
            &[],
            open("s-deep", r#"{"weight_map":{"a":"d/1.safetensors"}}"#, &[]),
        )),
        case(Wrong(
            "no map",
            "BadIndex",
            index,
            None,
            &["no object 'weight_map'"],
            open("s-no", "{}", &[]),
        )),
        case(Wrong(
            "empty map",
            "BadIndex",
            index,
            None,
            &["empty"],
            open("s-empty", r#"{"weight_map":{}}"#, &[]),
        )),
        case(Wrong(
            "not a name",
            "BadIndex",
            index,
            None,
            &["tensor \"a\""],
            open("s-name", r#"{"weight_map":{"a":1}}"#, &[]),
        )),
        case(Wrong(
            "513 shards",
            "BadIndex",
            index,
            None,
            &["more than 512"],
            open("s-many", &many, &[]),
        )),
        case(Wrong(
            "broken",
            "Json",
            index,
            None,
            &["line 1"],
            open("s-broken", r#"{"weight_map"#, &[]),
        )),
        case(Wrong(
            "shards without index",
            "BadIndex",
            index,
            None,
            &["missing"],
            {
                let path = folder(root, "s-lost", &[]);
                write(&path.join("model-00001-of-00002.safetensors"), &["a"]);
                Checkpoint::open(&path)
            },
        )),
        case(Wrong(
            "a header in a shard",
            "HeaderBeyondFile",
            "s-shard/2.safetensors",
            None,
            &[],
            {
                let path = folder(root, "s-shard", &[(index, both)]);
                write(&path.join("1.safetensors"), &["a"]);
                fs::write(path.join("2.safetensors"), [0x7f; 32]).unwrap();
                Checkpoint::open(&path)
            },
        )),
        case(Wrong(
            "never finished",
            "Incomplete",
            "s-unfinished/model",
            Some("b"),
            &["4 bytes"],
            unfinished(root),
        )),
    ]
}

/// A sharded writer that is finished a shard too early leaves no index.
fn unfinished(root: &Path) -> Result<()> {
    let path = folder(root, "s-unfinished", &[]);
    let mut writer = ShardedWriter::create(&path, "model", &[layout("a"), layout("b")], Bytes(4))?;
    writer.write("a", &[0; 4])?;
    let result = writer.finish();
    assert!(!path.join("model.safetensors.index.json").exists());
    result
}
