"""Fits the linear map from latent channels to colours that previews are drawn with.

    lowtide generate "a red heart" --seed 1 --dump 1.safetensors -o 1.png     # several, of several prompts
    python preview.py 1.safetensors 2.safetensors ...

Prints the `preview` of a model's `lowtide.json`: least squares between the latents of finished pictures and the pictures
themselves, shrunk to the size of the latents. Says how much of the colours' variance the map explains.
"""

import json
import sys

import torch
from safetensors.torch import load_file


def pairs(path: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Latent pixels (n, channels) and the colours they became (n, 3), in 0..1."""
    tensors = load_file(path)
    latents, pictures = tensors["latents"], tensors["image"]
    scale = pictures.shape[-1] // latents.shape[-1]
    small = torch.nn.functional.avg_pool2d(pictures, scale)
    return latents.movedim(1, -1).flatten(0, 2), small.movedim(1, -1).flatten(0, 2)


def main(paths: list[str]) -> None:
    all_pairs = [pairs(path) for path in paths]
    latents = torch.cat([latents for latents, _ in all_pairs]).double()
    colours = torch.cat([colours for _, colours in all_pairs]).double()
    ones = torch.ones(len(latents), 1, dtype=torch.float64)
    # A little weight decay keeps channels that hardly vary from getting large weights.
    inputs = torch.cat([latents, ones], 1)
    decay = 1e-3 * len(latents) * torch.eye(inputs.shape[1], dtype=torch.float64)
    decay[-1, -1] = 0
    solution = torch.linalg.solve(inputs.T @ inputs + decay, inputs.T @ colours)
    rest = ((inputs @ solution - colours) ** 2).sum() / ((colours - colours.mean(0)) ** 2).sum()
    rows = [[round(x, 4) for x in row] for row in solution.tolist()]
    print(json.dumps({"weights": rows[:-1], "bias": rows[-1]}))
    print(f"{1 - rest:.3f} of the variance over {len(latents)} latent pixels", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
