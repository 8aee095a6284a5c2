//! One pass over a picture: a detector, what of its things counts, and how they are drawn anew. Every setting has a name
//! of ours and the one that ADetailer's users know.

use serde_json::{Map, Value, json};

use crate::detector::{SIDE_DEFAULT, SIDES};
use crate::processors::detect::{
    CLASSES_BYTES_MAX, CONFIDENCE_DEFAULT, DETECTOR_BYTES_MAX, classes,
};
use crate::processors::fields::Fields;
use crate::processors::text_to_image::request::{
    CLIP_SKIP_MAX, GUIDANCE_MAX, MASK_BLUR_DEFAULT, MASK_BLUR_MAX, PADDING_DEFAULT, PADDING_MAX,
    TEXT_BYTES_MAX, WORD_BYTES_MAX,
};
use crate::{Error, Result, SIDE_MAX, STEPS_MAX};

/// How much is drawn anew unless a pass says otherwise, as in ADetailer.
pub(super) const STRENGTH_DEFAULT: f32 = 0.4;

/// Pixels by which masks grow unless a pass says otherwise, as in ADetailer.
pub(super) const GROW_DEFAULT: i32 = 4;

/// The most pixels by which masks grow or shrink, and by which they are moved.
pub(super) const GROW_MAX: i64 = 1024;
pub(super) const OFFSET_MAX: i64 = 8192;

/// The most things of a pass.
pub(super) const THINGS_MAX: u64 = 300;

/// Which things are kept where there are more than wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum KeptBy {
    /// The largest.
    #[default]
    Area,
    /// The surest.
    Confidence,
}

/// The order of things.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Sorted {
    /// As the detector tells them, the surest first; those that were kept by size the largest first.
    #[default]
    AsFound,
    /// By their left edges.
    LeftToRight,
    /// By the distance from the picture's middle.
    CenterToEdge,
    /// The largest first.
    Area,
}

/// Whether things are drawn together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Joined {
    /// One after the other.
    #[default]
    No,
    /// All at once.
    Merged,
    /// All that is no thing.
    Inverted,
}

pub(super) const KEPT_BY: [&str; 2] = ["area", "confidence"];
pub(super) const SORTED: [&str; 4] = ["none", "left-to-right", "center-to-edge", "area"];
pub(super) const JOINED: [&str; 3] = ["none", "merge", "merge-and-invert"];
pub(super) const AREAS: [&str; 2] = ["masked", "whole"];

/// One pass.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Pass {
    /// A word such as `face`, or a file's name.
    pub(super) detector: String,
    /// Prompts of the things; the picture's where it is empty.
    pub(super) prompt: String,
    /// Negative prompts of the things; the picture's where it is empty.
    pub(super) negative: String,
    pub(super) confidence: f32,
    /// Pixels of the longer side that the detector sees.
    pub(super) size: usize,
    /// Classes that count; all where there are none.
    pub(super) classes: Vec<String>,
    pub(super) kept_by: KeptBy,
    /// Most things; 0 is all.
    pub(super) mask_k: usize,
    /// Least and largest share of the picture that a thing's box covers.
    pub(super) min_ratio: f32,
    pub(super) max_ratio: f32,
    pub(super) sorted: Sorted,
    /// Pixels by which a mask grows; negative: shrinks.
    pub(super) dilate_erode: i32,
    /// Pixels to the right.
    pub(super) x_offset: i64,
    /// Pixels up.
    pub(super) y_offset: i64,
    pub(super) joined: Joined,
    pub(super) mask_blur: f32,
    pub(super) strength: f32,
    pub(super) only_masked: bool,
    pub(super) padding: usize,
    /// What is drawn is so large; the model's own size where it is not said.
    pub(super) width: Option<usize>,
    pub(super) height: Option<usize>,
    /// In place of the job's.
    pub(super) steps: Option<usize>,
    pub(super) guidance: Option<f32>,
    pub(super) sampler: Option<String>,
    pub(super) schedule: Option<String>,
    pub(super) clip_skip: Option<usize>,
    pub(super) seed: Option<u64>,
}

impl Pass {
    /// A pass with this detector and ADetailer's defaults.
    pub(super) fn of(detector: &str) -> Pass {
        Pass {
            detector: detector.to_owned(),
            prompt: String::new(),
            negative: String::new(),
            confidence: CONFIDENCE_DEFAULT,
            size: SIDE_DEFAULT,
            classes: Vec::new(),
            kept_by: KeptBy::Area,
            mask_k: 0,
            min_ratio: 0.0,
            max_ratio: 1.0,
            sorted: Sorted::AsFound,
            dilate_erode: GROW_DEFAULT,
            x_offset: 0,
            y_offset: 0,
            joined: Joined::No,
            mask_blur: MASK_BLUR_DEFAULT,
            strength: STRENGTH_DEFAULT,
            only_masked: true,
            padding: PADDING_DEFAULT,
            width: None,
            height: None,
            steps: None,
            guidance: None,
            sampler: None,
            schedule: None,
            clip_skip: None,
            seed: None,
        }
    }

