"""Tiny random Z-Image checkpoints in the diffusers folder layout.

Every network is real in shape and far too small to draw anything. The weights are random but not
degenerate: norms are away from 1, biases and pad tokens away from 0, the velocity has about unit
variance and the decoder uses most of the range of an image, so that a wrong term shows.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from safetensors.torch import load_file, save_file
from transformers import Qwen3Config, Qwen3Model

from tokens import write_tokenizer

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16, "fp8": torch.float8_e4m3fn}


@dataclass
class Spec:
    """One checkpoint and one request to make of it."""

    name: str
    seed: int
    transformer: dict
    text: dict
    vae: dict
    scheduler: dict
    request: dict
    dtype: str = "bf16"
    vae_dtype: str | None = None
    # The time embedder is 1024 x 256 whatever the width, so its two matrices may be stored smaller.
    time_dtype: str = "fp8"
    template: str = "plain"  # plain | agent (the constructs of Qwen3's own template) | inline (in tokenizer_config.json)
    pre_tokenizer: str = "bytes"  # bytes | words (a normaliser and a regular expression, as Qwen has them)
    shard: str | None = None  # largest shard, as diffusers writes it ("40KB")
    text_names: str = "model"  # model | causal_lm ("model." before every name, and a head nobody reads)
    text_config: str = "new"  # new (rope_parameters, dtype) | old (rope_theta, torch_dtype)
    tolerance: dict = field(default_factory=lambda: {"latents_of_std": 2e-3, "image": 2.0 / 255.0})


def transformer_config(spec: Spec) -> dict:
    shape = dict(spec.transformer)
    shape.setdefault("axes_lens", [640, 64, 64])
    head_dim = sum(shape["axes_dims"])
    shape["dim"] = head_dim * shape["n_heads"]
    shape["n_kv_heads"] = shape["n_heads"]
    shape["cap_feat_dim"] = spec.text["hidden_size"]
    shape["in_channels"] = spec.vae["latent_channels"]
    return shape


def vae_config(spec: Spec) -> dict:
    shape = dict(spec.vae)
    levels = len(shape["block_out_channels"])
    shape["down_block_types"] = ["DownEncoderBlock2D"] * levels
    shape["up_block_types"] = ["UpDecoderBlock2D"] * levels
    shape.setdefault("use_quant_conv", False)
    shape.setdefault("use_post_quant_conv", False)
    shape["sample_size"] = 64
    return shape


def randomize(module: torch.nn.Module, seed: int) -> None:
    """Draws every parameter of `module`, in the order of their names."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(module.named_parameters()):
        drawn = torch.randn(parameter.shape, generator=generator)
        if name.endswith("pad_token"):
            value = 0.7 * drawn
        elif "embed_tokens" in name:
            value = drawn
        elif parameter.ndim == 1 and name.endswith("weight"):
            sharp = 1.6 if name.endswith(("norm_q.weight", "norm_k.weight", "q_norm.weight", "k_norm.weight")) else 1.0
            value = sharp * (1.0 + 0.3 * drawn)
        elif parameter.ndim == 1:
            value = 0.2 * drawn
        else:
            fan_in = math.prod(parameter.shape[1:])
            gain = 0.5 if "adaLN_modulation" in name else 1.0
            value = gain * drawn / math.sqrt(fan_in)
        parameter.data.copy_(value)


@torch.no_grad()
def calibrate_velocity(transformer: ZImageTransformer2DModel, spec: Spec) -> None:
    """Scales the last layer so that the velocity of noise has unit variance."""
    generator = torch.Generator().manual_seed(spec.seed + 11)
    channels = transformer.config.in_channels
    noise = torch.randn((channels, 1, 8, 12), generator=generator)
    caption = torch.randn((20, transformer.config.cap_feat_dim), generator=generator)
    velocity = transformer([noise], torch.tensor([0.3]), [caption], return_dict=False)[0][0]
    linear = transformer.all_final_layer["2-1"].linear
    linear.weight.data /= velocity.std()
    linear.bias.data /= velocity.std()


