//! Who is told what becomes of jobs.

use std::path::PathBuf;
use std::time::Duration;

use lowtide_server::{Reach, WebhookHosts, WebhookSecret};
use serde_json::Value;

use super::{Resolved, count, duration, text, texts};
use crate::failure::Failure;

/// Where the secret is that calls are signed with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SecretPlace {
    /// In the settings.
    Given(WebhookSecret),
    /// In a file that somebody wrote.
    File(PathBuf),
    /// In a file that the first start makes.
    Own(PathBuf),
}

/// Who may be called, and how.
#[derive(Clone, Debug)]
pub(crate) struct WebhookSettings {
    pub(crate) hosts: WebhookHosts,
    pub(crate) secret: SecretPlace,
    /// Tries after the first one.
    pub(crate) retries: u32,
    pub(crate) timeout: Duration,
    /// The address under which clients reach the server.
    pub(crate) base: Option<String>,
}

/// The file of the secret in the data folder.
const OWN: &str = "webhooks.secret";

impl WebhookSettings {
    /// What is set.
    ///
    /// # Errors
    /// What is wrong.
    pub(super) fn of(resolved: &Resolved) -> Result<WebhookSettings, Failure> {
        let given = |place| resolved.get(place).and_then(Value::as_str);
        let secret = match (given("webhooks.secret"), given("webhooks.secret_file")) {
            (Some(_), Some(_)) => {
                return Err(Failure::mistake(
                    "webhooks.secret and webhooks.secret_file: one of them is enough",
                ));
            }
            (Some(secret), None) => SecretPlace::Given(secret.parse().map_err(|wrong| {
                // The text is not repeated: it may be a secret of something else.
                Failure::mistake(format!("webhooks.secret {wrong}"))
            })?),
            (None, Some(file)) => SecretPlace::File(file.into()),
            (None, None) => {
                SecretPlace::Own(PathBuf::from(text(resolved, "server.data_dir")).join(OWN))
            }
        };
        let listed = texts(resolved, "webhooks.hosts");
        if let Some(wrong) = listed.iter().find(|host| host.contains('/')) {
            return Err(Failure::mistake(format!(
                "webhooks.hosts: '{wrong}' is no host; write a name or an address, with a port or without, such as \
                 \"hooks.lan:8080\""
            )));
        }
        let base = given("server.url").map(str::to_owned);
        let starts = |base: &&String| {
            ["http://", "https://"]
                .iter()
                .any(|way| base.starts_with(way))
        };
        if let Some(wrong) = base.as_ref().filter(|base| !starts(base)) {
            return Err(Failure::mistake(format!(
                "server.url: '{wrong}' is no address; write one such as \"https://studio.example\""
            )));
        }
        let timeout = duration(resolved, "webhooks.timeout");
        if timeout.is_zero() {
            return Err(Failure::mistake(
                "webhooks.timeout is 0, in which nobody can answer; write one such as \"10s\", or forbid all calls with \
                 webhooks.allow = \"nobody\"",
            ));
        }
        Ok(WebhookSettings {
            hosts: WebhookHosts {
                reach: match text(resolved, "webhooks.allow").as_str() {
                    "listed" => Reach::Listed,
                    "nobody" => Reach::Nobody,
                    _ => Reach::Public,
                },
                listed,
            },
            secret,
            retries: count(resolved, "webhooks.retries") as u32,
            timeout,
            base,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::tests::from_text;
    use super::super::{shown, shown_json};
    use super::*;

    #[test]
    fn who_may_be_called_is_as_it_is_written() {
        let webhooks = |text: &str| from_text(text).map(|settings| settings.webhooks);
        let plain = webhooks("").unwrap();
        assert_eq!(plain.hosts, WebhookHosts::default());
        assert_eq!(plain.secret, SecretPlace::Own(Path::new("data").join(OWN)));
        assert_eq!(
            (plain.retries, plain.timeout),
            (12, Duration::from_secs(10))
        );
        let set = webhooks(
            "[server]\nurl = \"https://studio.example\"\n[webhooks]\nallow = \"listed\"\nhosts = [\"hooks:80\"]\n\
             retries = 3\ntimeout = \"2s\"\nsecret_file = \"a\"",
        )
        .unwrap();
        assert_eq!(
            (set.hosts.reach, &set.hosts.listed[..]),
            (Reach::Listed, &["hooks:80".to_owned()][..])
        );
        assert_eq!(set.secret, SecretPlace::File("a".into()));
        assert_eq!(set.base.as_deref(), Some("https://studio.example"));
        for (wrong, says) in [
            ("[webhooks]\nhosts = [\"http://hooks/\"]", "webhooks.hosts"),
            ("[server]\nurl = \"studio.example\"", "server.url"),
            ("[webhooks]\nallow = \"all\"", "public"),
            ("[webhooks]\ntimeout = \"0s\"", "webhooks.timeout"),
        ] {
            let failure = webhooks(wrong).unwrap_err().to_string();
            assert!(failure.contains(says), "{failure}");
        }
    }

    #[test]
    fn the_secret_is_not_shown_not_even_a_wrong_one() {
        let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
        let settings = from_text(&format!("[webhooks]\nsecret = \"{secret}\"")).unwrap();
        assert_eq!(
            settings.webhooks.secret,
            SecretPlace::Given(secret.parse().unwrap())
        );
        for told in [
            shown(&settings),
            shown_json(&settings).to_string(),
            format!("{:?}", settings.webhooks),
        ] {
            assert!(!told.contains("MfKQ9r8"), "{told}");
        }
        let both = format!("[webhooks]\nsecret = \"{secret}\"\nsecret_file = \"a\"");
        assert!(from_text(&both).is_err());
        for wrong in ["\"hunter2\"", "[\"hunter2\"]"] {
            let failure = from_text(&format!("[webhooks]\nsecret = {wrong}")).unwrap_err();
            let said = failure.to_string();
            assert!(
                said.contains("whsec_") && !said.contains("hunter2"),
                "{said}"
            );
        }
    }
}
