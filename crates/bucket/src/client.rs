//! Requests to an S3 server: signed, patient with what passes.

use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rusty_s3::actions::{CreateMultipartUpload, ListObjectsV2};
use rusty_s3::{Credentials, S3Action, UrlStyle};
use sha2::{Digest, Sha256};
use ureq::http::{HeaderMap, Request};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body};

use crate::place::Place;
use crate::trouble::{Refusal, Trouble, Verb};
use crate::{BucketOptions, BucketStyle};
use lowtide_jobs::{Result, StoreError};

/// A signature is good for so long: a request is sent at once.
const SIGNED: Duration = Duration::from_secs(300);
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// A server that has a request begins its answer within this.
const ANSWER_MAX: Duration = Duration::from_secs(60);
/// A server that sends or takes bytes never pauses longer.
const PAUSE_MAX: Duration = Duration::from_secs(20);
const WAIT_FIRST: Duration = Duration::from_millis(50);
const WAIT_MAX: Duration = Duration::from_secs(2);
/// Connections that are kept: the threads that publish, and some.
const IDLE_MAX: usize = 16;
/// A list's answer, or an error's, is never longer, bytes: a thousand names of a thousand letters, with what is around.
const TEXT_BYTES_MAX: u64 = 8 << 20;
/// A certificate file is never longer, bytes.
const PEM_BYTES_MAX: u64 = 16 << 20;
/// Where a bucket is unless told otherwise: Amazon's first region, which servers of one's own go by as well.
const REGION: &str = "us-east-1";
/// The sum an upload bears, in base64.
const SUM_HEADER: &str = "x-amz-checksum-sha256";

/// An object in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Object {
    /// Without the folder that is ours.
    pub(crate) name: String,
    pub(crate) bytes: u64,
}

/// Speaks to one bucket.
pub(crate) struct Client {
    agent: Agent,
    bucket: rusty_s3::Bucket,
    credentials: Credentials,
    prefix: String,
    patience: Duration,
    part_bytes: usize,
    /// For people.
    pub(crate) shown: String,
}

/// What one request gave, or why it gave nothing.
type Tried<T> = std::result::Result<T, Trouble>;

/// A success.
struct Answer {
    headers: HeaderMap,
    body: Body,
}

impl Client {
    pub(crate) fn new(options: &BucketOptions) -> Result<Client> {
        let Place { bucket, prefix } = Place::parse(&options.url)?;
        let region = options.region.clone().unwrap_or_else(|| REGION.to_owned());
        let endpoint = match &options.endpoint {
            Some(endpoint) => endpoint.trim().to_owned(),
            None => format!("https://s3.{region}.amazonaws.com"),
        };
        let path = match options.style {
            BucketStyle::Path => true,
            BucketStyle::Host => false,
            // Names with dots are in nobody's certificate.
            BucketStyle::Auto => options.endpoint.is_some() || bucket.contains('.'),
        };
        let style = if path {
            UrlStyle::Path
        } else {
            UrlStyle::VirtualHost
        };
        let wrong = |reason: String| StoreError::Invalid {
            field: "server.files_endpoint",
            reason: format!("{reason}; write http:// or https:// and the S3 server's name"),
        };
        let address = endpoint
            .parse()
            .map_err(|cause| wrong(format!("it is no address ({cause})")))?;
        let bucket = rusty_s3::Bucket::new(address, style, bucket, region)
            .map_err(|cause| wrong(cause.to_string()))?;
        let keys = &options.keys;
        let credentials = match &keys.token {
            Some(token) => Credentials::new_with_token(&keys.id, &keys.secret, token),
            None => Credentials::new(&keys.id, &keys.secret),
        };
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .accept_encoding("identity")
            .user_agent(concat!("lowtide/", env!("CARGO_PKG_VERSION")))
            .max_idle_connections(IDLE_MAX)
            .max_idle_connections_per_host(IDLE_MAX)
            .timeout_resolve(Some(CONNECT_MAX))
            .timeout_connect(Some(CONNECT_MAX))
            .timeout_recv_response(Some(ANSWER_MAX))
            .timeout_per_read(Some(PAUSE_MAX))
            .timeout_per_write(Some(PAUSE_MAX))
            .tls_config(tls(options.authority.as_deref())?);
        let host = bucket.base_url().origin().ascii_serialization();
        Ok(Client {
            agent: config.build().into(),
            shown: format!("s3://{}/{prefix} at {host}", bucket.name()),
            bucket,
            credentials,
            prefix,
            patience: options.patience,
            part_bytes: options.part_bytes,
        })
    }

    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// Writes an object; it is there whole, or not at all.
    pub(crate) fn put(&self, name: &str, media_type: &str, content: &[u8]) -> Result<()> {
        if content.len() > self.part_bytes {
            return self.put_parts(&self.key(name), media_type, content);
        }
        let key = self.key(name);
        let sum = STANDARD.encode(Sha256::digest(content));
        let headers = [("content-type", media_type), (SUM_HEADER, &sum)];
        self.patiently(Verb::Write, || {
            let action = self.bucket.put_object(Some(&self.credentials), &key);
            self.once(action, &headers, Some(content), Verb::Write)
        })?;
        Ok(())
    }

