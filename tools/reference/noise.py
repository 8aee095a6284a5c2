"""torch.randn on the CPU, f32: below 16 values it takes another path, and a tail that does not fill 16 is drawn again."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

SIZES = [1, 2, 3, 8, 15, 16, 17, 31, 32, 33, 100, 250, 1000]
SEEDS = [0, 1, 42, 5489, 2**31, 2**32 - 1, 2**32 + 5, 2**63 - 1]
LARGE = [(42, [1, 16, 64, 64]), (7, [1, 16, 128, 128]), (3, [2, 4, 37, 53])]
EDGE = 64


def make(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tensors, cases = {}, []
    for seed in SEEDS:
        for size in SIZES if seed in (0, 42) else [5, 16, 50]:
            name = f"seed_{seed}_size_{size}"
            tensors[name] = torch.randn(size, generator=torch.Generator().manual_seed(seed))
            cases.append({"tensor": name, "seed": seed, "shape": [size]})
    calls = []
    for seed, sizes in [(42, [5, 5, 16, 3, 20]), (9, [1, 17, 2, 2])]:
        generator = torch.Generator().manual_seed(seed)
        names = []
        for index, size in enumerate(sizes):
            names.append(f"calls_{seed}_{index}")
            tensors[names[-1]] = torch.randn(size, generator=generator)
        calls.append({"seed": seed, "sizes": sizes, "tensors": names})
    large = []
    for seed, shape in LARGE:
        values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).flatten()
        name = f"large_{seed}"
        tensors[name + "_first"], tensors[name + "_last"] = values[:EDGE].clone(), values[-EDGE:].clone()
        wide = values.double()
        large.append(
            {
                "seed": seed,
                "shape": shape,
                "first": name + "_first",
                "last": name + "_last",
                "sum": wide.sum().item(),
                "sum_of_squares": (wide * wide).sum().item(),
            }
        )
    save_file(tensors, folder / "randn.safetensors")
    content = {
        "one_call": cases,
        "calls_of_one_generator": calls,
        "large": large,
        "tolerance": 2e-6,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }
    (folder / "randn.json").write_text(json.dumps(content, indent=1) + "\n")
    print(f"noise: {len(tensors)} tensors", flush=True)
