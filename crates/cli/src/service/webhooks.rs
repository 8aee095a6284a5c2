//! The secret that webhooks are signed with, and what the server is told of them.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::path::Path;

use anyhow::Context;
use lowtide_core::job::RetryPolicy;
use lowtide_server::{NoticeSink, WebhookOptions, WebhookSecret};

use super::log::{Level, Logger};
use super::settings::{SecretPlace, Settings};
use super::store::Place;
use crate::failure::Failure;

/// Bytes of the file at most: more is another file.
const FILE_MAX: u64 = 1 << 10;

/// What the server is told.
///
/// # Errors
/// When the secret cannot be had.
pub(super) fn options(settings: &Settings, log: &Logger) -> Result<WebhookOptions, Failure> {
    let (store, settings) = (&settings.server.store, &settings.webhooks);
    let secret = match &settings.secret {
        SecretPlace::Given(secret) => secret.clone(),
        SecretPlace::File(path) => read(path)?.ok_or_else(|| {
            Failure::mistake(format!(
                "webhooks.secret_file: there is no '{}'; leave the setting out, and a secret is made in the data folder",
                path.display()
            ))
        })?,
        SecretPlace::Own(path) => {
            if let Place::Server { .. } = store {
                log.info(&format!(
                    "webhooks are signed with the secret in '{}'; every server of this queue needs the same one \
                     (webhooks.secret_file)",
                    path.display()
                ));
            }
            own(path, log)?
        }
    };
    let (defaults, log) = (WebhookOptions::default(), log.named("webhooks"));
    Ok(WebhookOptions {
        secret: Some(secret),
        hosts: settings.hosts.clone(),
        timeout: settings.timeout,
        retry: RetryPolicy {
            failures_max: settings.retries.saturating_add(1),
            ..defaults.retry
        },
        base: settings.base.clone(),
        notices: Some(NoticeSink::new(move |line| log.say(Level::Warn, line))),
    })
}

/// The secret of this data folder, which is made where there is none.
fn own(path: &Path, log: &Logger) -> Result<WebhookSecret, Failure> {
    if let Some(secret) = read(path)? {
        return Ok(secret);
    }
    let secret = WebhookSecret::random();
    let write = || -> std::io::Result<()> {
        let mut options = File::options();
        options.write(true).create_new(true);
        // Nobody else on this machine has to know it.
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(path)?;
        file.write_all(format!("{}\n", secret.reveal()).as_bytes())?;
        file.sync_all()
    };
    write().with_context(|| {
        format!(
            "'{}' could not be written; webhooks.secret or webhooks.secret_file can say what they are signed with",
            path.display()
        )
    })?;
    log.info(&format!(
        "webhooks are signed with the secret in '{}'",
        path.display()
    ));
    Ok(secret)
}

/// The secret in a file; `None` where there is no file.
fn read(path: &Path) -> Result<Option<WebhookSecret>, Failure> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(FILE_MAX).read_to_string(&mut text));
    match read {
        Ok(_) => text
            .parse()
            .map(Some)
            .map_err(|wrong| Failure::mistake(format!("what is in '{}' {wrong}", path.display()))),
        Err(cause) if cause.kind() == ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(Failure::mistake(format!(
            "'{}' cannot be read: {cause}",
            path.display()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::settings::LogSettings;

    fn log() -> Logger {
        Logger::new(LogSettings {
            json: false,
            debug: false,
            quiet: true,
        })
    }

    #[test]
    fn the_first_start_makes_a_secret_that_later_ones_find() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("webhooks.secret");
        let first = own(&path, &log()).unwrap();
        assert_eq!(own(&path, &log()).unwrap(), first);
        let written = std::fs::read_to_string(&path).unwrap();
        assert_eq!(written.trim(), first.reveal());
        #[cfg(unix)]
        {
            let mode = std::fs::metadata(&path).unwrap().permissions();
            let mode = std::os::unix::fs::PermissionsExt::mode(&mode);
            assert_eq!(mode & 0o077, 0, "{mode:o}");
        }
        std::fs::write(&path, "hunter2").unwrap();
        let said = own(&path, &log()).unwrap_err().to_string();
        assert!(
            said.contains("webhooks.secret") && !said.contains("hunter2"),
            "{said}"
        );
        assert_eq!(read(&folder.path().join("none")).unwrap(), None);
    }
}
