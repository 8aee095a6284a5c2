"""A base model and a refiner in one job, as diffusers' ensemble of experts: the first ends early, the second goes on.

    python refiner.py [--out DIR]

Writes `refiner.json` and `refiner.safetensors` beside the checkpoints `sdxl` and `sdxl-refiner` that `stable_diffusion.py
fixtures` made, which it reads.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from stable_diffusion import DEFAULT_OUT, SCHEDULERS, SCHEDULES, decode, draw_once, load, request

import diffusers

CASES = {
    "own": request(steps=8, refiner_start=0.8),
    "early": request(steps=7, refiner_start=0.3, negative=None),
    "euler a": request(steps=8, refiner_start=0.6, sampler="Euler a", count=1),
    "dpm": request(steps=9, refiner_start=0.7, sampler="DPM++ 2M", schedule="karras", guidance=3.0, count=1),
    "unguided": request(steps=6, refiner_start=0.5, guidance=0.0, count=1),
}


def resampled(pipeline, asked: dict):
    if asked.get("sampler"):
        name, options = SCHEDULERS[asked["sampler"]]
        options = {**options, **SCHEDULES[asked.get("schedule") or "normal"]}
        pipeline.scheduler = getattr(diffusers, name).from_config(pipeline.scheduler.config, **options)
    return pipeline


@torch.no_grad()
def run(folder: Path, asked: dict) -> dict[str, torch.Tensor]:
    base = resampled(load(folder / "sdxl" / "checkpoint", "StableDiffusionXL"), asked)
    refiner = resampled(load(folder / "sdxl-refiner" / "checkpoint", "StableDiffusionXLImg2Img"), asked)
    latents, images, between = [], [], []
    for k in range(asked.get("count", 1)):
        seed, start = asked["seed"] + k, asked["refiner_start"]
        given = dict(width=asked["width"], height=asked["height"], denoising_end=start)
        half = draw_once(base, asked, seed, asked["steps"], given)
        whole = draw_once(refiner, asked, seed, asked["steps"], dict(image=half, denoising_start=start))
        between.append(half.float())
        latents.append(whole.float())
        images.append((decode(refiner, whole) / 2 + 0.5).clamp(0, 1).float())
    made = {"between": between, "latents": latents, "image": images}
    return {name: torch.cat(all_of).contiguous() for name, all_of in made.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    folder = parser.parse_args().out
    expected = {}
    for name, asked in CASES.items():
        for key, tensor in run(folder, asked).items():
            expected[f"{name}.{key}"] = tensor
    save_file(expected, folder / "refiner.safetensors")
    (folder / "refiner.json").write_text(json.dumps(CASES, indent=1) + "\n")


if __name__ == "__main__":
    main()