    /// The same, in parts that become an object with the last request.
    fn put_parts(&self, key: &str, media_type: &str, content: &[u8]) -> Result<()> {
        let begun = self.patiently(Verb::Write, || {
            let action = self
                .bucket
                .create_multipart_upload(Some(&self.credentials), key);
            let headers = [("content-type", media_type)];
            let answer = self.once(action, &headers, Some(&[]), Verb::Write)?;
            let text = self.text(answer)?;
            CreateMultipartUpload::parse_response(&text).map_err(|cause| self.unread(&cause))
        })?;
        let upload = begun.upload_id();
        let sent = self.send_parts(key, upload, content);
        if sent.is_err() {
            // As much as can be done; what stays is for the bucket's own rules to remove.
            let action = self
                .bucket
                .abort_multipart_upload(Some(&self.credentials), key, upload);
            let _ = self.once(action, &[], None, Verb::Write);
        }
        sent
    }

    fn send_parts(&self, key: &str, upload: &str, content: &[u8]) -> Result<()> {
        let mut tags = Vec::new();
        for (number, part) in content.chunks(self.part_bytes).enumerate() {
            let number = u16::try_from(number + 1).map_err(|_| StoreError::TooLarge {
                field: "file",
                bytes: content.len() as u64,
                limit: self.part_bytes as u64 * u64::from(u16::MAX),
            })?;
            let sum = STANDARD.encode(Sha256::digest(part));
            let tag = self.patiently(Verb::Write, || {
                let action = self
                    .bucket
                    .upload_part(Some(&self.credentials), key, number, upload);
                let answer = self.once(action, &[(SUM_HEADER, &sum)], Some(part), Verb::Write)?;
                let tag = answer.headers.get("etag").and_then(|tag| tag.to_str().ok());
                tag.map(str::to_owned)
                    .ok_or_else(|| self.not_s3("a part that was sent got no ETag"))
            })?;
            tags.push(tag);
        }
        self.patiently(Verb::Write, || {
            let tags = tags.iter().map(String::as_str);
            let action =
                self.bucket
                    .complete_multipart_upload(Some(&self.credentials), key, upload, tags);
            let body = action.clone().body();
            let answer = self.once(action, &[], Some(body.as_bytes()), Verb::Write)?;
            // What goes wrong after the answer began is told in it.
            let text = self.text(answer)?;
            match Refusal::element(&text, "Code") {
                Some(code) => Err(self.refused(200, code, &text, None, Verb::Write)),
                None => Ok(()),
            }
        })
    }

