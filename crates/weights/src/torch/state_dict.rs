//! Which of a pickle's values are the weights: people put a state dict beside other things, under many names, and
//! sometimes the network itself.

use std::collections::{HashMap, HashSet};

use crate::header::TENSORS_MAX;
use crate::pickle::{Id, RawTensor, Value, Values};

/// Keys under which weights are found, those first that go before others where several are there.
const KEYS: [&str; 12] = [
    "state_dict",
    "string_to_param",
    "params_ema",
    "params",
    "model_state_dict",
    "model_state",
    "model",
    "module",
    "net",
    "weights",
    "generator",
    "ema",
];
/// How deep weights may be hidden, in keys.
const DEPTH_MAX: usize = 4;
/// How deep modules may be in each other.
const MODULES_MAX: usize = 64;
/// How many keys a message repeats.
const KEYS_SHOWN: usize = 12;
/// The most classes whose names are kept.
const NAMES_MAX: usize = 1 << 12;

/// The weights of a file.
pub(super) struct Found<'v> {
    /// By name, each once.
    pub(super) tensors: Vec<(String, &'v RawTensor)>,
    /// What stands beside the weights: whole numbers, such as `global_step`; of a network saved whole its `class`, and
    /// the `names` of what it finds, where it is a detector.
    pub(super) numbers: Vec<(String, String)>,
}

/// Finds the weights.
pub(super) fn find(values: &Values, root: Id) -> Result<Found<'_>, String> {
    let mut numbers = Vec::new();
    let mut at = root;
    for _ in 0..DEPTH_MAX {
        for &(key, value) in values.pairs(at) {
            if let (Some(key), &Value::Int(number)) = (values.text(key), values.get(value)) {
                numbers.push((key.to_owned(), number.to_string()));
            }
        }
        match inner(values, at)? {
            Some(inner) => at = inner,
            None => break,
        }
    }
    let mut all = Collected {
        values,
        tensors: Vec::new(),
        by_name: HashMap::new(),
    };
    all.collect(at, "", 0)?;
    numbers.extend(about_network(values, at));
    if all.tensors.is_empty() {
        return Err(nothing(values, root));
    }
    let tensors = all.tensors;
    Ok(Found { tensors, numbers })
}

/// What of `at` holds the weights, where `at` itself does not.
fn inner(values: &Values, at: Id) -> Result<Option<Id>, String> {
    let pairs = values.pairs(at);
    let direct = tensors_in(values, at);
    let mut holders: Vec<(&str, Id)> = Vec::new();
    for &(key, value) in pairs {
        let Some(key) = values.text(key) else {
            continue;
        };
        if key == "state_dict" && !matches!(values.get(value), Value::Tensor(_)) {
            return Ok(Some(value));
        }
        if tensors_in(values, value) > 0 || module_parts(values, value).is_some() {
            holders.push((key, value));
        }
    }
    // Trainers of detectors leave the network twice, and use the averaged one.
    let averaged = holders
        .iter()
        .find(|(key, value)| *key == "ema" && module_parts(values, *value).is_some());
    if let Some(&(_, averaged)) = averaged {
        return Ok(Some(averaged));
    }
    let preferred = KEYS.iter().find_map(|wanted| {
        let found = holders.iter().find(|(key, _)| key == wanted);
        found.map(|(_, value)| *value)
    });
    match (preferred, holders.as_slice()) {
        (_, []) => Ok(None),
        (Some(value), _) if direct == 0 || tensors_in(values, value) > direct => Ok(Some(value)),
        _ if direct > 0 => Ok(None),
        (_, [(_, only)]) => Ok(Some(*only)),
        (_, several) => {
            let names: Vec<&str> = several
                .iter()
                .map(|(key, _)| *key)
                .take(KEYS_SHOWN)
                .collect();
            Err(format!(
                "several things in it hold tensors ({}), and which one is meant cannot be known; save the one alone",
                names.join(", ")
            ))
        }
    }
}

/// How many entries of a dict are tensors.
fn tensors_in(values: &Values, dict: Id) -> usize {
    let pairs = values.pairs(dict).iter();
    pairs
        .filter(|(_, value)| matches!(values.get(*value), Value::Tensor(_)))
        .count()
}

