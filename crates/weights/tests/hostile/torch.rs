//! Archives and pickles that are not what torch writes.

use lowtide_weights::Checkpoint;

use super::Case;

const FILE: &str = "strange.ckpt";

/// One entry of an archive: name, content, and what is wrong with its record.
struct Entry<'a>(&'a str, &'a [u8], Twist);

#[derive(Clone, Copy, PartialEq)]
enum Twist {
    Plain,
    Compressed,
    Encrypted,
    /// The directory says that it is longer than the file.
    Long,
    /// The directory points elsewhere.
    Elsewhere,
}

use Twist::Plain;

/// A zip archive of these entries, stored.
fn zip(entries: &[Entry]) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for Entry(name, content, twist) in entries {
        let at = out.len() as u32 + u32::from(*twist == Twist::Elsewhere);
        let length = (content.len() as u32).to_le_bytes();
        let said = if *twist == Twist::Long {
            [0, 0, 0, 1]
        } else {
            length
        };
        let flags = [u8::from(*twist == Twist::Encrypted), 0];
        let method = [if *twist == Twist::Compressed { 8 } else { 0 }, 0];
        let name_bytes = (name.len() as u16).to_le_bytes();
        out.extend_from_slice(b"PK\x03\x04\0\0");
        out.extend([flags, method].concat());
        out.extend([0; 8]);
        out.extend([length, length].concat());
        out.extend([name_bytes, [0, 0]].concat());
        out.extend(name.bytes().chain(content.iter().copied()));
        directory.extend_from_slice(b"PK\x01\x02\0\0\0\0");
        directory.extend([flags, method].concat());
        directory.extend([0; 8]);
        directory.extend([said, said].concat());
        directory.extend(name_bytes);
        directory.extend([0; 12]);
        directory.extend(at.to_le_bytes());
        directory.extend(name.bytes());
    }
    let (at, bytes) = (out.len() as u32, directory.len() as u32);
    let count = (entries.len() as u16).to_le_bytes();
    out.extend(directory);
    out.extend_from_slice(b"PK\x05\x06\0\0\0\0");
    out.extend([count, count].concat());
    out.extend([bytes.to_le_bytes(), at.to_le_bytes()].concat());
    out.extend([0, 0]);
    out
}

fn text(text: &str) -> Vec<u8> {
    [
        &b"X"[..],
        &(text.len() as u32).to_le_bytes(),
        text.as_bytes(),
    ]
    .concat()
}

/// The instructions that leave a tensor of `elements` f32 on the stack, from `offset` in a storage of 4 elements.
fn tensor(elements: u8, offset: u8, stride: u8) -> Vec<u8> {
    let mut code = b"ctorch._utils\n_rebuild_tensor_v2\n((".to_vec();
    code.extend(text("storage"));
    code.extend_from_slice(b"ctorch\nFloatStorage\n");
    code.extend([text("0"), text("cpu")].concat());
    code.extend([b'K', 4, b't', b'Q', b'K', offset]);
    code.extend([b'(', b'K', elements, b't', b'(', b'K', stride, b't']);
    code.extend_from_slice(b"\x89NtR");
    code
}

/// A pickle of a dict with one entry.
fn dict(key: &str, value: &[u8]) -> Vec<u8> {
    [b"\x80\x02}", text(key).as_slice(), value, b"s."].concat()
}

fn good() -> Vec<u8> {
    dict("w", &tensor(4, 0, 1))
}

const DATA: [u8; 16] = [7; 16];

/// An archive of torch's around a pickle.
fn archive(pickle: &[u8]) -> Vec<u8> {
    zip(&[
        Entry("a/data.pkl", pickle, Plain),
        Entry("a/data/0", &DATA, Plain),
    ])
}

/// The form before the archive, with what its parts should be.
fn legacy(version: &[u8], pickle: &[u8], keys: &[u8], count: u64, data: &[u8]) -> Vec<u8> {
    let magic = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";
    let machine = dict("little_endian", b"\x88");
    [
        magic,
        version,
        &machine,
        pickle,
        keys,
        &count.to_le_bytes(),
        data,
    ]
    .concat()
}

