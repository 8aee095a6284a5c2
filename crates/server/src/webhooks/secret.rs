//! What calls are signed with, as the Standard Webhooks specification has it.
//!
//! # Source
//! <https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md>

use std::fmt;
use std::str::FromStr;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::base64;

/// How a secret begins.
const PREFIX: &str = "whsec_";

/// Bytes a secret may have, by the specification.
const LEN: std::ops::RangeInclusive<usize> = 24..=64;

/// Bytes of one that is made here.
const LEN_NEW: usize = 32;

/// The key of the signatures. It is shown nowhere but to whoever asks for it by name.
#[derive(Clone, PartialEq, Eq)]
pub struct WebhookSecret(Vec<u8>);

impl WebhookSecret {
    /// A new one.
    ///
    /// # Panics
    /// When the operating system has no randomness to give; a guessable secret would be worse.
    pub fn random() -> WebhookSecret {
        let mut bytes = vec![0; LEN_NEW];
        getrandom::fill(&mut bytes).expect("the operating system gives random numbers");
        WebhookSecret(bytes)
    }

    /// The secret as receivers write it down: `whsec_` and base64.
    pub fn reveal(&self) -> String {
        format!("{PREFIX}{}", base64::encode(&self.0))
    }

    /// The value of `webhook-signature` for a message.
    pub(super) fn sign(&self, id: &str, timestamp_s: u64, body: &str) -> String {
        let mut mac =
            Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes keys of any length");
        for part in [id, ".", &timestamp_s.to_string(), ".", body] {
            mac.update(part.as_bytes());
        }
        format!("v1,{}", base64::encode(&mac.finalize().into_bytes()))
    }
}

impl FromStr for WebhookSecret {
    type Err = NotASecret;

    fn from_str(text: &str) -> Result<WebhookSecret, NotASecret> {
        let bytes = text
            .trim()
            .strip_prefix(PREFIX)
            .and_then(base64::decode)
            .filter(|bytes| LEN.contains(&bytes.len()));
        bytes.map(WebhookSecret).ok_or(NotASecret)
    }
}

/// What was written is no secret. It may be one of something else, and is not repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotASecret;

impl fmt::Display for NotASecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("is no secret of webhooks: write whsec_ and 24 to 64 bytes in base64")
    }
}

impl std::error::Error for NotASecret {}

impl fmt::Debug for WebhookSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WebhookSecret(***)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the specification's reference libraries.
    #[test]
    fn the_example_of_the_standard() {
        let secret: WebhookSecret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".parse().unwrap();
        let signature = secret.sign(
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            1_614_265_330,
            r#"{"test": 2432232314}"#,
        );
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn a_secret_is_read_as_it_is_written_and_never_shown() {
        let secret = WebhookSecret::random();
        assert_ne!(secret, WebhookSecret::random());
        assert_eq!(secret.reveal().parse(), Ok(secret.clone()));
        let shown = format!("{secret:?}");
        assert!(!shown.contains(&secret.reveal()[PREFIX.len()..]), "{shown}");
        for wrong in [
            "",
            "whsec_",
            "whsec_c2hvcnQ=",
            "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        ] {
            assert_eq!(wrong.parse::<WebhookSecret>(), Err(NotASecret), "{wrong}");
        }
    }
}
