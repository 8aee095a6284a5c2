//! Requests to a hub: patient with what passes, strict about who gets the token.

mod patience;

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ureq::http::{HeaderMap, Method, Request, Uri};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body};

use crate::error::shown;
use crate::{Error, Result, Settings, Token};

pub(crate) use patience::{Patience, Trouble};

const CONNECT_MAX: Duration = Duration::from_secs(20);
/// A server that was asked begins its answer within this.
const ANSWER_MAX: Duration = Duration::from_secs(60);
/// A server that sends never pauses longer.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// Hops from the hub to where a file is; real ones are one or two.
const REDIRECTS_MAX: usize = 6;
/// A certificate file is never longer.
const PEM_BYTES_MAX: u64 = 16 << 20;
/// An error's text is never longer.
const ERROR_BYTES_MAX: u64 = 64 << 10;

/// Somebody's wish to stop, looked at between reads.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// One that looks at a flag that somebody else sets.
    pub fn watching(flag: Arc<AtomicBool>) -> Stop {
        Stop(flag)
    }

    /// Asks to stop.
    pub fn ask(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether somebody asked.
    pub fn is_asked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// [`Error::Stopped`] where somebody asked.
    ///
    /// # Errors
    /// That one.
    pub fn check(&self) -> Result<()> {
        match self.is_asked() {
            true => Err(Error::Stopped),
            false => Ok(()),
        }
    }
}

/// What is asked about, for messages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subject<'a> {
    pub(crate) repo: &'a str,
    pub(crate) revision: &'a str,
    pub(crate) file: Option<&'a str>,
}

/// An answer that is a success.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Body,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// Whether redirects are followed to the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Follow {
    ToTheEnd,
    /// Only as far as the answer says what the file is.
    ToTheFacts,
}

/// Speaks to one hub.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    agent: Agent,
    endpoint: String,
    token: Option<Token>,
    stop: Stop,
}

