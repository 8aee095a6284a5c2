//! ONNX files and ncnn models that are not what they say.

use lowtide_weights::Checkpoint;

use super::Case;

const ONNX: &str = "strange.onnx";
const NCNN: &str = "strange.param";

/// A number on the wire.
fn int(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

/// A field that is a number.
fn number(field: u64, value: u64) -> Vec<u8> {
    [int(field << 3), int(value)].concat()
}

/// A field of bytes.
fn part(field: u64, bytes: &[u8]) -> Vec<u8> {
    [&int(field << 3 | 2)[..], &int(bytes.len() as u64), bytes].concat()
}

/// A model around the fields of a graph.
fn model(graph: &[u8]) -> Vec<u8> {
    [number(1, 8), part(2, b"x"), part(7, graph)].concat()
}

/// An initialiser of four numbers, and more fields.
fn tensor(name: &str, more: &[u8]) -> Vec<u8> {
    let fields = [number(1, 4), number(2, 1), part(8, name.as_bytes())].concat();
    part(5, &[&fields, more].concat())
}

const RAW: [u8; 16] = [7; 16];

fn raw() -> Vec<u8> {
    part(9, &RAW)
}

fn of(
    label: &'static str,
    (variant, file): (&'static str, &'static str),
    tensor: Option<&'static str>,
    says: &'static [&'static str],
    result: lowtide_weights::Result<Checkpoint>,
) -> Case {
    Case {
        label,
        variant,
        says,
        file,
        tensor,
        error: result
            .err()
            .unwrap_or_else(|| panic!("{label}: was accepted")),
    }
}

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = onnx();
    cases.extend(ncnn());
    cases
}

fn onnx() -> Vec<Case> {
    let sound = Checkpoint::from_memory(ONNX, model(&tensor("w", &raw()))).unwrap();
    assert_eq!(sound.tensors().len(), 1, "what is twisted below is sound");
    let case = |label, tensor, says, bytes: Vec<u8>| {
        let result = Checkpoint::from_memory(ONNX, bytes);
        of(label, ("Onnx", ONNX), tensor, says, result)
    };
    let graph = |label, says, fields: Vec<u8>| case(label, None, says, model(&fields));
    let about =
        |label, says, fields: Vec<u8>| case(label, Some("w"), says, model(&tensor("w", &fields)));
    let mut cut = model(&tensor("w", &raw()));
    cut.truncate(cut.len() - 4);
    let long = [number(1, 8), int(2 << 3 | 2), int(u64::MAX)].concat();
    let dims = [number(1, 4), number(1, 1).repeat(8), raw()].concat();
    let wide = [number(1, u64::MAX), raw()].concat();
    let with = |variant, label, tensor, says, bytes: Vec<u8>| {
        let result = Checkpoint::from_memory(ONNX, bytes);
        of(label, (variant, ONNX), tensor, says, result)
    };
    vec![
        case("cut off", None, &["half a download"], cut),
        case("a part without end", None, &["are left"], long),
        case(
            "a field of an unknown kind",
            None,
            &["kind 3"],
            [model(b""), int(9 << 3 | 3)].concat(),
        ),
        case(
            "a field without a number",
            None,
            &["without a number"],
            [model(b""), int(0)].concat(),
        ),
        case(
            "an endless number",
            None,
            &["ten bytes"],
            [model(b""), int(1 << 3), vec![0xff; 11]].concat(),
        ),
        about(
            "fewer numbers than said",
            &["needs 16 bytes and has 12"],
            part(9, &RAW[4..]),
        ),
        about("more numbers than said", &["has 20"], part(9, &[0; 20])),
        about(
            "numbers elsewhere",
            &["in another file"],
            [raw(), number(14, 1)].concat(),
        ),
        about(
            "an unknown type",
            &["type 99"],
            [raw(), number(2, 99)].concat(),
        ),
        about(
            "four bits a number",
            &["type 22"],
            [raw(), number(2, 22)].concat(),
        ),
        graph("segments", &["segments"], tensor("w", &part(3, b""))),
        graph(
            "a name without end",
            &["1024"],
            tensor(&"n".repeat(1025), &raw()),
        ),
        graph(
            "dimensions without end",
            &["8 dimensions"],
            tensor("w", &dims),
        ),
        graph("a sparse tensor", &["sparse"], part(15, b"")),
        graph(
            "names without end",
            &["64 MiB"],
            part(1, &part(1, &[b'n'; 4000])).repeat(17_000),
        ),
        graph(
            "nodes without end",
            &["nodes"],
            part(1, b"").repeat((1 << 18) + 1),
        ),
        with(
            "Overflow",
            "a shape beyond counting",
            Some("w"),
            &["64 bits"],
            model(&tensor("w", &wide)),
        ),
        with(
            "DuplicateTensor",
            "a name twice",
            Some("w"),
            &["twice"],
            model(&tensor("w", &raw()).repeat(2)),
        ),
        with(
            "NoTensors",
            "no weights",
            None,
            &["initialisers"],
            model(b""),
        ),
    ]
}

