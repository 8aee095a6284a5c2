//! Enlargements in a file: the windows that are finished.

use std::path::Path;

use lowtide_core::{Dtype, TensorLayout};
use lowtide_weights::{Checkpoint, SafetensorsWriter};
use serde::{Deserialize, Serialize};

use super::Enlarging;
use super::enlarging::At;
use crate::{Error, Result};

/// Names within the file.
const ABOUT: &str = "lowtide_upscale";
const REACHED: &str = "lowtide_upscale_reached";
/// Its tensors: colours, and how solid pixels are.
const PLANES: [&str; 2] = ["colours", "alpha"];

/// Bytes that are written and read at once.
const PIECE_BYTES: usize = 1 << 20;

/// What was reached, beside the pixels.
#[derive(Serialize, Deserialize)]
struct Reached {
    /// How the picture was cut.
    cut: String,
    pass: usize,
    window: usize,
}

impl Enlarging {
    /// Writes the finished windows, whole or not at all, of what `about` says; `false` where there are none.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, about: &str, file: &Path) -> Result<bool> {
        let At { pass, window, .. } = self.at;
        if self.over || (pass, window) == (0, 0) {
            return Ok(false);
        }
        let reached = Reached {
            cut: self.planned.cut.name(),
            pass,
            window,
        };
        let reached = serde_json::to_string(&reached).expect("texts and numbers are JSON");
        let metadata = [(ABOUT, about), (REACHED, &reached[..])];
        let mut writer = SafetensorsWriter::with_metadata(file, &self.layouts(), &metadata)?;
        let mut piece = vec![0; PIECE_BYTES];
        for (alpha, name, bytes) in self.planes() {
            for at in (0..bytes).step_by(PIECE_BYTES) {
                let piece = &mut piece[..PIECE_BYTES.min(bytes - at)];
                self.made.read(alpha, at, piece);
                writer.write(name, piece)?;
            }
        }
        writer.finish()?;
        Ok(true)
    }

    /// Goes on from what [`Enlarging::save`] wrote; begins anew where the picture has to be cut otherwise now.
    ///
    /// # Errors
    /// When the file is none, or about something else.
    pub fn restore(&mut self, about: &str, path: &Path) -> Result<()> {
        let wrong = |what: &str| Error::request("session", format!("{}: {what}", path.display()));
        let file = Checkpoint::open(path)?;
        let told = file.metadata(ABOUT);
        if told.ok_or_else(|| wrong("is no saved enlargement"))? != about {
            return Err(wrong("belongs to another request"));
        }
        let reached = file.metadata(REACHED).unwrap_or_default();
        let reached: Reached = serde_json::from_str(reached).map_err(|_| wrong("is damaged"))?;
        if reached.cut != self.planned.cut.name() {
            return Ok(());
        }
        if reached.pass >= self.passes() || reached.window >= self.windows.len() {
            return Err(wrong("has reached what cannot be"));
        }
        let mut piece = vec![0; PIECE_BYTES];
        for ((alpha, name, bytes), layout) in self.planes().into_iter().zip(self.layouts()) {
            let entry = file.get(name);
            let fits = |entry: &&lowtide_weights::TensorEntry| {
                entry.dtype == layout.dtype && entry.shape == layout.shape
            };
            let entry = entry.filter(fits);
            let entry = entry.ok_or_else(|| wrong("has pixels of another size"))?;
            for at in (0..bytes).step_by(PIECE_BYTES) {
                let piece = &mut piece[..PIECE_BYTES.min(bytes - at)];
                file.read_range(entry, at as u64, piece)?;
                self.made.write(alpha, at, piece);
            }
        }
        self.at = At {
            pass: reached.pass,
            window: reached.window,
            ..At::default()
        };
        Ok(())
    }

    /// Whether it is how solid pixels are, its name and bytes, of each tensor.
    fn planes(&self) -> Vec<(bool, &'static str, usize)> {
        let layouts = self.layouts().into_iter().enumerate();
        layouts
            .map(|(at, layout)| (at == 1, PLANES[at], layout.shape.iter().product()))
            .collect()
    }

    fn layouts(&self) -> Vec<TensorLayout> {
        let (width, height) = (self.made.width() as usize, self.made.height() as usize);
        let bytes = self.made.depth().bytes();
        let layout = |at: usize, channels: usize| TensorLayout {
            name: PLANES[at].to_owned(),
            dtype: Dtype::U8,
            shape: vec![height, width, channels * bytes],
        };
        let alpha = self.made.has_alpha().then(|| layout(1, 1));
        std::iter::once(layout(0, 3)).chain(alpha).collect()
    }
}