    /// Reads a pass: an object, or the name of a detector alone.
    ///
    /// # Errors
    /// [`Error::Request`] with the field's name.
    pub(super) fn read(pass: &Value) -> Result<Pass> {
        if let Some(detector) = pass.as_str() {
            return Pass::read(&json!({ "detector": detector }));
        }
        let pass = in_our_words(pass);
        let mut fields = Fields::of(&pass)?;
        let detector = fields.text("detector", DETECTOR_BYTES_MAX)?;
        let detector = detector.filter(|name| !name.trim().is_empty());
        let detector = detector.ok_or_else(|| {
            Error::request(
                "detector",
                "is missing: say face, hand, person or a file's name",
            )
        })?;
        let mut read = Pass::of(detector.trim());
        let text = fields.text("prompt", TEXT_BYTES_MAX)?;
        read.prompt = text.unwrap_or_default().to_owned();
        let text = fields.text("negative", TEXT_BYTES_MAX)?;
        read.negative = text.unwrap_or_default().to_owned();
        read.read_choice(&mut fields)?;
        read.read_masks(&mut fields)?;
        read.read_drawing(&mut fields)?;
        fields.done()?;
        if read.min_ratio > read.max_ratio {
            let problem = format!("is {}, above mask_max_ratio", read.min_ratio);
            return Err(Error::request("mask_min_ratio", problem));
        }
        Ok(read)
    }

    fn read_choice(&mut self, fields: &mut Fields<'_>) -> Result<()> {
        let mut share = |name, otherwise: f32| -> Result<f32> {
            Ok(fields.number(name, 0.0..=1.0)?.unwrap_or(otherwise))
        };
        self.confidence = share("confidence", self.confidence)?;
        self.min_ratio = share("mask_min_ratio", self.min_ratio)?;
        self.max_ratio = share("mask_max_ratio", self.max_ratio)?;
        let side = fields.whole("size", SIDES)?;
        self.size = side.map_or(self.size, |pixels| pixels as usize);
        let named = fields.text("classes", CLASSES_BYTES_MAX)?;
        self.classes = classes(named.unwrap_or_default());
        self.kept_by = match fields.word("mask_filter", &KEPT_BY)? {
            Some("confidence") => KeptBy::Confidence,
            _ => KeptBy::Area,
        };
        self.mask_k = fields.whole("mask_k", 0..=THINGS_MAX)?.unwrap_or(0) as usize;
        self.sorted = match fields.word("sort", &SORTED)? {
            Some("left-to-right") => Sorted::LeftToRight,
            Some("center-to-edge") => Sorted::CenterToEdge,
            Some("area") => Sorted::Area,
            _ => Sorted::AsFound,
        };
        Ok(())
    }

    fn read_masks(&mut self, fields: &mut Fields<'_>) -> Result<()> {
        let grow = fields.signed("dilate_erode", -GROW_MAX..=GROW_MAX)?;
        self.dilate_erode = grow.map_or(self.dilate_erode, |pixels| pixels as i32);
        let mut offset = |name| fields.signed(name, -OFFSET_MAX..=OFFSET_MAX);
        self.x_offset = offset("x_offset")?.unwrap_or(0);
        self.y_offset = offset("y_offset")?.unwrap_or(0);
        self.joined = match fields.word("mask_merge", &JOINED)? {
            Some("merge") => Joined::Merged,
            Some("merge-and-invert") => Joined::Inverted,
            _ => Joined::No,
        };
        let blur = fields.number("mask_blur", 0.0..=MASK_BLUR_MAX)?;
        self.mask_blur = blur.unwrap_or(self.mask_blur);
        Ok(())
    }

