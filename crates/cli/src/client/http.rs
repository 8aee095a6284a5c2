//! One request to a server, and its answer or the reason why there is none.

use std::fmt;
use std::io::{BufRead, BufReader, Read};
use std::time::Duration;

use serde_json::Value;
use ureq::http::Response;
use ureq::{Agent, Body, RequestBuilder};

use crate::failure::Failure;

/// A server that listens answers a new connection within this.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Longer than any answer a server holds back on purpose.
const ANSWER_MAX: Duration = Duration::from_secs(90);
/// An answer of JSON is never longer.
const JSON_BYTES_MAX: u64 = 64 << 20;
/// A picture is never longer.
const FILE_BYTES_MAX: u64 = 4 << 30;

/// A server.
#[derive(Clone)]
pub(crate) struct Http {
    agent: Agent,
    base: String,
    /// What `Authorization` says.
    bearer: Option<String>,
}

impl fmt::Debug for Http {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Http").field(&self.base).finish()
    }
}

impl Http {
    /// The server at a URL; `named_by` is where that was written.
    ///
    /// # Errors
    /// When it is no address of a server.
    pub(crate) fn new(url: &str, named_by: &str) -> Result<Http, Failure> {
        let url = url.trim().trim_end_matches('/');
        let host = url.strip_prefix("http://").unwrap_or_default();
        let plain = |c: char| c.is_ascii_alphanumeric() || "-._:[]".contains(c);
        if host.is_empty() || !host.chars().all(plain) {
            return Err(Failure::mistake(format!(
                "{named_by} '{url}' is no address of a server; write one such as http://127.0.0.1:7860"
            )));
        }
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .timeout_connect(Some(CONNECT_MAX))
            .timeout_recv_response(Some(ANSWER_MAX))
            .build();
        Ok(Http {
            agent: config.into(),
            base: url.to_owned(),
            bearer: None,
        })
    }

    /// The same, asked with this key.
    pub(crate) fn with_key(self, key: Option<&str>) -> Http {
        Http {
            bearer: key.map(|key| format!("Bearer {key}")),
            ..self
        }
    }

    fn signed<B>(&self, request: RequestBuilder<B>) -> RequestBuilder<B> {
        match &self.bearer {
            Some(bearer) => request.header("Authorization", bearer),
            None => request,
        }
    }

    /// Where it is.
    pub(crate) fn url(&self) -> &str {
        &self.base
    }

    /// Asks for something.
    ///
    /// # Errors
    /// The server's reason, or that it does not answer.
    pub(crate) fn get(&self, path: &str) -> Result<Value, Failure> {
        let answer = self.signed(self.agent.get(self.at(path))).call();
        self.json(answer)
    }

    /// Sends something.
    ///
    /// # Errors
    /// As [`Http::get`].
    pub(crate) fn post(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        let answer = self.signed(self.agent.post(self.at(path))).send_json(body);
        self.json(answer)
    }

    /// Sends a file.
    ///
    /// # Errors
    /// As [`Http::get`].
    pub(crate) fn upload(
        &self,
        path: &str,
        media_type: &str,
        file: &[u8],
    ) -> Result<Value, Failure> {
        let request = self.signed(self.agent.post(self.at(path)));
        let answer = request.header("Content-Type", media_type).send(file);
        self.json(answer)
    }

    /// Removes something.
    ///
    /// # Errors
    /// As [`Http::get`].
    pub(crate) fn delete(&self, path: &str) -> Result<Value, Failure> {
        let answer = self.signed(self.agent.delete(self.at(path))).call();
        self.json(answer)
    }

    /// A whole file.
    ///
    /// # Errors
    /// As [`Http::get`].
    pub(crate) fn file(&self, path: &str) -> Result<Vec<u8>, Failure> {
        let mut answer = self.begin(path)?;
        let body = answer.body_mut().with_config().limit(FILE_BYTES_MAX);
        body.read_to_vec().map_err(|cause| self.silent(&cause))
    }

    /// Lines that come as things happen.
    ///
    /// # Errors
    /// As [`Http::get`].
    pub(crate) fn lines(&self, path: &str) -> Result<impl BufRead + Send + use<>, Failure> {
        let answer = self.begin(path)?;
        Ok(BufReader::new(answer.into_body().into_reader()))
    }

    fn begin(&self, path: &str) -> Result<Response<Body>, Failure> {
        let answer = self.signed(self.agent.get(self.at(path))).call();
        let answer = answer.map_err(|cause| self.silent(&cause))?;
        match answer.status().is_success() {
            true => Ok(answer),
            false => Err(self.refused(answer)),
        }
    }

    fn at(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    fn json(&self, answer: Result<Response<Body>, ureq::Error>) -> Result<Value, Failure> {
        let mut answer = answer.map_err(|cause| self.silent(&cause))?;
        if !answer.status().is_success() {
            return Err(self.refused(answer));
        }
        let body = answer.body_mut().with_config().limit(JSON_BYTES_MAX);
        body.read_json().map_err(|cause| self.silent(&cause))
    }

    fn silent(&self, cause: &ureq::Error) -> Failure {
        Failure::Other(anyhow::anyhow!(
            "the server at {} does not answer ({cause}); is it running? 'lowtide serve' starts one",
            self.base
        ))
    }

    /// The server's reason; who is to mend it, decides the exit code.
    fn refused(&self, answer: Response<Body>) -> Failure {
        let status = answer.status();
        let mut text = String::new();
        // A reason that cannot be read is as good as none.
        let _ = answer
            .into_body()
            .into_reader()
            .take(1 << 20)
            .read_to_string(&mut text);
        let told: Value = serde_json::from_str(&text).unwrap_or_default();
        let error = &told["error"];
        let sentence = match error["message"].as_str() {
            Some(message) if error["code"] == "unauthorized" => {
                format!("{message}; LOWTIDE_KEY is where this program looks for one")
            }
            Some(message) => match error["field"]
                .as_str()
                .filter(|field| !message.contains(field))
            {
                Some(field) => format!("{field}: {message}"),
                None => message.to_owned(),
            },
            None => format!(
                "the server at {} answers {status}; is it Lowtide?",
                self.base
            ),
        };
        match (error["code"].as_str(), status.is_client_error()) {
            (Some("does_not_fit"), _) => Failure::DoesNotFit(sentence),
            (_, true) => Failure::Mistake(sentence),
            (_, false) => Failure::Other(anyhow::anyhow!(sentence)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_one() {
        for url in [
            "http://127.0.0.1:7860/",
            "http://[::1]:1",
            "http://box.local",
        ] {
            assert!(Http::new(url, "--server").is_ok(), "{url}");
        }
        for url in [
            "",
            "box:7860",
            "https://box",
            "http://",
            "http://a/b",
            "http://a b",
        ] {
            let failure = Http::new(url, "--server").unwrap_err();
            assert_eq!(failure.exit_code(), 2);
            assert!(
                failure.to_string().contains("http://127.0.0.1:7860"),
                "{failure}"
            );
        }
    }

    #[test]
    fn a_server_that_is_not_there_is_said_to_be_so() {
        // Port 9 is for discarding; nothing on this machine listens on it.
        let failure = Http::new("http://127.0.0.1:9", "--server")
            .unwrap()
            .get("/health")
            .unwrap_err();
        assert_eq!(failure.exit_code(), 1);
        assert!(failure.to_string().contains("lowtide serve"), "{failure}");
    }
}
