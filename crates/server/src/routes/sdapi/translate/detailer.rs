//! ADetailer, the web UI's extension that draws faces and hands anew: its settings as steps of the kind `detail`.

use serde_json::{Map, Value, json};

use super::sampling::split_schedule;
use super::steps::carried;
use super::{is_nothing, model_named};
use crate::app::Inner;
use crate::fields::{Fields, wrong};
use crate::refusal::Refusal;
use crate::routes::sdapi::lists::KIND_DETAIL;

/// The extension's name among the scripts.
pub(super) const NAME: &str = "ADetailer";

/// Where its mistakes are said to be.
const PLACE: &str = "alwayson_scripts.ADetailer.args";

/// Settings that mean the same here and only have another name.
const SAME: [(&str, &str); 11] = [
    ("ad_confidence", "confidence"),
    ("ad_mask_k", "mask_k"),
    ("ad_mask_k_largest", "mask_k"),
    ("ad_mask_min_ratio", "mask_min_ratio"),
    ("ad_mask_max_ratio", "mask_max_ratio"),
    ("ad_dilate_erode", "dilate_erode"),
    ("ad_x_offset", "x_offset"),
    ("ad_y_offset", "y_offset"),
    ("ad_mask_blur", "mask_blur"),
    ("ad_denoising_strength", "strength"),
    ("ad_inpaint_only_masked_padding", "inpaint_padding"),
];

/// Texts that mean the same here; an empty one is none.
const TEXTS: [(&str, &str); 4] = [
    ("ad_model", "detector"),
    ("ad_model_classes", "classes"),
    ("ad_prompt", "prompt"),
    ("ad_negative_prompt", "negative"),
];

/// Words of ours in capitals, as `Merge and Invert`.
const WORDS: [(&str, &str); 2] = [
    ("ad_mask_filter_method", "mask_filter"),
    ("ad_mask_merge_invert", "mask_merge"),
];

/// What has no counterpart here, and why; `None`, false and the like change nothing.
const REFUSED: [(&str, &str); 2] = [
    ("ad_restore_face", "there is no face restoration here"),
    ("ad_controlnet_model", "there is no ControlNet here"),
];

/// Accepted whatever they say: they belong to what is refused, or to the extension's own screen.
const IGNORED: [&str; 5] = [
    "ad_controlnet_module",
    "ad_controlnet_weight",
    "ad_controlnet_guidance_start",
    "ad_controlnet_guidance_end",
    "is_api",
];

/// What is drawn anew, as their clients have it: whether at all, then one object for each detector.
///
/// # Errors
/// Which setting is wrong, and how.
pub(super) fn steps(
    app: &Inner,
    args: &Value,
    (model, request): (Option<&str>, &Map<String, Value>),
) -> Result<Vec<Value>, Refusal> {
    let args: Vec<&Value> = match args {
        Value::Null => return Ok(Vec::new()),
        Value::Array(args) => args.iter().collect(),
        one @ Value::Object(_) => vec![one],
        other => return Err(wrong(PLACE, "a list", other)),
    };
    let mut switches = Vec::new();
    let mut units = Vec::new();
    for arg in args {
        match arg {
            Value::Bool(switch) if units.is_empty() => switches.push(*switch),
            Value::Object(unit) => units.push(unit.clone()),
            Value::Null => {}
            other => return Err(wrong(PLACE, "true, false or an object", other)),
        }
    }
    if switches.first() == Some(&false) {
        return Ok(Vec::new());
    }
    if switches.get(1) == Some(&true) {
        return Err(Refusal::invalid(
            PLACE,
            "the picture is always drawn first (skip_img2img): a job of the kind detail only repairs",
        ));
    }
    let mut steps: Vec<(Option<String>, Vec<Value>)> = Vec::new();
    for (place, unit) in units.into_iter().enumerate() {
        let unit = Unit::read(app, unit, request);
        let unit = unit.map_err(|refusal| refusal.within(&format!("{PLACE}[{place}]")))?;
        let Some(Unit { pass, checkpoint }) = unit else {
            continue;
        };
        let model = checkpoint.or_else(|| model.map(str::to_owned));
        match steps.last_mut() {
            Some((before, passes)) if *before == model => passes.push(pass),
            _ => steps.push((model, vec![pass])),
        }
    }
    if !steps.is_empty() && !app.kinds.iter().any(|kind| kind.name == KIND_DETAIL) {
        let problem = format!("jobs of the kind {KIND_DETAIL} are switched off here");
        return Err(Refusal::invalid(PLACE, problem));
    }
    let step = |(model, passes): (Option<String>, Vec<Value>)| {
        let mut fields = carried(app, KIND_DETAIL, request);
        fields.insert("passes".to_owned(), passes.into());
        json!({ "kind": KIND_DETAIL, "model": model, "request": fields })
    };
    Ok(steps.into_iter().map(step).collect())
}

/// One detector and what is done with what it finds.
struct Unit {
    pass: Value,
    /// Another model than the picture's.
    checkpoint: Option<String>,
}

