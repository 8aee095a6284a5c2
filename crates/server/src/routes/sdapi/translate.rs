//! From the web UI's words to those of a job.

use serde_json::{Map, Value, json};

use super::state::Choice;
use crate::app::Inner;
use crate::fields::{Fields, wrong};
use crate::refusal::Refusal;
use crate::routes::catalog::find_model;
use crate::routes::openai::offer;
use crate::routes::submit::KIND_DEFAULT;

/// Accepted whatever they say: they speak of the web UI's own folders and screens, or of settings that have no effect
/// unless others are on that are refused here.
const IGNORED: [&str; 19] = [
    "comments",
    "disable_extra_networks",
    "do_not_save_grid",
    "do_not_save_samples",
    "firstphase_height",
    "firstphase_width",
    "force_task_id",
    "image_cfg_scale",
    "include_init_images",
    "infotext",
    "mask_round",
    "override_settings_restore_afterwards",
    "s_noise",
    "s_tmax",
    "s_tmin",
    "save_images",
    "script_args",
    "seed_resize_from_h",
    "seed_resize_from_w",
];

/// What has no counterpart here, and why; left out, null, empty, false or 0 they change nothing.
const REFUSED: [(&str, &str); 15] = [
    ("controlnet_units", "there is no ControlNet here"),
    (
        "hr_checkpoint_name",
        "the second pass has the model of the first",
    ),
    (
        "hr_negative_prompt",
        "the second pass has the prompts of the first",
    ),
    ("hr_prompt", "the second pass has the prompts of the first"),
    (
        "hr_sampler_name",
        "the second pass has the sampler of the first",
    ),
    (
        "hr_scheduler",
        "the second pass has the schedule of the first",
    ),
    ("latent_mask", "give 'mask' instead"),
    ("firstpass_image", "use img2img"),
    ("restore_faces", "there is no face restoration here"),
    ("s_churn", "no sampler here has it"),
    ("s_min_uncond", "guidance is never left out here"),
    ("script_name", "there are no scripts here"),
    (
        "styles",
        "there are no styles here: write them into the prompt",
    ),
    ("subseed_strength", "seeds are not mixed here"),
    ("tiling", "there are no seamless pictures here"),
];

/// Settings that a request may override, beside those that are read.
const SETTINGS_NEUTRAL: [&str; 3] = ["sd_vae", "eta_noise_seed_delta", "sd_checkpoint_hash"];

/// Factor of the second pass where nobody says one.
const HR_SCALE: f64 = 2.0;

/// How much of a picture changes where nobody says.
const STRENGTH: f64 = 0.75;

/// Blur of a mask's edge where nobody says.
const MASK_BLUR: f64 = 4.0;

/// Names of schedules that mean one of another name here.
const SCHEDULES: [(&str, &str); 2] = [("uniform", "normal"), ("sgm uniform", "sgm_uniform")];

/// The names that second passes are known by there, and here.
pub(super) const LATENT_UPSCALERS: [(&str, &str); 3] = [
    ("Latent", "latent"),
    ("Latent (nearest)", "latent-nearest"),
    ("Lanczos", "lanczos"),
];

/// A request of ours, and what of theirs stays with the dialect.
pub(super) struct Translated {
    /// The model, by our name.
    pub(super) model: Option<String>,
    /// The request of a job of the default kind.
    pub(super) request: Map<String, Value>,
    /// Whether the pictures are in the answer.
    pub(super) send_images: bool,
    /// What was accepted and has no effect, in sentences.
    pub(super) notes: Vec<String>,
}

/// Which of the two it is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Begins {
    FromText,
    FromPicture,
}

