//! Saved sessions as objects: `sessions/NAME`.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use crate::Bucket;
use crate::client::Read;
use lowtide_jobs::{Result, SessionStore, StoreError};

/// What their names begin with.
const FOLDER: &str = "sessions/";

/// What they are stored as.
const MEDIA_TYPE: &str = "application/octet-stream";

/// Bytes copied at a time.
const CHUNK_LEN: usize = 64 << 10;

/// Saved sessions in a bucket.
#[derive(Clone, Debug)]
pub struct BucketSessions {
    bucket: Bucket,
}

impl BucketSessions {
    pub(crate) fn new(bucket: Bucket) -> BucketSessions {
        BucketSessions { bucket }
    }

    fn write(&self, from: Read<'_>, to: &Path) -> Result<()> {
        let io = |error| StoreError::io("write", to, &error);
        let mut file = File::create(to).map_err(io)?;
        let mut reader = from.reader;
        let mut chunk = vec![0; CHUNK_LEN];
        loop {
            match reader.read(&mut chunk)? {
                0 => return Ok(()),
                len => file.write_all(&chunk[..len]).map_err(io)?,
            }
        }
    }
}

impl SessionStore for BucketSessions {
    fn keep(&self, name: &str, file: &Path) -> Result<()> {
        let content = std::fs::read(file).map_err(|error| StoreError::io("read", file, &error))?;
        let name = format!("{FOLDER}{name}");
        self.bucket.client.put(&name, MEDIA_TYPE, &content)
    }

    fn fetch(&self, name: &str, to: &Path) -> Result<bool> {
        let Some(read) = self.bucket.client.read(&format!("{FOLDER}{name}"))? else {
            return Ok(false);
        };
        let partial = to.with_extension("fetched");
        let fetched = self.write(read, &partial).and_then(|()| {
            std::fs::rename(&partial, to).map_err(|error| StoreError::io("rename", to, &error))
        });
        if fetched.is_err() {
            // As much as can be done.
            let _ = std::fs::remove_file(&partial);
        }
        fetched.map(|()| true)
    }

    fn remove(&self, name: &str) -> Result<()> {
        self.bucket.client.remove(&format!("{FOLDER}{name}"))
    }

    fn names(&self) -> Result<Vec<String>> {
        let all = self.bucket.client.list(FOLDER, None)?.into_iter();
        let names = all.filter_map(|object| Some(object.name.strip_prefix(FOLDER)?.to_owned()));
        Ok(names.collect())
    }
}
