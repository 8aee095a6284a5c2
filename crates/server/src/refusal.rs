//! Why a request is not carried out, and how that is said: one enum, one place that knows status codes.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use lowtide_jobs::StoreError;
use serde_json::{Map, Value};

use crate::Refused;
use crate::access;
use crate::answer::json;

/// Why a request is not carried out.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Refusal {
    /// The request cannot be read: 400.
    Malformed {
        field: Option<String>,
        problem: String,
    },
    /// It can be read and says something that cannot be: 422.
    Invalid {
        field: Option<String>,
        problem: String,
    },
    /// No rung of the ladder fits: 422.
    DoesNotFit {
        sentence: String,
        needed: u64,
        budget: u64,
        smallest: u64,
    },
    /// There is no key, or one that opens nothing: 401.
    Unauthorized { problem: String },
    /// The key's requests come too fast: 429.
    TooOften {
        limit: u32,
        retry_after_s: u64,
        reset_s: u64,
    },
    /// As many jobs of the key wait as may: 429.
    QuotaReached {
        waiting: u64,
        limit: u64,
        retry_after_s: u64,
    },
    /// Host or origin is none of ours, or the key is not for this: 403.
    Forbidden { problem: String },
    /// There is no such thing: 404. `known`: what there is.
    NotFound { problem: String, known: Vec<String> },
    /// The path knows other methods: 405.
    MethodNotAllowed { method: String },
    /// It came too slowly: 408.
    TooSlow { problem: String },
    /// It does not go with how things are: 409.
    Conflict {
        problem: String,
        numbers: Map<String, Value>,
    },
    /// It was there once: 410.
    Gone { problem: String },
    /// Longer than allowed: 413.
    TooLarge { field: &'static str, limit: u64 },
    /// Not of the type that is needed: 415.
    UnsupportedMediaType {
        expected: &'static str,
        found: Option<String>,
    },
    /// The bounded queue has no room: 429.
    QueueFull {
        waiting: u64,
        limit: u64,
        retry_after_s: u64,
    },
    /// Something that is needed is not there now: 503.
    Unavailable { problem: String },
    /// Our fault: 500.
    Internal { problem: String },
}

/// What a client does not learn by itself from a path in an answer stays in the operator's store.
const STORE_TROUBLE: &str = "the store of jobs";

impl Refusal {
    /// One about a field of the request.
    pub(crate) fn invalid(field: impl Into<String>, problem: impl Into<String>) -> Refusal {
        Refusal::Invalid {
            field: Some(field.into()),
            problem: problem.into(),
        }
    }

    /// Says where the field is.
    pub(crate) fn within(self, place: &str) -> Refusal {
        match self {
            Refusal::Invalid { field, problem } => Refusal::Invalid {
                field: Some(match field {
                    Some(field) => format!("{place}.{field}"),
                    None => place.to_owned(),
                }),
                problem,
            },
            other => other,
        }
    }

    /// One about a part of the address.
    pub(crate) fn malformed(field: impl Into<String>, problem: impl Into<String>) -> Refusal {
        Refusal::Malformed {
            field: Some(field.into()),
            problem: problem.into(),
        }
    }

    /// There is no such thing.
    pub(crate) fn not_found(problem: impl Into<String>) -> Refusal {
        Refusal::NotFound {
            problem: problem.into(),
            known: Vec::new(),
        }
    }

    /// It does not go with how things are.
    pub(crate) fn conflict(problem: impl Into<String>) -> Refusal {
        Refusal::Conflict {
            problem: problem.into(),
            numbers: Map::new(),
        }
    }

