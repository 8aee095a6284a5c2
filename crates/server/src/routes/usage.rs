//! What holders of keys used.

use axum::extract::State;
use axum::response::Response;
use lowtide_jobs::{AccessKey, Usage};
use serde_json::{Value, json};

use super::Routes;
use crate::answer;
use crate::app::App;
use crate::incoming::Asked;
use crate::openapi::Operation;
use crate::refusal::Refusal;

pub(super) fn routes(routes: Routes) -> Routes {
    let usage = Operation::new(
        "service",
        "What the holder of the key used, and may; of an admin's key, what everybody did",
    )
    .answers(200, "By name", schema());
    routes.get("/v1/usage", usage_now, usage)
}

fn schema() -> Value {
    let count = || json!({ "type": "integer", "minimum": 0 });
    let or_null = |mut schema: Value| {
        schema["type"] = json!([schema["type"], "null"]);
        schema
    };
    let text = || json!({ "type": "string" });
    let flag = || json!({ "type": "boolean" });
    let object = |properties: Value| json!({ "type": "object", "properties": properties });
    let key = object(json!({
        "key": text(), "admin": flag(), "ends_ms": or_null(count()), "per_minute": or_null(count()),
        "waiting_max": or_null(count()), "running_max": or_null(count()), "priority_max": or_null(text()),
    }));
    let name = object(json!({
        "name": text(), "submitted": count(), "done": count(), "failed": count(), "cancelled": count(),
        "files": count(), "work_s": { "type": "number" }, "waiting": count(), "running": count(),
        "keys": { "type": "array", "items": key },
    }));
    let me = object(json!({ "name": text(), "key": text(), "admin": flag() }));
    object(json!({ "me": or_null(me), "names": { "type": "array", "items": name } }))
}

async fn usage_now(State(app): State<App>, asked: Asked) -> Result<Response, Refusal> {
    asked.done()?;
    app.blocking(|app| {
        let (caller, now) = (app.caller(), app.now());
        let all = app.store.usage()?;
        let keys = app.access.keys().unwrap_or_default();
        let seen = all
            .iter()
            .filter(|usage| caller.may_see(Some(&usage.owner)));
        let names: Vec<Value> = seen
            .map(|usage| {
                let of_name = keys.iter().filter(|key| key.name == usage.owner);
                let open: Vec<&AccessKey> = of_name.filter(|key| key.check(now).is_ok()).collect();
                view(usage, &open)
            })
            .collect();
        let me = caller
            .key()
            .map(|key| json!({ "name": key.name, "key": key.id, "admin": key.admin }));
        Ok(answer::ok(&json!({ "me": me, "names": names })))
    })
    .await
}

/// What one name used, and what its keys may.
fn view(usage: &Usage, keys: &[&AccessKey]) -> Value {
    let keys: Vec<Value> = keys
        .iter()
        .map(|key| {
            json!({
                "key": key.id, "admin": key.admin, "ends_ms": key.ends.map(|at| at.0),
                "per_minute": key.limits.per_minute, "waiting_max": key.limits.waiting,
                "running_max": key.limits.running,
                "priority_max": key.limits.priority.map(|priority| priority.name()),
            })
        })
        .collect();
    json!({
        "name": usage.owner,
        "submitted": usage.submitted, "done": usage.done, "failed": usage.failed, "cancelled": usage.cancelled,
        "files": usage.artifacts, "work_s": usage.worked_ms as f64 / 1e3,
        "waiting": usage.waiting, "running": usage.running,
        "keys": keys,
    })
}