impl Client {
    pub(crate) fn new(settings: &Settings, stop: Stop) -> Result<Client> {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            // Redirects are followed here, so that it is seen who gets the token.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .accept_encoding("identity")
            .user_agent(concat!("lowtide/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(Some(CONNECT_MAX))
            .timeout_connect(Some(CONNECT_MAX))
            .timeout_recv_response(Some(ANSWER_MAX))
            .timeout_per_read(Some(PAUSE_MAX))
            .tls_config(tls(settings)?);
        Ok(Client {
            agent: config.build().into(),
            endpoint: settings.endpoint.clone(),
            token: settings.token.clone(),
            stop,
        })
    }

    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    pub(crate) fn stop(&self) -> &Stop {
        &self.stop
    }

    /// Ends every request that is on its way.
    pub(crate) fn hang_up(&self) {
        self.agent.clone().shutdown();
    }

    /// Asks for a document of at most `bytes_max` bytes.
    pub(crate) fn document(&self, url: &str, of: Subject<'_>, bytes_max: u64) -> Result<Vec<u8>> {
        let mut patience = Patience::default();
        patience.until_done(&self.stop, || {
            let answer = self.once(Method::GET, url, None, Follow::ToTheEnd, of)?;
            let mut bytes = Vec::new();
            let mut body = answer.body.into_reader().take(bytes_max + 1);
            body.read_to_end(&mut bytes)
                .map_err(|cause| self.passing(url, &cause.to_string()))?;
            match bytes.len() as u64 > bytes_max {
                true => Err(Trouble::Final(Error::TooMuch {
                    repo: of.repo.to_owned(),
                    what: "what the hub says about it".to_owned(),
                    limit: lowtide_core::Bytes(bytes_max).to_string(),
                })),
                false => Ok(bytes),
            }
        })
    }

    /// Asks what a file is, without its bytes.
    pub(crate) fn facts(&self, url: &str, of: Subject<'_>) -> Result<Answer> {
        let mut patience = Patience::default();
        patience.until_done(&self.stop, || {
            self.once(Method::HEAD, url, None, Follow::ToTheFacts, of)
        })
    }

    /// Asks once for a file's bytes from `from` on.
    pub(crate) fn bytes(&self, url: &str, from: u64, of: Subject<'_>) -> Result<Answer, Trouble> {
        let range = (from > 0).then(|| format!("bytes={from}-"));
        self.once(Method::GET, url, range.as_deref(), Follow::ToTheEnd, of)
    }

    fn once(
        &self,
        method: Method,
        url: &str,
        range: Option<&str>,
        follow: Follow,
        of: Subject<'_>,
    ) -> Result<Answer, Trouble> {
        let mut url = url.to_owned();
        for _ in 0..=REDIRECTS_MAX {
            self.stop.check().map_err(Trouble::Final)?;
            let mut request = Request::builder().method(method.clone()).uri(&url);
            if let Some(token) = self.token.as_ref().filter(|_| self.is_home(&url)) {
                request = request.header("authorization", format!("Bearer {}", token.reveal()));
            }
            if let Some(range) = range {
                request = request.header("range", range);
            }
            let request = request
                .body(())
                .map_err(|cause| self.not_a_hub(&format!("its address is none: {cause}")))?;
            let response = self
                .agent
                .run(request)
                .map_err(|cause| self.failed(&url, cause))?;
            let (head, body) = response.into_parts();
            let answer = Answer {
                status: head.status.as_u16(),
                headers: head.headers,
                body,
            };
            match answer.status {
                200..=299 => return Ok(answer),
                301 | 302 | 303 | 307 | 308 => {
                    if follow == Follow::ToTheFacts && answer.header("x-linked-etag").is_some() {
                        return Ok(answer);
                    }
                    url = self.next(&url, answer.header("location"))?;
                }
                _ => return Err(self.refusal(&url, answer, of)),
            }
        }
        Err(self.not_a_hub("it sends from one address to the next without end"))
    }

    /// Whether an address is the hub's own, which the token is for.
    fn is_home(&self, url: &str) -> bool {
        origin(url).is_some_and(|there| Some(there) == origin(&self.endpoint))
    }

    /// Where a redirect leads.
    fn next(&self, from: &str, location: Option<&str>) -> Result<String, Trouble> {
        let location = location.ok_or_else(|| self.not_a_hub("it sends on without an address"))?;
        let target = match (location.strip_prefix("//"), origin(from)) {
            (Some(rest), Some((scheme, _))) => format!("{scheme}://{rest}"),
            (None, Some((scheme, host))) if location.starts_with('/') => {
                format!("{scheme}://{host}{location}")
            }
            _ => location.to_owned(),
        };
        let secure = from.starts_with("https://");
        match origin(&target) {
            Some((scheme, _)) if scheme == "https" || (scheme == "http" && !secure) => Ok(target),
            _ => Err(self.not_a_hub(&format!("it sends on to '{}'", shown(location)))),
        }
    }

    pub(crate) fn not_a_hub(&self, problem: &str) -> Trouble {
        Trouble::Final(Error::NotAHub {
            host: self.endpoint.clone(),
            problem: problem.to_owned(),
        })
    }

    /// Something that may pass.
    pub(crate) fn passing(&self, url: &str, why: &str) -> Trouble {
        if self.stop.is_asked() {
            return Trouble::Final(Error::Stopped);
        }
        Trouble::Passing {
            error: Error::Unreachable {
                host: host(url),
                why: shown(why),
            },
            after: None,
        }
    }

    fn failed(&self, url: &str, cause: ureq::Error) -> Trouble {
        match cause {
            ureq::Error::HostNotFound | ureq::Error::Tls(_) | ureq::Error::Rustls(_) => {
                Trouble::Final(Error::Unreachable {
                    host: host(url),
                    why: cause.to_string(),
                })
            }
            ureq::Error::BadUri(_) | ureq::Error::Http(_) | ureq::Error::InvalidProxyUrl => {
                self.not_a_hub(&cause.to_string())
            }
            other => self.passing(url, &other.to_string()),
        }
    }

    fn refusal(&self, url: &str, answer: Answer, of: Subject<'_>) -> Trouble {
        let repo = of.repo.to_owned();
        let token = self.token.is_some();
        let code = answer.header("x-error-code").unwrap_or_default().to_owned();
        let after = patience::retry_after(&answer);
        let host = host(url);
        let away = !self.is_home(url);
        let status = answer.status;
        let says = || said(answer);
        let error = match (status, code.as_str()) {
            (_, "GatedRepo") => Error::Gated {
                page: format!("{}/{repo}", self.endpoint),
                repo,
                token,
            },
            // A signed address of another server is good for a while only; the hub gives a new one.
            (401 | 403 | 408 | 410, _) if away => {
                return self.passing(url, &format!("it says {status}"));
            }
            (408 | 429 | 500 | 502 | 503 | 504, _) => {
                let error = Error::Busy {
                    host,
                    status,
                    retry_after_s: after.map(|after| after.as_secs()),
                };
                return Trouble::Passing { error, after };
            }
            (401, "") => Error::Unauthorised {
                says: says(),
                repo,
                token,
            },
            (404, "RevisionNotFound") => Error::NoSuchRevision {
                repo,
                revision: of.revision.to_owned(),
            },
            (404, _) if of.file.is_some() => Error::NoSuchFile {
                repo,
                file: of.file.unwrap_or_default().to_owned(),
            },
            (404, _) | (401, "RepoNotFound") => Error::NoSuchRepo { repo, host },
            _ => Error::Refused {
                says: says(),
                repo,
                status,
            },
        };
        Trouble::Final(error)
    }
}

/// What an error's answer says, in a header or as JSON.
fn said(answer: Answer) -> String {
    if let Some(text) = answer.header("x-error-message") {
        return text.to_owned();
    }
    let mut text = String::new();
    let mut body = answer.body.into_reader().take(ERROR_BYTES_MAX);
    // A text that is not readable is not told.
    let _ = body.read_to_string(&mut text);
    let json: Option<serde_json::Value> = serde_json::from_str(&text).ok();
    let told = json.and_then(|json| Some(json.get("error")?.as_str()?.to_owned()));
    told.unwrap_or_else(|| "it does not say why".to_owned())
}

fn origin(url: &str) -> Option<(String, String)> {
    let uri: Uri = url.parse().ok()?;
    let lower = |text: &str| text.to_ascii_lowercase();
    Some((lower(uri.scheme_str()?), lower(uri.authority()?.as_str())))
}

fn host(url: &str) -> String {
    origin(url).map_or_else(|| shown(url), |(scheme, host)| format!("{scheme}://{host}"))
}

/// The public certificates, or those of the file that is named.
fn tls(settings: &Settings) -> Result<TlsConfig> {
    let Some(path) = &settings.certificates else {
        return Ok(TlsConfig::default());
    };
    let file = std::fs::File::open(path).map_err(Error::io(path, "read"))?;
    let mut pem = Vec::new();
    file.take(PEM_BYTES_MAX)
        .read_to_end(&mut pem)
        .map_err(Error::io(path, "read"))?;
    let certificates: Vec<Certificate<'static>> = parse_pem(&pem)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    if certificates.is_empty() {
        return Err(Error::Setting {
            name: "SSL_CERT_FILE".to_owned(),
            problem: format!("'{}' has no certificates in it", path.display()),
        });
    }
    let roots = RootCerts::Specific(Arc::new(certificates));
    Ok(TlsConfig::builder().root_certs(roots).build())
}

/// A text as parts of an address: everything but letters, digits and `-._~` as `%XX`; `/` too where it is `one` part.
pub(crate) fn escaped(text: &str, one: bool) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes()
        .map(|byte| match plain(byte) || (byte == b'/' && !one) {
            true => char::from(byte).to_string(),
            false => format!("%{byte:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(endpoint: &str) -> Client {
        let variable = |name: &str| match name {
            "HF_ENDPOINT" => Some(endpoint.to_owned()),
            "HF_HOME" => Some("none".to_owned()),
            _ => None,
        };
        Client::new(
            &Settings::from_variables(variable).unwrap(),
            Stop::default(),
        )
        .unwrap()
    }

    #[test]
    fn the_token_is_for_the_hub_alone() {
        let client = client("https://hub.example/mirror");
        assert!(client.is_home("https://HUB.example/api"));
        for other in [
            "http://hub.example/api",
            "https://hub.example:444/",
            "https://hub.example.evil/",
            "https://cdn.example/",
            "no address",
        ] {
            assert!(!client.is_home(other), "{other}");
        }
    }

    #[test]
    fn redirects_lead_to_addresses_and_never_back_to_plain_text() {
        let client = client("https://hub.example");
        let next = |location| client.next("https://hub.example/a/b", Some(location)).ok();
        assert_eq!(next("/c?d").unwrap(), "https://hub.example/c?d");
        assert_eq!(next("//cdn.example/c").unwrap(), "https://cdn.example/c");
        assert_eq!(
            next("https://cdn.example/c").unwrap(),
            "https://cdn.example/c"
        );
        for wrong in ["http://cdn.example/c", "file:///etc/passwd", "c", ""] {
            assert_eq!(next(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_is_not_plain_is_escaped() {
        assert_eq!(escaped("refs/pr/1", true), "refs%2Fpr%2F1");
        assert_eq!(escaped("a b/ü.json", false), "a%20b/%C3%BC.json");
    }
}
