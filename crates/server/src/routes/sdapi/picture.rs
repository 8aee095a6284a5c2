//! What a picture says of itself.

use axum::extract::State;
use axum::response::Response;
use serde_json::{Map, Value, json};

use super::translate::picture_url;
use super::{Foreign, exchange};
use crate::answer;
use crate::app::App;
use crate::fields::Fields;
use crate::incoming::{Asked, JsonWithPictures};
use crate::pictures;
use crate::refusal::Refusal;
use crate::routes::Routes;

pub(super) fn routes(routes: Routes) -> Routes {
    routes.post(
        "/sdapi/v1/png-info",
        png_info,
        exchange(
            "What a picture was made with, as it says itself",
            "SdPicture",
        ),
    )
}

async fn png_info(
    State(app): State<App>,
    asked: Asked,
    body: Result<JsonWithPictures, Refusal>,
) -> Result<Response, Foreign> {
    asked.done()?;
    let JsonWithPictures(body, turn) = body?;
    let mut fields = Fields::of(body)?;
    let image = fields.take("image").unwrap_or(Value::Null);
    fields.done()?;
    Ok(app
        .blocking(move |app| {
            let url = picture_url("image", &image)?;
            let picture = pictures::content(app, "image", &url)?;
            drop(turn);
            let text = app.door.parameters_of(&picture)?;
            let items = text
                .as_ref()
                .map_or(json!({}), |text| json!({ "parameters": text }));
            let parameters = text.as_deref().map(read_parameters).unwrap_or_default();
            let info = text.unwrap_or_default();
            Ok(answer::ok(
                &json!({ "info": info, "items": items, "parameters": parameters }),
            ))
        })
        .await?)
}

/// Takes the text apart: prompt, negative prompt, and `Key: value` pairs on the last line.
fn read_parameters(text: &str) -> Map<String, Value> {
    let mut lines: Vec<&str> = text.trim().lines().collect();
    let pairs = match lines.last() {
        Some(last) if last.starts_with("Steps: ") => lines.pop(),
        _ => None,
    };
    let negative_at = lines
        .iter()
        .position(|line| line.starts_with("Negative prompt: "));
    let negative = negative_at.map(|at| {
        let negative = lines.split_off(at).join("\n");
        negative.trim_start_matches("Negative prompt: ").to_owned()
    });
    let mut parameters = Map::new();
    parameters.insert("Prompt".to_owned(), json!(lines.join("\n")));
    parameters.insert(
        "Negative prompt".to_owned(),
        json!(negative.unwrap_or_default()),
    );
    let mut rest = pairs.unwrap_or_default();
    while let Some((key, after)) = rest.split_once(": ") {
        let (value, following) = first_value(after);
        parameters.insert(key.trim().to_owned(), json!(value));
        rest = following;
    }
    if let Some(Value::String(size)) = parameters.get("Size")
        && let Some((width, height)) = size.clone().split_once('x')
    {
        parameters.insert("Size-1".to_owned(), json!(width));
        parameters.insert("Size-2".to_owned(), json!(height));
    }
    parameters
}

/// The value a text begins with, which is a JSON text where it holds commas or colons, and what comes after it.
fn first_value(text: &str) -> (String, &str) {
    if text.starts_with('"') {
        let mut read = serde_json::Deserializer::from_str(text).into_iter::<String>();
        if let Some(Ok(value)) = read.next() {
            let rest = &text[read.byte_offset()..];
            return (value, rest.trim_start_matches(','));
        }
    }
    match text.split_once(',') {
        Some((value, rest)) => (value.trim().to_owned(), rest),
        None => (text.trim().to_owned(), ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_s_text_is_taken_apart() {
        let text = "a cat,\non a mat\nNegative prompt: blue,\ngreen\nSteps: 4, Sampler: Euler a, Size: 64x32, \
                    Model: \"big, red: x\", Version: 1";
        let parameters = read_parameters(text);
        let value = |key: &str| parameters[key].as_str().unwrap_or_default();
        assert_eq!(value("Prompt"), "a cat,\non a mat");
        assert_eq!(value("Negative prompt"), "blue,\ngreen");
        assert_eq!(value("Sampler"), "Euler a");
        assert_eq!(value("Model"), "big, red: x");
        assert_eq!(value("Size-1"), "64");
        assert_eq!(value("Version"), "1");
        assert_eq!(read_parameters("only words")["Prompt"], "only words");
    }
}
