"""Writes crates/models/tests/fixtures/encode: what diffusers' AutoencoderKL makes of a picture.

One folder a case, with `config.json`, `weights.safetensors` (the encoder alone) and `expected.safetensors`: the `picture`
(-1 to 1), `mean` and `std` of its latents, `noise`, and the `latents` that a pipeline draws with it, shifted and scaled.
"""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file

from tiny import randomize

TARGET = Path(__file__).resolve().parents[2] / "crates/models/tests/fixtures/encode"
TILE = 4  # latents
F16_MAX = 65504.0

CASES = {
    "square": (
        dict(block_out_channels=[8, 8, 16, 16], layers_per_block=1, norm_num_groups=4, latent_channels=16,
             use_quant_conv=False, scaling_factor=0.3611, shift_factor=0.1159),
        (64, 64),
    ),
    "wide": (dict(block_out_channels=[8, 12, 12, 16], layers_per_block=2, norm_num_groups=4, latent_channels=4), (48, 80)),
    "flat": (
        dict(block_out_channels=[8], layers_per_block=2, norm_num_groups=2, latent_channels=4,
             mid_block_add_attention=False, scaling_factor=0.13025),
        (6, 5),
    ),
    "large-f16": (dict(block_out_channels=[8, 16], layers_per_block=1, norm_num_groups=4, latent_channels=4), (16, 24)),
}  # fmt: skip


def overflow(vae: AutoencoderKL) -> None:
    """Makes maps too large for f16, with weights that are stored in it."""
    for parameter in vae.parameters():
        parameter.data = parameter.data.half().float()
    vae.encoder.conv_in.weight.data *= 2.0**16
    vae.encoder.conv_in.bias.data *= 2.0**16
    for parameter in vae.parameters():
        assert torch.equal(parameter.data, parameter.data.half().float()), "exact in f16"


@torch.no_grad()
def write(name: str, shape: dict, size: tuple, seed: int) -> None:
    levels = len(shape["block_out_channels"])
    config = dict(
        shape,
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        use_post_quant_conv=False,
    )
    vae = AutoencoderKL(**config).eval()
    randomize(vae, seed)
    # Deviations of about 0.1 to 3, so that they show.
    half = config["latent_channels"]
    last = vae.encoder.conv_out if vae.quant_conv is None else vae.quant_conv
    last.bias.data[half:] -= 1.0
    if name == "large-f16":
        overflow(vae)
    generator = torch.Generator().manual_seed(seed + 1)
    picture = torch.rand((1, 3, *size), generator=generator) * 2 - 1
    largest = []
    hooks = [
        layer.register_forward_hook(lambda _layer, _x, y: largest.append(y.abs().max().item()))
        for layer in vae.encoder.modules()
        if isinstance(layer, torch.nn.Conv2d)
    ]
    distribution = vae.encode(picture).latent_dist
    for hook in hooks:
        hook.remove()
    assert (max(largest) > F16_MAX) == (name == "large-f16"), max(largest)
    noise = torch.randn(distribution.mean.shape, generator=torch.Generator().manual_seed(seed + 2))
    drawn = distribution.sample(torch.Generator().manual_seed(seed + 2))
    shift = vae.config.shift_factor or 0.0
    expected = {
        "picture": picture,
        "mean": distribution.mean,
        "std": distribution.std,
        "noise": noise,
        "latents": (drawn - shift) * vae.config.scaling_factor,
    }
    if name == "wide":
        vae.tile_latent_min_size = TILE
        vae.tile_sample_min_size = TILE * 2 ** (levels - 1)
        vae.use_tiling = True
        expected["tiled_mean"] = vae.encode(picture).latent_dist.mean
        assert (expected["tiled_mean"] - expected["mean"]).abs().mean() > 0.01, "tiles of this size must show"
    folder = TARGET / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    stored = torch.float16 if name == "large-f16" else torch.float32
    weights = {
        key: value.to(stored).contiguous()
        for key, value in vae.state_dict().items()
        if key.startswith(("encoder", "quant_conv"))
    }
    save_file(weights, folder / "weights.safetensors")
    save_file({key: value.contiguous() for key, value in expected.items()}, folder / "expected.safetensors")
    print(name, f"largest {max(largest):.3g}, std {distribution.std.min():.2g}..{distribution.std.max():.2g}")


if __name__ == "__main__":
    for index, (case, (shape, size)) in enumerate(CASES.items()):
        write(case, shape, size, 900 + 10 * index)
