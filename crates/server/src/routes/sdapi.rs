//! Pictures as clients of the Stable Diffusion web UI ask for them, under `/sdapi/v1`. A dialect: it translates to jobs
//! and back, and decides nothing. What a client sends and this service has no meaning for is refused by name, unless it
//! says what is so anyway.

mod drawing;
mod extras;
mod lists;
mod picture;
mod state;
mod translate;

use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::Routes;
use crate::openapi::{Operation, reference};
use crate::refusal::Refusal;

pub(crate) use state::Desktop;

pub(super) fn routes(mut routes: Routes) -> Routes {
    routes = drawing::routes(routes);
    routes = extras::routes(routes);
    routes = state::routes(routes);
    routes = picture::routes(routes);
    lists::routes(routes)
}

/// One of these routes, before it is said what it answers.
fn operation(summary: &'static str) -> Operation {
    Operation::new("sdapi", summary).errors("SdError")
}

/// One that answers an object.
fn object(summary: &'static str) -> Operation {
    operation(summary).answers(200, "It", json!({ "type": "object" }))
}

/// One that takes an object and answers one.
fn exchange(summary: &'static str, body: &str) -> Operation {
    operation(summary)
        .body(reference(body))
        .answers(200, "It", json!({ "type": "object" }))
}

/// A refusal as the web UI writes it.
struct Foreign(Refusal);

impl From<Refusal> for Foreign {
    fn from(refusal: Refusal) -> Foreign {
        Foreign(refusal)
    }
}

impl IntoResponse for Foreign {
    fn into_response(self) -> Response {
        let Foreign(refusal) = self;
        let message = refusal.message();
        // `detail` is what its clients show, `errors` what some of them show instead.
        let body: Value = json!({
            "error": refusal.code(), "detail": message, "body": "", "errors": message,
        });
        refusal.with_body(body)
    }
}