fn case(
    label: &'static str,
    variant: &'static str,
    tensor: Option<&'static str>,
    says: &'static [&'static str],
    bytes: Vec<u8>,
) -> Case {
    let result = Checkpoint::from_memory(FILE, bytes);
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

pub(crate) fn cases() -> Vec<Case> {
    let read = Checkpoint::from_memory(FILE, archive(&good())).unwrap();
    assert_eq!(read.tensors().len(), 1, "what is twisted below is sound");
    let old = legacy(VERSION, &good(), KEYS, 4, &DATA);
    assert_eq!(
        Checkpoint::from_memory(FILE, old).unwrap().tensors().len(),
        1
    );
    let mut cases = archives();
    cases.extend(pickles());
    cases.extend(bombs());
    cases.extend(tensors());
    cases.extend(old_files());
    cases
}

fn archives() -> Vec<Case> {
    let pickle = good();
    let with = |name: &str, content: &[u8], twist| {
        zip(&[
            Entry("a/data.pkl", &pickle, Plain),
            Entry("a/data/0", &DATA, Plain),
            Entry(name, content, twist),
        ])
    };
    let data = |twist| {
        zip(&[
            Entry("a/data.pkl", &pickle, Plain),
            Entry("a/data/0", &DATA, twist),
        ])
    };
    let mut cut = archive(&pickle);
    cut.truncate(cut.len() - 30);
    let mut far = archive(&pickle);
    let end = far.len();
    far[end - 6..end - 2].copy_from_slice(&0xffff_0000u32.to_le_bytes());
    let mut huge = archive(&pickle);
    huge[end - 12..end - 10].copy_from_slice(&0xffffu16.to_le_bytes());
    let mut many = archive(&pickle);
    many[end - 12..end - 10].copy_from_slice(&9u16.to_le_bytes());
    let archive = |label, says, bytes| case(label, "Archive", None, says, bytes);
    vec![
        archive("cut off", &["half a download"], cut),
        archive("a directory beyond the end", &["half a download"], far),
        archive("a large form that is not there", &["damaged"], huge),
        archive("fewer entries than said", &["cut off or damaged"], many),
        archive(
            "no pickle",
            &["no data.pkl"],
            zip(&[Entry("x.npy", &DATA, Plain)]),
        ),
        archive(
            "two pickles",
            &["several data.pkl"],
            with("b/data.pkl", &pickle, Plain),
        ),
        archive(
            "a name twice",
            &["'a/data/0'", "twice"],
            with("a/data/0", &DATA, Plain),
        ),
        archive(
            "a program",
            &["TorchScript"],
            with("a/constants.pkl", &DATA, Plain),
        ),
        archive(
            "big endian",
            &["big endian"],
            with("a/byteorder", b"big", Plain),
        ),
        archive(
            "compressed",
            &["compressed", "'a/data/0'"],
            data(Twist::Compressed),
        ),
        archive("encrypted", &["encrypted"], data(Twist::Encrypted)),
        archive(
            "longer than the file",
            &["beyond the file"],
            data(Twist::Long),
        ),
        archive(
            "not where it should be",
            &["not where"],
            data(Twist::Elsewhere),
        ),
        archive(
            "no storage",
            &["'a/data/0' is missing"],
            zip(&[Entry("a/data.pkl", &pickle, Plain)]),
        ),
        archive(
            "a storage of another size",
            &["15 bytes", "4 elements"],
            zip(&[
                Entry("a/data.pkl", &pickle, Plain),
                Entry("a/data/0", &DATA[1..], Plain),
            ]),
        ),
    ]
}

fn pickles() -> Vec<Case> {
    let pickle = |label, says, code: &[u8]| case(label, "Pickle", None, says, archive(code));
    let storage = |class: &str, key: &[u8], rest: &[u8]| {
        let class = format!("c{class}\n");
        [
            b"\x80\x02(",
            text("storage").as_slice(),
            class.as_bytes(),
            key,
            &text("cpu"),
            b"K\x04",
            rest,
            b"tQ.",
        ]
        .concat()
    };
    vec![
        pickle("empty", &["ends in the middle"], b""),
        pickle("cut off", &["ends in the middle"], &good()[..40]),
        pickle("no instruction", &["0xff"], b"\x80\x02\xff."),
        pickle("nothing to return", &["not there"], b"\x80\x02."),
        pickle(
            "a mark in the way",
            &["not there"],
            b"\x80\x02K\x01(0K\x01(Q.",
        ),
        pickle("no mark", &["mark that is not there"], b"\x80\x02t."),
        pickle("nothing kept", &["value 5"], b"\x80\x02h\x05."),
        pickle("no place", &["memo"], b"Ngx\n."),
        pickle("half a pair", &["without a value"], b"\x80\x02}(Nu."),
        pickle("a buffer elsewhere", &["buffers"], b"\x80\x05\x97."),
        pickle(
            "a global that is no text",
            &["not text"],
            b"\x80\x04NN\x93.",
        ),
        pickle("a line that is not text", &["UTF-8"], b"c\xff\n\n."),
        pickle(
            "a text beyond the end",
            &["ends in the middle"],
            b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7f.",
        ),
        pickle(
            "an unknown storage",
            &["torch.QUInt8Storage"],
            &storage("torch\nQUInt8Storage", &text("0"), b""),
        ),
        pickle(
            "a nameless storage",
            &["without a name"],
            &storage("torch\nFloatStorage", b"N", b""),
        ),
        pickle(
            "a storage in another",
            &["before 0.4"],
            &storage("torch\nFloatStorage", &text("0"), b"K\x01"),
        ),
        pickle(
            "a storage in two ways",
            &["two ways"],
            &[
                &storage("torch\nFloatStorage", &text("0"), b"")[..],
                &storage("torch\nHalfStorage", &text("0"), b"")[2..],
            ]
            .concat()
            .iter()
            .enumerate()
            .filter(|(at, _)| *at != storage("torch\nFloatStorage", &text("0"), b"").len() - 1)
            .map(|(_, &byte)| byte)
            .collect::<Vec<u8>>(),
        ),
        pickle(
            "a negative shape",
            &["shape"],
            &dict("w", &{
                let mut code = tensor(4, 0, 1);
                let at = code.windows(4).position(|w| w == b"(K\x04t").unwrap();
                code.splice(at..at + 4, *b"(J\xff\xff\xff\xfft");
                code
            }),
        ),
    ]
}

/// Small files that would become large.
fn bombs() -> Vec<Case> {
    let pickle = |label, says, code: Vec<u8>| case(label, "Pickle", None, says, archive(&code));
    let mut pairs = b"\x80\x02".to_vec();
    pairs.extend(b"N2".repeat(1 << 20));
    // The same shape of many dimensions for many tensors.
    let mut shapes = b"\x80\x02(".to_vec();
    shapes.extend(b"K\x01".repeat(60_000));
    shapes.extend_from_slice(b"tq\x010");
    let mut one = tensor(4, 0, 1);
    let at = one.windows(8).position(|w| w == b"(K\x04t(K\x01t").unwrap();
    one.splice(at..at + 8, *b"h\x01h\x01");
    shapes.extend(one.repeat(600));
    let lists = [&b"\x80\x02"[..], &b"]".repeat(1 << 20), b"]."].concat();
    vec![
        pickle("a tall stack", &["on the stack"], pairs),
        pickle("lists on lists", &["on the stack"], lists),
        pickle(
            "open marks",
            &["open marks"],
            [&b"\x80\x02"[..], &b"(".repeat(70_000)].concat(),
        ),
        pickle("shapes without end", &["MiB"], shapes),
        pickle(
            "many instructions",
            &["instructions"],
            [&b"\x80\x02N"[..], &b"20".repeat(9 << 20)].concat(),
        ),
    ]
}

fn tensors() -> Vec<Case> {
    let tensor_case = |label, says, value: Vec<u8>| {
        case(
            label,
            "TorchTensor",
            Some("w"),
            says,
            archive(&dict("w", &value)),
        )
    };
    let nothing = |label, says, code: &[u8]| case(label, "NoTensors", None, says, archive(code));
    let two = [
        b"\x80\x02}",
        &text("one")[..],
        &dict("w", &tensor(4, 0, 1))[2..],
    ]
    .concat();
    let two = [
        &two[..two.len() - 1],
        b"s",
        &text("two"),
        &dict("w", &tensor(4, 0, 1))[2..],
    ]
    .concat();
    let two = [&two[..two.len() - 1], b"s."].concat();
    // A module that has itself as its only part.
    let parameters = [
        text("_parameters"),
        b"}".to_vec(),
        dict("w", &tensor(4, 0, 1))[3..].to_vec(),
    ]
    .concat();
    let parameters = parameters[..parameters.len() - 1].to_vec();
    let endless = [
        b"\x80\x02cm\nM\n)Rq\0}(",
        &parameters[..],
        &text("_modules"),
        b"}",
        &text("self"),
        b"h\0sub.",
    ]
    .concat();
    let mut deep = b"\x80\x02".to_vec();
    deep.extend(tensor(4, 0, 1));
    let wide = [
        b"\x80\x02}",
        &text(&"n".repeat(1025))[..],
        &tensor(4, 0, 1),
        b"s.",
    ]
    .concat();
    let ranks = {
        let mut code = tensor(4, 0, 1);
        let at = code
            .windows(8)
            .position(|w| w == b"(K\x04t(K\x01t")
            .unwrap();
        let nine = [b"(", &b"K\x01".repeat(9)[..], b"t"].concat();
        code.splice(at..at + 8, [nine.clone(), nine].concat());
        code
    };
    vec![
        tensor_case("past its storage", &["storage '0' has 16"], tensor(5, 0, 1)),
        tensor_case("from too far on", &["from element 1"], tensor(4, 1, 1)),
        tensor_case("elements twice", &["contiguous"], tensor(4, 0, 0)),
        tensor_case("gaps", &["contiguous"], tensor(2, 0, 2)),
        nothing(
            "a tensor alone",
            &["without a name"],
            &[&deep[..], b"."].concat(),
        ),
        nothing("a list", &["a list"], b"\x80\x02]."),
        nothing("a number", &["plain value"], b"\x80\x02K\x07."),
        nothing(
            "an object",
            &["class evil.Thing"],
            b"\x80\x02cevil\nThing\n)R.",
        ),
        nothing(
            "a command",
            &["posix.system"],
            b"cposix\nsystem\n(S'touch x'\ntR.",
        ),
        nothing("other things", &["only: lr"], &dict("lr", b"K\x01")),
        nothing("two networks", &["one, two"], &two),
        nothing("a network in itself", &["64 deep"], &endless),
        nothing(
            "a strange tensor",
            &["_rebuild_qtensor"],
            &dict("w", b"ctorch._utils\n_rebuild_qtensor\n)R"),
        ),
        case(
            "a long name",
            "NameTooLong",
            None,
            &["1025"],
            archive(&wide),
        ),
        case(
            "dimensions",
            "TooManyDimensions",
            Some("w"),
            &["9"],
            archive(&dict("w", &ranks)),
        ),
    ]
}

const VERSION: &[u8] = b"\x80\x02M\xe9\x03.";
const KEYS: &[u8] = b"\x80\x02]X\x01\0\0\x000a.";

fn old_files() -> Vec<Case> {
    let old = |label, says, bytes| case(label, "Pickle", None, says, bytes);
    let machine = legacy(VERSION, &good(), KEYS, 4, &DATA);
    let at = machine.windows(2).position(|w| w == b"\x88s").unwrap();
    let mut big = machine.clone();
    big[at] = 0x89;
    vec![
        old(
            "another version",
            &["version"],
            legacy(b"\x80\x02K\x01.", &good(), KEYS, 4, &DATA),
        ),
        old("big endian", &["big endian"], big),
        old(
            "no list",
            &["list"],
            legacy(VERSION, &good(), b"\x80\x02N.", 4, &DATA),
        ),
        old(
            "another storage",
            &["'9'"],
            legacy(VERSION, &good(), b"\x80\x02]X\x01\0\0\x009a.", 4, &DATA),
        ),
        old(
            "no storage",
            &["not in the list"],
            legacy(VERSION, &good(), b"\x80\x02].", 4, &DATA),
        ),
        old(
            "another length",
            &["5 elements"],
            legacy(VERSION, &good(), KEYS, 5, &DATA),
        ),
        case(
            "cut off",
            "Truncated",
            None,
            &["half a download"],
            legacy(VERSION, &good(), KEYS, 4, &DATA[1..]),
        ),
        case(
            "a bare pickle",
            "OtherFormat",
            None,
            &["torch.save"],
            [good(), DATA.to_vec()].concat(),
        ),
    ]
}