impl Unit {
    /// `None` where it is switched off.
    fn read(
        app: &Inner,
        unit: Map<String, Value>,
        drawn: &Map<String, Value>,
    ) -> Result<Option<Unit>, Refusal> {
        let mut fields = Fields::of(Value::Object(unit))?;
        // Earlier versions of the extension wrote it with a p.
        let (tap, tab) = (fields.flag("ad_tap_enable")?, fields.flag("ad_tab_enable")?);
        let on = tap.unwrap_or(true) && tab.unwrap_or(true);
        for name in IGNORED {
            fields.take(name);
        }
        for (name, why) in REFUSED {
            if fields.take(name).is_some_and(|value| !is_nothing(&value)) {
                return Err(Refusal::invalid(name, why));
            }
        }
        let mut pass = Map::new();
        for (theirs, ours) in TEXTS {
            let text = fields.text(theirs)?;
            if let Some(text) = text.filter(|text| !text.trim().is_empty()) {
                pass.insert(ours.to_owned(), text.into());
            }
        }
        for (theirs, ours) in WORDS {
            if let Some(word) = fields.text(theirs)? {
                let word = word.to_lowercase().replace(' ', "-");
                pass.insert(ours.to_owned(), word.into());
            }
        }
        for (theirs, ours) in SAME {
            if let Some(value) = fields.take(theirs) {
                pass.insert(ours.to_owned(), value);
            }
        }
        if let Some(masked) = fields.flag("ad_inpaint_only_masked")? {
            let area = if masked { "masked" } else { "whole" };
            pass.insert("inpaint_area".to_owned(), area.into());
        }
        own_settings(&mut fields, &mut pass, drawn)?;
        let checkpoint = own_checkpoint(app, &mut fields)?;
        fields.done()?;
        let detector = pass.get("detector").and_then(Value::as_str);
        let off = !on || detector.is_none_or(|name| name == "None");
        Ok((!off).then(|| Unit {
            pass: pass.into(),
            checkpoint,
        }))
    }
}

/// Settings that count only while a switch of their own is on, which is off where nobody says.
fn own_settings(
    fields: &mut Fields,
    pass: &mut Map<String, Value>,
    drawn: &Map<String, Value>,
) -> Result<(), Refusal> {
    let own_size = fields.flag("ad_use_inpaint_width_height")?.unwrap_or(false);
    for (theirs, side) in [
        ("ad_inpaint_width", "width"),
        ("ad_inpaint_height", "height"),
    ] {
        let own = fields.take(theirs);
        // Otherwise things are drawn at the size of the picture.
        let pixels = if own_size {
            own.as_ref()
        } else {
            drawn.get(side)
        };
        if let Some(pixels) = pixels {
            pass.insert(side.to_owned(), pixels.clone());
        }
    }
    let own_steps = fields.flag("ad_use_steps")?.unwrap_or(false);
    let steps = fields.take("ad_steps");
    if let Some(steps) = steps.filter(|_| own_steps) {
        pass.insert("steps".to_owned(), steps);
    }
    let own_scale = fields.flag("ad_use_cfg_scale")?.unwrap_or(false);
    let scale = fields.number("ad_cfg_scale", 0.0..=1_000.0)?;
    if let Some(scale) = scale.filter(|_| own_scale) {
        // There 1 is no guidance at all, and so is whatever is below.
        let guidance = if scale <= 1.0 { 0.0 } else { scale };
        pass.insert("guidance".to_owned(), json!(guidance));
    }
    let own_sampler = fields.flag("ad_use_sampler")?.unwrap_or(false);
    let (sampler, schedule) = (fields.text("ad_sampler")?, fields.text("ad_scheduler")?);
    let said =
        |name: &String| !(is_nothing(&json!(name)) || name.eq_ignore_ascii_case("automatic"));
    if own_sampler {
        let (sampler, within) = match sampler.filter(said) {
            None => (None, None),
            Some(name) => split_schedule(name),
        };
        let schedule = schedule.filter(said).or(within);
        let both = [
            ("sampler", sampler),
            ("schedule", schedule.map(|name| name.to_lowercase())),
        ];
        for (name, value) in both {
            if let Some(value) = value {
                pass.insert(name.to_owned(), value.into());
            }
        }
    }
    let own_skip = fields.flag("ad_use_clip_skip")?.unwrap_or(false);
    let skip = fields.whole("ad_clip_skip", 1..=12)?;
    // There 1 is the last layer, and nothing is left out.
    if let Some(skip) = skip.filter(|_| own_skip) {
        pass.insert("clip_skip".to_owned(), json!(skip - 1));
    }
    let own_noise = fields.flag("ad_use_noise_multiplier")?.unwrap_or(false);
    let noise = fields.number("ad_noise_multiplier", 0.0..=10.0)?;
    if own_noise && noise.is_some_and(|noise| noise != 1.0) {
        return Err(Refusal::invalid(
            "ad_noise_multiplier",
            "noise is not scaled here: leave it out",
        ));
    }
    Ok(())
}

/// Another model for this detector's things.
fn own_checkpoint(app: &Inner, fields: &mut Fields) -> Result<Option<String>, Refusal> {
    let own_vae = fields.flag("ad_use_vae")?.unwrap_or(false);
    let vae = fields.take("ad_vae");
    let said = |value: &Value| !is_nothing(value) && value != "Automatic";
    if own_vae && vae.as_ref().is_some_and(said) {
        return Err(Refusal::invalid("ad_vae", "a checkpoint has its own here"));
    }
    let own = fields.flag("ad_use_checkpoint")?.unwrap_or(false);
    let name = fields.text("ad_checkpoint")?;
    let name = name.filter(|name| own && said(&json!(name)));
    name.map(|name| model_named(app, &name)).transpose()
}
