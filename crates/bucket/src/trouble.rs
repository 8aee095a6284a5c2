//! What an S3 server's refusals mean, and what to do about each.

use std::time::Duration;

use lowtide_jobs::StoreError;

/// What is done with objects, and the right it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    Write,
    Read,
    List,
    Remove,
}

impl Verb {
    fn shown(self) -> (&'static str, &'static str) {
        match self {
            Verb::Write => ("written to", "s3:PutObject"),
            Verb::Read => ("read", "s3:GetObject"),
            Verb::List => ("listed", "s3:ListBucket"),
            Verb::Remove => ("removed from", "s3:DeleteObject"),
        }
    }
}

/// An answer that is no success.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) status: u16,
    /// S3's word for it; empty where the answer has none.
    pub(crate) code: String,
    /// What else the server says.
    pub(crate) says: String,
    /// Where the bucket is, if the server says so.
    pub(crate) region: Option<String>,
    pub(crate) after: Option<Duration>,
}

/// Why a request gave nothing.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// It would give nothing again.
    Final(StoreError),
    /// It may pass, perhaps after as long as the server says.
    Passing {
        reason: String,
        after: Option<Duration>,
    },
}

impl Refusal {
    /// What stands between the tags of the first element of this name in an error's text.
    pub(crate) fn element(text: &str, name: &str) -> Option<String> {
        let (_, rest) = text.split_once(&format!("<{name}>"))?;
        let (content, _) = rest.split_once(&format!("</{name}>"))?;
        let plain = |sign: char| if sign.is_control() { ' ' } else { sign };
        Some(content.chars().take(300).map(plain).collect())
    }

    /// What it means for whoever wanted to `verb`.
    pub(crate) fn means(self, store: &str, verb: Verb) -> Trouble {
        let passing = [408, 429, 500, 502, 503, 504].contains(&self.status)
            || [
                "RequestTimeout",
                "SlowDown",
                "InternalError",
                "OperationAborted",
                // Bytes changed on their way; the next time they may not.
                "BadDigest",
                "XAmzContentChecksumMismatch",
                "IncompleteBody",
            ]
            .contains(&&self.code[..]);
        if passing {
            return Trouble::Passing {
                reason: self.sentence(),
                after: self.after,
            };
        }
        Trouble::Final(StoreError::Denied {
            store: store.to_owned(),
            reason: self.advice(verb),
        })
    }

    fn sentence(&self) -> String {
        match (&self.code[..], &self.says[..]) {
            ("", _) => format!("the server says {}", self.status),
            (code, "") => format!("the server says {} {code}", self.status),
            (code, says) => format!("the server says {} {code}: {says}", self.status),
        }
    }

    fn advice(&self, verb: Verb) -> String {
        let (done, right) = verb.shown();
        let said = self.sentence();
        match (self.status, &self.code[..], &self.region) {
            (_, "NoSuchBucket", _) => "there is no such bucket: create it, or name another".to_owned(),
            (_, "InvalidAccessKeyId", _) => {
                "AWS_ACCESS_KEY_ID is not known there; set one that is".to_owned()
            }
            (_, "SignatureDoesNotMatch", _) => {
                "AWS_SECRET_ACCESS_KEY does not belong to AWS_ACCESS_KEY_ID, or a proxy changes what is sent"
                    .to_owned()
            }
            (_, "ExpiredToken" | "InvalidToken" | "TokenRefreshRequired", _) => {
                "AWS_SESSION_TOKEN is over or wrong: start again with a fresh one, or with keys that last"
                    .to_owned()
            }
            (_, "RequestTimeTooSkewed" | "RequestExpired", _) => {
                "the clocks of this machine and of the server differ by minutes: set this machine's".to_owned()
            }
            (_, _, Some(region)) if [301, 307, 400].contains(&self.status) => {
                format!("the bucket is in region {region}: set server.files_region or AWS_REGION to it")
            }
            (301 | 307 | 308, ..) => {
                format!("{said}, and sends us elsewhere: is server.files_endpoint the S3 server's own address?")
            }
            (401 | 403, ..) => format!("it may not be {done} ({said}): the key needs {right} on it"),
            (404, ..) => format!("{said}: there is no such bucket, or server.files_endpoint is not an S3 server's"),
            (507, ..) | (_, "XMinioStorageFull" | "QuotaExceeded", _) => {
                format!("{said}: it is full; free some space there")
            }
            _ => said,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(status: u16, code: &str, region: Option<&str>) -> Refusal {
        Refusal {
            status,
            code: code.to_owned(),
            says: String::new(),
            region: region.map(str::to_owned),
            after: None,
        }
    }

    #[test]
    fn a_refusal_says_what_to_do() {
        for (status, code, region, says) in [
            (404, "NoSuchBucket", None, "create it"),
            (403, "InvalidAccessKeyId", None, "AWS_ACCESS_KEY_ID"),
            (403, "SignatureDoesNotMatch", None, "AWS_SECRET_ACCESS_KEY"),
            (403, "AccessDenied", None, "s3:PutObject"),
            (403, "RequestTimeTooSkewed", None, "clocks"),
            (400, "ExpiredToken", None, "AWS_SESSION_TOKEN"),
            (301, "PermanentRedirect", Some("eu-west-1"), "eu-west-1"),
            (
                400,
                "AuthorizationHeaderMalformed",
                Some("r2"),
                "AWS_REGION",
            ),
            (404, "", None, "server.files_endpoint"),
            (403, "", None, "s3:PutObject"),
        ] {
            match refusal(status, code, region).means("s3://studio", Verb::Write) {
                Trouble::Final(StoreError::Denied { store, reason }) => {
                    assert_eq!(store, "s3://studio");
                    assert!(reason.contains(says), "{reason}");
                }
                other => panic!("{status} {code}: {other:?}"),
            }
        }
        for (status, code) in [(503, "SlowDown"), (500, ""), (400, "BadDigest"), (429, "")] {
            let trouble = refusal(status, code, None).means("s3://studio", Verb::Read);
            assert!(matches!(trouble, Trouble::Passing { .. }), "{status}");
        }
    }

    #[test]
    fn an_errors_text_is_taken_apart() {
        let text = "<?xml version=\"1.0\"?>\n<Error><Code>NoSuchKey</Code><Message>no\nsuch</Message></Error>";
        assert_eq!(Refusal::element(text, "Code").as_deref(), Some("NoSuchKey"));
        assert_eq!(
            Refusal::element(text, "Message").as_deref(),
            Some("no such")
        );
        assert_eq!(Refusal::element(text, "Region"), None);
        assert_eq!(Refusal::element("<Code>cut", "Code"), None);
    }
}
