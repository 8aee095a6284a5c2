//! The description of the routes: made from the same list as the router, so that none is missing.

use serde_json::{Map, Value, json};

use crate::app::Inner;

/// What is said of one route.
pub(crate) struct Operation {
    tag: &'static str,
    summary: &'static str,
    parameters: Vec<Value>,
    body: Option<Value>,
    answers: Vec<(u16, Value)>,
    /// The schema of its errors.
    errors: &'static str,
    /// Whether it concerns everybody.
    admin: bool,
}

impl Operation {
    /// One that answers nothing yet.
    pub(crate) fn new(tag: &'static str, summary: &'static str) -> Operation {
        Operation {
            tag,
            summary,
            parameters: Vec::new(),
            body: None,
            answers: Vec::new(),
            errors: "Error",
            admin: false,
        }
    }

    /// Its errors are written as this schema has them.
    pub(crate) fn errors(mut self, schema: &'static str) -> Operation {
        self.errors = schema;
        self
    }

    /// It concerns everybody: where keys are needed, one of an admin is.
    pub(crate) fn admin(mut self) -> Operation {
        self.admin = true;
        self
    }

    /// Whether it concerns everybody.
    pub(crate) fn is_admin(&self) -> bool {
        self.admin
    }

    /// A parameter of the query.
    pub(crate) fn query(mut self, name: &str, schema: Value, about: &str) -> Operation {
        self.parameters
            .push(json!({ "name": name, "in": "query", "schema": schema, "description": about }));
        self
    }

    /// A header.
    pub(crate) fn header(mut self, name: &str, schema: Value, about: &str) -> Operation {
        self.parameters
            .push(json!({ "name": name, "in": "header", "schema": schema, "description": about }));
        self
    }

    /// The variable segment of the path.
    pub(crate) fn segment(mut self, name: &str, schema: Value, about: &str) -> Operation {
        self.parameters.push(
            json!({ "name": name, "in": "path", "required": true, "schema": schema, "description": about }),
        );
        self.refuses(&[404])
    }

    /// A body of JSON.
    pub(crate) fn body(mut self, schema: Value) -> Operation {
        self.body = Some(
            json!({ "required": true, "content": { "application/json": { "schema": schema } } }),
        );
        self.refuses(&[408, 413, 415, 422])
    }

    /// A body of another type.
    pub(crate) fn body_of(mut self, media_type: &str, schema: Value) -> Operation {
        let body = self.body.take();
        let mut body = body.unwrap_or_else(|| json!({ "required": true, "content": {} }));
        body["content"][media_type] = json!({ "schema": schema });
        self.body = Some(body);
        self.refuses(&[408, 413, 415, 422])
    }

    /// An answer of JSON.
    pub(crate) fn answers(self, status: u16, about: &str, schema: Value) -> Operation {
        self.answers_with(status, about, "application/json", schema)
    }

    /// An answer of another type.
    pub(crate) fn answers_with(
        mut self,
        status: u16,
        about: &str,
        media_type: &str,
        schema: Value,
    ) -> Operation {
        self.answers.push((
            status,
            json!({ "description": about, "content": { media_type: { "schema": schema } } }),
        ));
        self
    }

    /// An answer without a body.
    pub(crate) fn answers_nothing(mut self, status: u16, about: &str) -> Operation {
        self.answers.push((status, json!({ "description": about })));
        self
    }

    /// Errors it can answer with, beside those that every route can.
    pub(crate) fn refuses(mut self, statuses: &[u16]) -> Operation {
        for &status in statuses {
            self.answers.push((status, Value::Null));
        }
        self
    }

    /// As the standard wants it.
    pub(crate) fn described(mut self) -> Value {
        let schema = self.errors;
        self.answers
            .extend([400, 401, 403, 429, 500, 503].map(|status| (status, Value::Null)));
        let mut responses = Map::new();
        for (status, answer) in self.answers {
            let answer = match answer {
                Value::Null => error_answer(status, schema),
                other => other,
            };
            responses.entry(status.to_string()).or_insert(answer);
        }
        let mut operation =
            json!({ "tags": [self.tag], "summary": self.summary, "responses": responses });
        if !self.parameters.is_empty() {
            operation["parameters"] = Value::Array(self.parameters);
        }
        if let Some(body) = self.body {
            operation["requestBody"] = body;
        }
        operation
    }
}

fn error_answer(status: u16, schema: &str) -> Value {
    let about = match status {
        400 => "The request cannot be read.",
        401 => "A key is needed, and there is none or one that opens nothing.",
        403 => "The Host or the Origin is none that may, or the key is not for this.",
        404 => "There is no such thing.",
        408 => "The request came too slowly.",
        409 => "It does not go with how things are.",
        410 => "It was there once.",
        413 => "It is longer than allowed.",
        415 => "The body is not of the type that is needed.",
        422 => "It says something that cannot be; `field` names what.",
        429 => "The queue is full, or as much as the key may is used.",
        503 => "What is needed is not there now, or there are too many connections.",
        _ => "A fault of the service.",
    };
    let mut answer = json!({
        "description": about,
        "content": { "application/json": { "schema": reference(schema) } },
    });
    if status == 429 {
        answer["headers"] = json!({ "Retry-After": { "schema": { "type": "integer" }, "description": "Seconds." } });
    }
    answer
}

/// A schema by name.
pub(crate) fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

/// The whole description.
pub(crate) fn document(app: &Inner, paths: &Map<String, Value>) -> Value {
    let mut schemas = crate::schemas::all();
    for kind in &app.kinds {
        schemas.insert(kind_schema(&kind.name), kind.schema.clone());
    }
    let requests: Vec<Value> = app
        .kinds
        .iter()
        .map(|kind| reference(&kind_schema(&kind.name)))
        .collect();
    schemas.insert("Request".to_owned(), json!({ "anyOf": requests }));
    schemas.insert(
        "Submission".to_owned(),
        crate::schemas::submission(&app.kinds),
    );
    schemas.insert(
        "PlanRequest".to_owned(),
        crate::schemas::plan_request(&app.kinds),
    );
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Lowtide",
            "version": app.options.version,
            "description": "Generative media from a device that is too small for the models. Bytes are whole bytes, moments \
                milliseconds since the Unix epoch, durations seconds.",
            "license": { "name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0" },
        },
        "paths": paths,
        // Either is needed where the service has keys, and neither where it has none.
        "security": [{}, { "bearer": [] }, { "basic": [] }],
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "bearer": { "type": "http", "scheme": "bearer" },
                "basic": { "type": "http", "scheme": "basic", "description": "Any name; the key is the password." },
            },
        },
    })
}

/// The name of the schema of a kind's requests.
pub(crate) fn kind_schema(kind: &str) -> String {
    format!("Request-{kind}")
}
