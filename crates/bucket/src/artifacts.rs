//! Finished files as objects: `artifacts/ID`.

use std::io::Write;

use lowtide_core::job::Moment;

use crate::Bucket;
use crate::client::Read;
use lowtide_jobs::{
    Artifact, ArtifactId, ArtifactStore, InputId, Result, StoreError, checked_copy,
};

/// What their names begin with.
const FOLDER: &str = "artifacts/";

/// Finished files in a bucket, each named by its id alone.
#[derive(Clone, Debug)]
pub struct BucketArtifacts {
    bucket: Bucket,
}

impl BucketArtifacts {
    pub(crate) fn new(bucket: Bucket) -> BucketArtifacts {
        BucketArtifacts { bucket }
    }
}

fn name(artifact: ArtifactId) -> String {
    format!("{FOLDER}{artifact}")
}

fn id_of(name: &str) -> Option<ArtifactId> {
    name.strip_prefix(FOLDER)?.parse().ok()
}

impl ArtifactStore for BucketArtifacts {
    fn put(&self, media_type: &str, content: &[u8], now: Moment) -> Result<Artifact> {
        let id = ArtifactId::random(now);
        self.bucket.client.put(&name(id), media_type, content)?;
        Ok(Artifact {
            id,
            media_type: media_type.to_owned(),
            bytes: content.len() as u64,
            sha256: InputId::of(content).digits(),
        })
    }

    fn copy(&self, artifact: &Artifact, to: &mut dyn Write) -> Result<()> {
        let name = name(artifact.id);
        let Some(Read { bytes, mut reader }) = self.bucket.client.read(&name)? else {
            return Err(StoreError::ArtifactMissing {
                artifact: artifact.id,
            });
        };
        let failed = |error: std::io::Error| StoreError::Io {
            verb: "copy",
            path: name.clone().into(),
            reason: error.to_string(),
        };
        checked_copy(
            artifact,
            bytes,
            &mut |chunk| reader.read(chunk),
            to,
            &failed,
        )
    }

    fn remove(&self, artifact: ArtifactId) -> Result<()> {
        self.bucket.client.remove(&name(artifact))
    }

    fn finished_before(&self, before: Moment) -> Result<Vec<ArtifactId>> {
        // Names sort as their times do.
        let later = |name: &str| id_of(name).is_some_and(|id| id.made_at() >= before);
        let found = self.bucket.client.list(FOLDER, Some(&later))?;
        // What does not bear one of our names is not ours to touch.
        Ok(found
            .iter()
            .filter_map(|object| id_of(&object.name))
            .collect())
    }
}
