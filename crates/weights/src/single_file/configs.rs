//! What no shape tells: the scheduler, and the settings of the pipeline.

use serde_json::{Map, Value, json};

use super::family::{Family, Generation};
use crate::Checkpoint;

/// The step count at which the 512 pixel version of 2.0 was published, which predicts noise.
const STEPS_OF_BASE: &str = "875000";

/// The scheduler's configuration.
pub(super) fn scheduler(family: Family, checkpoint: &Checkpoint) -> Value {
    let class = match family.generation {
        Generation::One => "PNDMScheduler",
        Generation::Two => "DDIMScheduler",
        Generation::Xl | Generation::Refiner => "EulerDiscreteScheduler",
    };
    let mut config = json!({
        "_class_name": class,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "clip_sample": false,
        "num_train_timesteps": 1000,
        "prediction_type": prediction(family, checkpoint),
        "set_alpha_to_one": false,
        "skip_prk_steps": true,
        "steps_offset": 1,
        "trained_betas": null,
    });
    if family.is_xl() {
        config["interpolation_type"] = json!("linear");
        config["timestep_spacing"] = json!("leading");
        config["use_karras_sigmas"] = json!(false);
    }
    // A mark of models that were trained down to pure noise; then the first step has to be the last timestep.
    if checkpoint.get("ztsnr").is_some() {
        config["rescale_betas_zero_snr"] = json!(true);
        config["timestep_spacing"] = json!("trailing");
    }
    config
}

/// What the U-Net predicts. Only marks in the file tell; without one it is what diffusers assumes.
fn prediction(family: Family, checkpoint: &Checkpoint) -> &'static str {
    let said = checkpoint.metadata("modelspec.prediction_type");
    match said {
        Some("v" | "v_prediction") => return "v_prediction",
        Some("epsilon") => return "epsilon",
        _ => {}
    }
    let base = checkpoint.metadata("global_step") == Some(STEPS_OF_BASE);
    let velocity = checkpoint.get("v_pred").is_some()
        || (family.generation == Generation::Two && !family.inpaint && !base);
    if velocity { "v_prediction" } else { "epsilon" }
}

/// The entries of a folder's index that are no components.
pub(super) fn settings(family: Family) -> Map<String, Value> {
    let refiner = family.generation == Generation::Refiner;
    let mut settings = Map::new();
    if family.is_xl() {
        settings.insert("force_zeros_for_empty_prompt".to_owned(), json!(!refiner));
        settings.insert("requires_aesthetics_score".to_owned(), json!(refiner));
    }
    settings
}
