//! The JSON of a header, taken apart without believing any of it. Objects are read as they stand rather than into a
//! map, because a map would silently drop the first of two entries of one name.

use std::cell::RefCell;
use std::fmt;

use serde::de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::{NAME_BYTES_MAX, RANK_MAX, TENSORS_MAX};
use crate::{Error, Result};

/// The key under which the format keeps free text.
const METADATA_KEY: &str = "__metadata__";

/// A header as it stands.
pub(super) struct RawHeader {
    pub(super) tensors: Vec<RawTensor>,
    pub(super) metadata: Vec<(String, String)>,
}

/// One entry as it stands.
pub(super) struct RawTensor {
    pub(super) name: String,
    pub(super) dtype: String,
    /// The first dimensions; the others, of which there are `rank` in all, are counted and not kept.
    pub(super) dims: [u64; RANK_MAX],
    pub(super) rank: usize,
    pub(super) begin: u64,
    pub(super) end: u64,
}

/// Reads the JSON of a header.
pub(super) fn parse(text: &str, file: &str) -> Result<RawHeader> {
    let state = State {
        file,
        tensor: RefCell::new(None),
        fault: RefCell::new(None),
    };
    let mut json = serde_json::Deserializer::from_str(text);
    let parsed = HeaderSeed(&state)
        .deserialize(&mut json)
        .and_then(|header| json.end().map(|()| header));
    parsed.map_err(|e| {
        state.fault.take().unwrap_or_else(|| Error::Json {
            file: file.to_owned(),
            tensor: state.tensor.take(),
            line: e.line(),
            column: e.column(),
            why: crate::json::reason(&e),
        })
    })
}

/// What the visitors leave behind for the error: serde's own errors carry text alone.
struct State<'a> {
    file: &'a str,
    /// The entry being read.
    tensor: RefCell<Option<String>>,
    /// The typed error, where it is not the JSON itself that is broken.
    fault: RefCell<Option<Error>>,
}

impl State<'_> {
    /// Stops the parser with a typed error.
    fn stop<E: serde::de::Error>(&self, error: Error) -> E {
        *self.fault.borrow_mut() = Some(error);
        E::custom("refused")
    }
}

struct HeaderSeed<'a>(&'a State<'a>);

impl<'de> DeserializeSeed<'de> for HeaderSeed<'_> {
    type Value = RawHeader;
    fn deserialize<D: serde::Deserializer<'de>>(
        self,
        json: D,
    ) -> std::result::Result<RawHeader, D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for HeaderSeed<'_> {
    type Value = RawHeader;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<RawHeader, A::Error> {
        let state = self.0;
        let mut header = RawHeader {
            tensors: Vec::new(),
            metadata: Vec::new(),
        };
        let mut has_metadata = false;
        while let Some(name) = map.next_key::<String>()? {
            let file = || state.file.to_owned();
            if name == METADATA_KEY {
                if has_metadata {
                    return Err(state.stop(Error::DuplicateKey {
                        file: file(),
                        key: name,
                    }));
                }
                has_metadata = true;
                header.metadata = map.next_value_seed(MetadataSeed(state))?;
                continue;
            }
            if name.len() > NAME_BYTES_MAX {
                let (bytes, limit) = (name.len(), NAME_BYTES_MAX);
                return Err(state.stop(Error::NameTooLong {
                    file: file(),
                    tensor: name,
                    bytes,
                    limit,
                }));
            }
            if header.tensors.len() == TENSORS_MAX {
                return Err(state.stop(Error::TooManyTensors {
                    file: file(),
                    tensor: name,
                    limit: TENSORS_MAX,
                }));
            }
            *state.tensor.borrow_mut() = Some(name.clone());
            header
                .tensors
                .push(map.next_value_seed(TensorSeed { state, name })?);
            *state.tensor.borrow_mut() = None;
        }
        Ok(header)
    }
}

struct TensorSeed<'a> {
    state: &'a State<'a>,
    name: String,
}