    fn read_drawing(&mut self, fields: &mut Fields<'_>) -> Result<()> {
        let strength = fields.number("strength", 0.0..=1.0)?;
        self.strength = strength.unwrap_or(self.strength);
        self.only_masked = fields.word("inpaint_area", &AREAS)? != Some("whole");
        let padding = fields.whole("inpaint_padding", 0..=PADDING_MAX)?;
        self.padding = padding.map_or(self.padding, |pixels| pixels as usize);
        let mut whole = |name, most: usize| -> Result<Option<usize>> {
            let found = fields.whole(name, 1..=most as u64)?;
            Ok(found.map(|value| value as usize))
        };
        self.width = whole("width", SIDE_MAX)?;
        self.height = whole("height", SIDE_MAX)?;
        self.steps = whole("steps", STEPS_MAX)?;
        self.guidance = fields.number("guidance", 0.0..=GUIDANCE_MAX)?;
        let sampler = fields.text("sampler", WORD_BYTES_MAX)?;
        self.sampler = sampler.map(str::to_owned);
        let schedule = fields.text("schedule", WORD_BYTES_MAX)?;
        self.schedule = schedule.map(str::to_owned);
        let clip_skip = fields.whole("clip_skip", 0..=CLIP_SKIP_MAX)?;
        self.clip_skip = clip_skip.map(|layers| layers as usize);
        self.seed = fields.whole("seed", 0..=u64::MAX)?;
        Ok(())
    }

    /// The pass with nothing left out but what the job says for all.
    pub(super) fn json(&self) -> Value {
        json!({
            "detector": self.detector,
            "prompt": self.prompt,
            "negative": self.negative,
            "confidence": self.confidence,
            "size": self.size,
            "classes": self.classes.join(", "),
            "mask_filter": KEPT_BY[self.kept_by as usize],
            "mask_k": self.mask_k,
            "mask_min_ratio": self.min_ratio,
            "mask_max_ratio": self.max_ratio,
            "sort": SORTED[self.sorted as usize],
            "dilate_erode": self.dilate_erode,
            "x_offset": self.x_offset,
            "y_offset": self.y_offset,
            "mask_merge": JOINED[self.joined as usize],
            "mask_blur": self.mask_blur,
            "strength": self.strength,
            "inpaint_area": AREAS[usize::from(!self.only_masked)],
            "inpaint_padding": self.padding,
            "width": self.width,
            "height": self.height,
            "steps": self.steps,
            "guidance": self.guidance,
            "sampler": self.sampler,
            "schedule": self.schedule,
            "clip_skip": self.clip_skip,
            "seed": self.seed,
        })
    }
}

/// ADetailer's names that are not ours with `ad_` before them.
const THEIRS: [(&str, &str); 11] = [
    ("ad_model", "detector"),
    ("ad_model_classes", "classes"),
    ("ad_negative_prompt", "negative"),
    ("ad_mask_filter_method", "mask_filter"),
    ("ad_mask_merge_invert", "mask_merge"),
    ("ad_denoising_strength", "strength"),
    ("ad_inpaint_only_masked_padding", "inpaint_padding"),
    ("ad_inpaint_width", "width"),
    ("ad_inpaint_height", "height"),
    ("ad_cfg_scale", "guidance"),
    ("ad_scheduler", "schedule"),
];

/// ADetailer's switches, and what means nothing while they are off.
const SWITCHES: [(&str, &[&str]); 5] = [
    (
        "ad_use_inpaint_width_height",
        &["ad_inpaint_width", "ad_inpaint_height"],
    ),
    ("ad_use_steps", &["ad_steps"]),
    ("ad_use_cfg_scale", &["ad_cfg_scale"]),
    ("ad_use_sampler", &["ad_sampler", "ad_scheduler"]),
    ("ad_use_clip_skip", &["ad_clip_skip"]),
];

