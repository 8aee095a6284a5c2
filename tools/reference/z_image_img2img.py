"""What diffusers makes of pictures and masks with the tiny Z-Image checkpoints that `make_fixtures.py` wrote.

    python z_image_img2img.py [--out DIR]

Writes `z-image-img2img` beside the folder `z-image` that has the checkpoints.

With several generators diffusers draws the encoded picture's noise from the first alone and uses it for all; a picture's
seed would then mean something else in a batch than alone. So every picture is a call of its own.
"""

import argparse
import json
import random
from pathlib import Path

import torch
from diffusers import ZImageImg2ImgPipeline, ZImageInpaintPipeline
from PIL import Image
from safetensors.torch import save_file

from cases import CASES
from make_fixtures import DEFAULT_OUT, SIZE_MAX_BYTES
from stable_diffusion import mask, picture


def requests() -> dict[str, dict]:
    """Each checkpoint with its own prompt, size and guidance: by name, what is asked beside them."""
    found = {}
    for spec in CASES:
        asked = {**spec.request, "checkpoint": spec.name}
        if spec.name == "long-prompt":
            asked["prompt"] = "portrait of the blue circle"
        for more in (
            # 5 x 0.6 and 10 x 0.3 are whole numbers in double precision, and not in single.
            dict(steps=5, strength=0.6),
            dict(steps=10, strength=0.3, masked=True),
            dict(steps=3, strength=0.3),
            dict(steps=4, strength=1.0, masked=True, count=2),
            dict(steps=4, strength=0.85, count=2),
            dict(steps=6, strength=0.7, masked=True),
        ):
            name = f"{spec.name} {'inpaint' if more.get('masked') else 'image'} {more['strength']} of {more['steps']}"
            found[name] = {"masked": False, "count": 1, "negative": None, **asked, **more}
    # Two of a kind tell as much as six; the settings are spread over the checkpoints.
    rng = random.Random(1)
    names = sorted(found)
    return {name: found[name] for name in sorted(rng.sample(names, 24))}


@torch.no_grad()
def run(checkpoint: Path, asked: dict, inputs: Path) -> torch.Tensor:
    """Latents (N, C, h, w)."""
    kind = ZImageInpaintPipeline if asked["masked"] else ZImageImg2ImgPipeline
    pipeline = kind.from_pretrained(checkpoint, dtype=torch.float32, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    size = (asked["width"], asked["height"])
    pictures = dict(image=Image.open(inputs / "picture-{}x{}.png".format(*size)))
    if asked["masked"]:
        pictures["mask_image"] = Image.open(inputs / "mask-{}x{}.png".format(*size))
    latents = []
    for k in range(asked["count"]):
        latents.append(
            pipeline(
                asked["prompt"],
                negative_prompt=asked["negative"],
                **pictures,
                strength=asked["strength"],
                height=size[1],
                width=size[0],
                num_inference_steps=asked["steps"],
                guidance_scale=asked["guidance"],
                cfg_normalization=asked.get("cfg_normalization", 0.0),
                cfg_truncation=asked.get("cfg_truncation", 1.0),
                generator=torch.Generator().manual_seed(asked["seed"] + k),
                output_type="latent",
            ).images
        )
    return torch.cat(latents).float().contiguous()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder = arguments.out / "z-image-img2img"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    asked, expected = requests(), {}
    for name, one in asked.items():
        size = (one["width"], one["height"])
        picture(*size, 3).save(folder / "picture-{}x{}.png".format(*size))
        mask(*size).save(folder / "mask-{}x{}.png".format(*size))
        latents = run(arguments.out / "z-image" / one["checkpoint"] / "checkpoint", one, folder)
        spread = latents.std().item()
        assert 0.1 < spread < 10, (name, spread)
        print(f"{name:40} {tuple(latents.shape)} deviation {spread:.3f}", flush=True)
        expected[name] = latents
    save_file(expected, folder / "expected.safetensors")
    (folder / "cases.json").write_text(json.dumps(asked, indent=1, ensure_ascii=False) + "\n")
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{size} bytes")
    assert size <= SIZE_MAX_BYTES, size


if __name__ == "__main__":
    main()
