//! The arguments of `detail` and `detect`, and those by which other verbs ask for repairs.

use clap::{Args, ValueHint};
use lowtide_core::Bytes;
use serde_json::{Map, Value, json};
use std::path::PathBuf;

use crate::gpu::DeviceChoice;

use super::{HandOverArgs, PrecisionArg, QualityArg, SamplingArgs};

pub(super) const EXAMPLES: &str = "\
Examples:
  lowtide detail portrait.png -o better.png --model ~/models/sd15
  lowtide detail crowd.png --detail face --detail-prompt \"a friendly face\" --detail hand
  lowtide detail crowd.png --detail face,confidence=0.5,mask_k=3,dilate_erode=8,strength=0.3
  lowtide detail two.png --detail face --detail-prompt \"blue eyes [SEP] [SKIP]\"

face, hand and person mean the detectors that ADetailer's users have (face_yolov8n.pt ...), wherever ComfyUI
and web UIs keep them; LOWTIDE_DETECTORS names folders, and any file is a detector, too. The names and defaults
of all settings are in docs/detail.md.";

pub(super) const DETECT_EXAMPLES: &str = "\
Example:
  lowtide detect crowd.jpg --detector face -o faces.png --json

Boxes are left, top, right and bottom in pixels. The picture of -o is white where things are.";

/// What is found in a picture and drawn anew.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Repairs")]
pub(crate) struct RepairArgs {
    /// Find these things and draw them anew: face, hand, person or a detector's file, with settings after commas; may be
    /// given several times
    #[arg(long, value_name = "NAME[,SETTING=VALUE]", value_parser = pass)]
    pub(crate) detail: Vec<Value>,
    /// Their prompt; the k-th belongs to the k-th --detail, one alone to all [default: the picture's]
    #[arg(long, value_name = "PROMPT")]
    pub(crate) detail_prompt: Vec<String>,
    /// Their negative prompt, likewise [default: the picture's]
    #[arg(long, value_name = "PROMPT")]
    pub(crate) detail_negative: Vec<String>,
    /// How much of them changes, above 0 to 1 [default: 0.4]
    #[arg(long, value_name = "SHARE")]
    pub(crate) detail_strength: Option<f32>,
    /// The least score of a thing, 0 to 1 [default: 0.3]
    #[arg(long, value_name = "SCORE")]
    pub(crate) detail_confidence: Option<f32>,
}

/// A pass as people write it: a name, settings after commas; or an object.
fn pass(text: &str) -> Result<Value, String> {
    if text.trim_start().starts_with('{') {
        let object: Result<Value, _> = serde_json::from_str(text);
        return object.map_err(|cause| format!("is no JSON ({cause})"));
    }
    let mut parts = text.split(',').map(str::trim);
    let name = parts.next().unwrap_or_default();
    if name.is_empty() {
        return Err("the detector is missing; write face, hand, person or a file".to_owned());
    }
    let mut pass = Map::from_iter([("detector".to_owned(), json!(name))]);
    for part in parts.filter(|part| !part.is_empty()) {
        let Some((setting, value)) = part.split_once('=') else {
            return Err(format!(
                "'{part}' is no setting; write it as confidence=0.5"
            ));
        };
        let value = value.trim();
        let told = serde_json::from_str(value).unwrap_or_else(|_| json!(value));
        pass.insert(setting.trim().to_owned(), told);
    }
    Ok(Value::Object(pass))
}

impl RepairArgs {
    /// Whether anything is to be repaired.
    pub(crate) fn any(&self) -> bool {
        !self.detail.is_empty()
    }

    /// The passes as a request has them.
    ///
    /// # Errors
    /// A sentence: prompts are more than passes.
    pub(crate) fn passes(&self) -> Result<Vec<Value>, String> {
        let mut passes = self.detail.clone();
        for (option, field, texts) in [
            ("--detail-prompt", "prompt", &self.detail_prompt),
            ("--detail-negative", "negative", &self.detail_negative),
        ] {
            if texts.len() > passes.len() {
                return Err(format!(
                    "{option} is given {} times, --detail {} times",
                    texts.len(),
                    passes.len()
                ));
            }
            for (k, pass) in passes.iter_mut().enumerate() {
                let text = match texts.len() {
                    1 => texts.first(),
                    _ => texts.get(k),
                };
                put(pass, field, text.map(|text| json!(text)));
            }
        }
        for pass in &mut passes {
            let number = |number: Option<f32>| number.map(|number| json!(number));
            put(pass, "strength", number(self.detail_strength));
            put(pass, "confidence", number(self.detail_confidence));
        }
        Ok(passes)
    }
}

/// What the pass does not say itself.
fn put(pass: &mut Value, field: &str, value: Option<Value>) {
    let pass = pass.as_object_mut();
    if let (Some(pass), Some(value)) = (pass, value) {
        pass.entry(field).or_insert(value);
    }
}

