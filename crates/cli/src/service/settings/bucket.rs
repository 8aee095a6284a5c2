//! The bucket that holds files.

use std::path::PathBuf;

use lowtide_bucket::{BucketStyle, check_bucket_url};
use serde_json::Value;

use super::{Resolved, text};
use crate::failure::Failure;

/// Which bucket, and how it is reached; who we are there is in the environment alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BucketSettings {
    pub(crate) url: String,
    pub(crate) endpoint: Option<String>,
    pub(crate) region: Option<String>,
    pub(crate) style: BucketStyle,
    pub(crate) authority: Option<PathBuf>,
}

impl BucketSettings {
    /// What is set, if anything.
    ///
    /// # Errors
    /// When its name is none.
    pub(super) fn of(resolved: &Resolved) -> Result<Option<BucketSettings>, Failure> {
        let given = |place| {
            let value = resolved.get(place).and_then(Value::as_str);
            value.filter(|text| !text.is_empty()).map(str::to_owned)
        };
        let Some(url) = given("server.files_bucket") else {
            return Ok(None);
        };
        check_bucket_url(&url)
            .map_err(|wrong| Failure::mistake(format!("server.files_bucket: {wrong}")))?;
        Ok(Some(BucketSettings {
            url,
            endpoint: given("server.files_endpoint"),
            region: given("server.files_region"),
            style: match text(resolved, "server.files_style").as_str() {
                "path" => BucketStyle::Path,
                "host" => BucketStyle::Host,
                _ => BucketStyle::Auto,
            },
            authority: given("server.files_ca").map(PathBuf::from),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::from_text;
    use super::*;

    #[test]
    fn a_bucket_is_named_by_its_url() {
        let bucket = |text: &str| from_text(text).map(|settings| settings.server.files_bucket);
        assert_eq!(bucket("").unwrap(), None);
        let named = bucket(
            "[server]\nfiles_bucket = \"s3://studio/a\"\nfiles_endpoint = \"http://s3:9000\"\nfiles_style = \"host\"",
        );
        let named = named.unwrap().unwrap();
        assert_eq!(named.url, "s3://studio/a");
        assert_eq!(named.endpoint.as_deref(), Some("http://s3:9000"));
        assert_eq!((named.style, named.region), (BucketStyle::Host, None));
        let wrong = bucket("[server]\nfiles_bucket = \"studio\"").unwrap_err();
        assert!(
            wrong.to_string().contains("server.files_bucket")
                && wrong.to_string().contains("s3://"),
            "{wrong}"
        );
    }
}
