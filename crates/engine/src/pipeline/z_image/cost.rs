//! What a job costs on a Z-Image model, phase by phase.

use lowtide_core::{Formula, Ladder, Mode, PhaseLayout, Vars};
use lowtide_models::z_image;

use super::ZImage;
use crate::pipeline::{F32, Shape, latent_bytes, phase};

/// Rows below which smaller chunks save nothing worth the slower products.
const CHUNK_ROWS_MIN: u64 = 64;

impl ZImage {
    /// The variables that the formulas speak of, beside those of every family.
    pub(super) fn sizes(&self, shape: &Shape, vars: &mut Vars) {
        let captions: Vec<usize> = shape
            .texts
            .iter()
            .map(|&tokens| z_image::padded(tokens))
            .collect();
        let longest_caption = captions.iter().copied().max().unwrap_or(0);
        let distinct = |texts: &mut dyn Iterator<Item = usize>| {
            let mut lengths: Vec<usize> = texts.map(|text| captions[text]).collect();
            lengths.sort_unstable();
            lengths.dedup();
            lengths.len()
        };
        let members = shape.members.iter();
        let lengths_a_picture = members
            .map(|texts| distinct(&mut texts.iter().copied()))
            .max();
        let latents = shape.passes.iter().map(|pass| pass.latent);
        let image_tokens = latents.map(|latent| z_image::padded(z_image::image_tokens(latent)));
        let image_tokens = image_tokens.max().unwrap_or(0);
        for (name, value) in [
            ("caption_tokens", longest_caption),
            ("all_caption_tokens", captions.iter().sum::<usize>()),
            ("caption_lengths", lengths_a_picture.unwrap_or(0)),
            ("tables", distinct(&mut (0..captions.len()))),
            ("image_tokens", image_tokens),
            ("tokens", image_tokens + longest_caption),
        ] {
            vars.set(name, value as u64);
        }
    }

    pub(super) fn encode_layout(&self, scratch: f64) -> PhaseLayout {
        let config = &self.text_config;
        let layer = config.layer_bytes_per_token() as f64;
        let mode = Mode {
            name: "whole".to_owned(),
            exact: true,
            activation: Formula::sum(&[(
                layer + config.rotary_bytes_per_token() as f64,
                &["prompt_tokens"],
            )]),
            flops: Formula::sum(&[
                (config.flops_per_token() as f64, &["all_prompt_tokens"]),
                (
                    config.attention_flops(),
                    &["all_prompt_tokens", "prompt_tokens"],
                ),
            ]),
            ladders: Vec::new(),
            resident_blocks: Vec::new(),
        };
        let held = Formula::sum(&[
            (F32 * config.hidden as f64, &["all_prompt_tokens"]),
            (scratch, &[]),
        ]);
        phase("encode", &self.text_encoder.layout, 1, held, vec![mode])
    }

    pub(super) fn refine_layout(&self, shape: &Shape, scratch: f64) -> PhaseLayout {
        let config = &self.transformer_config;
        let (d, f) = (config.dim as f64, config.hidden() as f64);
        let longest = shape
            .texts
            .iter()
            .map(|&tokens| z_image::padded(tokens))
            .max()
            .unwrap_or(0) as u64;
        let mode = Mode {
            name: "chunks".to_owned(),
            exact: true,
            // The embedder holds the norm's output, the embedded rows and the padded rows of one caption.
            activation: Formula::sum(&[(F32 * 4.0 * d, &["caption_tokens"])])
                .or(Formula::sum(&[(F32 * (d + f), &["chunk_rows"])]))
                .or(Formula::sum(&[(
                    F32 * (config.caption_dim as f64 + d),
                    &["caption_tokens"],
                )]))
                .plus(F32 * d, &["all_caption_tokens"]),
            flops: Formula::sum(&[
                (
                    (config.refiners as f64) * config.layer_flops(),
                    &["all_caption_tokens"],
                ),
                (2.0 * d * config.caption_dim as f64, &["all_caption_tokens"]),
            ]),
            ladders: vec![Ladder::new(
                "chunk_rows",
                longest,
                CHUNK_ROWS_MIN.min(longest),
                32,
            )],
            resident_blocks: Vec::new(),
        };
        let held = Formula::sum(&[
            (F32 * config.caption_dim as f64, &["all_prompt_tokens"]),
            (F32 * config.head_dim() as f64, &["caption_tokens"]),
            (scratch, &[]),
        ]);
        phase("refine", &self.captions.layout, 1, held, vec![mode])
    }

    /// The worst moments of a step: attention over one sequence or over the rows of a chunk, the feed-forward of a
    /// chunk, pictures and captions put together, pictures taken in, velocities given out.
    fn denoise_activation(&self) -> Formula {
        let config = &self.transformer_config;
        let (d, f, c) = (
            config.dim as f64,
            config.hidden() as f64,
            config.channels as f64,
        );
        let state: (f64, &[&'static str]) = (F32 * d, &["batch", "sequences", "tokens"]);
        let pictures: (f64, &[&'static str]) =
            (F32 * d, &["batch", "caption_lengths", "image_tokens"]);
        Formula::sum(&[state, (F32 * 4.0 * d, &["tokens"])])
            .or(Formula::sum(&[state, (F32 * 4.0 * d, &["chunk_rows"])]))
            .or(Formula::sum(&[state, (F32 * (d + f), &["chunk_rows"])]))
            .or(Formula::sum(&[state, pictures]))
            .or(Formula::sum(&[
                pictures,
                (F32 * (d + 4.0 * c), &["image_tokens"]),
            ]))
            .or(Formula::sum(&[
                state,
                (F32, &["batch", "sequences", "latent_values"]),
                (F32 * 4.0 * c, &["image_tokens"]),
            ]))
    }

    pub(super) fn denoise_layout(
        &self,
        (name, pass): (&str, usize),
        shape: &Shape,
        scratch: f64,
    ) -> PhaseLayout {
        let config = &self.transformer_config;
        let d = config.dim as f64;
        let mut vars = Vars::new();
        self.sizes(shape, &mut vars);
        let (image, caption) = (
            vars.get("image_tokens").unwrap_or(0),
            vars.get("caption_tokens").unwrap_or(0),
        );
        let sequences = shape.sequences() as u64;
        let rows = shape.count as u64 * sequences * (image + caption);
        let layers = config.layers as f64;
        let mode = Mode {
            name: "chunks".to_owned(),
            exact: true,
            activation: self.denoise_activation(),
            flops: Formula::sum(&[
                (
                    layers * config.layer_flops(),
                    &["batch", "sequences", "tokens"],
                ),
                (
                    layers * config.attention_flops(),
                    &["batch", "sequences", "tokens", "tokens"],
                ),
                (
                    config.refiners as f64 * config.layer_flops(),
                    &["batch", "caption_lengths", "image_tokens"],
                ),
            ]),
            ladders: vec![
                Ladder::new("batch", shape.count as u64, 1, 1),
                Ladder::new("chunk_rows", rows, CHUNK_ROWS_MIN.min(rows), 32),
            ],
            resident_blocks: Vec::new(),
        };
        let held = Formula::sum(&[
            (
                latent_bytes(shape, config.channels),
                &["count", "latent_values"],
            ),
            (F32 * d, &["all_caption_tokens"]),
            (F32 * config.head_dim() as f64, &["tables", "tokens"]),
            (scratch, &[]),
        ]);
        let mut phase = phase(
            name,
            &self.transformer.layout,
            shape.passes[pass].evaluations as u64,
            held,
            vec![mode],
        );
        phase.rounds_over = Some(("batch".into(), shape.count as u64));
        phase
    }
}