impl<'de> DeserializeSeed<'de> for TensorSeed<'_> {
    type Value = RawTensor;
    fn deserialize<D: serde::Deserializer<'de>>(
        self,
        json: D,
    ) -> std::result::Result<RawTensor, D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for TensorSeed<'_> {
    type Value = RawTensor;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with dtype, shape and data_offsets")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<RawTensor, A::Error> {
        let (mut dtype, mut shape, mut offsets) = (None, None, None);
        while let Some(key) = map.next_key::<String>()? {
            let twice = match key.as_str() {
                "dtype" => dtype.replace(map.next_value::<String>()?).is_some(),
                "shape" => shape
                    .replace(map.next_value_seed(NumbersSeed::<RANK_MAX>)?)
                    .is_some(),
                "data_offsets" => offsets
                    .replace(map.next_value_seed(NumbersSeed::<2>)?)
                    .is_some(),
                _ => {
                    map.next_value::<IgnoredAny>()?;
                    false
                }
            };
            if twice {
                let key = format!("{}.{key}", self.name);
                return Err(self.state.stop(Error::DuplicateKey {
                    file: self.state.file.to_owned(),
                    key,
                }));
            }
        }
        let dtype = dtype.ok_or_else(|| A::Error::missing_field("dtype"))?;
        let (dims, rank) = shape.ok_or_else(|| A::Error::missing_field("shape"))?;
        let ([begin, end], count) =
            offsets.ok_or_else(|| A::Error::missing_field("data_offsets"))?;
        if count != 2 {
            return Err(A::Error::custom(format!(
                "data_offsets has {count} numbers instead of 2"
            )));
        }
        Ok(RawTensor {
            name: self.name,
            dtype,
            dims,
            rank,
            begin,
            end,
        })
    }
}

/// An array of numbers of which the first `N` are kept and all are counted, so that its length costs no memory.
struct NumbersSeed<const N: usize>;

impl<'de, const N: usize> DeserializeSeed<'de> for NumbersSeed<N> {
    type Value = ([u64; N], usize);
    fn deserialize<D: serde::Deserializer<'de>>(
        self,
        json: D,
    ) -> std::result::Result<Self::Value, D::Error> {
        json.deserialize_seq(self)
    }
}

impl<'de, const N: usize> Visitor<'de> for NumbersSeed<N> {
    type Value = ([u64; N], usize);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of whole numbers")
    }

    fn visit_seq<A: SeqAccess<'de>>(
        self,
        mut seq: A,
    ) -> std::result::Result<Self::Value, A::Error> {
        let (mut kept, mut count) = ([0; N], 0);
        while let Some(number) = seq.next_element::<u64>()? {
            if let Some(place) = kept.get_mut(count) {
                *place = number;
            }
            count += 1;
        }
        Ok((kept, count))
    }
}

struct MetadataSeed<'a>(&'a State<'a>);

impl<'de> DeserializeSeed<'de> for MetadataSeed<'_> {
    type Value = Vec<(String, String)>;
    fn deserialize<D: serde::Deserializer<'de>>(
        self,
        json: D,
    ) -> std::result::Result<Self::Value, D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for MetadataSeed<'_> {
    type Value = Vec<(String, String)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of texts under __metadata__")
    }

    fn visit_unit<E: serde::de::Error>(self) -> std::result::Result<Self::Value, E> {
        Ok(Vec::new())
    }

    fn visit_map<A: MapAccess<'de>>(
        self,
        mut map: A,
    ) -> std::result::Result<Self::Value, A::Error> {
        let mut seen = std::collections::HashSet::new();
        let mut pairs = Vec::new();
        while let Some((key, value)) = map.next_entry::<String, String>()? {
            if !seen.insert(key.clone()) {
                let key = format!("{METADATA_KEY}.{key}");
                return Err(self.0.stop(Error::DuplicateKey {
                    file: self.0.file.to_owned(),
                    key,
                }));
            }
            pairs.push((key, value));
        }
        Ok(pairs)
    }
}
