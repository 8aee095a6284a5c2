//! Pictures from pictures, as OpenAI's clients ask for them: a form with files, or JSON with data URLs.

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::header;
use futures_util::stream;
use serde_json::{Map, Value, json};

use crate::Refused;
use crate::app::{App, Inner};
use crate::fields::wrong;
use crate::incoming::{Turn, essence, parse, read_long};
use crate::pictures;
use crate::refusal::Refusal;

/// Most parts of a form.
const PARTS_MAX: usize = 64;

/// Fields of a form that are numbers.
const NUMBERS: [&str; 6] = [
    "n",
    "seed",
    "steps",
    "guidance",
    "strength",
    "output_compression",
];

/// Where nobody says how much of what can be seen through changes: all of it, as OpenAI does it.
const MASKED_STRENGTH: f64 = 1.0;

/// A request for an edit: its fields, and its files.
pub(super) struct Edit {
    pub(super) fields: Map<String, Value>,
    /// By field, `image` or `mask`.
    files: Vec<(&'static str, Vec<u8>)>,
    /// Held until the files are stored.
    turn: Turn,
}

impl FromRequest<App> for Edit {
    type Rejection = Refusal;

    async fn from_request(request: Request, app: &App) -> Result<Edit, Refusal> {
        let (parts, body) = request.into_parts();
        let form = match essence(&parts.headers).as_deref() {
            Some("application/json") => false,
            Some("multipart/form-data") => true,
            found => {
                return Err(Refusal::UnsupportedMediaType {
                    expected: "a form (multipart/form-data) or JSON",
                    found: found.map(str::to_owned),
                });
            }
        };
        let (bytes, turn) = read_long(body, &parts.headers, app, 2).await?;
        let (fields, files) = match form {
            false => of_json(app, parse(&bytes)?)?,
            true => {
                let content_type = parts.headers.get(header::CONTENT_TYPE);
                let content_type = content_type.and_then(|value| value.to_str().ok());
                of_form(bytes, content_type.unwrap_or_default()).await?
            }
        };
        Ok(Edit {
            fields,
            files,
            turn,
        })
    }
}

type Read = (Map<String, Value>, Vec<(&'static str, Vec<u8>)>);

fn broken(error: &multer::Error) -> Refusal {
    Refusal::Malformed {
        field: None,
        problem: format!("the form cannot be read: {error}"),
    }
}

async fn of_form(bytes: Bytes, content_type: &str) -> Result<Read, Refusal> {
    let boundary = multer::parse_boundary(content_type).map_err(|error| broken(&error))?;
    let whole = stream::iter([Ok::<_, std::convert::Infallible>(bytes)]);
    let mut form = multer::Multipart::new(whole, boundary);
    let (mut fields, mut files) = (Map::new(), Vec::new());
    for _ in 0..PARTS_MAX {
        let Some(part) = form.next_field().await.map_err(|error| broken(&error))? else {
            return Ok((fields, files));
        };
        let name = part.name().unwrap_or_default().to_owned();
        let content = part.bytes().await.map_err(|error| broken(&error))?;
        if let Some(field) = picture_field(&name) {
            files.push((field, content.to_vec()));
            continue;
        }
        let text = String::from_utf8(content.into()).map_err(|_| {
            Refusal::malformed(name.chars().take(40).collect::<String>(), "it is no UTF-8")
        })?;
        if fields.contains_key(&name) {
            return Err(Refusal::malformed(name, "it is there twice"));
        }
        let value = typed(&name, text)?;
        fields.insert(name, value);
    }
    Err(Refusal::Malformed {
        field: None,
        problem: format!("the form has more than {PARTS_MAX} parts"),
    })
}

fn picture_field(name: &str) -> Option<&'static str> {
    match name {
        "image" | "image[]" => Some("image"),
        "mask" => Some("mask"),
        _ => None,
    }
}

/// A form has texts only.
fn typed(name: &str, text: String) -> Result<Value, Refusal> {
    if name == "stream" {
        return match text.as_str() {
            "true" => Ok(json!(true)),
            "false" | "" => Ok(json!(false)),
            _ => Err(Refusal::malformed(name, "true or false is needed")),
        };
    }
    if !NUMBERS.contains(&name) {
        return Ok(json!(text));
    }
    match serde_json::from_str::<serde_json::Number>(text.trim()) {
        Ok(number) => Ok(Value::Number(number)),
        Err(_) => Err(Refusal::malformed(name, "a number is needed")),
    }
}

fn of_json(app: &Inner, body: Value) -> Result<Read, Refusal> {
    let Value::Object(mut fields) = body else {
        return Err(wrong("body", "an object", &body));
    };
    let mut files = Vec::new();
    for (theirs, ours) in [("image", "image"), ("images", "image"), ("mask", "mask")] {
        let all = match fields.remove(theirs) {
            None | Some(Value::Null) => continue,
            Some(Value::Array(all)) => all,
            Some(one) => vec![one],
        };
        for one in all {
            let url = match &one {
                Value::Object(object) => object.get("image_url").unwrap_or(&Value::Null),
                plain => plain,
            };
            let url = url
                .as_str()
                .ok_or_else(|| wrong(theirs, "a data:image/...;base64, URL", &one))?;
            files.push((ours, pictures::content(app, theirs, url)?));
        }
    }
    Ok((fields, files))
}

impl Edit {
    /// Stores the pictures, and gives the fields that stand for them in a request of ours.
    ///
    /// # Errors
    /// Where there is not one picture and at most one mask, or one of them is none.
    pub(super) fn settle(self, app: &Inner) -> Result<(Map<String, Value>, Begun), Refusal> {
        let now = app.now();
        let mut files = self.files;
        let mut take = |field| {
            let at = files.iter().position(|(name, _)| *name == field)?;
            Some(files.remove(at).1)
        };
        let image = take("image")
            .ok_or_else(|| Refusal::invalid("image", "a picture is needed to begin from"))?;
        let mask = take("mask");
        if let Some((field, _)) = files.first() {
            return Err(Refusal::invalid(
                *field,
                "there may be one; several are sent",
            ));
        }
        let input = pictures::keep(app, "image", &image, now)?;
        let seen_through = |field: &'static str, file: &[u8]| {
            let found = app.door.mask_of(file);
            found.map_err(|refused| match refused {
                Refused::Invalid { problem, .. } => Refusal::invalid(field, problem),
                other => other.into(),
            })
        };
        let mask = match &mask {
            None => seen_through("image", &image)?,
            Some(file) => {
                pictures::media_type(file)
                    .ok_or_else(|| Refusal::invalid("mask", "it is no PNG, JPEG or WebP"))?;
                let mask = seen_through("mask", file)?;
                Some(mask.ok_or_else(|| {
                    let problem = "it can be seen through nowhere, so that nothing would change";
                    Refusal::invalid("mask", problem)
                })?)
            }
        };
        let mask = mask
            .map(|file| pictures::keep(app, "mask", &file, now))
            .transpose()?;
        drop(self.turn);
        let begun = Begun {
            image: input.to_string(),
            mask: mask.map(|mask| mask.to_string()),
        };
        Ok((self.fields, begun))
    }
}

/// Names of the pictures that an edit begins from.
pub(super) struct Begun {
    image: String,
    mask: Option<String>,
}

impl Begun {
    /// As fields of a request.
    pub(super) fn fields(self) -> Vec<(&'static str, Value)> {
        let mut fields = vec![("image", json!(self.image))];
        if let Some(mask) = self.mask {
            fields.push(("mask", json!(mask)));
            fields.push(("strength", json!(MASKED_STRENGTH)));
        }
        fields
    }
}