/// Reads what a client sent.
///
/// # Errors
/// Which field is wrong, and how.
pub(super) fn translate(
    app: &Inner,
    body: Value,
    chosen: &Choice,
    begins: Begins,
) -> Result<Translated, Refusal> {
    let mut fields = Fields::of(body)?;
    let mut notes = Vec::new();
    for name in IGNORED {
        fields.take(name);
    }
    refuse_strangers(&mut fields)?;
    let mut request = Map::new();
    let choice = overridden(app, &mut fields, chosen, &mut notes)?;
    request.insert(
        "prompt".to_owned(),
        json!(fields.text("prompt")?.unwrap_or_default()),
    );
    if let Some(negative) = fields
        .text("negative_prompt")?
        .filter(|text| !text.is_empty())
    {
        request.insert("negative".to_owned(), json!(negative));
    }
    plain(&mut fields, &mut request)?;
    sampling(&mut fields, &mut request, &mut notes)?;
    refiner(&mut fields, &mut request)?;
    let hires = second_pass(&mut fields, &mut request)?;
    let strength = fields.number("denoising_strength", 0.0..=1.0)?;
    match (begins, hires) {
        (Begins::FromPicture, _) => {
            from_picture(app, &mut fields, &mut request, &mut notes, strength)?
        }
        (Begins::FromText, true) => {
            if let Some(strength) = strength {
                request.insert("hires_strength".to_owned(), json!(strength));
            }
        }
        // Without a second pass there is nothing of which a part could change.
        (Begins::FromText, false) => {}
    }
    choice.add_to(app, &mut request);
    let send_images = fields.flag("send_images")?.unwrap_or(true);
    fields.done()?;
    keep_known(app, &request)?;
    Ok(Translated {
        model: choice.model,
        request,
        send_images,
        notes,
    })
}

/// Whether a value says that nothing is wanted.
fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => {
            let text = text.trim();
            text.is_empty() || text == "None" || text.starts_with("Use same")
        }
        Value::Array(all) => all.iter().all(is_nothing),
        Value::Object(all) => all.values().all(is_nothing),
        Value::Bool(true) => false,
    }
}

fn refuse_strangers(fields: &mut Fields) -> Result<(), Refusal> {
    // Without a strength the other seed means nothing.
    fields.take("subseed");
    for (name, why) in REFUSED {
        if fields.take(name).is_some_and(|value| !is_nothing(&value)) {
            return Err(Refusal::invalid(name, why));
        }
    }
    if let Some(noise) = fields.number("initial_noise_multiplier", 0.0..=10.0)?
        && noise != 1.0
    {
        return Err(Refusal::invalid(
            "initial_noise_multiplier",
            "noise is not scaled here: leave it out",
        ));
    }
    let scripts = match fields.take("alwayson_scripts") {
        None => return Ok(()),
        Some(Value::Object(scripts)) => scripts,
        Some(other) => return Err(wrong("alwayson_scripts", "an object", &other)),
    };
    for (name, script) in scripts {
        // Clients send an extension's switch, turned off, so that it is not left on.
        if !is_nothing(script.get("args").unwrap_or(&Value::Null)) {
            let name: String = name.chars().take(60).collect();
            return Err(Refusal::invalid(
                "alwayson_scripts",
                format!("there is no script '{name}' here"),
            ));
        }
    }
    Ok(())
}

/// What is chosen, with what this request overrides.
fn overridden(
    app: &Inner,
    fields: &mut Fields,
    chosen: &Choice,
    notes: &mut Vec<String>,
) -> Result<Choice, Refusal> {
    let mut choice = chosen.clone();
    let settings = match fields.take("override_settings") {
        None => return Ok(choice),
        Some(Value::Object(settings)) => settings,
        Some(other) => return Err(wrong("override_settings", "an object", &other)),
    };
    for (name, value) in settings {
        let known = choice.set(app, &name, &value)?;
        if !known && !SETTINGS_NEUTRAL.contains(&name.as_str()) {
            let name: String = name.chars().take(60).collect();
            notes.push(format!("override_settings.{name} has no effect here"));
        }
    }
    Ok(choice)
}

