//! `lowtide models load|offload|release`: moves a model by hand.

use serde_json::{Value, json};

use super::found;
use crate::args::ServerArgs;
use crate::console;
use crate::failure::Failure;

/// Sends an order about a model, or about all of them, and prints how it ended.
pub(crate) fn order(verb: &str, model: Option<&str>, args: &ServerArgs) -> Result<(), Failure> {
    let server = found(args)?;
    let path = match model {
        Some(model) => format!("/v1/models/{}/{verb}", escaped(model)),
        None => format!("/v1/models/{verb}"),
    };
    let answer = server.post(&path, &json!({}))?;
    let message = answer["message"].as_str().unwrap_or_default();
    match answer["ok"].as_bool() {
        Some(false) => Err(Failure::Other(anyhow::anyhow!("{message}"))),
        _ => Ok(console::print(&format!("  {}\n", said(&answer, message)))?),
    }
}

fn said(answer: &Value, message: &str) -> String {
    match (message.is_empty(), answer["ok"].as_bool()) {
        (false, _) => message.to_owned(),
        (true, Some(true)) => "done".to_owned(),
        (true, _) => "asked for; the worker is busy and does it at its next step".to_owned(),
    }
}

/// A name as one part of a path.
fn escaped(name: &str) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~".contains(byte);
    name.bytes()
        .map(|byte| match plain(&byte) {
            true => char::from(byte).to_string(),
            false => format!("%{byte:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stays_one_part_of_the_path() {
        assert_eq!(escaped("Z-Image_1.5"), "Z-Image_1.5");
        assert_eq!(escaped("../a b?"), "..%2Fa%20b%3F");
    }
}
