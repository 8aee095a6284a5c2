//! Files that jobs begin from.

use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use lowtide_jobs::InputId;
use serde_json::json;

use super::Routes;
use super::artifacts::{FOR_EVER, file};
use crate::answer;
use crate::app::App;
use crate::incoming::{Asked, PictureFile, Segment};
use crate::openapi::{Operation, reference};
use crate::pictures;
use crate::refusal::Refusal;
use crate::schemas;

pub(super) fn routes(routes: Routes) -> Routes {
    let bytes = || json!({ "type": "string", "contentMediaType": "application/octet-stream" });
    let about = "Sends a picture that requests can then name; the same one again changes nothing";
    let send = pictures::TYPES
        .iter()
        .fold(Operation::new("inputs", about), |send, media_type| {
            send.body_of(media_type, bytes())
        });
    let send = send.answers(201, "It is on the disk", reference("Input"));
    let get = Operation::new("inputs", "A picture that was sent")
        .segment("id", schemas::input_id(), "Its name")
        .answers_with(200, "The file", "*/*", bytes());
    routes
        .post("/v1/inputs", send_input, send)
        .get("/v1/inputs/{id}", input_file, get)
}

async fn send_input(
    State(app): State<App>,
    asked: Asked,
    PictureFile(bytes, turn): PictureFile,
) -> Result<Response, Refusal> {
    asked.done()?;
    app.blocking(move |app| {
        let input = pictures::keep(app, "body", &bytes, app.now())?;
        drop(turn);
        let body = json!({
            "input": input.to_string(),
            "media_type": pictures::media_type(&bytes),
            "bytes": bytes.len(),
        });
        let mut response = answer::json(StatusCode::CREATED, &body);
        if let Ok(place) = HeaderValue::from_str(&format!("/v1/inputs/{input}")) {
            response.headers_mut().insert(header::LOCATION, place);
        }
        Ok(response)
    })
    .await
}

async fn input_file(
    State(app): State<App>,
    Segment(text): Segment,
    asked: Asked,
) -> Result<Response, Refusal> {
    asked.done()?;
    // From here on it is 32 bytes: no text of a client's becomes part of a path.
    let input: InputId = text
        .parse()
        .map_err(|_| Refusal::not_found("this is not an input's name"))?;
    let bytes = app
        .blocking(move |app| Ok(app.inputs.read(input, app.options.input_max.0)?))
        .await?;
    let media_type = pictures::media_type(&bytes).unwrap_or("application/octet-stream");
    let mut response = file(media_type, bytes, &format!("input-{}", input.digits()));
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, FOR_EVER);
    Ok(response)
}
