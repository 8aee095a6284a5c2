//! What every request passes, whatever the route: who may ask, and what the answer tells a browser.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::access::{self, audit};
use crate::app::{App, Inner};
use crate::refusal::Refusal;

/// Nothing in an answer may do anything, unless the route says otherwise.
const POLICY: HeaderValue = HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'");

/// The address the server listens at, put into each request by the accept loop.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BoundTo(pub(crate) IpAddr);

/// Lets a request in or not, and counts it.
pub(crate) async fn guard(State(app): State<App>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().cloned();
    let origin = request.headers().get(header::ORIGIN).cloned();
    let mut response = match admit(&app, &request) {
        Err(refusal) => refusal.into_response(),
        Ok(Origin::Foreign) if is_preflight(&request) => preflight(),
        Ok(from) => {
            let mut response = ask(&app, request, next).await;
            if let (Origin::Foreign, Some(origin)) = (from, &origin) {
                response
                    .headers_mut()
                    .insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
            }
            response
        }
    };
    if response.status() == StatusCode::NO_CONTENT
        && let Some(origin) = origin
    {
        response
            .headers_mut()
            .entry(header::ACCESS_CONTROL_ALLOW_ORIGIN)
            .or_insert(origin);
    }
    let route = route.as_ref().map_or("other", MatchedPath::as_str);
    app.counters.answered(route, response.status().as_u16());
    protect(response.headers_mut());
    response
}

/// Has a request answered in the name of whoever sends it.
async fn ask(app: &App, mut request: Request, next: Next) -> Response {
    let knock = access::Knock::of(&request);
    let route = request.extensions().get::<MatchedPath>();
    let route = route.map_or("other", MatchedPath::as_str).to_owned();
    let path: Vec<&str> = request.uri().path().split('/').collect();
    let place = route.split('/').position(|part| part.starts_with('{'));
    let subject = place.and_then(|place| path.get(place));
    let asked = audit::Asked {
        method: request.method().clone(),
        from: knock.peer(),
        subject: subject.map(|subject| printable(subject)),
        route,
    };
    let (caller, mut response) = match access::admit(app, knock).await {
        Err(refusal) => (None, refusal.into_response()),
        Ok(caller) => {
            let caller = Arc::new(caller);
            request.extensions_mut().insert(Arc::clone(&caller));
            let response = access::scope(Arc::clone(&caller), next.run(request)).await;
            (Some(caller), response)
        }
    };
    if let Some(caller) = &caller {
        access::tell_standing(caller, response.headers_mut());
    }
    let status = response.status().as_u16();
    audit::answered(app, &asked, caller.as_deref(), status);
    response
}

fn protect(headers: &mut HeaderMap) {
    headers
        .entry(header::CONTENT_SECURITY_POLICY)
        .or_insert(POLICY);
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (
            HeaderName::from_static("cross-origin-resource-policy"),
            "same-origin",
        ),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    if headers.contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN) {
        headers.insert(header::VARY, HeaderValue::from_static("Origin"));
        headers.remove("cross-origin-resource-policy");
    }
}

/// Which page a request comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// None, or one of our own.
    Own,
    /// Another one, which was configured.
    Foreign,
}

