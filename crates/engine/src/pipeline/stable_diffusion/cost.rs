//! What a job costs on a Stable Diffusion model, phase by phase.

use lowtide_core::{Formula, Mode, PhaseLayout};
use lowtide_models::unet_2d_condition as unet;

use super::StableDiffusion;
use super::texts::CHUNK;
use crate::pipeline::{F32, Shape, latent_bytes, phase};

impl StableDiffusion {
    pub(super) fn encode_layout(&self, stage: usize, _shape: &Shape, scratch: f64) -> PhaseLayout {
        let encoder = &self.encoders[stage];
        let config = &encoder.config;
        let tokens = CHUNK as f64;
        let mode = Mode {
            name: "whole".to_owned(),
            exact: true,
            // One chunk goes through a layer at a time.
            activation: Formula::constant(config.layer_bytes_per_token() as f64 * tokens),
            flops: Formula::sum(&[
                (
                    config.flops_per_token(config.layers) as f64,
                    &["all_prompt_tokens"],
                ),
                (
                    config.attention_flops(config.layers) * tokens,
                    &["all_prompt_tokens"],
                ),
            ]),
            ladders: Vec::new(),
            resident_blocks: Vec::new(),
        };
        let states = self.unet_config.cross_attention_dim as f64;
        // Every chunk on its way, the state that is wanted of it, and what the texts become in the end.
        let held = Formula::sum(&[
            (
                F32 * (2.0 * config.hidden as f64 + 2.0 * states + config.pooled() as f64 / tokens),
                &["all_prompt_tokens"],
            ),
            (
                F32 * (config.hidden * config.positions) as f64 + scratch,
                &[],
            ),
        ]);
        let name = crate::pipeline::Phase::Text(stage).name(self);
        phase(name, &encoder.part.layout, 1, held, vec![mode])
    }

    pub(super) fn denoise_layout(
        &self,
        (name, pass): (&str, usize),
        shape: &Shape,
        scratch: f64,
    ) -> PhaseLayout {
        let size = &shape.passes[pass];
        let channels = self.vae.config.latent_channels;
        let modes = unet::modes(
            &self.unet_config,
            unet::Job {
                size: size.latent,
                samples: shape.count,
                sequences: shape.sequences(),
                text_tokens: shape.texts.iter().copied().max().unwrap_or(CHUNK),
            },
        );
        let states = self.unet_config.cross_attention_dim as f64;
        let inputs = self.unet_config.in_channels as f64 / channels as f64;
        let held = Formula::sum(&[
            (latent_bytes(shape, channels), &["count", "latent_values"]),
            // What the network sees and says of each picture of a round.
            (
                F32 * (inputs + shape.sequences() as f64 + 1.0),
                &["count", "latent_values"],
            ),
            (F32 * states, &["all_prompt_tokens"]),
            (scratch, &[]),
        ]);
        let evaluations = size.evaluations as u64;
        let mut phase = phase(name, &self.unet.layout, evaluations, held, modes);
        phase.rounds_over = Some(("batch".into(), shape.count as u64));
        phase
    }
}