    /// The HTTP status.
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Refusal::Malformed { .. } => StatusCode::BAD_REQUEST,
            Refusal::Invalid { .. } | Refusal::DoesNotFit { .. } => {
                StatusCode::UNPROCESSABLE_ENTITY
            }
            Refusal::Unauthorized { .. } => StatusCode::UNAUTHORIZED,
            Refusal::Forbidden { .. } => StatusCode::FORBIDDEN,
            Refusal::NotFound { .. } => StatusCode::NOT_FOUND,
            Refusal::MethodNotAllowed { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Refusal::TooSlow { .. } => StatusCode::REQUEST_TIMEOUT,
            Refusal::Conflict { .. } => StatusCode::CONFLICT,
            Refusal::Gone { .. } => StatusCode::GONE,
            Refusal::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Refusal::UnsupportedMediaType { .. } => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Refusal::QueueFull { .. } | Refusal::TooOften { .. } | Refusal::QuotaReached { .. } => {
                StatusCode::TOO_MANY_REQUESTS
            }
            Refusal::Unavailable { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Refusal::Internal { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The word for programs.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Refusal::Malformed { .. } | Refusal::Invalid { .. } => "invalid_request",
            Refusal::DoesNotFit { .. } => "does_not_fit",
            Refusal::Unauthorized { .. } => "unauthorized",
            Refusal::Forbidden { .. } => "forbidden",
            Refusal::NotFound { .. } => "not_found",
            Refusal::MethodNotAllowed { .. } => "method_not_allowed",
            Refusal::TooSlow { .. } => "too_slow",
            Refusal::Conflict { .. } => "conflict",
            Refusal::Gone { .. } => "gone",
            Refusal::TooLarge { .. } => "too_large",
            Refusal::UnsupportedMediaType { .. } => "unsupported_media_type",
            Refusal::QueueFull { .. } => "queue_full",
            Refusal::TooOften { .. } => "rate_limited",
            Refusal::QuotaReached { .. } => "quota_reached",
            Refusal::Unavailable { .. } => "unavailable",
            Refusal::Internal { .. } => "internal",
        }
    }

    /// The sentence.
    pub(crate) fn message(&self) -> String {
        match self {
            Refusal::Malformed { field, problem } | Refusal::Invalid { field, problem } => {
                match field {
                    Some(field) => format!("{field}: {problem}"),
                    None => problem.clone(),
                }
            }
            Refusal::NotFound { problem, known } if !known.is_empty() => {
                format!("{problem}; there is {}", known.join(", "))
            }
            Refusal::Unauthorized { problem }
            | Refusal::Forbidden { problem }
            | Refusal::NotFound { problem, .. }
            | Refusal::TooSlow { problem }
            | Refusal::Conflict { problem, .. }
            | Refusal::Gone { problem }
            | Refusal::Unavailable { problem }
            | Refusal::Internal { problem } => problem.clone(),
            Refusal::DoesNotFit { sentence, .. } => sentence.clone(),
            Refusal::MethodNotAllowed { method } => {
                format!("{method} is not for this path: see Allow")
            }
            Refusal::TooLarge { field, limit } => format!("{field} is longer than {limit} bytes"),
            Refusal::UnsupportedMediaType { expected, found } => match found {
                Some(found) => format!("the body has to be {expected}, not {found}"),
                None => format!("the body has to be {expected}"),
            },
            Refusal::QueueFull {
                waiting,
                limit,
                retry_after_s,
            } => {
                format!("{waiting} jobs wait and {limit} may; try again in {retry_after_s} s")
            }
            Refusal::TooOften {
                limit,
                retry_after_s,
                ..
            } => {
                format!("this key may ask {limit} times a minute; try again in {retry_after_s} s")
            }
            Refusal::QuotaReached {
                waiting,
                limit,
                retry_after_s,
            } => format!(
                "{waiting} jobs of this key wait and {limit} may; try again in {retry_after_s} s"
            ),
        }
    }

    /// The field it is about.
    pub(crate) fn field(&self) -> Option<&str> {
        match self {
            Refusal::Malformed { field, .. } | Refusal::Invalid { field, .. } => field.as_deref(),
            Refusal::TooLarge { field, .. } => Some(field),
            Refusal::DoesNotFit { .. }
            | Refusal::Unauthorized { .. }
            | Refusal::TooOften { .. }
            | Refusal::QuotaReached { .. }
            | Refusal::Forbidden { .. }
            | Refusal::NotFound { .. }
            | Refusal::MethodNotAllowed { .. }
            | Refusal::TooSlow { .. }
            | Refusal::Conflict { .. }
            | Refusal::Gone { .. }
            | Refusal::UnsupportedMediaType { .. }
            | Refusal::QueueFull { .. }
            | Refusal::Unavailable { .. }
            | Refusal::Internal { .. } => None,
        }
    }

    fn numbers(&self) -> Map<String, Value> {
        let numbers = match self {
            Refusal::DoesNotFit {
                needed,
                budget,
                smallest,
                ..
            } => {
                serde_json::json!({ "needed_bytes": needed, "budget_bytes": budget, "smallest_bytes": smallest })
            }
            Refusal::NotFound { known, .. } if !known.is_empty() => {
                serde_json::json!({ "known": known })
            }
            Refusal::TooLarge { limit, .. } => serde_json::json!({ "limit": limit }),
            Refusal::QueueFull {
                waiting,
                limit,
                retry_after_s,
            } => {
                serde_json::json!({ "waiting": waiting, "limit": limit, "retry_after_s": retry_after_s })
            }
            Refusal::QuotaReached {
                waiting,
                limit,
                retry_after_s,
            } => {
                serde_json::json!({ "waiting": waiting, "limit": limit, "retry_after_s": retry_after_s })
            }
            Refusal::TooOften {
                limit,
                retry_after_s,
                reset_s,
            } => {
                serde_json::json!({ "limit": limit, "retry_after_s": retry_after_s, "reset_s": reset_s })
            }
            Refusal::Conflict { numbers, .. } => return numbers.clone(),
            Refusal::Unauthorized { .. }
            | Refusal::Malformed { .. }
            | Refusal::Invalid { .. }
            | Refusal::NotFound { .. }
            | Refusal::Forbidden { .. }
            | Refusal::MethodNotAllowed { .. }
            | Refusal::TooSlow { .. }
            | Refusal::Gone { .. }
            | Refusal::UnsupportedMediaType { .. }
            | Refusal::Unavailable { .. }
            | Refusal::Internal { .. } => return Map::new(),
        };
        match numbers {
            Value::Object(numbers) => numbers,
            _ => Map::new(),
        }
    }

    /// The answer with this body, and the headers that go with the status.
    pub(crate) fn with_body(&self, body: Value) -> Response {
        let mut response = json(self.status(), &body);
        let headers = response.headers_mut();
        match self {
            Refusal::QueueFull { retry_after_s, .. }
            | Refusal::QuotaReached { retry_after_s, .. } => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from(*retry_after_s));
            }
            Refusal::TooOften {
                limit,
                retry_after_s,
                reset_s,
            } => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from(*retry_after_s));
                access::tell_rate(headers, (*limit, 0, *reset_s));
            }
            // Not Basic, which is taken as well: a browser would ask for a name and a password in a window of its own.
            Refusal::Unauthorized { .. } => {
                let challenge = HeaderValue::from_static("Bearer realm=\"lowtide\"");
                headers.insert(header::WWW_AUTHENTICATE, challenge);
            }
            _ => {}
        }
        // What is left of such a request will not be read.
        if matches!(self, Refusal::TooSlow { .. } | Refusal::TooLarge { .. }) {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    /// As JSON.
    pub(crate) fn body(&self) -> Value {
        let mut error = Map::new();
        error.insert("code".to_owned(), serde_json::json!(self.code()));
        error.insert("message".to_owned(), serde_json::json!(self.message()));
        if let Some(field) = self.field() {
            error.insert("field".to_owned(), serde_json::json!(field));
        }
        error.extend(self.numbers());
        serde_json::json!({ "error": error })
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        self.with_body(self.body())
    }
}

