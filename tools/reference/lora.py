"""What diffusers and peft compute for a U-Net with LoRAs whose values, like the network's, follow from their names.

    python lora.py fixtures                                   # writes crates/models/tests/fixtures/unet-2d-condition/lora-*
    python lora.py unseen [--cases 10] [--seed 0]             # random ranks, layers and strengths on random networks
    python lora.py time [--rank 16] [--latent 64]             # what a LoRA adds to one step of SD 1.5 in its real shape

Layers with `mid` (a convolution decomposed in three), which peft does not know, are merged into the weight by the
definition. The last two run `cargo run -p lowtide-models --example predict_unet`.
"""

import argparse
import json
import math
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import unet
from peft import LoraConfig
from torch import nn

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2")


def layers(model: nn.Module) -> dict[str, nn.Module]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, (nn.Linear, nn.Conv2d))}


def shapes(layer: nn.Module, rank: int, three: bool) -> dict[str, list[int]]:
    """Down, up and perhaps mid for a layer."""
    out, inputs, *kernel = layer.weight.shape
    ones = [1] * len(kernel)
    if three and kernel and kernel[0] > 1:
        return dict(down=[rank, inputs, 1, 1], mid=[rank, rank, *kernel], up=[out, rank, 1, 1])
    return dict(down=[rank, inputs, *kernel], up=[out, rank, *ones])


def describe(model: nn.Module, name: str, chosen, rank: int, alpha: float, strength: float, three: bool = False) -> dict:
    modules = {path: shapes(layer, rank, three) for path, layer in layers(model).items() if chosen(path)}
    assert modules, name
    return dict(name=name, rank=rank, alpha=alpha, strength=strength, modules=modules)


def value(lora: dict, module: str, part: str) -> torch.Tensor:
    shape = tuple(lora["modules"][module][part])
    spread = math.sqrt(3.0 / math.prod(shape[1:]))
    return torch.from_numpy(spread * unet.numbers(f"{lora['name']}.{module}.{part}", math.prod(shape))).float().reshape(shape)


@torch.no_grad()
def apply(model: nn.Module, loras: list[dict]) -> None:
    weights = layers(model)
    for lora in loras:
        scale = lora["strength"] * lora["alpha"] / lora["rank"]
        for module in [m for m, parts in lora["modules"].items() if "mid" in parts]:
            down, mid, up = (value(lora, module, part) for part in ("down", "mid", "up"))
            weights[module].weight += scale * torch.einsum("oi,ijhw,jc->ochw", up[..., 0, 0], mid, down[..., 0, 0])
    with_peft = [{**lora, "modules": {m: p for m, p in lora["modules"].items() if "mid" not in p}} for lora in loras]
    with_peft = [lora for lora in with_peft if lora["modules"]]
    for lora in with_peft:
        config = LoraConfig(r=lora["rank"], lora_alpha=lora["alpha"], target_modules=list(lora["modules"]))
        model.add_adapter(config, adapter_name=lora["name"])
        for module in lora["modules"]:
            layer = model.get_submodule(module)
            layer.lora_A[lora["name"]].weight.copy_(value(lora, module, "down"))
            layer.lora_B[lora["name"]].weight.copy_(value(lora, module, "up"))
    # Not by `set_adapters`, which cannot count blocks where levels differ in depth.
    for lora in with_peft:
        for module in lora["modules"]:
            layer = model.get_submodule(module)
            layer.set_scale(lora["name"], lora["strength"])
            layer.set_adapter([other["name"] for other in with_peft if module in other["modules"]])


def of_attention(path: str) -> bool:
    return path.endswith(ATTENTION)


def of_transformers(path: str) -> bool:
    return path.endswith(ATTENTION + FEED_FORWARD + ("proj_in", "proj_out"))


def of_resnets(path: str) -> bool:
    return "resnets" in path or "samplers" in path or path in ("conv_in", "conv_out", "time_embedding.linear_1")


def cases(build) -> dict[str, tuple]:
    """By name: the network, what it is asked, and the LoRAs."""
    sd, xl = build(unet.SD), build(unet.XL)
    guided, sized = unet.GUIDED, dict(unet.GUIDED, time_ids=unet.IDS)
    return {
        "lora-linear": (unet.SD, guided, [describe(sd, "one", of_attention, 4, 2.0, 0.9)]),
        "lora-conv": (unet.SD, dict(guided, height=8, width=24), [
            describe(sd, "plain", lambda p: of_resnets(p) or of_transformers(p), 3, 3.0, 0.4),
            describe(sd, "three", lambda p: "resnets" in p and ".conv" in p, 2, 1.0, -0.5, three=True),
        ]),
        "lora-xl": (unet.XL, sized, [
            describe(xl, "one", of_transformers, 8, 4.0, 0.7),
            describe(xl, "two", lambda p: p.endswith("to_q") or p.startswith("add_embedding"), 1, 1.0, -0.3),
        ]),
    }  # fmt: skip


