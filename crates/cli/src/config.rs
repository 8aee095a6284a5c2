//! What the arguments mean: checked, with the model's defaults filled in.

use crate::args::{GenerateArgs, PrecisionArg, QualityArg};
use crate::failure::Failure;
use crate::output::{check_writable, format_of, numbered};
use lowtide_core::Bytes;
use lowtide_engine::{Defaults, drawn_seed};
use lowtide_media::Format;
use std::path::PathBuf;

/// Sides of a picture are multiples of this, 8 pixels a latent; where a token has two latents, of twice as much.
const SIDE_STEP: usize = 8;
/// Such a side suits every model.
const SIDE_STEP_MAX: usize = 16;
/// Far above what any checkpoint was trained for; keeps sums of pixels within 32 bits.
const SIDE_MAX: usize = 16_384;
/// The number of noise levels a scheduler distinguishes.
const STEPS_MAX: u32 = 1_000;
const COUNT_MAX: u32 = 256;
const THREADS_MAX: usize = 1_024;
/// Many times what a text encoder reads; EXIF holds at most 64 KiB.
const PROMPT_CHARS_MAX: usize = 10_000;
/// Characters of the prompt in the name of a picture that was given none.
const NAME_CHARS_MAX: usize = 40;

/// Pixels, width first as users write it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size {
    /// Width in pixels.
    pub(crate) width: usize,
    /// Height in pixels.
    pub(crate) height: usize,
}

/// A request that can be planned: everything is decided but what memory decides.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) prompt: String,
    pub(crate) negative: Option<String>,
    pub(crate) size: Size,
    pub(crate) cfg_normalization: Option<f32>,
    pub(crate) cfg_truncation: f32,
    pub(crate) seed: u64,
    pub(crate) count: usize,
    pub(crate) quality: QualityArg,
    pub(crate) precision: PrecisionArg,
    pub(crate) budget: Option<Bytes>,
    pub(crate) reserve: Option<Bytes>,
    pub(crate) threads: Option<usize>,
}

impl Config {
    /// What `args` mean for a model with these defaults.
    pub(crate) fn new(args: &GenerateArgs, defaults: Defaults) -> Result<Config, Failure> {
        let size = match &args.size {
            Some(text) => parse_size(text)?,
            None => Size {
                width: defaults.width,
                height: defaults.height,
            },
        };
        check_size(size)?;
        let steps = args.steps.unwrap_or(defaults.steps);
        within("--steps", u64::from(steps), u64::from(STEPS_MAX))?;
        within("--count", u64::from(args.count), u64::from(COUNT_MAX))?;
        if let Some(threads) = args.threads {
            within("--threads", threads as u64, THREADS_MAX as u64)?;
        }
        for (what, text) in [
            ("prompt", Some(&args.prompt)),
            ("negative prompt", args.negative.as_ref()),
        ] {
            let chars = text.map_or(0, |text| text.chars().count());
            if chars > PROMPT_CHARS_MAX {
                return Err(Failure::mistake(format!(
                    "the {what} has {chars} characters; the most is {PROMPT_CHARS_MAX}"
                )));
            }
        }
        let guidance = args.guidance.unwrap_or(defaults.guidance);
        not_negative("--guidance", guidance)?;
        not_negative("--cfg-truncation", args.cfg_truncation)?;
        if let Some(factor) = args.cfg_normalization {
            not_negative("--cfg-normalization", factor)?;
        }
        let count = args.count as usize;
        let seed = args.seed.unwrap_or_else(drawn_seed);
        if seed.checked_add(u64::from(args.count) - 1).is_none() {
            return Err(Failure::mistake(format!(
                "--seed {seed}: the last of {count} pictures would exceed 2^64 - 1"
            )));
        }
        Ok(Config {
            prompt: args.prompt.clone(),
            negative: args.negative.clone(),
            size,
            cfg_normalization: args.cfg_normalization.filter(|&factor| factor > 0.0),
            cfg_truncation: args.cfg_truncation,
            seed,
            count,
            quality: args.quality,
            precision: args.precision.unwrap_or(PrecisionArg::Auto),
            budget: args.budget,
            reserve: args.reserve,
            threads: args.threads,
        })
    }
}

/// Where the results go.
#[derive(Clone, Debug)]
pub(crate) struct Destination {
    /// One path a picture.
    pub(crate) pictures: Vec<PathBuf>,
    pub(crate) format: Format,
    pub(crate) dump: Option<PathBuf>,
}

impl Destination {
    /// The paths `args` ask for, tried for writing.
    pub(crate) fn new(args: &GenerateArgs, config: &Config) -> Result<Destination, Failure> {
        let path = match &args.output {
            Some(path) => path.clone(),
            None => PathBuf::from(format!("{}-{}.png", name_from(&config.prompt), config.seed)),
        };
        let format = format_of(&path)?;
        let pictures = numbered(&path, config.count);
        if let Some(dump) = args.dump.as_ref().filter(|dump| pictures.contains(dump)) {
            return Err(Failure::mistake(format!(
                "--dump '{}' would replace the picture of that name; name another file",
                dump.display()
            )));
        }
        for file in pictures.iter().chain(&args.dump) {
            check_writable(file)?;
        }
        Ok(Destination {
            pictures,
            format,
            dump: args.dump.clone(),
        })
    }
}

