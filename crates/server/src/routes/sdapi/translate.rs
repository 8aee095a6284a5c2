//! From the web UI's words to those of a job.

mod begin;
mod detailer;
mod sampling;
mod second;
mod steps;

use serde_json::{Map, Value, json};

use super::lists::upscaling_models;
use super::state::Choice;
use crate::app::Inner;
use crate::fields::{Fields, wrong};
use crate::refusal::Refusal;
use crate::routes::catalog::find_model;
use crate::routes::submit::KIND_DEFAULT;
use begin::from_picture;
use sampling::{plain, refiner, sampling};
use second::{Second, second_pass};

pub(super) use second::LATENT_UPSCALERS;

/// How much of a picture changes where nobody says.
const STRENGTH: f64 = 0.75;

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

/// A request of ours, and what of theirs stays with the dialect.
pub(super) struct Translated {
    /// The model, by our name.
    pub(super) model: Option<String>,
    /// The request of a job of the default kind.
    pub(super) request: Map<String, Value>,
    /// The steps after that request, where there are any.
    pub(super) then: Vec<Value>,
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
    let scripts = scripts(&mut fields)?;
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
    let second = second_pass(app, &mut fields, &mut request)?;
    let strength = fields.number("denoising_strength", 0.0..=1.0)?;
    match (begins, &second) {
        (Begins::FromPicture, Second::Network { .. }) => {
            return Err(Refusal::invalid("enable_hr", "is for txt2img alone"));
        }
        (Begins::FromPicture, _) => {
            from_picture(app, &mut fields, &mut request, &mut notes, strength)?
        }
        (Begins::FromText, Second::Within) => {
            if let Some(strength) = strength {
                request.insert("hires_strength".to_owned(), json!(strength));
            }
        }
        // Without a second pass there is nothing of which a part could change; a network's has its own step.
        (Begins::FromText, Second::None | Second::Network { .. }) => {}
    }
    choice.add_to(app, &mut request);
    let send_images = fields.flag("send_images")?.unwrap_or(true);
    fields.done()?;
    keep_known(app, &request)?;
    let first = (choice.model.as_deref(), &request);
    let mut then = second.steps(app, first, strength);
    then.extend(detailer::steps(app, &scripts, first)?);
    steps::end_in(app, &mut then, &request);
    Ok(Translated {
        model: choice.model,
        request,
        then,
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
    Ok(())
}

/// What is asked of ADetailer; every other script is refused.
fn scripts(fields: &mut Fields) -> Result<Value, Refusal> {
    let scripts = match fields.take("alwayson_scripts") {
        None => return Ok(Value::Null),
        Some(Value::Object(scripts)) => scripts,
        Some(other) => return Err(wrong("alwayson_scripts", "an object", &other)),
    };
    let mut asked = Value::Null;
    for (name, mut script) in scripts {
        let args = script.get_mut("args").map(Value::take);
        let args = args.unwrap_or_default();
        if name.eq_ignore_ascii_case(detailer::NAME) {
            asked = args;
            continue;
        }
        // Clients send an extension's switch, turned off, so that it is not left on.
        if !is_nothing(&args) {
            let name: String = name.chars().take(60).collect();
            return Err(Refusal::invalid(
                "alwayson_scripts",
                format!("there is no script '{name}' here"),
            ));
        }
    }
    Ok(asked)
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

/// Names that the web UI gives to networks whose files have others.
const NETWORKS: [(&str, &str); 2] = [
    ("R-ESRGAN 4x+", "RealESRGAN_x4plus"),
    ("R-ESRGAN 4x+ Anime6B", "RealESRGAN_x4plus_anime_6B"),
];

/// Our name of a network that enlarges pictures, named as lists show it, by its file, or as the web UI calls it.
pub(super) fn upscaler_named(app: &Inner, name: &str) -> Option<String> {
    let known = NETWORKS.iter().find(|(theirs, _)| *theirs == name);
    let wanted = known.map_or(name, |(_, file)| file);
    let stem = |name: &str| {
        let file = name.rsplit(['/', '\\']).next().unwrap_or(name);
        let endings = [".safetensors", ".pth", ".param", ".bin"];
        let bare = endings.iter().find_map(|ending| file.strip_suffix(ending));
        bare.unwrap_or(file).to_owned()
    };
    let all = upscaling_models(app);
    let exact = all.iter().find(|one| *one == wanted);
    let same = || all.iter().find(|one| stem(one) == stem(wanted));
    exact.or_else(same).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

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
