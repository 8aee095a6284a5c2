//! Pictures to begin from, and masks.

use serde_json::{Map, Value, json};

use super::{STRENGTH, picture_url};
use crate::app::Inner;
use crate::fields::{Fields, wrong};
use crate::refusal::Refusal;
use crate::routes::openai::offer;

/// Blur of a mask's edge where nobody says.
const MASK_BLUR: f64 = 4.0;

pub(super) fn from_picture(
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