fn ncnn() -> Vec<Case> {
    let read = |layers: &str, numbers: &[u8]| {
        Checkpoint::from_ncnn_memory(NCNN, layers.as_bytes().to_vec(), numbers.to_vec())
    };
    let model = |layers: &str| {
        let count = layers.lines().count();
        format!("7767517\n{count} {count}\n{layers}")
    };
    let slopes = "PReLU p 1 1 a b 0=4\n";
    assert_eq!(read(&model(slopes), &RAW).unwrap().tensors().len(), 1);
    let with = |variant, label, tensor, says, layers: &str, numbers: &[u8]| {
        of(label, (variant, NCNN), tensor, says, read(layers, numbers))
    };
    let case = |label, says, layers: &str, numbers: &[u8]| {
        with("Ncnn", label, None, says, layers, numbers)
    };
    let conv = |settings: &str| model(&format!("Convolution c 1 1 a b {settings}"));
    let flag = |flag: u32| [&flag.to_le_bytes()[..], &[0; 60]].concat();
    vec![
        case("not ncnn", &["line 1", "7767517"], "hello", &RAW),
        case("no count", &["line 2"], "7767517\nmany", &RAW),
        case(
            "counts beyond reason",
            &["line 2"],
            "7767517\n99999999 1\n",
            &RAW,
        ),
        case(
            "fewer layers",
            &["1 layers where 3"],
            &format!("7767517\n3 3\n{slopes}"),
            &RAW,
        ),
        case(
            "an unknown layer",
            &["'Attention'"],
            &model("Attention a 1 1 a b 0=4"),
            &RAW,
        ),
        case("no name", &["without a name"], &model("PReLU"), &RAW),
        case("no blobs", &["blobs"], &model("PReLU p 9 1 a b"), &RAW),
        case(
            "no size",
            &["how many slopes"],
            &model("PReLU p 1 1 a b"),
            &RAW,
        ),
        case(
            "a size that is none",
            &["0=x"],
            &model("PReLU p 1 1 a b 0=x"),
            &RAW,
        ),
        case(
            "numbers that do not divide",
            &["5 numbers"],
            &conv("0=2 1=1 6=5"),
            &RAW,
        ),
        case(
            "rows that do not divide",
            &["rows"],
            &model("InnerProduct p 1 1 a b 0=2 2=5"),
            &RAW,
        ),
        case("quantised", &["quantised"], &conv("0=1 1=1 6=4 8=2"), &RAW),
        case(
            "quantised numbers",
            &["quantised"],
            &conv("0=1 1=1 6=4"),
            &flag(0x000d_4b38),
        ),
        case(
            "an unknown flag",
            &["0x12345678"],
            &conv("0=1 1=1 6=4"),
            &flag(0x1234_5678),
        ),
        case(
            "bytes left",
            &["belong to no layer"],
            &model(slopes),
            &[0; 20],
        ),
        with(
            "Truncated",
            "cut off",
            None,
            &["half a download"],
            &model(slopes),
            &RAW[..9],
        ),
        with(
            "Overflow",
            "counts beyond counting",
            Some("p.weight"),
            &["64 bits"],
            &model("PReLU p 1 1 a b 0=9223372036854775807"),
            &RAW,
        ),
        with(
            "DuplicateTensor",
            "a name twice",
            Some("p.weight"),
            &["twice"],
            &model(&slopes.repeat(2)),
            &[0; 32],
        ),
        with(
            "NoTensors",
            "no numbers",
            None,
            &["none of its layers"],
            &model("ReLU r 1 1 a b"),
            b"",
        ),
        of(
            "not text",
            ("NotUtf8", NCNN),
            None,
            &["byte 1"],
            Checkpoint::from_ncnn_memory(NCNN, b"7\xff".to_vec(), RAW.to_vec()),
        ),
    ]
}
