//! The second pass at a larger size, within the model or by a network that enlarges pictures.

use serde_json::{Map, Value, json};

use super::steps::carried;
use super::{STRENGTH, upscaler_named};
use crate::app::Inner;
use crate::fields::Fields;
use crate::refusal::Refusal;
use crate::routes::sdapi::lists::{KIND_UPSCALE, upscaling_models};
use crate::routes::submit::KIND_DEFAULT;

/// Factor of the second pass where nobody says one.
const HR_SCALE: f64 = 2.0;

/// The names that second passes are known by there, and here.
pub(in crate::routes::sdapi) const LATENT_UPSCALERS: [(&str, &str); 3] = [
    ("Latent", "latent"),
    ("Latent (nearest)", "latent-nearest"),
    ("Lanczos", "lanczos"),
];

/// A second pass.
pub(super) enum Second {
    /// None is wanted.
    None,
    /// The model's own: its fields are in the request.
    Within,
    /// A network makes the picture larger, and the model goes over it.
    Network {
        /// Its name.
        name: String,
        /// By how much.
        scale: f64,
        /// Steps of the model, where they differ from those of the first.
        steps: Option<u64>,
    },
}

/// Reads the fields of a second pass.
pub(super) fn second_pass(
    app: &Inner,
    fields: &mut Fields,
    request: &mut Map<String, Value>,
) -> Result<Second, Refusal> {
    let wanted = fields.flag("enable_hr")?.unwrap_or(false);
    let scale = fields.number("hr_scale", 0.0..=16.0)?.unwrap_or(HR_SCALE);
    let sides = (
        fields.whole("hr_resize_x", 0..=65_536)?.unwrap_or(0),
        fields.whole("hr_resize_y", 0..=65_536)?.unwrap_or(0),
    );
    let steps = fields
        .whole("hr_second_pass_steps", 0..=10_000)?
        .filter(|&steps| steps > 0);
    let upscaler = fields.text("hr_upscaler")?;
    if !wanted {
        return Ok(Second::None);
    }
    let scale = factor(request, scale, sides)?;
    if scale <= 1.0 {
        return Err(Refusal::invalid(
            "hr_scale",
            "more than 1 is needed for a second pass",
        ));
    }
    let named = upscaler.filter(|name| !name.is_empty());
    let within = |name: &String| {
        let mut all = LATENT_UPSCALERS.iter();
        let found = all.find(|(theirs, ours)| theirs == name || ours == name);
        found.map(|(_, ours)| *ours)
    };
    if let Some(name) = named.as_ref().filter(|name| within(name).is_none()) {
        let Some(network) = upscaler_named(app, name) else {
            let own = LATENT_UPSCALERS.map(|(theirs, _)| theirs.to_owned());
            let all = [own.to_vec(), upscaling_models(app)].concat().join(", ");
            return Err(Refusal::invalid(
                "hr_upscaler",
                format!("second passes have {all}"),
            ));
        };
        return Ok(Second::Network {
            name: network,
            scale,
            steps,
        });
    }
    request.insert("hires_scale".to_owned(), json!(scale));
    if let Some(steps) = steps {
        request.insert("hires_steps".to_owned(), json!(steps));
    }
    if let Some(ours) = named.as_ref().and_then(within) {
        request.insert("hires_upscaler".to_owned(), json!(ours));
    }
    Ok(Second::Within)
}

/// The side of a picture of which nobody says anything.
const SIDE: f64 = 512.0;

/// By how much the picture becomes larger.
fn factor(
    request: &Map<String, Value>,
    scale: f64,
    (to_x, to_y): (u64, u64),
) -> Result<f64, Refusal> {
    let side = |name: &str| {
        request
            .get(name)
            .and_then(Value::as_u64)
            .unwrap_or(SIDE as u64)
    };
    let (width, height) = (side("width"), side("height"));
    match (to_x, to_y) {
        (0, 0) => Ok(scale),
        (x, 0) => Ok(x as f64 / width as f64),
        (0, y) => Ok(y as f64 / height as f64),
        (x, y) if x * height == y * width => Ok(x as f64 / width as f64),
        (x, y) => Err(Refusal::invalid(
            "hr_resize_x",
            format!(
                "{x}x{y} has other proportions than {width}x{height}: give one of the two, or hr_scale"
            ),
        )),
    }
}

/// Multiples of which sides of pictures are: of most models, and of all.
const MULTIPLES: [f64; 2] = [8.0, 16.0];

/// How large the picture is when it was enlarged, in sides that the model can draw.
fn sides(app: &Inner, model: Option<&str>, request: &Map<String, Value>, scale: f64) -> [u64; 2] {
    let models = app.door.models();
    let default = || {
        let kind = app.kinds.iter().find(|kind| kind.name == KIND_DEFAULT)?;
        kind.model_default.as_deref()
    };
    let name = model.or_else(default);
    let entry = models.iter().find(|entry| Some(&*entry.name) == name);
    let side = |field: &str| {
        let own = || entry.and_then(|entry| entry.defaults[field].as_f64());
        let asked = request.get(field).and_then(Value::as_f64);
        asked.or_else(own).unwrap_or(SIDE) * scale
    };
    let sides = [side("width"), side("height")];
    let rounded = |multiple: f64| {
        sides.map(|side| ((side / multiple).round() * multiple).max(multiple) as u64)
    };
    let can_draw = |&[width, height]: &[u64; 2]| {
        let request = json!({ "prompt": "", "width": width, "height": height });
        app.door.check(KIND_DEFAULT, model, request, None).is_ok()
    };
    let [most, all] = MULTIPLES.map(rounded);
    if can_draw(&most) { most } else { all }
}

impl Second {
    /// The steps of a job that a network makes necessary: it enlarges, and the model of the first step draws so much of
    /// it anew.
    pub(super) fn steps(
        self,
        app: &Inner,
        (model, request): (Option<&str>, &Map<String, Value>),
        strength: Option<f64>,
    ) -> Vec<Value> {
        let Second::Network { name, scale, steps } = self else {
            return Vec::new();
        };
        let enlarge = json!({ "kind": KIND_UPSCALE, "model": name, "request": { "scale": scale } });
        let strength = strength.unwrap_or(STRENGTH);
        if strength == 0.0 {
            return vec![enlarge];
        }
        let mut again = carried(app, KIND_DEFAULT, request);
        // Left to itself the model would draw no more pixels than it was made for.
        let [width, height] = sides(app, model, request, scale);
        again.insert("width".to_owned(), json!(width));
        again.insert("height".to_owned(), json!(height));
        again.insert("strength".to_owned(), json!(strength));
        if let Some(steps) = steps {
            again.insert("steps".to_owned(), json!(steps));
        }
        vec![
            enlarge,
            json!({ "kind": KIND_DEFAULT, "model": model, "request": again }),
        ]
    }
}
