//! LoRAs in memory, whose values follow from their names, for the networks of `store.rs`.

use std::sync::Arc;

use lowtide_core::{Dtype, TensorLayout};
use lowtide_kernels::memory::Buffer;
use lowtide_models::Adapters;
use lowtide_models::adapters::{Factor, LowRank, Pair};
use serde_json::Value;

use crate::shadow::{Shadow, brought};
use crate::store::numbers;

/// Appends a matrix to `bytes`.
fn factor(name: String, shape: &Value, bytes: &mut Vec<u8>) -> Factor {
    let sizes = shape.as_array().into_iter().flatten();
    let shape: Vec<usize> = sizes
        .filter_map(|size| size.as_u64().map(|size| size as usize))
        .collect();
    let fan_in: usize = shape[1..].iter().product();
    let spread = (3.0 / fan_in as f64).sqrt() as f32;
    let at = bytes.len();
    let values = numbers(&name).take(shape.iter().product());
    bytes.extend(values.flat_map(|value| (spread * value).to_le_bytes()));
    let tensor = TensorLayout {
        name,
        dtype: Dtype::F32,
        shape,
    };
    Factor { tensor, at }
}

/// The LoRAs of a `lora.json`.
pub(crate) fn adapters(list: &Value) -> Adapters {
    adapters_on(list, None)
}

/// The same on a device, where one is given.
pub(crate) fn adapters_on(list: &Value, device: Option<&Arc<Shadow>>) -> Adapters {
    let one = |lora: &Value| {
        let name = lora["name"].as_str().expect("a name");
        let number = |key: &str| lora[key].as_f64().expect("a number") as f32;
        let mut bytes = Vec::new();
        let mut pairs = Vec::new();
        for (module, shapes) in lora["modules"].as_object().expect("modules") {
            let mut part =
                |part: &str| factor(format!("{name}.{module}.{part}"), &shapes[part], &mut bytes);
            let pair = Pair {
                down: part("down"),
                mid: shapes.get("mid").map(|_| part("mid")),
                up: part("up"),
                scale: number("alpha") / number("rank"),
            };
            pairs.push((module.clone(), pair));
        }
        let memory = match device {
            Some(shadow) => brought(shadow, &bytes),
            None => {
                let mut buffer = Buffer::new(bytes.len()).expect("room");
                buffer.bytes_mut().copy_from_slice(&bytes);
                buffer.into()
            }
        };
        let low = LowRank::new(name, memory, pairs).unwrap_or_else(|error| panic!("{error}"));
        (Arc::new(low), number("strength"))
    };
    Adapters::new(list.as_array().expect("a list").iter().map(one))
}