    /// Begins to read an object; `None` where there is none.
    pub(crate) fn read(&self, name: &str) -> Result<Option<Read<'_>>> {
        let key = self.key(name);
        let opened = self.patiently(Verb::Read, || self.from(&key, 0));
        Ok(opened?.map(|(bytes, reader)| Read {
            bytes,
            reader: Reader {
                client: self,
                key,
                at: 0,
                bytes,
                from: Some(reader),
            },
        }))
    }

    /// An object's bytes from a place on, and how many it has in all.
    fn from(&self, key: &str, at: u64) -> Tried<Option<(u64, Box<dyn std::io::Read + Send>)>> {
        let range = format!("bytes={at}-");
        let action = self.bucket.get_object(Some(&self.credentials), key);
        // Not signed: nothing but what S3 calls its own has to be.
        let unsigned: &[(&str, &str)] = if at > 0 { &[("range", &range)] } else { &[] };
        let answer = match self.sent(action, &[], unsigned, None, Verb::Read) {
            Err(Fault::Missing) => return Ok(None),
            other => other.map_err(|fault| self.trouble(fault))?,
        };
        let number = |name: &str| answer.headers.get(name)?.to_str().ok();
        let length = number("content-length").and_then(|text| text.parse::<u64>().ok());
        let whole = match at {
            0 => length,
            _ => number("content-range")
                .and_then(|text| text.rsplit_once('/'))
                .and_then(|(_, whole)| whole.parse().ok()),
        };
        let whole = whole.ok_or_else(|| self.not_s3("it does not say how long an object is"))?;
        Ok(Some((whole, Box::new(answer.body.into_reader()))))
    }

    /// How long an object is; `None` where there is none.
    pub(crate) fn bytes_of(&self, name: &str) -> Result<Option<u64>> {
        let key = self.key(name);
        self.patiently(Verb::Read, || {
            let action = self.bucket.head_object(Some(&self.credentials), &key);
            let answer = match self.sent(action, &[], &[], None, Verb::Read) {
                Err(Fault::Missing) => return Ok(None),
                other => other.map_err(|fault| self.trouble(fault))?,
            };
            let length = answer.headers.get("content-length");
            let length = length.and_then(|text| text.to_str().ok()?.parse().ok());
            let length = length.ok_or_else(|| self.not_s3("it does not say how long an object is"));
            length.map(Some)
        })
    }

    /// Removes an object. One that is not there is as good as removed.
    pub(crate) fn remove(&self, name: &str) -> Result<()> {
        let key = self.key(name);
        self.patiently(Verb::Remove, || {
            let action = self.bucket.delete_object(Some(&self.credentials), &key);
            match self.sent(action, &[], &[], None, Verb::Remove) {
                Ok(_) | Err(Fault::Missing) => Ok(()),
                Err(fault) => Err(self.trouble(fault)),
            }
        })
    }

    /// Every object whose name begins so, in the order of the names; from the first name on that `until` is true of, none.
    pub(crate) fn list(
        &self,
        begin: &str,
        until: Option<&dyn Fn(&str) -> bool>,
    ) -> Result<Vec<Object>> {
        let mut found = Vec::new();
        let mut token: Option<String> = None;
        loop {
            let page = self.patiently(Verb::List, || {
                let mut action = self.bucket.list_objects_v2(Some(&self.credentials));
                action.with_prefix(self.key(begin));
                if let Some(token) = &token {
                    action.with_continuation_token(token.clone());
                }
                let text = self.text(self.once(action, &[], None, Verb::List)?)?;
                ListObjectsV2::parse_response(&text).map_err(|cause| self.unread(&cause))
            })?;
            for object in page.contents {
                // What is elsewhere is not ours.
                let Some(name) = object.key.strip_prefix(&self.prefix) else {
                    continue;
                };
                if until.is_some_and(|until| until(name)) {
                    return Ok(found);
                }
                found.push(Object {
                    name: name.to_owned(),
                    bytes: object.size.unwrap_or(0),
                });
            }
            match page.next_continuation_token {
                Some(next) => token = Some(next),
                None => return Ok(found),
            }
        }
    }

    /// Asks until there is an answer, or patience ends.
    fn patiently<T>(&self, verb: Verb, mut once: impl FnMut() -> Tried<T>) -> Result<T> {
        let began = Instant::now();
        let mut wait = WAIT_FIRST;
        loop {
            let (reason, after) = match once() {
                Ok(done) => return Ok(done),
                Err(Trouble::Final(error)) => return Err(error),
                Err(Trouble::Passing { reason, after }) => (reason, after),
            };
            let rest = after.unwrap_or(wait);
            if began.elapsed() + rest > self.patience {
                let what = match verb {
                    Verb::Write => "writing",
                    Verb::Read => "reading",
                    Verb::List => "listing",
                    Verb::Remove => "removing",
                };
                return Err(StoreError::Unreachable {
                    store: self.shown.clone(),
                    reason: format!("{what}: {reason}"),
                });
            }
            std::thread::sleep(rest);
            wait = (wait * 2).min(WAIT_MAX);
        }
    }

    /// One request whose object has to be there.
    fn once<'a>(
        &self,
        action: impl S3Action<'a>,
        headers: &[(&'a str, &'a str)],
        body: Option<&[u8]>,
        verb: Verb,
    ) -> Tried<Answer> {
        self.sent(action, headers, &[], body, verb)
            .map_err(|fault| self.trouble(fault))
    }

    fn trouble(&self, fault: Fault) -> Trouble {
        match fault {
            Fault::Missing => self.not_s3("it says that what is being written is not there"),
            Fault::Trouble(trouble) => trouble,
        }
    }

    /// One request: signed at this moment, sent, its answer looked at.
    fn sent<'a, A: S3Action<'a>>(
        &self,
        mut action: A,
        signed: &[(&'a str, &'a str)],
        unsigned: &[(&str, &str)],
        body: Option<&[u8]>,
        verb: Verb,
    ) -> std::result::Result<Answer, Fault> {
        for &(name, value) in signed {
            action.headers_mut().insert(name, value);
        }
        let url = action.sign(SIGNED);
        let mut request = Request::builder()
            .method(A::METHOD.to_str())
            .uri(url.as_str());
        for (name, value) in signed.iter().chain(unsigned) {
            request = request.header(*name, *value);
        }
        let none = |cause: ureq::http::Error| {
            Fault::Trouble(Trouble::Final(StoreError::Invalid {
                field: "the bucket's URL",
                reason: format!("it makes no request: {cause}"),
            }))
        };
        let response = match body {
            Some(body) => self.agent.run(request.body(body).map_err(none)?),
            None => self.agent.run(request.body(()).map_err(none)?),
        };
        // The address is not told: its signature is good for minutes.
        let response = response.map_err(|cause| Fault::Trouble(self.failed(&cause)))?;
        let (head, body) = response.into_parts();
        let answer = Answer {
            headers: head.headers,
            body,
        };
        match head.status.as_u16() {
            200..=299 => Ok(answer),
            status => Err(self.refusal(status, answer, verb)),
        }
    }

    fn failed(&self, cause: &ureq::Error) -> Trouble {
        match cause {
            ureq::Error::Tls(_) | ureq::Error::Rustls(_) => Trouble::Final(StoreError::Denied {
                store: self.shown.clone(),
                reason: format!(
                    "{cause}; server.files_ca names a file with the authority to trust"
                ),
            }),
            ureq::Error::BadUri(_) | ureq::Error::Http(_) | ureq::Error::InvalidProxyUrl => {
                self.not_s3(&cause.to_string())
            }
            other => Trouble::Passing {
                reason: other.to_string(),
                after: None,
            },
        }
    }

    fn refusal(&self, status: u16, answer: Answer, verb: Verb) -> Fault {
        let header = |name: &str| {
            let text = answer.headers.get(name)?.to_str().ok();
            text.map(str::to_owned)
        };
        let after = header("retry-after").and_then(|text| text.trim().parse().ok());
        let region = header("x-amz-bucket-region");
        // An answer to HEAD has no body, and one that breaks off says nothing.
        let text = self.text(answer).unwrap_or_default();
        let code = Refusal::element(&text, "Code").unwrap_or_default();
        if status == 404 && (code == "NoSuchKey" || code.is_empty()) && verb != Verb::List {
            return Fault::Missing;
        }
        let mut trouble = self.refused(status, code, &text, region, verb);
        if let Trouble::Passing { after: rest, .. } = &mut trouble {
            *rest = after.map(Duration::from_secs);
        }
        Fault::Trouble(trouble)
    }

    fn refused(
        &self,
        status: u16,
        code: String,
        text: &str,
        region: Option<String>,
        verb: Verb,
    ) -> Trouble {
        let refusal = Refusal {
            status,
            code,
            says: Refusal::element(text, "Message").unwrap_or_default(),
            region: region.or_else(|| Refusal::element(text, "Region")),
            after: None,
        };
        refusal.means(&self.shown, verb)
    }

    fn text(&self, answer: Answer) -> Tried<String> {
        let mut text = String::new();
        let mut body = answer.body.into_reader().take(TEXT_BYTES_MAX);
        body.read_to_string(&mut text)
            .map_err(|cause| Trouble::Passing {
                reason: cause.to_string(),
                after: None,
            })?;
        Ok(text)
    }

    fn unread(&self, cause: &dyn std::fmt::Display) -> Trouble {
        self.not_s3(&format!("its answer cannot be read ({cause})"))
    }

    fn not_s3(&self, problem: &str) -> Trouble {
        Trouble::Final(StoreError::Denied {
            store: self.shown.clone(),
            reason: format!("{problem}: is server.files_endpoint the address of an S3 server?"),
        })
    }
}

