//! The configurations beside the weights, as diffusers and transformers read them.

use lowtide_core::Dtype;
use serde_json::{Value, json};

use crate::settings::Settings;

/// Every configuration file of the model, by its path inside the folder.
pub(crate) fn all(s: &Settings, tokenizer_class: &str) -> [(&'static str, Value); 5] {
    [
        ("model_index.json", model_index(tokenizer_class)),
        ("scheduler/scheduler_config.json", scheduler()),
        ("text_encoder/config.json", text_encoder(s)),
        ("transformer/config.json", transformer(s)),
        ("vae/config.json", vae(s)),
    ]
}

fn model_index(tokenizer_class: &str) -> Value {
    json!({
        "_class_name": "ZImagePipeline",
        "_diffusers_version": "0.36.0",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "Qwen3Model"],
        "tokenizer": ["transformers", tokenizer_class],
        "transformer": ["diffusers", "ZImageTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    })
}

fn scheduler() -> Value {
    json!({
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "_diffusers_version": "0.36.0",
        "num_train_timesteps": 1000,
        "shift": 3.0,
        "use_dynamic_shifting": false,
    })
}

fn text_encoder(s: &Settings) -> Value {
    json!({
        "architectures": ["Qwen3Model"],
        "model_type": "qwen3",
        "dtype": if s.dtype == Dtype::Bf16 { "bfloat16" } else { "float32" },
        "attention_bias": false,
        "attention_dropout": 0.0,
        "head_dim": s.text_head_dim,
        "hidden_act": "silu",
        "hidden_size": s.text_hidden,
        "initializer_range": 0.02,
        "intermediate_size": s.text_intermediate,
        "max_position_embeddings": 40960,
        "num_attention_heads": s.text_heads,
        "num_hidden_layers": s.text_layers,
        "num_key_value_heads": s.text_kv_heads,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": true,
        "use_cache": true,
        "use_sliding_window": false,
        "vocab_size": s.vocab,
    })
}

fn transformer(s: &Settings) -> Value {
    json!({
        "_class_name": "ZImageTransformer2DModel",
        "_diffusers_version": "0.36.0",
        "all_patch_size": [2],
        "all_f_patch_size": [1],
        "axes_dims": s.axes,
        "axes_lens": [1024, 512, 512],
        "cap_feat_dim": s.text_hidden,
        "dim": s.dim,
        "in_channels": s.latent_channels,
        "n_heads": s.heads,
        "n_kv_heads": s.heads,
        "n_layers": s.layers,
        "n_refiner_layers": s.refiners,
        "norm_eps": 1e-5,
        "qk_norm": true,
        "rope_theta": 256.0,
        "t_scale": 1000.0,
    })
}

fn vae(s: &Settings) -> Value {
    let levels = s.vae_channels.len();
    json!({
        "_class_name": "AutoencoderKL",
        "_diffusers_version": "0.36.0",
        "act_fn": "silu",
        "block_out_channels": s.vae_channels,
        "down_block_types": vec!["DownEncoderBlock2D"; levels],
        "up_block_types": vec!["UpDecoderBlock2D"; levels],
        "force_upcast": true,
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": s.latent_channels,
        "layers_per_block": s.vae_layers,
        "mid_block_add_attention": true,
        "norm_num_groups": s.vae_groups,
        "sample_size": 1024,
        "scaling_factor": 0.3611,
        "shift_factor": 0.1159,
        "use_quant_conv": false,
        "use_post_quant_conv": false,
    })
}