@torch.no_grad()
def calibrate_image(vae: AutoencoderKL, spec: Spec) -> None:
    """Scales the last convolution so that a usual latent decodes to mean 0 and deviation 0.45."""
    generator = torch.Generator().manual_seed(spec.seed + 12)
    latents = 1.4 * torch.randn((1, vae.config.latent_channels, 8, 12), generator=generator)
    image = vae.decode(latents / vae.config.scaling_factor + vae.config.shift_factor, return_dict=False)[0]
    last = vae.decoder.conv_out
    for channel in range(3):
        scale = 0.45 / image[0, channel].std()
        last.weight.data[channel] *= scale
        last.bias.data[channel] = (last.bias.data[channel] - image[0, channel].mean()) * scale


def store_as(module: torch.nn.Module, dtype: str, time_dtype: str | None = None) -> None:
    for name, parameter in module.named_parameters():
        small = time_dtype and name.startswith("t_embedder") and parameter.ndim == 2
        parameter.data = parameter.data.to(DTYPES[time_dtype if small else dtype])


def make_text_encoder(spec: Spec, vocab_size: int) -> Qwen3Model:
    shape = dict(spec.text)
    theta = shape.pop("rope_theta", 1_000_000.0)
    config = Qwen3Config(
        vocab_size=vocab_size,
        max_position_embeddings=2048,
        rope_parameters={"rope_theta": theta, "rope_type": "default"},
        tie_word_embeddings=spec.text_names == "model",
        bos_token_id=None,
        eos_token_id=None,
        **shape,
    )
    model = Qwen3Model(config)
    randomize(model, spec.seed + 1)
    store_as(model, spec.dtype)
    return model


def rename_as_causal_lm(folder: Path, spec: Spec, vocab_size: int) -> None:
    """Rewrites the text encoder as a language model's checkpoint has it, shards and index included."""
    encoder = folder / "text_encoder"
    files = sorted(encoder.glob("*.safetensors"))
    for file in files:
        tensors = {f"model.{name}": value for name, value in load_file(file).items()}
        if file == files[-1]:
            shape = (vocab_size, spec.text["hidden_size"])
            head = torch.randn(shape, generator=torch.Generator().manual_seed(spec.seed + 4))
            tensors["lm_head.weight"] = head.to(DTYPES[spec.dtype])
        save_file(tensors, file, metadata={"format": "pt"})
    for index in encoder.glob("*.index.json"):
        places = json.loads(index.read_text())["weight_map"]
        places = {f"model.{name}": place for name, place in places.items()}
        edit_json(index, weight_map={**places, "lm_head.weight": files[-1].name})
    edit_json(encoder / "config.json", architectures=["Qwen3ForCausalLM"])


def edit_json(file: Path, drop: tuple = (), **changes) -> None:
    content = json.loads(file.read_text())
    content.update(changes)
    for key in drop:
        content.pop(key, None)
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def write_checkpoint(spec: Spec, folder: Path) -> None:
    """Writes the checkpoint of `spec` into `folder`, which must not exist yet."""
    folder.mkdir(parents=True)
    tokenizer = write_tokenizer(folder / "tokenizer", spec.template, spec.pre_tokenizer)
    text_encoder = make_text_encoder(spec, len(tokenizer))
    transformer = ZImageTransformer2DModel(**transformer_config(spec)).eval()
    randomize(transformer, spec.seed + 2)
    calibrate_velocity(transformer, spec)
    store_as(transformer, spec.dtype, spec.time_dtype)
    vae = AutoencoderKL(**vae_config(spec)).eval()
    randomize(vae, spec.seed + 3)
    calibrate_image(vae, spec)
    store_as(vae, spec.vae_dtype or spec.dtype)
    scheduler = FlowMatchEulerDiscreteScheduler(**spec.scheduler)
    pipeline = ZImagePipeline(scheduler, vae, text_encoder, tokenizer, transformer)
    pipeline.save_pretrained(folder, max_shard_size=spec.shard or "1GB")
    write_tokenizer(folder / "tokenizer", spec.template, spec.pre_tokenizer)
    (folder / "text_encoder" / "generation_config.json").unlink(missing_ok=True)
    for config in folder.glob("*/config.json"):
        edit_json(config, drop=("_name_or_path",))
    if spec.text_names == "causal_lm":
        rename_as_causal_lm(folder, spec, len(tokenizer))
    if spec.text_config == "old":
        theta = spec.text.get("rope_theta", 1_000_000.0)
        names = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}
        edit_json(
            folder / "text_encoder" / "config.json",
            drop=("rope_parameters", "dtype", "layer_types"),
            rope_theta=theta,
            torch_dtype=names[spec.dtype],
        )
