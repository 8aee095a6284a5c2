//! Good files, and callers who want something else: a missing tensor, another shape, a wrong range, a wrong order.

use std::path::Path;

use lowtide_core::{Dtype, TensorLayout};
use lowtide_weights::lora::Lora;
use lowtide_weights::{Checkpoint, Result, SafetensorsWriter, TensorEntry};

use super::Case;

const FILE: &str = "good.safetensors";

fn layout(name: &str, dtype: Dtype, shape: &[usize]) -> TensorLayout {
    TensorLayout {
        name: name.to_owned(),
        dtype,
        shape: shape.to_vec(),
    }
}

fn case<T>(
    label: &'static str,
    variant: &'static str,
    tensor: Option<&'static str>,
    says: &'static [&'static str],
    result: Result<T>,
) -> Case {
    let error = result
        .err()
        .unwrap_or_else(|| panic!("{label}: was accepted"));
    Case {
        label,
        variant,
        says,
        file: FILE,
        tensor,
        error,
    }
}

pub(crate) fn cases(root: &Path) -> Vec<Case> {
    let path = root.join(FILE);
    let mut cases = reading(&path);
    let checkpoint = Checkpoint::open(&path).unwrap();
    cases.push(case(
        "no LoRA for anything",
        "NotFound",
        None,
        &["check the path"],
        {
            let missing = path.with_file_name("not-good.safetensors");
            Lora::open(&missing, &[])
        },
    ));
    let half = root.join("half-good.safetensors");
    let name = "unet.a.lora_A.weight";
    let mut writer =
        SafetensorsWriter::create(&half, &[layout(name, Dtype::F32, &[1, 1])]).unwrap();
    writer.write(name, &[0; 4]).unwrap();
    writer.finish().unwrap();
    let components = [("unet", vec!["a".to_owned()])];
    let lora = Lora::open(&half, &components);
    cases.push(case(
        "half a LoRA",
        "Lora",
        Some("unet.a"),
        &["missing"],
        lora,
    ));
    assert!(
        Lora::of(checkpoint, &components)
            .unwrap()
            .targets
            .is_empty()
    );
    cases.extend(writing(&path));
    let left: Vec<_> = root
        .read_dir()
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert!(
        !left.iter().any(|n| n.to_string_lossy().ends_with(".part")),
        "nothing half-written stays: {left:?}"
    );
    cases
}

fn reading(path: &Path) -> Vec<Case> {
    let layouts = [
        layout("model.w", Dtype::F32, &[2, 3]),
        layout("ids", Dtype::I64, &[1]),
    ];
    let mut writer = SafetensorsWriter::create(path, &layouts).unwrap();
    writer.write("model.w", &[0; 24]).unwrap();
    writer.write("ids", &[0; 8]).unwrap();
    writer.finish().unwrap();
    let checkpoint = Checkpoint::open(path).unwrap();
    let w = checkpoint.require("model.w", &[2, 3]).unwrap().clone();
    let stranger = TensorEntry {
        source: 7,
        ..w.clone()
    };
    let read = |length: usize| checkpoint.read(&w, &mut vec![0; length]);
    let range = |offset, length: usize| checkpoint.read_range(&w, offset, &mut vec![0; length]);
    vec![
        case(
            "missing",
            "MissingTensor",
            Some("x"),
            &["is missing; is it"],
            checkpoint.require("x", &[1]),
        ),
        case(
            "missing prefix",
            "MissingTensor",
            Some("w"),
            &["there is 'model.w'"],
            checkpoint.require("w", &[2, 3]),
        ),
        case(
            "extra prefix",
            "MissingTensor",
            Some("a.ids"),
            &["there is 'ids'"],
            checkpoint.require("a.ids", &[1]),
        ),
        case(
            "wrong shape",
            "WrongShape",
            Some("model.w"),
            &["[2, 3]", "[3, 2]", "config.json"],
            checkpoint.require("model.w", &[3, 2]),
        ),
        case(
            "wrong type",
            "WrongDtype",
            Some("ids"),
            &["I64"],
            checkpoint.require("ids", &[1]),
        ),
        case(
            "buffer too short",
            "BadRead",
            Some("model.w"),
            &["24 bytes", "23", "bug"],
            read(23),
        ),
        case(
            "buffer too long",
            "BadRead",
            Some("model.w"),
            &["25"],
            read(25),
        ),
        case(
            "range past the end",
            "BadRead",
            Some("model.w"),
            &["8 were asked for from byte 20"],
            range(20, 8),
        ),
        case(
            "range that wraps",
            "BadRead",
            Some("model.w"),
            &["18446744073709551615"],
            range(u64::MAX, 8),
        ),
        case(
            "another checkpoint's tensor",
            "BadRead",
            Some("model.w"),
            &[],
            checkpoint.read(&stranger, &mut [0; 24]),
        ),
    ]
}