def reference(config: dict, case: dict, loras: list[dict]) -> tuple[nn.Module, torch.Tensor]:
    # The configuration is saved before peft changes the module.
    model = unet.build(config)
    apply(model, loras)
    return model, unet.run(model, case)


def write(folder: Path, config: dict, case: dict, loras: list[dict], output: torch.Tensor) -> None:
    unet.write_case(folder, unet.build(config), case, output)
    (folder / "lora.json").write_text(json.dumps(loras, separators=(",", ":")) + "\n")


def fixtures() -> None:
    for name, (config, case, loras) in cases(unet.build).items():
        bare = unet.run(unet.build(config), case)
        _, output = reference(config, case, loras)
        assert 0.1 < output.std() < 20, (name, output.std())
        write(unet.FIXTURES / name, config, case, loras, output)
        print(f"{name}: std {output.std():.3f}, changed by up to {(output - bare).abs().max() / output.std():.2f} of it", flush=True)


def unseen(count: int, seed: int) -> bool:
    binary, broken = unet.example(), False
    for index in range(count):
        rng = random.Random(f"lora/{seed}/{index}")
        config, case = unet.draw(rng)
        model = unet.build(config)
        names = list(layers(model))
        loras = []
        for i in range(rng.randint(1, 3)):
            chosen = set(rng.sample(names, rng.randint(1, len(names))))
            rank, strength = rng.choice([1, 2, 5, 16, 33]), rng.uniform(-0.6, 0.6)
            loras.append(describe(model, f"lora{i}", chosen.__contains__, rank, rng.choice([1.0, rank, rank / 2]), strength, rng.random() < 0.4))
        _, expected = reference(config, case, loras)
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), config, case, loras, expected)
            exact, rounded = (unet.compare(binary, Path(folder), expected, precision) for precision in ("f32", "bf16"))
        wrong = not exact <= unet.TOLERANCE_OF_STD or not rounded <= 0.5
        broken |= wrong
        print(f"{index}: {len(loras)} LoRAs, {exact:.1e} in f32, {rounded:.1e} in bf16{'  WRONG ' + json.dumps([config, case]) if wrong else ''}", flush=True)
    return not broken


def time_step(rank: int, latent: int, rounds: int, threads: int, precisions: list[str]) -> None:
    """With and without in turn, in seconds of processors, which others on the machine disturb least; the best step counts."""
    binary = unet.example()
    config = dict(block_out_channels=(320, 640, 1280, 1280), cross_attention_dim=768, attention_head_dim=8)
    case = dict(samples=1, taken=[0, 0], text_tokens=[77, 77], height=latent, width=latent, timestep=601.0)
    with torch.device("meta"):
        model = unet.UNet2DConditionModel(**config)
    sets = {
        "without": None,
        "attention": [describe(model, "a", of_attention, rank, rank, 1.0)],
        "attention, feed-forward, convolutions": [describe(model, "b", lambda p: of_resnets(p) or of_transformers(p), rank, rank, 1.0)],
    }
    for precision in precisions:
        seconds = {name: [] for name in sets}
        for _ in range(rounds):
            for name, loras in sets.items():
                with tempfile.TemporaryDirectory() as folder:
                    model.save_config(folder)
                    (Path(folder) / "case.json").write_text(json.dumps(case))
                    if loras:
                        (Path(folder) / "lora.json").write_text(json.dumps(loras))
                    done = subprocess.run([binary, folder, precision, str(threads), "3"], check=True, capture_output=True, text=True)
                seconds[name].append(min(float(line.split()[-2]) for line in done.stdout.splitlines()[1:]))
        bare = min(seconds["without"])
        for name, all_of in seconds.items():
            print(f"{precision} rank {rank}, {name}: {min(all_of):.3f} s, {min(all_of) / bare - 1:+.1%}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["fixtures", "unseen", "time"])
    parser.add_argument("--cases", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--latent", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precisions", nargs="+", default=["f32", "bf16"])
    arguments = parser.parse_args()
    if arguments.what == "fixtures":
        fixtures()
    elif arguments.what == "time":
        time_step(arguments.rank, arguments.latent, arguments.rounds, arguments.threads, arguments.precisions)
    elif not unseen(arguments.cases, arguments.seed):
        sys.exit(1)


if __name__ == "__main__":
    main()