/// What is wrong with the arguments whatever the model: found before a model is looked at.
pub(crate) fn check_early(args: &GenerateArgs) -> Result<(), Failure> {
    let config = Config::new(args, Defaults::default())?;
    Destination::new(args, &config).map(drop)
}

fn parse_size(text: &str) -> Result<Size, Failure> {
    let sides = text
        .split_once(['x', 'X', '×'])
        .and_then(|(width, height)| {
            Some(Size {
                width: width.trim().parse().ok()?,
                height: height.trim().parse().ok()?,
            })
        });
    sides.ok_or_else(|| {
        Failure::mistake(format!(
            "--size '{text}' is not a size; write width x height in pixels, such as 512x768"
        ))
    })
}

fn check_size(size: Size) -> Result<(), Failure> {
    let Size { width, height } = size;
    if width == 0 || height == 0 || width > SIDE_MAX || height > SIDE_MAX {
        return Err(Failure::mistake(format!(
            "--size {width}x{height}: both sides must be from {SIDE_STEP} to {SIDE_MAX} pixels"
        )));
    }
    if !width.is_multiple_of(SIDE_STEP) || !height.is_multiple_of(SIDE_STEP) {
        let near = |side: usize| {
            ((side + SIDE_STEP_MAX / 2) / SIDE_STEP_MAX * SIDE_STEP_MAX)
                .clamp(SIDE_STEP_MAX, SIDE_MAX)
        };
        return Err(Failure::mistake(format!(
            "--size {width}x{height}: both sides must be divisible by {SIDE_STEP}, for some models by \
             {SIDE_STEP_MAX}; {}x{} suits all",
            near(width),
            near(height)
        )));
    }
    Ok(())
}

fn within(option: &str, value: u64, max: u64) -> Result<(), Failure> {
    if (1..=max).contains(&value) {
        Ok(())
    } else {
        Err(Failure::mistake(format!(
            "{option} {value}: must be from 1 to {max}"
        )))
    }
}

fn not_negative(option: &str, value: f32) -> Result<(), Failure> {
    if value.is_finite() && value >= 0.0 {
        Ok(())
    } else {
        Err(Failure::mistake(format!(
            "{option} {value}: must be 0 or more"
        )))
    }
}

/// A file name that tells the prompt: letters and digits, the rest as single hyphens.
fn name_from(prompt: &str) -> String {
    let mut name = String::new();
    for c in prompt.chars().flat_map(char::to_lowercase) {
        if name.chars().count() >= NAME_CHARS_MAX {
            break;
        }
        if c.is_alphanumeric() {
            name.push(c);
        } else if !name.is_empty() && !name.ends_with('-') {
            name.push('-');
        }
    }
    let name = name.trim_end_matches('-');
    if name.is_empty() {
        "picture".to_owned()
    } else {
        name.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command};
    use clap::Parser;

    fn config(line: &[&str]) -> Result<Config, Failure> {
        let words = ["lowtide", "generate", "a red heart"].iter().chain(line);
        match Cli::try_parse_from(words).unwrap().command {
            Command::Generate(verb) => Config::new(&verb.args, Defaults::default()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn width_comes_first() {
        let size = config(&["--size", "512x768"]).unwrap().size;
        assert_eq!(
            size,
            Size {
                width: 512,
                height: 768
            }
        );
    }

    #[test]
    fn mistakes_name_the_argument_and_the_way_out() {
        for (line, says) in [
            (
                ["--size", "100x128"],
                "--size 100x128: both sides must be divisible by 8, for some models by 16; 96x128 suits all",
            ),
            (["--size", "512"], "such as 512x768"),
            (["--size", "0x16"], "from 8 to 16384"),
            (["--steps", "0"], "--steps 0: must be from 1 to 1000"),
            (["--count", "0"], "--count 0"),
            (["--threads", "0"], "--threads 0"),
            (["--guidance", "nan"], "--guidance NaN: must be 0 or more"),
        ] {
            let failure = config(&line).unwrap_err();
            assert_eq!(failure.exit_code(), 2);
            assert!(failure.to_string().contains(says), "{line:?}: {failure}");
        }
    }

    #[test]
    fn the_last_seed_must_exist() {
        let last = u64::MAX.to_string();
        assert!(config(&["--seed", &last]).is_ok());
        assert!(config(&["--seed", &last, "--count", "2"]).is_err());
    }

    #[test]
    fn a_prompt_becomes_a_file_name() {
        assert_eq!(name_from("A red  heart!"), "a-red-heart");
        assert_eq!(name_from("../..\\"), "picture");
        assert_eq!(name_from(&"x".repeat(99)).len(), NAME_CHARS_MAX);
    }
}
