//! Repairs in a file: what was reached between two things.

use std::path::Path;

use lowtide_core::{Dtype, TensorLayout};
use lowtide_media::{Mask, Picture};
use lowtide_weights::{Checkpoint, SafetensorsWriter, TensorEntry};
use serde_json::{Value, json};

use super::run::{Repair, Things};
use super::told::Told;
use crate::{Error, Result};

/// Names within a saved session.
const REQUEST: &str = "lowtide_detail";
const REACHED: &str = "lowtide_detail_reached";
const PICTURE: &str = "picture";
const MASKS: &str = "masks";

impl Repair {
    /// Writes what was reached, whole or not at all; `false` where that is nothing.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(super) fn write(&self, file: &Path) -> Result<bool> {
        if self.at == 0 && self.things.is_none() {
            return Ok(false);
        }
        let request = self.request.json().to_string();
        let mut reached = self.reached();
        // A thing in progress is drawn again from its beginning.
        if self.session().is_some() {
            let last = reached["told"]
                .as_array_mut()
                .and_then(|told| told.last_mut());
            let seeds = last.and_then(|told| told["seeds"].as_array_mut());
            seeds.and_then(Vec::pop);
        }
        let reached = reached.to_string();
        let metadata = [(REQUEST, &request[..]), (REACHED, &reached[..])];
        let mut writer = SafetensorsWriter::with_metadata(file, &self.layouts(), &metadata)?;
        writer.write(PICTURE, self.picture.values())?;
        let masks = self.things.as_ref().map_or(&[][..], |things| &things.masks);
        if !masks.is_empty() {
            let all: Vec<u8> = masks.iter().flat_map(|m| m.values()).copied().collect();
            writer.write(MASKS, &all)?;
        }
        writer.finish()?;
        Ok(true)
    }

    /// What was reached between two things, beside the pixels.
    fn reached(&self) -> Value {
        json!({
            "at": self.at,
            "next": self.things.as_ref().map(|things| things.next),
            "told": self.told.iter().map(Told::json).collect::<Vec<_>>(),
        })
    }

    fn layouts(&self) -> Vec<TensorLayout> {
        let (width, height) = self.size();
        let (width, height) = (width as usize, height as usize);
        let tensor = |name: &str, shape: Vec<usize>| TensorLayout {
            name: name.to_owned(),
            dtype: Dtype::U8,
            shape,
        };
        let mut layouts = vec![tensor(PICTURE, vec![height, width, 3])];
        let masks = self.things.as_ref().map_or(0, |things| things.masks.len());
        if masks > 0 {
            layouts.push(tensor(MASKS, vec![masks, height, width]));
        }
        layouts
    }

    /// Goes on from what [`Repair::write`] wrote.
    ///
    /// # Errors
    /// When the file is none of this request.
    pub(super) fn restore(&mut self, path: &Path) -> Result<()> {
        let file = Checkpoint::open(path)?;
        let wrong = |what: &str| Error::request("session", format!("{}: {what}", path.display()));
        let told = file
            .metadata(REQUEST)
            .ok_or_else(|| wrong("is no saved repair"))?;
        let ours = self.request.json().to_string();
        if told != ours {
            return Err(wrong("belongs to another request"));
        }
        let reached = file.metadata(REACHED).unwrap_or_default();
        let reached: Value = serde_json::from_str(reached).map_err(|_| wrong("is damaged"))?;
        let at = reached["at"].as_u64().map(|at| at as usize);
        let told = reached["told"].as_array().map_or(&[][..], Vec::as_slice);
        let next = reached["next"].as_u64().map(|next| next as usize);
        let passes = self.request.passes.len();
        let at = at.filter(|&at| {
            let looked = at + usize::from(next.is_some());
            at <= passes && looked <= passes && told.len() == looked
        });
        self.at = at.ok_or_else(|| wrong("has reached what cannot be"))?;
        self.told = told.iter().map(Told::from_json).collect();
        let (width, height) = self.size();
        let shape = [height as usize, width as usize, 3];
        let is = |entry: &&TensorEntry, shape: &[usize]| {
            entry.dtype == Dtype::U8 && entry.shape == shape
        };
        let entry = file.get(PICTURE).filter(|entry| is(entry, &shape));
        let entry = entry.ok_or_else(|| wrong("has no picture of the right size"))?;
        let mut values = vec![0; shape.iter().product()];
        file.read(entry, &mut values)?;
        self.picture = Picture::new(width, height, values)?;
        let Some(next) = next else {
            return Ok(());
        };
        let mut masks = Vec::new();
        if let Some(entry) = file.get(MASKS) {
            let count = entry.shape.first().copied().unwrap_or(0);
            if !is(&entry, &[count, shape[0], shape[1]]) {
                return Err(wrong("has masks of another size"));
            }
            let plane = shape[0] * shape[1];
            for k in 0..count {
                let mut values = vec![0; plane];
                file.read_range(entry, (k * plane) as u64, &mut values)?;
                masks.push(Mask::new(width, height, values)?);
            }
        }
        if next > masks.len() {
            return Err(wrong("has fewer masks than were drawn"));
        }
        let going = None;
        self.things = Some(Things { masks, next, going });
        Ok(())
    }
}