/// As many jobs of an owner wait as may.
fn quota_reached(error: &StoreError) -> Refusal {
    match *error {
        StoreError::OwnerFull {
            waiting,
            limit,
            retry_after_ms,
            ..
        } => Refusal::QuotaReached {
            waiting,
            limit,
            retry_after_s: retry_after_ms.div_ceil(1000).max(1),
        },
        _ => Refusal::Internal {
            problem: format!("{error}; this is a bug"),
        },
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Refusal {
        let sentence = error.to_string();
        match error {
            StoreError::NotFound { .. } | StoreError::NoCommand { .. } => {
                Refusal::not_found(sentence)
            }
            StoreError::Conflict { existing, .. } => Refusal::Conflict {
                problem: sentence,
                numbers: Map::from_iter([(
                    "existing".to_owned(),
                    serde_json::json!(existing.to_string()),
                )]),
            },
            StoreError::QueueFull {
                waiting,
                limit,
                retry_after_ms,
            } => Refusal::QueueFull {
                waiting,
                limit,
                retry_after_s: retry_after_ms.div_ceil(1000).max(1),
            },
            StoreError::OwnerFull { .. } => quota_reached(&error),
            StoreError::TooLarge { field, limit, .. } => Refusal::TooLarge { field, limit },
            StoreError::Invalid { field, reason } => {
                Refusal::invalid(field.replace(' ', "_"), reason)
            }
            StoreError::NotClaimable { .. }
            | StoreError::WrongState { .. }
            | StoreError::LeaseLost { .. } => Refusal::conflict(sentence),
            StoreError::Busy { waited_ms, .. } => Refusal::Unavailable {
                problem: format!(
                    "{STORE_TROUBLE} is busy: another process has been writing for {waited_ms} ms"
                ),
            },
            StoreError::Unreachable { reason, .. } => Refusal::Unavailable {
                problem: format!(
                    "{STORE_TROUBLE} is unreachable: {reason}; nothing is lost, and it is tried again all the time"
                ),
            },
            StoreError::Denied { reason, .. } => Refusal::Unavailable {
                problem: format!("{STORE_TROUBLE} will not do: {reason}"),
            },
            StoreError::NoRoom { .. } => Refusal::Unavailable {
                problem: format!("{STORE_TROUBLE} has no room left on its disk"),
            },
            StoreError::Closed => Refusal::Unavailable {
                problem: format!("{STORE_TROUBLE} is closed"),
            },
            StoreError::Io { verb, reason, .. } => Refusal::Internal {
                problem: format!("{STORE_TROUBLE} cannot {verb} a file: {reason}"),
            },
            StoreError::Corrupt { reason, .. } => Refusal::Internal {
                problem: format!("{STORE_TROUBLE} is damaged: {reason}"),
            },
            StoreError::Foreign { .. } | StoreError::TooNew { .. } => Refusal::Internal {
                problem: format!("{STORE_TROUBLE} is of another program or version"),
            },
            StoreError::Database { reason, .. } => Refusal::Internal {
                problem: format!("{STORE_TROUBLE}: {reason}; this is a bug"),
            },
            StoreError::ArtifactMissing { .. } => Refusal::Gone { problem: sentence },
            StoreError::ArtifactDamaged { .. } | StoreError::InputDamaged { .. } => {
                Refusal::Internal { problem: sentence }
            }
            StoreError::InputMissing { .. } => Refusal::not_found(sentence),
            StoreError::InputsFull { .. } => Refusal::Unavailable { problem: sentence },
        }
    }
}

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Refusal {
        match refused {
            Refused::UnknownKind { kind, known } => Refusal::NotFound {
                problem: format!("there is no kind of job '{kind}'"),
                known,
            },
            Refused::UnknownModel { model, known } => Refusal::NotFound {
                problem: format!("there is no model '{model}' for this kind of job"),
                known,
            },
            Refused::NotHere { model, problem } => {
                Refusal::not_found(format!("the model '{model}' is not here: {problem}"))
            }
            Refused::Invalid { field, problem } => Refusal::invalid(field, problem),
            Refused::DoesNotFit {
                sentence,
                needed,
                budget,
                smallest,
            } => Refusal::DoesNotFit {
                sentence,
                needed: needed.0,
                budget: budget.0,
                smallest: smallest.0,
            },
            Refused::Broken { sentence } => Refusal::Internal { problem: sentence },
        }
    }
}
