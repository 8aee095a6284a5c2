"""Writes crates/models/tests/fixtures/resample.safetensors: latents in other sizes, by torch's `interpolate`."""

from pathlib import Path

import torch
from safetensors.torch import save_file

TARGET = Path(__file__).resolve().parents[2] / "crates/models/tests/fixtures/resample.safetensors"

METHODS = {
    "nearest": dict(mode="nearest"),
    "nearest-exact": dict(mode="nearest-exact"),
    "bilinear": dict(mode="bilinear"),
    "bilinear-antialias": dict(mode="bilinear", antialias=True),
    "bicubic": dict(mode="bicubic"),
    "bicubic-antialias": dict(mode="bicubic", antialias=True),
}


def main() -> None:
    source = torch.randn((1, 3, 9, 14), generator=torch.Generator().manual_seed(5))
    values = {"source": source}
    for name, options in METHODS.items():
        for size in [(18, 28), (13, 21), (9, 14), (4, 30), (5, 3), (1, 1)]:
            result = torch.nn.functional.interpolate(source, size=size, **options)
            values[f"{name}.{size[0]}x{size[1]}"] = result.contiguous()
    save_file(values, TARGET)


if __name__ == "__main__":
    main()
