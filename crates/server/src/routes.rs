//! Every route, once: the router and the description are both made from this list.

mod artifacts;
mod catalog;
mod comfy;
mod downloads;
mod events;
mod explain;
mod gpu;
mod health;
mod inputs;
mod jobs;
mod metrics;
mod openai;
mod orders;
mod panel;
mod queue;
mod sdapi;
mod submit;
mod usage;
mod waiting;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::handler::Handler;
use axum::response::Response;
use axum::routing::{MethodFilter, on};
use serde_json::{Map, Value, json};

use crate::access;
use crate::answer;
use crate::app::App;
use crate::guard;
use crate::openapi::{self, Operation};
use crate::refusal::Refusal;

pub(crate) use comfy::Board;
pub(crate) use sdapi::Desktop;
pub(crate) use submit::KIND_DEFAULT;

/// Routes and what is said of them.
pub(crate) struct Routes {
    router: Router<App>,
    paths: Map<String, Value>,
}

impl Routes {
    fn add<H, T>(
        mut self,
        (filter, method): (MethodFilter, &str),
        path: &str,
        handler: H,
        operation: Operation,
    ) -> Routes
    where
        H: Handler<T, App>,
        T: 'static,
    {
        let mut route = on(filter, handler);
        if operation.is_admin() {
            route = route.layer(axum::middleware::from_fn(access::admin_only));
        }
        self.router = self.router.route(path, route);
        let entry = self.paths.entry(path).or_insert_with(|| json!({}));
        let mut described = operation.described();
        described["operationId"] = json!(operation_id(method, path));
        entry[method] = described;
        self
    }

    pub(crate) fn get<H: Handler<T, App>, T: 'static>(
        self,
        path: &str,
        handler: H,
        operation: Operation,
    ) -> Routes {
        self.add((MethodFilter::GET, "get"), path, handler, operation)
    }

    pub(crate) fn post<H: Handler<T, App>, T: 'static>(
        self,
        path: &str,
        handler: H,
        operation: Operation,
    ) -> Routes {
        self.add((MethodFilter::POST, "post"), path, handler, operation)
    }

    pub(crate) fn delete<H: Handler<T, App>, T: 'static>(
        self,
        path: &str,
        handler: H,
        operation: Operation,
    ) -> Routes {
        self.add((MethodFilter::DELETE, "delete"), path, handler, operation)
    }
}

fn operation_id(method: &str, path: &str) -> String {
    let words = path
        .split(|letter: char| !letter.is_alphanumeric())
        .filter(|word| !word.is_empty());
    words.fold(method.to_owned(), |id, word| format!("{id}_{word}"))
}

/// The list.
fn all(app: &App) -> Routes {
    let mut routes = Routes {
        router: Router::new(),
        paths: Map::new(),
    };
    routes = submit::routes(routes);
    routes = jobs::routes(routes);
    routes = events::routes(routes);
    routes = artifacts::routes(routes);
    routes = inputs::routes(routes);
    routes = catalog::routes(routes);
    routes = orders::routes(routes);
    routes = downloads::routes(routes);
    routes = queue::routes(routes);
    routes = gpu::routes(routes);
    routes = explain::routes(routes);
    routes = health::routes(routes);
    routes = metrics::routes(routes);
    routes = usage::routes(routes);
    if app.options.openai {
        routes = openai::routes(routes);
    }
    if app.options.sdapi {
        routes = sdapi::routes(routes);
    }
    if app.options.comfyui {
        routes = comfy::routes(routes);
    }
    routes.get(
        "/openapi.json",
        description,
        Operation::new("service", "This description").answers(
            200,
            "OpenAPI 3.1",
            json!({ "type": "object" }),
        ),
    )
}

/// Everything the server answers.
pub(crate) fn router(app: &App) -> Router {
    let Routes { mut router, paths } = all(app);
    app.openapi
        .get_or_init(|| openapi::document(app, &paths).to_string());
    if app.options.panel {
        router = panel::routes(router);
    }
    router
        .fallback(nowhere)
        .method_not_allowed_fallback(other_method)
        .layer(axum::middleware::from_fn_with_state(
            App::clone(app),
            guard::guard,
        ))
        .with_state(App::clone(app))
}

async fn description(State(app): State<App>) -> Response {
    let text = app.openapi.get().cloned().unwrap_or_default();
    answer::with_type(
        axum::http::StatusCode::OK,
        "application/json",
        Body::from(text),
    )
}

async fn nowhere(request: Request) -> Refusal {
    let path: String = request.uri().path().chars().take(200).collect();
    Refusal::not_found(format!("there is nothing at {path}: see /openapi.json"))
}

async fn other_method(request: Request) -> Refusal {
    Refusal::MethodNotAllowed {
        method: request.method().as_str().chars().take(20).collect(),
    }
}
