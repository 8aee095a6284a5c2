//! The form before torch 1.6: pickles of a magic number, a version, facts about the machine, the object and the list
//! of storages, and then the storages, each after its length.

use super::rebuild::Rebuild;
use crate::pickle::{self, Host, Id, Stream, Value, Values};
use crate::{Error, Result, Source};

/// The first pickle whole: the number that torch puts first.
const MAGIC: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";
/// The only version there was.
const VERSION: u64 = 1001;
/// Bytes before each storage: how many elements it has.
const COUNT_BYTES: u64 = 8;

/// Reads the pickles and finds the storages behind them.
pub(super) fn read(source: &Source, values: &mut Values, rebuild: &mut Rebuild) -> Result<Id> {
    let file = source.name();
    let mut magic = [0; MAGIC.len()];
    let is_there = source.byte_len() >= MAGIC.len() as u64;
    if is_there {
        source.read_at(0, &mut magic)?;
    }
    if magic != *MAGIC {
        return Err(Error::OtherFormat {
            file,
            found: "a Python pickle that torch.save did not write",
            advice: "only files of torch.save are read: load it where it came from and save its tensors",
        });
    }
    let end = source.byte_len();
    let mut stream = Stream::new(source, MAGIC.len() as u64, end);
    let refuse = |at, why: &str| Error::Pickle {
        file: source.name(),
        offset: at,
        why: why.to_owned(),
    };
    let at = stream.at();
    let version = next(&mut stream, values, rebuild)?;
    if values.count(version) != Some(VERSION) {
        return Err(refuse(at, "a version of torch's format that is not known"));
    }
    let at = stream.at();
    let machine = next(&mut stream, values, rebuild)?;
    let little = values.entry(machine, "little_endian");
    if little.is_some_and(|id| matches!(values.get(id), Value::Bool(false))) {
        return Err(refuse(
            at,
            "its numbers are big endian, which is not read here",
        ));
    }
    let root = next(&mut stream, values, rebuild)?;
    let at = stream.at();
    let keys = next(&mut stream, values, rebuild)?;
    if !matches!(values.get(keys), Value::List(_)) {
        return Err(refuse(at, "the list of its storages is missing"));
    }
    place(source, stream.at(), values.items(keys), values, rebuild)?;
    Ok(root)
}

fn next(stream: &mut Stream<'_>, values: &mut Values, host: &mut dyn Host) -> Result<Id> {
    pickle::run(stream, values, host)
}

/// Says of every storage where it is.
fn place(
    source: &Source,
    mut at: u64,
    keys: &[Id],
    values: &Values,
    rebuild: &mut Rebuild,
) -> Result<()> {
    let refuse = |at, why: String| Error::Pickle {
        file: source.name(),
        offset: at,
        why,
    };
    let mut placed = 0;
    for &key in keys {
        let name = values.text(key).unwrap_or_default();
        let Some(storage) = rebuild.storage(name).filter(|s| s.offset == 0) else {
            let why = format!("storage '{name}' is in the list and nowhere else, or there twice");
            return Err(refuse(at, why));
        };
        let mut count = [0; COUNT_BYTES as usize];
        source.read_at(at, &mut count)?;
        let found = u64::from_le_bytes(count);
        let size = storage.dtype.map_or(1, lowtide_core::Dtype::size);
        if found != storage.elements {
            let why = format!(
                "storage '{name}' has {found} elements, the pickle says {}; half a download?",
                storage.elements
            );
            return Err(refuse(at, why));
        }
        let bytes = found.checked_mul(size);
        let begin = at + COUNT_BYTES;
        let end = bytes.and_then(|bytes| begin.checked_add(bytes));
        let (Some(bytes), Some(end)) = (bytes, end.filter(|&end| end <= source.byte_len())) else {
            return Err(Error::Truncated {
                file: source.name(),
                needed: end.unwrap_or(u64::MAX),
                found: source.byte_len(),
            });
        };
        (storage.offset, storage.bytes) = (begin, bytes);
        placed += 1;
        at = end;
    }
    if placed < rebuild.storages.len() {
        let why = "a storage that the pickle names is not in the list".to_owned();
        return Err(refuse(at, why));
    }
    Ok(())
}