/// Numbers that mean the same here.
fn plain(fields: &mut Fields, request: &mut Map<String, Value>) -> Result<(), Refusal> {
    for side in ["width", "height"] {
        if let Some(pixels) = fields.whole(side, 1..=u64::from(u32::MAX))? {
            request.insert(side.to_owned(), json!(pixels));
        }
    }
    if let Some(steps) = fields.whole("steps", 1..=u64::from(u32::MAX))? {
        request.insert("steps".to_owned(), json!(steps));
    }
    // There 1 is no guidance at all, and so is whatever is below.
    if let Some(scale) = fields.number("cfg_scale", 0.0..=1_000.0)? {
        let guidance = if scale <= 1.0 { 0.0 } else { scale };
        request.insert("guidance".to_owned(), json!(guidance));
    }
    match fields.take("seed") {
        None => {}
        Some(seed) if seed.as_i64() == Some(-1) || seed.as_f64() == Some(-1.0) => {}
        Some(seed) => match seed.as_u64() {
            Some(seed) => {
                request.insert("seed".to_owned(), json!(seed));
            }
            None => return Err(wrong("seed", "a whole number, or -1 for any", &seed)),
        },
    }
    let batch = fields.whole("batch_size", 1..=256)?.unwrap_or(1);
    let rounds = fields.whole("n_iter", 1..=256)?.unwrap_or(1);
    if batch * rounds > 1 {
        request.insert("count".to_owned(), json!(batch * rounds));
    }
    Ok(())
}

fn sampling(
    fields: &mut Fields,
    request: &mut Map<String, Value>,
    notes: &mut Vec<String>,
) -> Result<(), Refusal> {
    let index = fields.text("sampler_index")?;
    let sampler = fields.text("sampler_name")?.or(index);
    let sampler = sampler.filter(|name| !name.is_empty());
    let schedule = fields.text("scheduler")?;
    let schedule =
        schedule.filter(|name| !name.is_empty() && !name.eq_ignore_ascii_case("automatic"));
    let (sampler, within) = match sampler {
        None => (None, None),
        Some(name) => split_schedule(name),
    };
    let eta = fields.number("eta", 0.0..=1.0)?;
    if let Some(eta) = eta {
        let ddim = sampler
            .as_deref()
            .is_some_and(|name| name.eq_ignore_ascii_case("ddim"));
        match ddim {
            true => {
                request.insert("eta".to_owned(), json!(eta));
            }
            // 1 is what samplers with fresh noise have anyway, and the others have none.
            false if eta == 1.0 => {}
            false => notes.push("eta has an effect with DDIM alone".to_owned()),
        }
    }
    if let Some(sampler) = sampler {
        request.insert("sampler".to_owned(), json!(sampler));
    }
    if let Some(schedule) = schedule.or(within) {
        let lower = schedule.to_lowercase();
        let same = SCHEDULES.iter().find(|(theirs, _)| *theirs == lower);
        request.insert(
            "schedule".to_owned(),
            json!(same.map_or(lower.as_str(), |(_, ours)| ours)),
        );
    }
    Ok(())
}

/// Older clients write both in one, as `DPM++ 2M Karras`.
fn split_schedule(name: String) -> (Option<String>, Option<String>) {
    for schedule in ["Karras", "Exponential"] {
        if let Some(sampler) = name.strip_suffix(schedule) {
            return (
                Some(sampler.trim_end().to_owned()),
                Some(schedule.to_owned()),
            );
        }
    }
    (Some(name), None)
}

/// Another model that goes the rest of the way; their clients name "None" for none, and 0 or 1 for never.
fn refiner(fields: &mut Fields, request: &mut Map<String, Value>) -> Result<(), Refusal> {
    let model = fields.text("refiner_checkpoint")?;
    let at = fields.number("refiner_switch_at", 0.0..=1.0)?;
    let model = model.filter(|model| !model.is_empty() && model != "None");
    if let (Some(model), false) = (model, at.is_some_and(|at| at == 0.0 || at == 1.0)) {
        request.insert("refiner".to_owned(), json!(model));
        request.insert("refiner_start".to_owned(), json!(at));
    }
    Ok(())
}

