//! A bucket of an S3 server: finished files, inputs and saved sessions of many machines, without a folder all of them see.
//!
//! Amazon's S3 and what speaks like it (MinIO, Ceph, Garage, R2). An object appears whole or not at all, which is what is
//! promised of files here; several parts of a large one become an object with one request. Every upload bears its sum, and
//! every download is compared with what was written. Requests are signed by a crate that sends nothing; they are sent by the
//! HTTP client and with the TLS that the rest of the program uses. Signing is the one thing here that looks at a clock.

#![forbid(unsafe_code)]

mod artifacts;
mod client;
mod inputs;
mod place;
mod sessions;
mod trouble;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use lowtide_core::job::Moment;
use lowtide_jobs::{ArtifactId, Result, StoreError};

pub use artifacts::BucketArtifacts;
pub use inputs::BucketInputs;
pub use sessions::BucketSessions;

use client::{Client, Read};
use place::Place;

/// An object larger than this is sent in parts, and so large are they, bytes. S3 wants at least 5 MiB and at most 10,000
/// parts.
const PART_BYTES: usize = 16 << 20;

/// How long a server that does not answer is asked again.
const PATIENCE: Duration = Duration::from_secs(10);

/// Who we are there.
#[derive(Clone)]
pub struct BucketKeys {
    /// The key's public part.
    pub id: String,
    /// Its secret.
    pub secret: String,
    /// What comes with a key that is good for a while only.
    pub token: Option<String>,
}

impl fmt::Debug for BucketKeys {
    /// Without the secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:***", self.id)
    }
}

/// How the bucket's name is part of an address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BucketStyle {
    /// In the path where an endpoint is named, in the host's name where none is.
    #[default]
    Auto,
    /// `https://host/bucket/object`.
    Path,
    /// `https://bucket.host/object`.
    Host,
}

/// How a bucket is reached.
#[derive(Clone, Debug)]
pub struct BucketOptions {
    /// `s3://bucket` or `s3://bucket/folder/in/it`.
    pub url: String,
    /// The server; Amazon's of the region where nothing is said.
    pub endpoint: Option<String>,
    /// Where the bucket is; servers of one's own mostly do not mind.
    pub region: Option<String>,
    /// How its name is written.
    pub style: BucketStyle,
    /// Who we are.
    pub keys: BucketKeys,
    /// A PEM file with authorities to trust beside the public ones.
    pub authority: Option<PathBuf>,
    /// How long a server that does not answer is asked again.
    pub patience: Duration,
    /// Larger objects are sent in parts of so many bytes.
    pub part_bytes: usize,
}

impl BucketOptions {
    /// Those of this bucket with these keys, nothing else being said.
    pub fn new(url: &str, keys: BucketKeys) -> BucketOptions {
        BucketOptions {
            url: url.to_owned(),
            endpoint: None,
            region: None,
            style: BucketStyle::Auto,
            keys,
            authority: None,
            patience: PATIENCE,
            part_bytes: PART_BYTES,
        }
    }
}

/// A bucket, or a folder in one.
#[derive(Clone)]
pub struct Bucket {
    client: Arc<Client>,
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Bucket {
    /// For people: bucket, folder and server.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.client.shown)
    }
}

impl Bucket {
    /// The bucket, after a file of a few bytes was written, read, found and removed there.
    ///
    /// # Errors
    /// `Invalid` where an option is none, `Unreachable`, `Denied` with the right that is missing; `Io` where the
    /// authorities' file cannot be read.
    pub fn open(options: &BucketOptions) -> Result<Bucket> {
        let bucket = Bucket {
            client: Arc::new(Client::new(options)?),
        };
        bucket.check()?;
        Ok(bucket)
    }

    /// Whether everything that will be done there can be done.
    ///
    /// # Errors
    /// As [`Bucket::open`].
    pub fn check(&self) -> Result<()> {
        const CONTENT: &[u8] = b"lowtide looks whether it can write, read, list and remove here";
        let name = format!("checks/{}", ArtifactId::random(Moment(0)));
        let differs = |what: &str| StoreError::Denied {
            store: self.to_string(),
            reason: format!(
                "{what}: this is no S3 server, or something between changes what is sent"
            ),
        };
        self.client.put(&name, "text/plain", CONTENT)?;
        let read = self.read_small(&name, CONTENT.len() as u64)?;
        if read.as_deref() != Some(CONTENT) {
            return Err(differs("what was written is read as something else"));
        }
        let listed = self.client.list(&name, None)?;
        if !listed.iter().any(|object| object.name == name) {
            return Err(differs("what was written is not listed"));
        }
        self.client.remove(&name)
    }

    /// The finished files in it.
    pub fn artifacts(&self) -> BucketArtifacts {
        BucketArtifacts::new(self.clone())
    }

    /// The inputs in it, together of about `bytes_max` at most: several servers that write at once may each count a little
    /// behind the others.
    pub fn inputs(&self, bytes_max: lowtide_core::Bytes) -> BucketInputs {
        BucketInputs::new(self.clone(), bytes_max)
    }

    /// The saved sessions in it.
    pub fn sessions(&self) -> BucketSessions {
        BucketSessions::new(self.clone())
    }

    /// An object of at most so many bytes; `None` where there is none.
    fn read_small(&self, name: &str, bytes_max: u64) -> Result<Option<Vec<u8>>> {
        let Some(Read { bytes, mut reader }) = self.client.read(name)? else {
            return Ok(None);
        };
        let too_large = |bytes| StoreError::TooLarge {
            field: "input",
            bytes,
            limit: bytes_max,
        };
        if bytes > bytes_max {
            return Err(too_large(bytes));
        }
        let mut content = Vec::with_capacity(usize::try_from(bytes).unwrap_or(0));
        let mut chunk = vec![0; 64 << 10];
        loop {
            match reader.read(&mut chunk)? {
                0 => return Ok(Some(content)),
                len => content.extend_from_slice(&chunk[..len]),
            }
        }
    }
}

/// Whether a text names a bucket.
///
/// # Errors
/// `Invalid`, with what is wrong.
pub fn check_bucket_url(url: &str) -> Result<()> {
    Place::parse(url).map(drop)
}
