//! What a picture was made with, in the text other programs read: the prompt, the negative prompt, and one line of
//! `Key: value` pairs, as the Stable Diffusion web UI writes it.

use std::fmt::Write;

/// Everything that goes into the text.
#[derive(Clone, Debug)]
pub struct Parameters<'a> {
    /// What was asked for.
    pub prompt: &'a str,
    /// What was asked to be avoided; nothing is written where it is empty.
    pub negative: Option<&'a str>,
    /// Denoising steps.
    pub steps: usize,
    /// The guidance weight, as `--guidance` takes it.
    pub guidance: f32,
    /// The seed of this picture, not of the first of several.
    pub seed: u64,
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// The model's name.
    pub model: &'a str,
    /// Further pairs, such as the approximate rungs taken.
    pub extra: &'a [(&'static str, String)],
}

impl Parameters<'_> {
    /// The text of the `parameters` chunk.
    pub fn text(&self) -> String {
        let mut text = self.prompt.trim_end().to_owned();
        if let Some(negative) = self.negative.map(str::trim).filter(|n| !n.is_empty()) {
            text.push_str("\nNegative prompt: ");
            text.push_str(negative);
        }
        write!(
            text,
            "\nSteps: {}, Sampler: Euler, CFG scale: {}, Seed: {}, Size: {}x{}, Model: {}",
            self.steps,
            self.guidance,
            self.seed,
            self.width,
            self.height,
            quoted(self.model)
        )
        .expect("a String takes every write");
        for (key, value) in self.extra {
            write!(text, ", {key}: {}", quoted(value)).expect("a String takes every write");
        }
        text.push_str(concat!(", Version: lowtide ", env!("CARGO_PKG_VERSION")));
        text
    }
}

/// A value that holds a comma, a colon or a line break is written as a JSON string, so that readers do not split it.
fn quoted(value: &str) -> String {
    if value.contains([',', ':', '\n', '"']) {
        serde_json::Value::from(value).to_string()
    } else {
        value.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEART: Parameters<'static> = Parameters {
        prompt: "a red heart",
        negative: None,
        steps: 20,
        guidance: 4.0,
        seed: 1,
        width: 128,
        height: 64,
        model: "demo",
        extra: &[],
    };

    #[test]
    fn the_text_is_what_other_programs_read() {
        assert_eq!(
            HEART.text(),
            format!(
                "a red heart\nSteps: 20, Sampler: Euler, CFG scale: 4, Seed: 1, Size: 128x64, Model: demo, \
                 Version: lowtide {}",
                env!("CARGO_PKG_VERSION")
            )
        );
    }

    #[test]
    fn a_negative_prompt_stands_on_its_own_line() {
        let text = Parameters {
            negative: Some("blue"),
            ..HEART
        }
        .text();
        assert!(
            text.starts_with("a red heart\nNegative prompt: blue\nSteps: 20,"),
            "{text}"
        );
        let text = Parameters {
            negative: Some("  "),
            ..HEART
        }
        .text();
        assert!(!text.contains("Negative"), "{text}");
    }

    #[test]
    fn a_value_with_a_comma_is_quoted() {
        let text = Parameters {
            model: "big, red",
            extra: &[("Precision", "bf16".to_owned())],
            ..HEART
        }
        .text();
        assert!(
            text.contains("Model: \"big, red\", Precision: bf16, Version"),
            "{text}"
        );
    }
}
