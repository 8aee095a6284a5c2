"""Writes crates/models/tests/fixtures/tiled-decode.safetensors: what diffusers' tiled decoding makes of `layers/vae-wide`."""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

CRATES = Path(__file__).resolve().parents[2] / "crates"
CASE = CRATES / "engine/tests/fixtures/layers/vae-wide"
TILE = 4  # latents


@torch.no_grad()
def main() -> None:
    config = json.loads((CASE / "config.json").read_text())
    levels = len(config["block_out_channels"])
    vae = AutoencoderKL(
        **config, down_block_types=["DownEncoderBlock2D"] * levels, up_block_types=["UpDecoderBlock2D"] * levels
    ).eval()
    missing, unexpected = vae.load_state_dict(load_file(CASE / "weights.safetensors"), strict=False)
    assert not unexpected and all(name.startswith("encoder.") for name in missing), (missing, unexpected)
    vae.tile_latent_min_size = TILE
    vae.tile_sample_min_size = TILE * 2 ** (levels - 1)
    values = load_file(CASE / "expected.safetensors")
    image = vae.tiled_decode(values["latents"], return_dict=False)[0]
    assert (image - values["image"]).abs().mean() > 0.01, "tiles of this size must show"
    target = CRATES / "models/tests/fixtures/tiled-decode.safetensors"
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file({"image": image.contiguous()}, target)


if __name__ == "__main__":
    main()