/// Fields of a second pass; returns whether there is one.
fn second_pass(fields: &mut Fields, request: &mut Map<String, Value>) -> Result<bool, Refusal> {
    let wanted = fields.flag("enable_hr")?.unwrap_or(false);
    let scale = fields.number("hr_scale", 0.0..=16.0)?.unwrap_or(HR_SCALE);
    let (to_x, to_y) = (
        fields.whole("hr_resize_x", 0..=65_536)?.unwrap_or(0),
        fields.whole("hr_resize_y", 0..=65_536)?.unwrap_or(0),
    );
    let steps = fields
        .whole("hr_second_pass_steps", 0..=10_000)?
        .unwrap_or(0);
    let upscaler = fields.text("hr_upscaler")?;
    if !wanted {
        return Ok(false);
    }
    let side = |name: &str| request.get(name).and_then(Value::as_u64).unwrap_or(512);
    let scale = match (to_x, to_y) {
        (0, 0) => scale,
        (x, 0) => x as f64 / side("width") as f64,
        (0, y) => y as f64 / side("height") as f64,
        (x, y) if x * side("height") == y * side("width") => x as f64 / side("width") as f64,
        (x, y) => {
            return Err(Refusal::invalid(
                "hr_resize_x",
                format!(
                    "{x}x{y} has other proportions than {}x{}: give one of the two, or hr_scale",
                    side("width"),
                    side("height")
                ),
            ));
        }
    };
    if scale <= 1.0 {
        return Err(Refusal::invalid(
            "hr_scale",
            "more than 1 is needed for a second pass",
        ));
    }
    request.insert("hires_scale".to_owned(), json!(scale));
    if steps > 0 {
        request.insert("hires_steps".to_owned(), json!(steps));
    }
    if let Some(name) = upscaler.filter(|name| !name.is_empty()) {
        let found = LATENT_UPSCALERS
            .iter()
            .find(|(theirs, ours)| *theirs == name || *ours == name);
        let Some((_, ours)) = found else {
            let names = LATENT_UPSCALERS.map(|(theirs, _)| theirs).join(", ");
            return Err(Refusal::invalid(
                "hr_upscaler",
                format!("second passes have {names}"),
            ));
        };
        request.insert("hires_upscaler".to_owned(), json!(ours));
    }
    Ok(true)
}

/// A picture as their clients send it: base64, with or without the head of a data URL.
pub(super) fn picture_url(field: &'static str, value: &Value) -> Result<String, Refusal> {
    match value {
        Value::String(text) if text.starts_with("data:") => Ok(text.clone()),
        Value::String(text) if text.starts_with("http:") || text.starts_with("https:") => Err(
            Refusal::invalid(field, "pictures are not fetched here: send base64"),
        ),
        // What it is is seen from its first bytes.
        Value::String(text) if !text.is_empty() => Ok(format!("data:image/png;base64,{text}")),
        other => Err(wrong(field, "a picture as base64", other)),
    }
}

fn from_picture(
    app: &Inner,
    fields: &mut Fields,
    request: &mut Map<String, Value>,
    notes: &mut Vec<String>,
    strength: Option<f64>,
) -> Result<(), Refusal> {
    let images = match fields.take("init_images") {
        Some(Value::Array(images)) if images.len() == 1 => images,
        Some(Value::Array(images)) if images.len() > 1 => {
            return Err(Refusal::invalid(
                "init_images",
                "there may be one; send each by itself",
            ));
        }
        _ => {
            return Err(Refusal::invalid(
                "init_images",
                "a picture is needed to begin from",
            ));
        }
    };
    request.insert(
        "image".to_owned(),
        json!(picture_url("init_images", &images[0])?),
    );
    request.insert("strength".to_owned(), json!(strength.unwrap_or(STRENGTH)));
    let fits = ["resize", "crop", "fill"];
    let mode = fields.whole("resize_mode", 0..=3)?.unwrap_or(0);
    let Some(fit) = fits.get(mode as usize) else {
        let problem = "latents are not resized here: 0, 1 or 2 is needed";
        return Err(Refusal::invalid("resize_mode", problem));
    };
    if !offer(app, request, "resize", json!(fit)) && mode > 0 {
        return Err(Refusal::invalid(
            "resize_mode",
            "this kind of job does not know it",
        ));
    }
    masked(app, fields, request, notes)
}