/// The pass with every setting under our name; what nobody knows stays as it is, to be complained about.
fn in_our_words(pass: &Value) -> Value {
    let Some(fields) = pass.as_object() else {
        return pass.clone();
    };
    let off = |switch: &str| fields.get(switch).and_then(Value::as_bool) == Some(false);
    let silent: Vec<&str> = SWITCHES
        .iter()
        .filter(|(switch, _)| off(switch))
        .flat_map(|(_, silent)| silent.iter().copied())
        .collect();
    let mut ours = Map::new();
    for (name, value) in fields {
        let is_switch = SWITCHES.iter().any(|(switch, _)| switch == name);
        if is_switch && value.is_boolean() || silent.contains(&&name[..]) {
            continue;
        }
        if name == "ad_inpaint_only_masked" && value.is_boolean() {
            let area = AREAS[usize::from(value == &Value::Bool(false))];
            ours.insert("inpaint_area".to_owned(), area.into());
            continue;
        }
        // Theirs counts the layer that is used, from 1 on; ours counts those left out.
        if name == "ad_clip_skip"
            && let Some(used @ 1..) = value.as_u64()
        {
            ours.insert("clip_skip".to_owned(), (used - 1).into());
            continue;
        }
        let renamed = THEIRS.iter().find(|(theirs, _)| theirs == name);
        let our_name = match (renamed, name.strip_prefix("ad_")) {
            (Some((_, ours)), _) => ours,
            (None, Some(rest)) => rest,
            (None, None) => &name[..],
        };
        // "Merge and Invert", "Area", "None" are words of ours in capitals.
        let worded = ["mask_merge", "mask_filter"].contains(&our_name);
        let value = match value.as_str().filter(|_| worded) {
            Some(word) => word.to_lowercase().replace(' ', "-").into(),
            None => value.clone(),
        };
        ours.insert(our_name.to_owned(), value);
    }
    Value::Object(ours)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_alone_is_a_pass_with_the_defaults_of_adetailer() {
        let pass = Pass::read(&json!("face")).unwrap();
        assert_eq!(pass, Pass::of("face"));
        assert_eq!(
            (
                pass.confidence,
                pass.dilate_erode,
                pass.mask_blur,
                pass.strength,
                pass.padding
            ),
            (0.3, 4, 4.0, 0.4, 32)
        );
        assert_eq!(Pass::read(&pass.json()).unwrap(), pass);
    }

    #[test]
    fn what_was_read_is_read_back_the_same() {
        let pass = json!({
            "detector": "hand_yolov8n.pt", "prompt": "a hand[SEP][SKIP]", "negative": "six", "confidence": 0.55, "size": 320,
            "classes": "hand, 1", "mask_filter": "confidence", "mask_k": 2, "mask_min_ratio": 0.01,
            "mask_max_ratio": 0.5, "sort": "left-to-right", "dilate_erode": -8, "x_offset": 3, "y_offset": -4,
            "mask_merge": "merge", "mask_blur": 2.5, "strength": 0.7, "inpaint_area": "whole",
            "inpaint_padding": 8, "width": 256, "height": 512, "steps": 12, "guidance": 3.5, "sampler": "Euler a",
            "schedule": "karras", "clip_skip": 1, "seed": 9,
        });
        let read = Pass::read(&pass).unwrap();
        assert_eq!(Pass::read(&read.json()).unwrap(), read);
        for (field, value) in pass.as_object().unwrap() {
            let (told, given) = (&read.json()[field], value);
            let same = match (told.as_f64(), given.as_f64()) {
                (Some(told), Some(given)) => (told - given).abs() < 1e-6,
                _ => told == given,
            };
            assert!(same, "{field}: {told} for {given}");
        }
    }

    #[test]
    fn settings_may_have_the_names_that_adetailer_gives_them() {
        let theirs = json!({
            "ad_model": "face_yolov8n.pt", "ad_prompt": "a face", "ad_negative_prompt": "blur",
            "ad_confidence": 0.4, "ad_mask_k": 1, "ad_mask_filter_method": "Area", "ad_dilate_erode": 8,
            "ad_mask_merge_invert": "Merge and Invert", "ad_denoising_strength": 0.3,
            "ad_inpaint_only_masked": false, "ad_inpaint_only_masked_padding": 16,
            "ad_use_inpaint_width_height": true, "ad_inpaint_width": 768, "ad_inpaint_height": 640,
            "ad_use_steps": false, "ad_steps": 28, "ad_use_cfg_scale": true, "ad_cfg_scale": 6.5,
            "ad_use_clip_skip": true, "ad_clip_skip": 2,
        });
        let ours = json!({
            "detector": "face_yolov8n.pt", "prompt": "a face", "negative": "blur", "confidence": 0.4,
            "mask_k": 1, "mask_filter": "area", "dilate_erode": 8, "mask_merge": "merge-and-invert",
            "strength": 0.3, "inpaint_area": "whole", "inpaint_padding": 16, "width": 768, "height": 640,
            "guidance": 6.5, "clip_skip": 1,
        });
        assert_eq!(Pass::read(&theirs).unwrap(), Pass::read(&ours).unwrap());
    }

    #[test]
    fn mistakes_name_the_field() {
        for (more, field) in [
            (json!({}), "detector"),
            (json!({"detector": " "}), "detector"),
            (
                json!({"detector": "face", "ad_confidence": 2}),
                "confidence",
            ),
            (
                json!({"detector": "face", "dilate_erode": 5000}),
                "dilate_erode",
            ),
            (
                json!({"detector": "face", "mask_merge": "join"}),
                "mask_merge",
            ),
            (
                json!({"detector": "face", "mask_min_ratio": 0.5, "mask_max_ratio": 0.4}),
                "mask_min_ratio",
            ),
            (
                json!({"detector": "face", "ad_restore_face": true}),
                "restore_face",
            ),
            (json!(7), "request"),
        ] {
            match Pass::read(&more).unwrap_err() {
                Error::Request { what, .. } => assert_eq!(what, field),
                other => panic!("{other}"),
            }
        }
    }
}
