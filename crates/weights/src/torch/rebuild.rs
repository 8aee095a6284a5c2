//! The few functions and classes of torch's pickles that stand for tensors.

use std::collections::HashMap;

use lowtide_core::Dtype;

use super::{Storage, check_count};
use crate::pickle::{Host, Id, Known, RawTensor, Value, Values};

/// How deep `_rebuild_from_type_v2` may hold itself: it never does.
const NESTING_MAX: usize = 4;

/// Describes tensors, and collects the storages they are in.
#[derive(Debug, Default)]
pub(super) struct Rebuild {
    /// In the order in which the pickle names them.
    pub(super) storages: Vec<Storage>,
    by_key: HashMap<String, usize>,
}

impl Rebuild {
    /// The storage that the pickle calls so.
    pub(super) fn storage(&mut self, key: &str) -> Option<&mut Storage> {
        let &at = self.by_key.get(key)?;
        self.storages.get_mut(at)
    }

    fn tensor(
        &self,
        arguments: &[Id],
        typed: bool,
        values: &Values,
    ) -> Result<Option<RawTensor>, String> {
        let [storage, offset, shape, strides, ..] = *arguments else {
            return Ok(None);
        };
        let &Value::Storage(storage) = values.get(storage) else {
            return Ok(None);
        };
        let bad = |what| format!("a tensor whose {what} is not made of counts");
        let dtype = match arguments.get(6).filter(|_| typed).map(|&id| values.get(id)) {
            Some(&Value::Known(Known::Dtype(dtype))) => Some(dtype),
            Some(_) => return Err("a tensor of a type this program does not know".to_owned()),
            None => None,
        };
        Ok(Some(RawTensor {
            storage,
            dtype,
            offset: values.count(offset).ok_or_else(|| bad("offset"))?,
            shape: values.counts(shape).ok_or_else(|| bad("shape"))?,
            strides: values.counts(strides).ok_or_else(|| bad("strides"))?,
        }))
    }

    fn apply(
        &mut self,
        function: Id,
        arguments: Id,
        values: &mut Values,
        depth: usize,
    ) -> Result<Option<Id>, String> {
        let &Value::Known(known) = values.get(function) else {
            return Ok(None);
        };
        let given = values.items(arguments);
        match known {
            Known::Tensor | Known::TypedTensor => {
                let tensor = self.tensor(given, known == Known::TypedTensor, values)?;
                tensor
                    .map(|tensor| values.add(Value::Tensor(Box::new(tensor))))
                    .transpose()
            }
            Known::First => {
                let first = given.first().copied();
                Ok(first.filter(|&id| matches!(values.get(id), Value::Tensor(_))))
            }
            Known::FromType => match *given {
                [inner, _, arguments, ..] if depth < NESTING_MAX => {
                    self.apply(inner, arguments, values, depth + 1)
                }
                _ => Ok(None),
            },
            Known::OrderedDict => {
                let pairs = match given.first() {
                    Some(&list) => values
                        .items(list)
                        .iter()
                        .filter_map(|&pair| match *values.items(pair) {
                            [key, value] => Some((key, value)),
                            _ => None,
                        })
                        .collect(),
                    None => Vec::new(),
                };
                values.spend(8 * pairs.len() as u64)?;
                values.add(Value::Dict(pairs)).map(Some)
            }
            Known::EmptyDict => values.add(Value::Dict(Vec::new())).map(Some),
            Known::Size => Ok(given.first().copied()),
            Known::Storage(_) | Known::UntypedStorage | Known::Dtype(_) => Ok(None),
        }
    }
}

impl Host for Rebuild {
    fn global(&mut self, module: &str, name: &str) -> Value {
        match known(module, name) {
            Some(known) => Value::Known(known),
            None => Value::object(&format!("{module}.{name}"), None),
        }
    }

    fn call(
        &mut self,
        function: Id,
        arguments: Id,
        values: &mut Values,
    ) -> Result<Option<Id>, String> {
        self.apply(function, arguments, values, 0)
    }

