//! The panel's files, as they are in the program.

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::app::App;

/// A file of the panel: its path, media type and content.
struct File {
    path: &'static str,
    media_type: &'static str,
    content: &'static [u8],
}

macro_rules! files {
    ($($path:literal as $media_type:literal,)*) => {
        [$(File {
            path: $path,
            media_type: $media_type,
            content: include_bytes!(concat!("../../panel/", $path)),
        },)*]
    };
}

/// All of them. A test compares the list with the folder.
static FILES: &[File] = &files![
    "index.html" as "text/html; charset=utf-8",
    "icon.svg" as "image/svg+xml",
    "panel.css" as "text/css; charset=utf-8",
    "parts.css" as "text/css; charset=utf-8",
    "api.js" as "text/javascript; charset=utf-8",
    "begin.js" as "text/javascript; charset=utf-8",
    "downloads.js" as "text/javascript; charset=utf-8",
    "dom.js" as "text/javascript; charset=utf-8",
    "drawing.js" as "text/javascript; charset=utf-8",
    "enlarge.js" as "text/javascript; charset=utf-8",
    "explain.js" as "text/javascript; charset=utf-8",
    "gallery.js" as "text/javascript; charset=utf-8",
    "key.js" as "text/javascript; charset=utf-8",
    "jobs.js" as "text/javascript; charset=utf-8",
    "machine.js" as "text/javascript; charset=utf-8",
    "make.js" as "text/javascript; charset=utf-8",
    "mask.js" as "text/javascript; charset=utf-8",
    "memory.js" as "text/javascript; charset=utf-8",
    "models.js" as "text/javascript; charset=utf-8",
    "panel.js" as "text/javascript; charset=utf-8",
    "png.js" as "text/javascript; charset=utf-8",
    "queue.js" as "text/javascript; charset=utf-8",
    "stage.js" as "text/javascript; charset=utf-8",
    "steps.js" as "text/javascript; charset=utf-8",
    "words.js" as "text/javascript; charset=utf-8",
    "words/en.json" as "application/json",
    "words/ru.json" as "application/json",
    "words/zh-Hans.json" as "application/json",
    "words/zh-Hant.json" as "application/json",
];

/// The panel talks to its own server, shows pictures it fetched or was given, and runs nothing from elsewhere.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; \
     connect-src 'self'; font-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
);

/// Asked for again each time, answered with nothing where it is the same.
const ASK_AGAIN: HeaderValue = HeaderValue::from_static("no-cache");

/// Routes of the panel. They are no part of the described interface.
pub(super) fn routes(mut router: Router<App>) -> Router<App> {
    for file in FILES {
        let handler = move |State(app): State<App>, headers: HeaderMap| async move {
            respond(&app, file, &headers)
        };
        router = router.route(&format!("/panel/{}", file.path), get(handler));
        if file.path == "index.html" {
            router = router.route("/", get(handler));
        }
    }
    router
}

fn respond(app: &App, file: &'static File, headers: &HeaderMap) -> Response {
    let tag = format!("\"{}-{:x}\"", app.options.version, digest(file.content));
    let known = headers
        .get(header::IF_NONE_MATCH)
        .is_some_and(|value| value.as_bytes() == tag.as_bytes());
    let mut response = match known {
        true => StatusCode::NOT_MODIFIED.into_response(),
        false => {
            crate::answer::with_type(StatusCode::OK, file.media_type, Body::from(file.content))
        }
    };
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, POLICY);
    headers.insert(header::CACHE_CONTROL, ASK_AGAIN);
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        headers.insert(header::ETAG, tag);
    }
    response
}

/// FNV-1a: tells one version of a file from the next.
fn digest(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    fn walk(folder: &Path, prefix: &str, found: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let name = format!("{prefix}{}", entry.file_name().into_string().unwrap());
            if entry.file_type().unwrap().is_dir() {
                walk(&entry.path(), &format!("{name}/"), found);
            } else {
                found.insert(name);
            }
        }
    }

    #[test]
    fn every_file_of_the_folder_is_in_the_program() {
        let mut found = BTreeSet::new();
        walk(
            &Path::new(env!("CARGO_MANIFEST_DIR")).join("panel"),
            "",
            &mut found,
        );
        found.retain(|name| !name.ends_with(".md"));
        let listed: BTreeSet<String> = FILES.iter().map(|file| file.path.to_owned()).collect();
        assert_eq!(listed, found);
    }

    #[test]
    fn text_that_is_meant_to_run_is_typed() {
        for file in FILES {
            let ending = file.path.rsplit('.').next().unwrap();
            let expected = match ending {
                "html" => "text/html; charset=utf-8",
                "css" => "text/css; charset=utf-8",
                "js" => "text/javascript; charset=utf-8",
                "json" => "application/json",
                "svg" => "image/svg+xml",
                other => panic!("no type for {other}"),
            };
            assert_eq!(file.media_type, expected, "{}", file.path);
        }
    }
}
