//! Which bucket, and which folder in it: `s3://bucket/folder`.

use lowtide_jobs::{Result, StoreError};

/// Longest name of a bucket that S3 has.
const NAME_LEN_MAX: usize = 63;

/// A bucket and the beginning of all names in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) bucket: String,
    /// Empty, or ends in `/`.
    pub(crate) prefix: String,
}

impl Place {
    /// Takes a URL apart.
    ///
    /// # Errors
    /// `Invalid`.
    pub(crate) fn parse(url: &str) -> Result<Place> {
        let rest = url
            .strip_prefix("s3://")
            .ok_or_else(|| wrong("it does not begin with s3://"))?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let plain = |letter: u8| letter.is_ascii_alphanumeric() || b".-_".contains(&letter);
        if !(3..=NAME_LEN_MAX).contains(&bucket.len()) || !bucket.bytes().all(plain) {
            return Err(wrong(
                "a bucket's name has 3 to 63 letters, digits, dots and hyphens",
            ));
        }
        let parts: Vec<&str> = prefix.split('/').filter(|part| !part.is_empty()).collect();
        if parts.iter().any(|part| [".", ".."].contains(part)) {
            return Err(wrong("a part of its folder is . or .."));
        }
        if prefix.contains(['?', '#', '@']) || prefix.chars().any(char::is_control) {
            return Err(wrong("its folder has ?, # or @ in it"));
        }
        let prefix = parts.iter().map(|part| format!("{part}/")).collect();
        Ok(Place {
            bucket: bucket.to_owned(),
            prefix,
        })
    }
}

fn wrong(reason: &str) -> StoreError {
    StoreError::Invalid {
        field: "the bucket's URL",
        reason: format!("{reason}; write s3://bucket or s3://bucket/folder"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_a_bucket_and_a_folder_in_it() {
        for (url, bucket, prefix) in [
            ("s3://studio", "studio", ""),
            ("s3://studio/", "studio", ""),
            ("s3://my.bucket-1/a/b", "my.bucket-1", "a/b/"),
            ("s3://studio//a//", "studio", "a/"),
        ] {
            let place = Place::parse(url).unwrap();
            assert_eq!(
                (&place.bucket[..], &place.prefix[..]),
                (bucket, prefix),
                "{url}"
            );
        }
        for url in [
            "studio",
            "https://studio/a",
            "s3://",
            "s3://ab",
            "s3://key:secret@studio",
            "s3://studio/../other",
            "s3://studio/a?b",
            &format!("s3://{}", "a".repeat(64)),
        ] {
            let error = Place::parse(url).unwrap_err().to_string();
            assert!(error.contains("s3://bucket"), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
