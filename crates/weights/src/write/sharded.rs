//! Checkpoints of more than one file, cut as diffusers and transformers cut them.

use std::path::{Path, PathBuf};

use lowtide_core::{Bytes, TensorLayout};
use serde_json::{Map, Value, json};

use super::{SafetensorsWriter, WholeFile};
use crate::{Error, Result};

/// Writes a component's tensors into one file, or into several of at most a given size with an index. The index is
/// written last: without it the shards are not a checkpoint.
#[derive(Debug)]
pub struct ShardedWriter {
    folder: PathBuf,
    base: String,
    /// Every shard's tensors, in order.
    shards: Vec<Vec<TensorLayout>>,
    /// The shard whose turn it is.
    turn: usize,
    /// How many of its tensors' bytes are still to come.
    missing: u64,
    writer: Option<SafetensorsWriter>,
    metadata: Vec<(String, String)>,
}

impl ShardedWriter {
    /// Begins `folder/base.safetensors`, or its shards and index where `layouts` have more than `shard_bytes`. A
    /// tensor is never divided: one that is larger has a shard of its own.
    ///
    /// # Errors
    /// As [`SafetensorsWriter::create`].
    pub fn create(
        folder: &Path,
        base: &str,
        layouts: &[TensorLayout],
        shard_bytes: Bytes,
    ) -> Result<ShardedWriter> {
        ShardedWriter::with_metadata(folder, base, (layouts, shard_bytes), &[])
    }

    /// The same with free text under `__metadata__` of every shard, beside the usual `format`.
    ///
    /// # Errors
    /// As [`ShardedWriter::create`].
    pub fn with_metadata(
        folder: &Path,
        base: &str,
        (layouts, shard_bytes): (&[TensorLayout], Bytes),
        metadata: &[(&str, &str)],
    ) -> Result<ShardedWriter> {
        let mut shards: Vec<Vec<TensorLayout>> = vec![Vec::new()];
        let mut filled = 0u64;
        for layout in layouts {
            let bytes = layout.bytes().0;
            let shard = shards
                .last_mut()
                .expect("it begins with one and only grows");
            if bytes > 0 && !shard.is_empty() && filled.saturating_add(bytes) > shard_bytes.0 {
                shards.push(vec![layout.clone()]);
                filled = bytes;
            } else {
                shard.push(layout.clone());
                filled = filled.saturating_add(bytes);
            }
        }
        let mut writer = ShardedWriter {
            folder: folder.to_owned(),
            base: base.to_owned(),
            shards,
            turn: 0,
            missing: 0,
            writer: None,
            metadata: [("format", "pt")]
                .iter()
                .chain(metadata)
                .map(|(key, text)| ((*key).to_owned(), (*text).to_owned()))
                .collect(),
        };
        writer.open_shard()?;
        Ok(writer)
    }

    /// The files this writes, without the index.
    pub fn file_names(&self) -> Vec<String> {
        let count = self.shards.len();
        match count {
            1 => vec![format!("{}.safetensors", self.base)],
            _ => (1..=count)
                .map(|n| format!("{}-{n:05}-of-{count:05}.safetensors", self.base))
                .collect(),
        }
    }

    fn open_shard(&mut self) -> Result<()> {
        let layouts = &self.shards[self.turn];
        let metadata: Vec<(&str, &str)> = self
            .metadata
            .iter()
            .map(|(k, v)| (k.as_str(), v.as_str()))
            .collect();
        let path = self.folder.join(&self.file_names()[self.turn]);
        self.writer = Some(SafetensorsWriter::with_metadata(&path, layouts, &metadata)?);
        self.missing = layouts.iter().map(|l| l.bytes().0).sum();
        Ok(())
    }

    /// Appends bytes of the tensor whose turn it is, all of it or a part.
    ///
    /// # Errors
    /// As [`SafetensorsWriter::write`].
    pub fn write(&mut self, tensor: &str, bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() && self.missing == 0 && self.turn + 1 < self.shards.len() {
            self.close_shard()?;
            self.turn += 1;
            self.open_shard()?;
        }
        let writer = self
            .writer
            .as_mut()
            .expect("a shard is open until the writer is finished");
        writer.write(tensor, bytes)?;
        self.missing -= bytes.len() as u64;
        Ok(())
    }

    fn close_shard(&mut self) -> Result<()> {
        self.writer.take().map_or(Ok(()), SafetensorsWriter::finish)
    }

    /// Completes the last shard and writes the index.
    ///
    /// # Errors
    /// [`Error::Incomplete`], [`Error::Io`]. Shards that were complete stay; without an index nothing reads them.
    pub fn finish(mut self) -> Result<()> {
        self.close_shard()?;
        if let Some(layout) = self.shards.get(self.turn + 1).and_then(|next| next.first()) {
            let file = self.folder.join(&self.base).display().to_string();
            let (tensor, missing) = (layout.name.clone(), layout.bytes().0);
            return Err(Error::Incomplete {
                file,
                tensor,
                missing,
            });
        }
        if self.shards.len() == 1 {
            return Ok(());
        }
        let mut map = Map::new();
        for (file, layouts) in self.file_names().into_iter().zip(&self.shards) {
            map.extend(
                layouts
                    .iter()
                    .map(|l| (l.name.clone(), Value::from(file.clone()))),
            );
        }
        let total: u64 = self.shards.iter().flatten().map(|l| l.bytes().0).sum();
        let index = json!({ "metadata": { "total_size": total }, "weight_map": map });
        let path = self
            .folder
            .join(format!("{}.safetensors.index.json", self.base));
        let mut output = WholeFile::create(&path)?;
        output.write(format!("{index:#}\n").as_bytes())?;
        output.finish()
    }
}