/// A picture, and what in it is drawn anew.
#[derive(Clone, Debug, Args)]
pub(crate) struct DetailArgs {
    /// The picture: PNG, JPEG or WebP
    #[arg(value_hint = ValueHint::FilePath)]
    pub(crate) picture: PathBuf,
    /// Where the result goes; .png, .jpg or .webp [default: beside the picture, with -detail in its name]
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) output: Option<PathBuf>,
    /// The model that draws: `demo`, a folder, a file, or a name `models list` shows
    #[arg(short, long, default_value = crate::demo::NAME, value_name = "MODEL", value_hint = ValueHint::DirPath)]
    pub(crate) model: String,
    /// What the picture shows [default: what its file says it was made with]
    #[arg(short, long, value_name = "PROMPT")]
    pub(crate) prompt: Option<String>,
    /// What it should not show
    #[arg(short, long, value_name = "PROMPT")]
    pub(crate) negative: Option<String>,
    #[command(flatten)]
    pub(crate) repair: RepairArgs,
    /// Denoising steps [default: the model's]
    #[arg(long, value_name = "N")]
    pub(crate) steps: Option<u32>,
    /// Weight of the prompt [default: the model's]
    #[arg(long, value_name = "WEIGHT")]
    pub(crate) guidance: Option<f32>,
    /// Seed of the first thing; thing k uses seed + k - 1 [default: drawn]
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    /// `exact` refuses what would change the picture to save memory
    #[arg(long, value_enum, default_value_t = QualityArg::Auto)]
    pub(crate) quality: QualityArg,
    /// What the networks compute in [default: auto, which is bf16 on a GPU and where the processor has it, else f32]
    #[arg(long, value_enum)]
    pub(crate) precision: Option<PrecisionArg>,
    /// What computes: auto, cpu or a GPU such as cuda:0 [default: auto, a GPU where this build knows one]
    #[arg(long, value_name = "WORD")]
    pub(crate) device: Option<DeviceChoice>,
    /// The most memory everything may use, such as 600MiB [default: free memory less the reserve]
    #[arg(long, value_name = "SIZE")]
    pub(crate) budget: Option<Bytes>,
    /// Memory left for others when no budget is given [default: a sixteenth of the memory, at most 1GiB]
    #[arg(long, value_name = "SIZE", conflicts_with = "budget")]
    pub(crate) reserve: Option<Bytes>,
    /// Threads that compute [default: one a core]
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<usize>,
    /// Print one line of JSON at the end: output, what was found, seconds, memory, reasons
    #[arg(long)]
    pub(crate) json: bool,
    /// Print nothing but errors
    #[arg(short, long, conflicts_with = "json")]
    pub(crate) quiet: bool,
}

/// The arguments of `detail`, and how it is handed over.
#[derive(Clone, Debug, Args)]
pub(crate) struct DetailVerb {
    #[command(flatten)]
    pub(crate) args: DetailArgs,
    #[command(flatten)]
    pub(crate) hand_over: HandOverArgs,
}

/// The arguments of `detect`.
#[derive(Clone, Debug, Args)]
pub(crate) struct DetectArgs {
    /// The picture: PNG, JPEG or WebP
    #[arg(value_hint = ValueHint::FilePath)]
    pub(crate) picture: PathBuf,
    /// A detector's file, or its name
    #[arg(short, long, value_name = "NAME", value_hint = ValueHint::FilePath)]
    pub(crate) detector: String,
    /// Write a picture that is white where things are
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) output: Option<PathBuf>,
    /// The least score of a thing, 0 to 1
    #[arg(long, value_name = "SCORE", default_value_t = 0.3)]
    pub(crate) confidence: f32,
    /// Of two boxes of a kind that share more than this of their area one goes
    #[arg(long, value_name = "SHARE", default_value_t = 0.7)]
    pub(crate) overlap: f32,
    /// Classes that count, by name or number, with commas [default: all]
    #[arg(long, value_name = "NAMES", default_value = "")]
    pub(crate) classes: String,
    /// Pixels of the longer side that the detector sees
    #[arg(long, value_name = "PIXELS", default_value_t = 640)]
    pub(crate) side: usize,
    /// The most memory everything may use [default: free memory]
    #[arg(long, value_name = "SIZE")]
    pub(crate) budget: Option<Bytes>,
    /// Threads that compute [default: one a core]
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<usize>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_is_a_name_and_settings() {
        let read = |text: &str| pass(text).unwrap();
        assert_eq!(read("face"), json!({"detector": "face"}));
        assert_eq!(
            read("a/b.pt, confidence=0.5 ,mask_merge=merge,seed=7"),
            json!({"detector": "a/b.pt", "confidence": 0.5, "mask_merge": "merge", "seed": 7})
        );
        assert_eq!(read(r#"{"ad_model": "x"}"#), json!({"ad_model": "x"}));
        for wrong in ["", ",x=1", "face,loud", "{face}"] {
            assert!(pass(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn prompts_belong_to_passes() {
        let repair = |prompts: &[&str]| RepairArgs {
            detail: vec![pass("face").unwrap(), pass("hand,prompt=mine").unwrap()],
            detail_prompt: prompts.iter().map(|&prompt| prompt.to_owned()).collect(),
            detail_strength: Some(0.5),
            ..RepairArgs::default()
        };
        let prompts = |given: &[&str]| -> Vec<Value> {
            let passes = repair(given).passes().unwrap();
            assert!(passes.iter().all(|pass| pass["strength"] == json!(0.5)));
            passes.iter().map(|pass| pass["prompt"].clone()).collect()
        };
        assert_eq!(prompts(&[]), [Value::Null, json!("mine")]);
        assert_eq!(prompts(&["a"]), [json!("a"), json!("mine")]);
        assert_eq!(prompts(&["a", "b"]), [json!("a"), json!("mine")]);
        assert!(repair(&["a", "b", "c"]).passes().is_err());
    }
}