    fn persistent(&mut self, id: Id, values: &mut Values) -> Result<Id, String> {
        let items = values.items(id);
        if let [kind, class, ..] = *items
            && values.text(kind) == Some("module")
        {
            // The source text of a class, which old versions wrote beside it.
            return Ok(class);
        }
        let [kind, class, key, _, elements, ref view @ ..] = *items else {
            return values.add(Value::object("persistent object", None));
        };
        if values.text(kind) != Some("storage") {
            return values.add(Value::object("persistent object", None));
        }
        if view
            .iter()
            .any(|&view| !matches!(values.get(view), Value::None))
        {
            return Err(
                "a storage inside another, as torch before 0.4 wrote them: load and save the file with a newer torch"
                    .to_owned(),
            );
        }
        let dtype = match values.get(class) {
            Value::Known(Known::Storage(dtype)) => Some(*dtype),
            Value::Known(Known::UntypedStorage) => None,
            _ => {
                return Err(format!(
                    "a storage of the unknown type '{}'",
                    values.class_of(class)
                ));
            }
        };
        let key = match values.get(key) {
            Value::Text(key) => key.to_string(),
            Value::Int(key) => key.to_string(),
            _ => return Err("a storage without a name".to_owned()),
        };
        let elements = values.count(elements).ok_or("a storage without a length")?;
        let number = match self.by_key.get(&key) {
            Some(&number) => {
                let known = &self.storages[number];
                if (known.dtype, known.elements) != (dtype, elements) {
                    return Err(format!("storage '{key}' is described in two ways"));
                }
                number
            }
            None => {
                check_count(self.storages.len())?;
                values.spend((size_of::<Storage>() + 2 * key.len()) as u64)?;
                self.by_key.insert(key.clone(), self.storages.len());
                self.storages.push(Storage {
                    key,
                    dtype,
                    elements,
                    offset: 0,
                    bytes: 0,
                });
                self.storages.len() - 1
            }
        };
        values.add(Value::Storage(number))
    }
}

/// What a name means, where it means anything here.
fn known(module: &str, name: &str) -> Option<Known> {
    Some(match (module, name) {
        ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => Known::Tensor,
        ("torch._utils", "_rebuild_tensor_v3") => Known::TypedTensor,
        ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state")
        | ("torch.nn.parameter", "Parameter" | "Buffer")
        | ("torch", "Tensor") => Known::First,
        ("torch._tensor", "_rebuild_from_type_v2") => Known::FromType,
        ("collections", "OrderedDict") => Known::OrderedDict,
        ("collections", "defaultdict") | ("__builtin__" | "builtins", "dict") => Known::EmptyDict,
        ("torch", "Size") | ("__builtin__" | "builtins", "set" | "frozenset") => Known::Size,
        ("torch" | "torch.storage", "UntypedStorage") => Known::UntypedStorage,
        ("torch" | "torch.cuda", _) => match name.strip_suffix("Storage") {
            Some(class) => Known::Storage(storage_dtype(class)?),
            None => Known::Dtype(dtype(name)?),
        },
        _ => return None,
    })
}

fn storage_dtype(class: &str) -> Option<Dtype> {
    Some(match class {
        "Double" => Dtype::F64,
        "Float" => Dtype::F32,
        "Half" => Dtype::F16,
        "BFloat16" => Dtype::Bf16,
        "Long" => Dtype::I64,
        "Int" => Dtype::I32,
        "Short" => Dtype::I16,
        "Char" => Dtype::I8,
        "Byte" => Dtype::U8,
        "Bool" => Dtype::Bool,
        _ => return None,
    })
}

fn dtype(name: &str) -> Option<Dtype> {
    Some(match name {
        "float64" | "double" => Dtype::F64,
        "float32" | "float" => Dtype::F32,
        "float16" | "half" => Dtype::F16,
        "bfloat16" => Dtype::Bf16,
        "float8_e4m3fn" => Dtype::F8E4M3,
        "float8_e5m2" => Dtype::F8E5M2,
        "int64" | "long" => Dtype::I64,
        "int32" | "int" => Dtype::I32,
        "int16" | "short" => Dtype::I16,
        "int8" => Dtype::I8,
        "uint64" => Dtype::U64,
        "uint32" => Dtype::U32,
        "uint16" => Dtype::U16,
        "uint8" => Dtype::U8,
        "bool" => Dtype::Bool,
        _ => return None,
    })
}
