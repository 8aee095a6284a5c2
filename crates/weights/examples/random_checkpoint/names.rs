//! The tensors of the three networks: names and shapes as diffusers and transformers save them, sorted by name.

use lowtide_core::TensorLayout;

use crate::settings::Settings;

/// Values of the timestep's embedding that the modulation sees, at most.
const ADALN_DIM: usize = 256;
/// Hidden width of the timestep's embedding, fixed in the architecture.
const TIMESTEP_HIDDEN: usize = 1024;
/// Frequencies of the timestep's embedding, fixed in the architecture.
const TIMESTEP_FREQUENCIES: usize = 256;
/// Latent pixels of a patch, in each direction.
const PATCH: usize = 2;

/// Collects tensors of one type.
struct List<'a> {
    settings: &'a Settings,
    tensors: Vec<TensorLayout>,
}

impl<'a> List<'a> {
    fn new(settings: &'a Settings) -> List<'a> {
        List {
            settings,
            tensors: Vec::new(),
        }
    }

    fn add(&mut self, name: String, shape: &[usize]) {
        self.tensors.push(TensorLayout {
            name,
            dtype: self.settings.dtype,
            shape: shape.to_vec(),
        });
    }

    /// A weight and a bias.
    fn biased(&mut self, prefix: &str, shape: &[usize]) {
        self.add(format!("{prefix}.weight"), shape);
        self.add(format!("{prefix}.bias"), &shape[..1]);
    }

    fn weight(&mut self, prefix: &str, shape: &[usize]) {
        self.add(format!("{prefix}.weight"), shape);
    }

    fn sorted(mut self) -> Vec<TensorLayout> {
        self.tensors.sort_by(|a, b| a.name.cmp(&b.name));
        self.tensors
    }
}

/// `Qwen3Model`.
pub(crate) fn text_encoder(s: &Settings) -> Vec<TensorLayout> {
    let mut list = List::new(s);
    let (hidden, queries, keys) = (
        s.text_hidden,
        s.text_heads * s.text_head_dim,
        s.text_kv_heads * s.text_head_dim,
    );
    list.weight("embed_tokens", &[s.vocab, hidden]);
    list.weight("norm", &[hidden]);
    for layer in 0..s.text_layers {
        let at = |name: &str| format!("layers.{layer}.{name}");
        list.weight(&at("input_layernorm"), &[hidden]);
        list.weight(&at("post_attention_layernorm"), &[hidden]);
        list.weight(&at("mlp.gate_proj"), &[s.text_intermediate, hidden]);
        list.weight(&at("mlp.up_proj"), &[s.text_intermediate, hidden]);
        list.weight(&at("mlp.down_proj"), &[hidden, s.text_intermediate]);
        list.weight(&at("self_attn.q_norm"), &[s.text_head_dim]);
        list.weight(&at("self_attn.k_norm"), &[s.text_head_dim]);
        list.weight(&at("self_attn.q_proj"), &[queries, hidden]);
        list.weight(&at("self_attn.k_proj"), &[keys, hidden]);
        list.weight(&at("self_attn.v_proj"), &[keys, hidden]);
        list.weight(&at("self_attn.o_proj"), &[hidden, queries]);
    }
    list.sorted()
}

/// `ZImageTransformer2DModel`.
pub(crate) fn transformer(s: &Settings) -> Vec<TensorLayout> {
    let mut list = List::new(s);
    let (dim, modulation) = (s.dim, s.dim.min(ADALN_DIM));
    let patch = s.latent_channels * PATCH * PATCH;
    list.biased("all_x_embedder.2-1", &[dim, patch]);
    list.biased("all_final_layer.2-1.adaLN_modulation.1", &[dim, modulation]);
    list.biased("all_final_layer.2-1.linear", &[patch, dim]);
    list.weight("cap_embedder.0", &[s.text_hidden]);
    list.biased("cap_embedder.1", &[dim, s.text_hidden]);
    list.biased("t_embedder.mlp.0", &[TIMESTEP_HIDDEN, TIMESTEP_FREQUENCIES]);
    list.biased("t_embedder.mlp.2", &[modulation, TIMESTEP_HIDDEN]);
    list.add("x_pad_token".to_owned(), &[1, dim]);
    list.add("cap_pad_token".to_owned(), &[1, dim]);
    for (part, count, modulated) in [
        ("noise_refiner", s.refiners, true),
        ("context_refiner", s.refiners, false),
        ("layers", s.layers, true),
    ] {
        for layer in 0..count {
            transformer_block(&mut list, &format!("{part}.{layer}"), modulated);
        }
    }
    list.sorted()
}

fn transformer_block(list: &mut List<'_>, prefix: &str, modulated: bool) {
    let dim = list.settings.dim;
    let head_dim = dim / list.settings.heads;
    // The reference computes this in floating point and cuts, which matters where 3 does not divide the width.
    let hidden = (dim as f64 / 3.0 * 8.0) as usize;
    for name in ["to_q", "to_k", "to_v", "to_out.0"] {
        list.weight(&format!("{prefix}.attention.{name}"), &[dim, dim]);
    }
    for name in ["norm_q", "norm_k"] {
        list.weight(&format!("{prefix}.attention.{name}"), &[head_dim]);
    }
    for name in [
        "attention_norm1",
        "attention_norm2",
        "ffn_norm1",
        "ffn_norm2",
    ] {
        list.weight(&format!("{prefix}.{name}"), &[dim]);
    }
    list.weight(&format!("{prefix}.feed_forward.w1"), &[hidden, dim]);
    list.weight(&format!("{prefix}.feed_forward.w2"), &[dim, hidden]);
    list.weight(&format!("{prefix}.feed_forward.w3"), &[hidden, dim]);
    if modulated {
        list.biased(
            &format!("{prefix}.adaLN_modulation.0"),
            &[4 * dim, dim.min(ADALN_DIM)],
        );
    }
}

/// `AutoencoderKL`, both halves, without the quantisation convolutions.
pub(crate) fn vae(s: &Settings) -> Vec<TensorLayout> {
    let mut list = List::new(s);
    let (first, last) = (s.vae_channels[0], s.vae_channels[s.vae_channels.len() - 1]);
    let levels = s.vae_channels.len();
    list.biased("encoder.conv_in", &[first, 3, 3, 3]);
    let mut channels = first;
    for (level, &wide) in s.vae_channels.iter().enumerate() {
        for resnet in 0..s.vae_layers {
            vae_resnet(
                &mut list,
                &format!("encoder.down_blocks.{level}.resnets.{resnet}"),
                channels,
                wide,
            );
            channels = wide;
        }
        if level + 1 < levels {
            list.biased(
                &format!("encoder.down_blocks.{level}.downsamplers.0.conv"),
                &[wide, wide, 3, 3],
            );
        }
    }
    vae_middle(&mut list, "encoder", last);
    list.biased("encoder.conv_norm_out", &[last]);
    list.biased("encoder.conv_out", &[2 * s.latent_channels, last, 3, 3]);
    list.biased("decoder.conv_in", &[last, s.latent_channels, 3, 3]);
    vae_middle(&mut list, "decoder", last);
    for (level, &wide) in s.vae_channels.iter().rev().enumerate() {
        for resnet in 0..=s.vae_layers {
            vae_resnet(
                &mut list,
                &format!("decoder.up_blocks.{level}.resnets.{resnet}"),
                channels,
                wide,
            );
            channels = wide;
        }
        if level + 1 < levels {
            list.biased(
                &format!("decoder.up_blocks.{level}.upsamplers.0.conv"),
                &[wide, wide, 3, 3],
            );
        }
    }
    list.biased("decoder.conv_norm_out", &[first]);
    list.biased("decoder.conv_out", &[3, first, 3, 3]);
    list.sorted()
}

fn vae_resnet(list: &mut List<'_>, prefix: &str, input: usize, output: usize) {
    list.biased(&format!("{prefix}.norm1"), &[input]);
    list.biased(&format!("{prefix}.conv1"), &[output, input, 3, 3]);
    list.biased(&format!("{prefix}.norm2"), &[output]);
    list.biased(&format!("{prefix}.conv2"), &[output, output, 3, 3]);
    if input != output {
        list.biased(&format!("{prefix}.conv_shortcut"), &[output, input, 1, 1]);
    }
}

fn vae_middle(list: &mut List<'_>, half: &str, channels: usize) {
    for resnet in 0..2 {
        vae_resnet(
            list,
            &format!("{half}.mid_block.resnets.{resnet}"),
            channels,
            channels,
        );
    }
    let attention = format!("{half}.mid_block.attentions.0");
    list.biased(&format!("{attention}.group_norm"), &[channels]);
    for name in ["to_q", "to_k", "to_v", "to_out.0"] {
        list.biased(&format!("{attention}.{name}"), &[channels, channels]);
    }
}