fn masked(
    app: &Inner,
    fields: &mut Fields,
    request: &mut Map<String, Value>,
    notes: &mut Vec<String>,
) -> Result<(), Refusal> {
    let mask = fields.take("mask");
    let blur = fields.number("mask_blur", 0.0..=256.0)?;
    let (across, down) = (
        fields.number("mask_blur_x", 0.0..=256.0)?,
        fields.number("mask_blur_y", 0.0..=256.0)?,
    );
    let fill = fields.whole("inpainting_fill", 0..=3)?;
    let only_masked = match fields.take("inpaint_full_res") {
        None => true,
        Some(Value::Bool(flag)) => flag,
        Some(number) if number.as_u64().is_some_and(|number| number <= 1) => {
            number.as_u64() == Some(1)
        }
        Some(other) => return Err(wrong("inpaint_full_res", "true or false", &other)),
    };
    let padding = fields
        .whole("inpaint_full_res_padding", 0..=1_024)?
        .unwrap_or(0);
    let inverted = fields.whole("inpainting_mask_invert", 0..=1)? == Some(1);
    let Some(mask) = mask else {
        return Ok(());
    };
    let mut url = picture_url("mask", &mask)?;
    if inverted {
        let content = crate::pictures::content(app, "mask", &url)?;
        let content = app.door.inverted(&content)?;
        url = format!("data:image/png;base64,{}", crate::base64::encode(&content));
    }
    match fill {
        None | Some(1) => {}
        Some(0) => notes.push(
            "inpainting_fill 0: what is masked begins from the picture itself, as with 1"
                .to_owned(),
        ),
        Some(_) => {
            return Err(Refusal::invalid(
                "inpainting_fill",
                "what is masked begins from the picture here: 1 is needed",
            ));
        }
    }
    let blur = match (blur, across, down) {
        (None, Some(across), Some(down)) if across != down => {
            return Err(Refusal::invalid(
                "mask_blur_x",
                "one blur for both directions is needed",
            ));
        }
        (blur, across, down) => blur.or(across).or(down).unwrap_or(MASK_BLUR),
    };
    request.insert("mask".to_owned(), json!(url));
    let area = if only_masked { "masked" } else { "whole" };
    // A kind of job that knows less takes the mask as it is.
    offer(app, request, "mask_blur", json!(blur));
    offer(app, request, "inpaint_area", json!(area));
    if only_masked {
        offer(app, request, "inpaint_padding", json!(padding));
    }
    Ok(())
}

/// Refuses what this service's kind of job does not know, by our name.
fn keep_known(app: &Inner, request: &Map<String, Value>) -> Result<(), Refusal> {
    let Some(kind) = app.kinds.iter().find(|kind| kind.name == KIND_DEFAULT) else {
        return Err(Refusal::Unavailable {
            problem: format!("jobs of the kind {KIND_DEFAULT} are switched off"),
        });
    };
    let stranger = request
        .keys()
        .find(|name| kind.schema["properties"].get(name.as_str()).is_none());
    match stranger {
        None => Ok(()),
        Some(name) => Err(Refusal::invalid(
            name.as_str(),
            "this kind of job does not know it",
        )),
    }
}

/// Our name of a checkpoint that a client names as lists show it, by its file, or with a hash behind it.
///
/// # Errors
/// There is none; which there are.
pub(super) fn model_named(app: &Inner, title: &str) -> Result<String, Refusal> {
    let bare = title.split(" [").next().unwrap_or(title).trim();
    let found = find_model(app, bare);
    let base = || {
        let file = bare.rsplit(['/', '\\']).next().unwrap_or(bare);
        let stem = file
            .strip_suffix(".safetensors")
            .or_else(|| file.strip_suffix(".ckpt"))
            .unwrap_or(file);
        find_model(app, stem).ok()
    };
    match found {
        Ok(entry) => Ok(entry.name),
        Err(refusal) => base().map(|entry| entry.name).ok_or(refusal),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn older_names_hold_the_schedule() {
        let split = |name: &str| split_schedule(name.to_owned());
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(split("DPM++ 2M Karras"), (some("DPM++ 2M"), some("Karras")));
        assert_eq!(
            split("DPM++ 2M SDE Exponential"),
            (some("DPM++ 2M SDE"), some("Exponential"))
        );
        assert_eq!(split("Euler a"), (some("Euler a"), None));
    }

    #[test]
    fn what_says_that_nothing_is_wanted() {
        for nothing in [
            json!(null),
            json!(false),
            json!(0),
            json!(""),
            json!("None"),
            json!([]),
            json!({ "args": [false] }),
            json!("Use same sampler"),
        ] {
            assert!(is_nothing(&nothing), "{nothing}");
        }
        for something in [json!(true), json!(0.5), json!("GFPGAN"), json!([0, 1])] {
            assert!(!is_nothing(&something), "{something}");
        }
    }
}
