"""Single layers and tables, to find the layer when a whole picture is wrong."""

import itertools
import json
import math
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
from diffusers.models.transformers.transformer_z_image import RopeEmbedder, TimestepEmbedder, ZImageTransformerBlock
from diffusers.pipelines.z_image.pipeline_z_image import calculate_shift, get_default_z_image_sigmas
from safetensors.torch import save_file

from tiny import randomize

DECODERS = {
    "vae-square": (dict(block_out_channels=[8, 8, 16, 16], layers_per_block=1, norm_num_groups=4, latent_channels=16), (1, 16, 8, 8)),
    "vae-wide": (
        dict(block_out_channels=[8, 12, 12, 16], layers_per_block=2, norm_num_groups=4, latent_channels=4, use_post_quant_conv=True),
        (1, 4, 6, 10),
    ),
}


def store(folder: Path, config: dict, weights: dict, values: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / "weights.safetensors")
    save_file({name: value.contiguous() for name, value in values.items()}, folder / "expected.safetensors")


@torch.no_grad()
def make_decoder(folder: Path, shape: dict, latent_shape: tuple, seed: int) -> None:
    """`latents` go in as they are (no scaling, no shift), `image` comes out unclamped."""
    levels = len(shape["block_out_channels"])
    config = dict(shape, use_quant_conv=False)
    config.setdefault("use_post_quant_conv", False)
    vae = AutoencoderKL(
        **config, down_block_types=["DownEncoderBlock2D"] * levels, up_block_types=["UpDecoderBlock2D"] * levels
    ).eval()
    randomize(vae, seed)
    latents = torch.randn(latent_shape, generator=torch.Generator().manual_seed(seed + 1))
    decoder = vae.decoder
    start = vae.post_quant_conv(latents) if config["use_post_quant_conv"] else latents
    middle = decoder.mid_block(decoder.conv_in(start), None)
    weights = {name: value for name, value in vae.state_dict().items() if name.startswith(("decoder", "post_quant"))}
    store(
        folder,
        config,
        weights,
        {
            "latents": latents,
            "after_mid_block": middle,
            "after_up_block_0": decoder.up_blocks[0](middle, None),
            "image": vae.decode(latents, return_dict=False)[0],
        },
    )


@torch.no_grad()
def make_block(folder: Path, seed: int) -> None:
    """One modulated and one plain block of the transformer on 40 tokens, 3 heads of 16."""
    axes, heads, tokens = [8, 4, 4], 3, 40
    dim = sum(axes) * heads
    generator = torch.Generator().manual_seed(seed)
    positions = torch.stack([torch.arange(tokens) % 7 + 1, torch.arange(tokens) // 8, torch.arange(tokens) % 8], dim=1)
    rope = RopeEmbedder(theta=256.0, axes_dims=axes, axes_lens=[64, 64, 64])(positions)
    values = {
        "x": torch.randn((1, tokens, dim), generator=generator),
        "adaln_input": torch.randn((1, min(dim, 256)), generator=generator),
        "positions": positions.to(torch.int32),
        "rope_cos": rope.real.clone(),
        "rope_sin": rope.imag.clone(),
    }
    weights = {}
    for name, modulation in [("modulated", True), ("plain", False)]:
        block = ZImageTransformerBlock(0, dim, heads, heads, 1e-5, True, modulation=modulation).eval()
        randomize(block, seed + 1)
        values[name] = block(values["x"], None, rope[None], values["adaln_input"] if modulation else None)
        weights.update({f"{name}.{key}": value for key, value in block.state_dict().items()})
    store(folder, {"dim": dim, "n_heads": heads, "axes_dims": axes, "norm_eps": 1e-5, "qk_norm": True}, weights, values)


def make_tables(folder: Path) -> None:
    """RoPE of three axes and the sinusoids of the time embedding."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {}
    for name, axes, theta in [("demo", [16, 16, 16], 256.0), ("full", [32, 48, 48], 256.0), ("odd", [4, 6, 2], 100.0)]:
        positions = torch.tensor([[0, 0, 0], [1, 0, 0], [2, 0, 0], [33, 0, 1], [33, 5, 7], [97, 31, 60], [500, 127, 255]])
        table = RopeEmbedder(theta=theta, axes_dims=axes, axes_lens=[512, 256, 256])(positions)
        values[f"{name}.positions"] = positions.to(torch.int32)
        values[f"{name}.cos"], values[f"{name}.sin"] = table.real.clone(), table.imag.clone()
    times = torch.tensor([0.0, 1.0, 62.5, 250.0, 333.333, 999.0])
    values["time.t"] = times
    values["time.embedding"] = TimestepEmbedder.timestep_embedding(times, 256)
    save_file(values, folder / "tables.safetensors")


SHIFTS = [
    dict(shift=1.0),
    dict(shift=2.0),
    dict(shift=3.0),
    dict(shift=6.0),
    dict(use_dynamic_shifting=True, time_shift_type="exponential"),
    dict(use_dynamic_shifting=True, time_shift_type="linear"),
    dict(use_dynamic_shifting=True, base_shift=0.2, max_shift=2.5, base_image_seq_len=16, max_image_seq_len=1024),
    dict(shift=3.0, num_train_timesteps=500),
]
# Settings of the scheduler that no Z-Image checkpoint uses: follow them or refuse them, never ignore them.
RARE = [
    dict(shift=3.0, shift_terminal=0.1),
    dict(shift=3.0, invert_sigmas=True),
    dict(shift=3.0, use_karras_sigmas=True),
    dict(shift=3.0, use_exponential_sigmas=True),
]


def sigma_table(settings: dict, steps: int, width: int, height: int) -> dict:
    scheduler = FlowMatchEulerDiscreteScheduler(**settings)
    tokens = (height // 16) * (width // 16)
    names = ["base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift"]
    mu = calculate_shift(tokens, *(scheduler.config[name] for name in names))
    scheduler.set_timesteps(sigmas=get_default_z_image_sigmas(steps), mu=mu)
    return {
        "settings": settings,
        "steps": steps,
        "width": width,
        "height": height,
        "mu": mu,
        "sigmas": scheduler.sigmas.tolist(),
        "timesteps": scheduler.timesteps.tolist(),
    }


def make_sigmas(folder: Path) -> None:
    counts, sizes = [1, 2, 4, 9, 20, 50], [(128, 128), (512, 768), (1024, 1024)]
    usual = []
    for settings, steps, size in itertools.product(SHIFTS, counts, sizes):
        if settings.get("use_dynamic_shifting") or size == sizes[0]:
            usual.append(sigma_table(settings, steps, *size))
    rare = [sigma_table(settings, steps, 128, 128) for settings, steps in itertools.product(RARE, [4, 9])]
    text = json.dumps({"usual": usual, "rare": rare})
    (folder / "sigmas.json").write_text(text.replace('{"settings"', '\n{"settings"') + "\n")
    assert all(math.isfinite(sigma) for table in usual for sigma in table["sigmas"])


def make(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index, (name, (shape, latent_shape)) in enumerate(DECODERS.items()):
        make_decoder(folder / name, shape, latent_shape, 900 + 10 * index)
    make_block(folder / "block", 950)
    make_tables(folder)
    make_sigmas(folder)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"layers: {size} bytes", flush=True)