/// What a network saved whole says of itself: its class, and the names of what it finds, as Python writes them.
fn about_network(values: &Values, object: Id) -> Vec<(String, String)> {
    let Value::Object {
        class,
        state: Some(state),
    } = values.get(object)
    else {
        return Vec::new();
    };
    let mut about = vec![("class".to_owned(), class.to_string())];
    let names = values.entry(*state, "names");
    let named: Vec<String> = match names.map(|id| (id, values.get(id))) {
        Some((id, Value::Dict(_))) => {
            let pairs = values.pairs(id).iter().take(NAMES_MAX);
            let pair = |&(key, name): &(Id, Id)| Some((values.count(key)?, values.text(name)?));
            pairs
                .filter_map(pair)
                .map(|(k, name)| format!("{k}: {}", quoted(name)))
                .collect()
        }
        Some((id, _)) => {
            let items = values.items(id).iter().take(NAMES_MAX).enumerate();
            let named = items.filter_map(|(at, &name)| Some((at, values.text(name)?)));
            named
                .map(|(at, name)| format!("{at}: {}", quoted(name)))
                .collect()
        }
        None => Vec::new(),
    };
    if !named.is_empty() {
        about.push(("names".to_owned(), format!("{{{}}}", named.join(", "))));
    }
    about
}

/// A text as Python would write it.
fn quoted(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    let mut out = String::from(quote);
    for c in text.chars() {
        if c == quote || c == '\\' {
            out.push('\\');
        }
        out.push(c);
    }
    out.push(quote);
    out
}

/// The state of an object that is a module: its own tensors, and the modules in it; last, the names of buffers that are
/// no part of what is saved.
fn module_parts(values: &Values, object: Id) -> Option<[Option<Id>; 4]> {
    let Value::Object {
        state: Some(state), ..
    } = values.get(object)
    else {
        return None;
    };
    let part = |name| values.entry(*state, name);
    part("_parameters").map(|parameters| {
        let rest = ["_buffers", "_modules", "_non_persistent_buffers_set"].map(part);
        [Some(parameters), rest[0], rest[1], rest[2]]
    })
}

struct Collected<'v> {
    values: &'v Values,
    tensors: Vec<(String, &'v RawTensor)>,
    by_name: HashMap<String, usize>,
}

impl<'v> Collected<'v> {
    fn collect(&mut self, at: Id, prefix: &str, depth: usize) -> Result<(), String> {
        if depth > MODULES_MAX {
            return Err(format!(
                "modules more than {MODULES_MAX} deep in each other"
            ));
        }
        match module_parts(self.values, at) {
            None => self.own(at, prefix, &[]),
            Some([parameters, buffers, modules, passing]) => {
                if let Some(own) = parameters {
                    self.own(own, prefix, &[])?;
                }
                if let Some(own) = buffers {
                    let passing = passing.map_or(&[][..], |passing| self.values.items(passing));
                    self.own(own, prefix, passing)?;
                }
                let inside = modules.map_or(&[][..], |modules| self.values.pairs(modules));
                for &(name, module) in inside {
                    if let Some(name) = self.values.text(name)
                        && module_parts(self.values, module).is_some()
                    {
                        self.collect(module, &format!("{prefix}{name}."), depth + 1)?;
                    }
                }
                Ok(())
            }
        }
    }

    /// The tensors of one dict, without those called as in `but`.
    fn own(&mut self, dict: Id, prefix: &str, but: &[Id]) -> Result<(), String> {
        let but: HashSet<&str> = but.iter().filter_map(|&id| self.values.text(id)).collect();
        for &(key, value) in self.values.pairs(dict) {
            let Some(key) = self.values.text(key).filter(|key| !but.contains(key)) else {
                continue;
            };
            match self.values.get(value) {
                Value::Tensor(tensor) => {
                    let name = format!("{prefix}{key}");
                    match self.by_name.get(&name) {
                        Some(&at) => self.tensors[at].1 = tensor,
                        None if self.tensors.len() == TENSORS_MAX => {
                            return Err(format!("more than {TENSORS_MAX} tensors"));
                        }
                        None => {
                            self.by_name.insert(name.clone(), self.tensors.len());
                            self.tensors.push((name, tensor));
                        }
                    }
                }
                Value::Object { class, .. } if class.contains("_rebuild_") => {
                    return Err(format!(
                        "'{prefix}{key}' is made by {class}, which is not known here; save it as a plain tensor"
                    ));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Why there are no weights.
fn nothing(values: &Values, root: Id) -> String {
    match values.get(root) {
        Value::Dict(pairs) => {
            let keys = pairs.iter().filter_map(|&(key, _)| values.text(key));
            let keys: Vec<&str> = keys.take(KEYS_SHOWN).collect();
            format!("it has no tensors by name, only: {}", keys.join(", "))
        }
        Value::Object { class, .. } => {
            format!("it is an object of class {class}, not a state dict")
        }
        Value::Tensor(_) => "it is one tensor without a name".to_owned(),
        Value::List(_) | Value::Tuple(_) => {
            "it is a list, and tensors in a list have no names".to_owned()
        }
        _ => "it is a plain value".to_owned(),
    }
}