fn writing(path: &Path) -> Vec<Case> {
    let start = |layouts: &[TensorLayout]| SafetensorsWriter::create(path, layouts);
    let [a, b] = [layout("a", Dtype::U8, &[4]), layout("b", Dtype::U8, &[4])];
    let both = [a.clone(), b.clone()];
    let given = |parts: &[(&str, usize)]| -> Result<SafetensorsWriter> {
        let mut writer = start(&both)?;
        for (name, length) in parts {
            writer.write(name, &vec![0; *length])?;
        }
        Ok(writer)
    };
    let deep = [layout("a", Dtype::U8, &[1; 9])];
    let before = std::fs::read(path).unwrap();
    let cases = vec![
        case(
            "wrong order",
            "OutOfTurn",
            Some("b"),
            &["'a' is next"],
            given(&[("b", 4)]),
        ),
        case(
            "before the first is complete",
            "OutOfTurn",
            Some("b"),
            &["'a' is next"],
            given(&[("a", 3), ("b", 4)]),
        ),
        case(
            "too many bytes",
            "OutOfTurn",
            Some("a"),
            &["5 bytes", "lacks 4 bytes"],
            given(&[("a", 5)]),
        ),
        case(
            "too many bytes in parts",
            "OutOfTurn",
            Some("a"),
            &["lacks 1 bytes"],
            given(&[("a", 3), ("a", 2)]),
        ),
        case(
            "after the last",
            "OutOfTurn",
            Some("b"),
            &["nothing more"],
            given(&[("a", 4), ("b", 4), ("b", 1)]),
        ),
        case(
            "too early",
            "Incomplete",
            Some("b"),
            &["1 bytes"],
            given(&[("a", 4), ("b", 3)]).and_then(|w| w.finish()),
        ),
        case(
            "too early, at the start",
            "Incomplete",
            Some("a"),
            &["4 bytes"],
            given(&[]).and_then(|w| w.finish()),
        ),
        case(
            "a name twice",
            "DuplicateTensor",
            Some("a"),
            &[],
            start(&[a.clone(), a.clone()]),
        ),
        case(
            "the format's own name",
            "DuplicateTensor",
            Some("__metadata__"),
            &[],
            start(&[layout("__metadata__", Dtype::U8, &[])]),
        ),
        case(
            "too many dimensions",
            "TooManyDimensions",
            Some("a"),
            &["9"],
            start(&deep),
        ),
        case(
            "sizes past 64 bits",
            "Overflow",
            Some("a"),
            &[],
            start(&[layout("a", Dtype::F64, &[usize::MAX, 2])]),
        ),
        case(
            "a long name",
            "NameTooLong",
            None,
            &["2000"],
            start(&[layout(&"n".repeat(2000), Dtype::U8, &[])]),
        ),
        Case {
            label: "no folder to write into",
            variant: "Io",
            says: &["cannot create"],
            file: "no-folder",
            tensor: None,
            error: SafetensorsWriter::create(&path.with_file_name("no-folder").join("x"), &both)
                .unwrap_err(),
        },
        Case {
            label: "a folder has that name",
            variant: "Io",
            says: &["cannot create", "directory"],
            file: "",
            tensor: None,
            error: SafetensorsWriter::create(path.parent().unwrap(), &both).unwrap_err(),
        },
    ];
    assert_eq!(
        std::fs::read(path).unwrap(),
        before,
        "a failed writer leaves what was there"
    );
    cases
}
