//! The arguments of `generate` and `plan` about what is done with a picture after it is drawn.

use clap::Args;
use serde_json::Value;

use super::RepairArgs;

fn step(text: &str) -> Result<Value, String> {
    let example = r#"{"kind": "text-to-image", "model": "NAME", "request": {"strength": 0.4}}"#;
    match serde_json::from_str(text) {
        Ok(Value::Object(step)) if step.contains_key("kind") => Ok(Value::Object(step)),
        Ok(_) => Err(format!(
            "a step is an object with a kind, such as {example}"
        )),
        Err(error) => Err(format!("is no JSON ({error}); a step is such as {example}")),
    }
}

/// What is done with the picture afterwards.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Afterwards")]
pub(crate) struct StepsArgs {
    #[command(flatten)]
    pub(crate) repair: RepairArgs,
    /// Make the picture larger by this factor with a network, after repairs
    #[arg(long, value_name = "FACTOR", conflicts_with_all = ["dump", "noise"])]
    pub(crate) upscale: Option<f64>,
    /// The network that does so: a file, or a name `models list` shows
    #[arg(long, value_name = "MODEL", requires = "upscale")]
    pub(crate) upscale_model: Option<String>,
    /// A further job for the result: {"kind": ..., "model": ..., "request": {...}}; may be given several times
    #[arg(long, value_name = "JSON", value_parser = step, conflicts_with_all = ["dump", "noise"])]
    pub(crate) then: Vec<Value>,
}

impl StepsArgs {
    /// Whether there is anything.
    pub(crate) fn any(&self) -> bool {
        self.repair.any() || self.upscale.is_some() || !self.then.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_an_object_with_a_kind() {
        assert!(step(r#"{"kind": "upscale"}"#).is_ok());
        for wrong in ["", "upscale", "[]", "{}", r#"{"model": "x"}"#] {
            assert!(step(wrong).unwrap_err().contains("such as"), "{wrong}");
        }
    }
}
