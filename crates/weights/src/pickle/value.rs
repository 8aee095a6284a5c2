//! What a pickle makes: plain values in one list, which refer to each other by number. Nothing is freed before all of
//! it is, so that values within values within values cost no stack, and cycles no memory.

use lowtide_core::Dtype;

/// The most memory that the values of one file may take, in bytes: a checkpoint with its optimiser takes a few million.
const VALUES_BYTES_MAX: u64 = 256 << 20;

/// Which value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Id(u32);

/// A tensor as a pickle describes it; nothing is checked but that the numbers are not negative.
#[derive(Clone, Debug)]
pub(crate) struct RawTensor {
    /// Which storage, by number.
    pub(crate) storage: usize,
    /// Its element type, where the storage has none of its own.
    pub(crate) dtype: Option<Dtype>,
    /// First element in the storage.
    pub(crate) offset: u64,
    pub(crate) shape: Vec<u64>,
    /// In elements.
    pub(crate) strides: Vec<u64>,
}

/// A function or a class that means something to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    /// `torch._utils._rebuild_tensor`, `_rebuild_tensor_v2`.
    Tensor,
    /// `torch._utils._rebuild_tensor_v3`, which names its type.
    TypedTensor,
    /// `torch._utils._rebuild_parameter` and what else has a tensor as its first argument and adds nothing to it.
    First,
    /// `torch._tensor._rebuild_from_type_v2`: another function with arguments of its own.
    FromType,
    /// `collections.OrderedDict`.
    OrderedDict,
    /// `collections.defaultdict`, whose first argument is no content.
    EmptyDict,
    /// `torch.Size`, and sets: the tuple or list it is given.
    Size,
    /// A storage class of this element type.
    Storage(Dtype),
    /// A storage of bytes.
    UntypedStorage,
    /// An element type.
    Dtype(Dtype),
}

/// A value.
#[derive(Debug)]
pub(crate) enum Value {
    None,
    Bool(bool),
    Int(i64),
    /// Any float: none matters to a tensor.
    Float,
    Text(Box<str>),
    Tuple(Box<[Id]>),
    List(Vec<Id>),
    /// In the order of setting; a later pair goes before an earlier one of the same key.
    Dict(Vec<(Id, Id)>),
    Known(Known),
    /// A storage, by number.
    Storage(usize),
    Tensor(Box<RawTensor>),
    /// What would be anything else, with what it would have been set up from.
    Object {
        class: Box<str>,
        state: Option<Id>,
    },
}

impl Value {
    pub(crate) fn object(class: &str, state: Option<Id>) -> Value {
        Value::Object {
            class: class.into(),
            state,
        }
    }
}

/// All values of one file.
#[derive(Debug, Default)]
pub(crate) struct Values {
    all: Vec<Value>,
    bytes: u64,
}

impl Values {
    /// Counts memory that values take besides their places.
    pub(crate) fn spend(&mut self, bytes: u64) -> Result<(), String> {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > VALUES_BYTES_MAX {
            return Err(format!(
                "its values take more than {} MiB",
                VALUES_BYTES_MAX >> 20
            ));
        }
        Ok(())
    }

    pub(crate) fn add(&mut self, value: Value) -> Result<Id, String> {
        let text = match &value {
            Value::Text(text) | Value::Object { class: text, .. } => text.len(),
            Value::Tensor(tensor) => {
                size_of::<RawTensor>() + 8 * (tensor.shape.len() + tensor.strides.len())
            }
            _ => 0,
        };
        self.spend((size_of::<Value>() + text) as u64)?;
        let id = Id(u32::try_from(self.all.len()).map_err(|_| "too many values".to_owned())?);
        self.all.push(value);
        Ok(id)
    }

    pub(crate) fn get(&self, id: Id) -> &Value {
        &self.all[id.0 as usize]
    }

    pub(crate) fn get_mut(&mut self, id: Id) -> &mut Value {
        &mut self.all[id.0 as usize]
    }

    /// The items of a tuple or a list; none of anything else.
    pub(crate) fn items(&self, id: Id) -> &[Id] {
        match self.get(id) {
            Value::Tuple(items) => items,
            Value::List(items) => items,
            _ => &[],
        }
    }

    /// The pairs of a dict; none of anything else.
    pub(crate) fn pairs(&self, id: Id) -> &[(Id, Id)] {
        match self.get(id) {
            Value::Dict(pairs) => pairs,
            _ => &[],
        }
    }

    /// The value of a key of a dict.
    pub(crate) fn entry(&self, dict: Id, key: &str) -> Option<Id> {
        let pairs = self.pairs(dict).iter().rev();
        let mut found = pairs.filter(|(k, _)| self.text(*k) == Some(key));
        found.next().map(|&(_, value)| value)
    }

    pub(crate) fn text(&self, id: Id) -> Option<&str> {
        match self.get(id) {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// A count: a number that is not negative.
    pub(crate) fn count(&self, id: Id) -> Option<u64> {
        match self.get(id) {
            Value::Int(number) => u64::try_from(*number).ok(),
            _ => None,
        }
    }

    pub(crate) fn counts(&self, id: Id) -> Option<Vec<u64>> {
        match self.get(id) {
            Value::Tuple(items) => items.iter().map(|&item| self.count(item)).collect(),
            Value::List(items) => items.iter().map(|&item| self.count(item)).collect(),
            _ => None,
        }
    }

    /// What messages call the class of an object, or the function it came from.
    pub(crate) fn class_of(&self, id: Id) -> &str {
        match self.get(id) {
            Value::Object { class, .. } => class,
            Value::Known(_) => "a function of torch's with unusual arguments",
            _ => "object",
        }
    }
}