/// Why a request gave nothing.
enum Fault {
    /// There is no such object.
    Missing,
    Trouble(Trouble),
}

/// An object that is being read.
pub(crate) struct Read<'a> {
    pub(crate) bytes: u64,
    pub(crate) reader: Reader<'a>,
}

/// Reads an object; where the connection breaks, it goes on from there over another one.
pub(crate) struct Reader<'a> {
    client: &'a Client,
    key: String,
    at: u64,
    bytes: u64,
    from: Option<Box<dyn std::io::Read + Send>>,
}

impl Reader<'_> {
    /// The next bytes; none at the end.
    pub(crate) fn read(&mut self, chunk: &mut [u8]) -> Result<usize> {
        if self.at == self.bytes {
            return Ok(0);
        }
        let client = self.client;
        client.patiently(Verb::Read, || {
            let reader = match &mut self.from {
                Some(reader) => reader,
                None => match client.from(&self.key, self.at)? {
                    Some((bytes, reader)) if bytes == self.bytes => self.from.insert(reader),
                    _ => return Err(client.not_s3("an object changed while it was read")),
                },
            };
            let broken = match reader.read(chunk) {
                Ok(0) => "the connection ended early".to_owned(),
                Ok(len) => {
                    self.at += len as u64;
                    return Ok(len);
                }
                Err(cause) => cause.to_string(),
            };
            self.from = None;
            Err(Trouble::Passing {
                reason: broken,
                after: None,
            })
        })
    }
}

fn tls(authority: Option<&Path>) -> Result<TlsConfig> {
    let Some(path) = authority else {
        return Ok(TlsConfig::default());
    };
    let io = |error| StoreError::io("read", path, &error);
    let mut pem = Vec::new();
    let file = std::fs::File::open(path).map_err(io)?;
    file.take(PEM_BYTES_MAX).read_to_end(&mut pem).map_err(io)?;
    let certificates: Vec<Certificate<'static>> = parse_pem(&pem)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    if certificates.is_empty() {
        return Err(StoreError::Invalid {
            field: "server.files_ca",
            reason: format!("'{}' has no certificates in it", path.display()),
        });
    }
    let roots = RootCerts::Specific(Arc::new(certificates));
    Ok(TlsConfig::builder().root_certs(roots).build())
}
