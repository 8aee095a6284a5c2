//! A picture that a request gives: how it is made ready, and how what was drawn is put back.

use lowtide_media::{Decoded, Fit, Limits, Mask, Picture, Region, decode, overlay};

use crate::defaults::Defaults;
use crate::processor::Files;
use crate::request::{Image, Source};
use crate::{Error, Result};

/// Largest file of a given picture.
pub(in crate::processors) const PICTURE_BYTES_MAX: u64 = 64 << 20;

/// How a given picture is used.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::processors) struct Given {
    /// The input file that holds it.
    pub(in crate::processors) image: String,
    /// The input file whose bright parts say what is to change.
    pub(in crate::processors) mask: Option<String>,
    /// How it becomes as large as the result.
    pub(in crate::processors) fit: Fit,
    /// Pixels by which the mask's edge is blurred.
    pub(in crate::processors) mask_blur: f32,
    /// Whether only the surroundings of what changes are drawn, as large as the result, and put back.
    pub(in crate::processors) only_masked: bool,
    /// Pixels of surroundings around what changes.
    pub(in crate::processors) padding: usize,
}

/// What remains of a given picture until the result is put over it.
#[derive(Debug)]
pub(in crate::processors) struct Under {
    picture: Picture,
    mask: Mask,
    /// The part that is drawn, where it is one.
    region: Option<Region>,
}

impl Given {
    /// The size of a result for which nobody named one: the picture's own, but of no more pixels than the model's.
    ///
    /// # Errors
    /// When the picture cannot be had.
    pub(in crate::processors) fn size(
        &self,
        files: &dyn Files,
        defaults: &Defaults,
        multiple: usize,
    ) -> Result<(usize, usize)> {
        let picture = read(files, "image", &self.image)?.picture;
        let (width, height) = (f64::from(picture.width()), f64::from(picture.height()));
        let most = (defaults.width * defaults.height) as f64;
        let scale = (most / (width * height)).sqrt().min(1.0);
        let side = |side: f64| {
            let multiples = (side * scale / multiple as f64).round() as usize;
            multiples.max(1) * multiple
        };
        Ok((side(width), side(height)))
    }

    /// An empty picture, and a mask where there is one, as large as the result: all that a forecast has to know.
    ///
    /// # Errors
    /// [`Error::Picture`].
    pub(super) fn blank(&self, (width, height): (usize, usize)) -> Result<Source> {
        let plane = |channels: usize| vec![0; width * height * channels];
        let (width, height) = (width as u32, height as u32);
        let mask = self
            .mask
            .as_ref()
            .map(|_| Mask::new(width, height, plane(1)));
        Ok(Source {
            picture: Picture::new(width, height, plane(3))?,
            mask: mask.transpose()?,
        })
    }

    /// The picture and its mask, as large as the result; and what the result is put over.
    ///
    /// # Errors
    /// When a file cannot be had or is no picture.
    pub(in crate::processors) fn ready(
        &self,
        files: &dyn Files,
        (width, height): (usize, usize),
    ) -> Result<(Source, Option<Under>)> {
        let picture = read(files, "image", &self.image)?.picture;
        let mask = self.mask.as_ref().map(|name| read(files, "mask", name));
        let mask = mask.transpose()?.map(|mask| mask.picture.luminance());
        self.placed(picture, mask, (width, height))
    }

    /// The same of a picture and a mask that are at hand.
    ///
    /// # Errors
    /// When the mask is all black.
    pub(in crate::processors) fn placed(
        &self,
        picture: Picture,
        mask: Option<Mask>,
        (width, height): (usize, usize),
    ) -> Result<(Source, Option<Under>)> {
        let (width, height) = (width as u32, height as u32);
        let Some(mask) = mask else {
            let picture = picture.fitted(width, height, self.fit);
            let source = Source {
                picture,
                mask: None,
            };
            return Ok((source, None));
        };
        // A mask belongs to its picture, whatever the size it comes in.
        let mask = mask.fitted(picture.width(), picture.height(), Fit::Resize);
        let under = match self.only_masked {
            false => {
                let picture = picture.fitted(width, height, self.fit);
                let mask = mask.fitted(width, height, self.fit);
                Under {
                    mask: mask.blurred(self.mask_blur),
                    picture,
                    region: None,
                }
            }
            true => {
                let mask = mask.blurred(self.mask_blur);
                let region = mask.region(width, height, self.padding as u32);
                let nothing = || Error::request("mask", "leaves nothing to draw: it is all black");
                Under {
                    region: Some(region.ok_or_else(nothing)?),
                    picture,
                    mask,
                }
            }
        };
        let source = match under.region {
            None => Source {
                picture: under.picture.clone(),
                mask: Some(under.mask.clone()),
            },
            Some(region) => {
                let picture = under.picture.cropped(region);
                let mask = under.mask.cropped(region);
                Source {
                    picture: picture.fitted(width, height, Fit::Resize),
                    mask: Some(mask.fitted(width, height, Fit::Resize)),
                }
            }
        };
        Ok((source, Some(under)))
    }
}

impl Under {
    /// What was drawn, where the mask says so, and everything else as it was given.
    ///
    /// # Errors
    /// [`Error::Picture`].
    pub(in crate::processors) fn over(&self, image: Image) -> Result<Image> {
        let (width, height) = (image.width as u32, image.height as u32);
        let drawn = Picture::new(width, height, image.rgb)?;
        // After a second pass the result is larger than what was given.
        let same = self.region.is_some()
            || (self.picture.width(), self.picture.height()) == (width, height);
        let painted = match same {
            true => overlay(&self.picture, &self.mask, &drawn, self.region)?,
            false => {
                let under = self.picture.fitted(width, height, Fit::Resize);
                let mask = self.mask.fitted(width, height, Fit::Resize);
                overlay(&under, &mask, &drawn, None)?
            }
        };
        Ok(Image {
            width: painted.width() as usize,
            height: painted.height() as usize,
            rgb: painted.values().to_vec(),
            seed: image.seed,
        })
    }
}

/// Reads a picture that a field names.
pub(in crate::processors) fn read(
    files: &dyn Files,
    field: &'static str,
    name: &str,
) -> Result<Decoded> {
    let shown: String = name.chars().take(80).collect();
    let wrong = |problem: String| Error::request(field, format!("'{shown}': {problem}"));
    let file = files.input(name, PICTURE_BYTES_MAX).map_err(wrong)?;
    decode(&file, &Limits::default()).map_err(|problem| wrong(problem.to_string()))
}