fn is_preflight(request: &Request) -> bool {
    request.method() == Method::OPTIONS
        && request
            .headers()
            .contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

fn preflight() -> Response {
    let mut response = StatusCode::NO_CONTENT.into_response();
    let headers = response.headers_mut();
    for (name, value) in [
        (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, POST, DELETE"),
        (
            header::ACCESS_CONTROL_ALLOW_HEADERS,
            "content-type, idempotency-key, authorization, last-event-id",
        ),
        (header::ACCESS_CONTROL_MAX_AGE, "600"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

fn admit(app: &Inner, request: &Request) -> Result<Origin, Refusal> {
    let bound = request.extensions().get::<BoundTo>().map(|bound| bound.0);
    let authority = authority(request.uri(), request.headers())?;
    let host = host_of(&authority);
    if !host_is_ours(host, bound, &app.options.hosts) {
        return Err(Refusal::Forbidden {
            problem: format!(
                "the host '{}' is none of this server's: address it as localhost, or allow the name in its configuration",
                printable(host)
            ),
        });
    }
    let mut origins = request.headers().get_all(header::ORIGIN).iter();
    let Some(origin) = origins.next() else {
        return Ok(Origin::Own);
    };
    let origin = origin.to_str().unwrap_or("?");
    let own = ["http://", "https://"].iter().any(|scheme| {
        origin
            .strip_prefix(scheme)
            .is_some_and(|rest| rest.eq_ignore_ascii_case(&authority))
    });
    if own && origins.next().is_none() {
        Ok(Origin::Own)
    } else if app
        .options
        .origins
        .iter()
        .any(|allowed| allowed.eq_ignore_ascii_case(origin))
    {
        Ok(Origin::Foreign)
    } else {
        Err(Refusal::Forbidden {
            problem: format!(
                "pages of '{}' may not use this server: allow the origin in its configuration",
                printable(origin)
            ),
        })
    }
}

/// Where the client thinks it is: of a full address that, otherwise the header.
fn authority(uri: &Uri, headers: &HeaderMap) -> Result<String, Refusal> {
    let problem = |problem: &str| Refusal::malformed("Host", problem);
    let mut hosts = headers.get_all(header::HOST).iter();
    let named = hosts.next().map(|value| value.to_str().map(str::to_owned));
    if hosts.next().is_some() {
        return Err(problem("it is there twice"));
    }
    match (uri.authority(), named) {
        (Some(authority), _) => Ok(authority.as_str().to_owned()),
        (None, Some(Ok(host))) if !host.is_empty() => Ok(host),
        (None, Some(_)) => Err(problem("it is not text")),
        (None, None) => Err(problem("the header is missing")),
    }
}

/// Without the port.
fn host_of(authority: &str) -> &str {
    if let Some(rest) = authority.strip_prefix('[') {
        return rest.split(']').next().unwrap_or_default();
    }
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => authority,
    }
}

/// A page of somebody else's can make a browser send any name, once its own name leads here; it cannot make it send
/// another address than the one it went to.
fn host_is_ours(host: &str, bound: Option<IpAddr>, configured: &[String]) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host);
    if host.eq_ignore_ascii_case("localhost") {
        return true;
    }
    if configured
        .iter()
        .any(|name| name == "*" || name.eq_ignore_ascii_case(host))
    {
        return true;
    }
    match host.parse::<IpAddr>() {
        Ok(address) if address.is_loopback() => true,
        Ok(address) => bound.is_some_and(|bound| bound.is_unspecified() || bound == address),
        Err(_) => false,
    }
}

fn printable(text: &str) -> String {
    text.chars()
        .filter(|letter| !letter.is_control())
        .take(100)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_ours_only_where_they_cannot_be_turned_here() {
        let loopback: IpAddr = "127.0.0.1".parse().unwrap();
        let lan: IpAddr = "192.168.1.7".parse().unwrap();
        let all: IpAddr = "0.0.0.0".parse().unwrap();
        let configured = ["studio.example".to_owned()];
        for (host, bound, ours) in [
            ("localhost:7860", loopback, true),
            ("LOCALHOST", loopback, true),
            ("127.0.0.1:1", loopback, true),
            ("[::1]:7860", loopback, true),
            ("studio.example:80", loopback, true),
            ("evil.example", loopback, false),
            ("localhost.evil.example", loopback, false),
            ("127.0.0.1.evil.example", loopback, false),
            ("192.168.1.7:7860", loopback, false),
            ("192.168.1.7:7860", lan, true),
            ("192.168.1.8", lan, false),
            ("192.168.1.8", all, true),
            ("evil.example", all, false),
            ("", loopback, false),
        ] {
            assert_eq!(
                host_is_ours(host_of(host), Some(bound), &configured),
                ours,
                "{host} at {bound}"
            );
        }
        assert!(host_is_ours("anything.example", None, &["*".to_owned()]));
    }
}
