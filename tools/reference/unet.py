"""What diffusers' UNet2DConditionModel computes, for networks whose weights follow from their names.

    python unet.py fixtures                                   # writes crates/models/tests/fixtures/unet-2d-condition
    python unet.py unseen [--cases 10] [--seed 0]             # random configurations against a build of the example
    python unet.py time [--latent 64] [--rounds 3]            # one step of SD 1.5 in its real shape, in turn

The last two run `cargo run --release -p lowtide-models --example predict_unet`; exit code 1 when a promise is broken.
"""

import argparse
import json
import math
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DConditionModel

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "crates/models/tests/fixtures/unet-2d-condition"
TOLERANCE_OF_STD = 2e-3
MULTIPLIER, INCREMENT = 6364136223846793005, 1442695040888963407
MASK = 2**64 - 1


def numbers(name: str, count: int) -> np.ndarray:
    """Numbers from -1 to 1 that follow from a name, as `store.rs` has them."""
    seed = 1
    for byte in name.encode():
        seed = (seed * 31 + byte) & MASK
    state = np.uint64((seed * 0x9E3779B97F4A7C15 & MASK) | 1)
    with np.errstate(over="ignore"):
        powers = np.cumprod(np.full(count, MULTIPLIER, np.uint64))
        sums = np.cumsum(np.concatenate([np.ones(1, np.uint64), powers[:-1]])) * np.uint64(INCREMENT)
        states = powers * state + sums
    return (states >> np.uint64(40)).astype(np.float32) / np.float32(2**23) - np.float32(1)


def values(name: str, shape: tuple) -> torch.Tensor:
    """The values of a weight."""
    if len(shape) == 1:
        centre, spread = (1.0, 0.3) if "norm" in name and name.endswith("weight") else (0.0, 0.2)
    else:
        centre, spread = 0.0, math.sqrt(3.0 / math.prod(shape[1:]))
    return torch.from_numpy(np.float32(centre) + np.float32(spread) * numbers(name, math.prod(shape))).reshape(shape)


def named(name: str, shape: tuple) -> torch.Tensor:
    return torch.from_numpy(np.float32(1.7) * numbers(name, math.prod(shape))).reshape(shape)


def build(config: dict) -> UNet2DConditionModel:
    model = UNet2DConditionModel(**config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(values(name, tuple(parameter.shape)))
    return model


def guidance_embedding(scale: float, width: int, rows: int) -> torch.Tensor:
    """As LatentConsistencyModelPipeline.get_guidance_scale_embedding."""
    w = torch.full((rows,), scale - 1.0) * 1000.0
    half = width // 2
    emb = torch.log(torch.tensor(10000.0)) / (half - 1)
    emb = w[:, None] * torch.exp(torch.arange(half) * -emb)[None, :]
    emb = torch.cat([torch.sin(emb), torch.cos(emb)], dim=1)
    return torch.nn.functional.pad(emb, (0, width % 2))


@torch.no_grad()
def run(model: UNet2DConditionModel, case: dict) -> torch.Tensor:
    """One sequence at a time, since texts may differ in length."""
    config, outputs = model.config, []
    for i, sample in enumerate(case["taken"]):
        x = named(f"sample.{sample}", (1, config.in_channels, case["height"], case["width"]))
        text = named(f"text.{i}", (1, case["text_tokens"][i], config.cross_attention_dim))
        more = {}
        if case.get("time_ids"):
            ids = case["time_ids"][i]
            width = config.projection_class_embeddings_input_dim - len(ids) * config.addition_time_embed_dim
            more["added_cond_kwargs"] = {"text_embeds": named(f"pooled.{i}", (1, width)), "time_ids": torch.tensor([ids])}
        if config.time_cond_proj_dim is not None and case.get("guidance") is not None:
            more["timestep_cond"] = guidance_embedding(case["guidance"], config.time_cond_proj_dim, 1)
        outputs.append(model(x, torch.tensor(case["timestep"]), encoder_hidden_states=text, **more).sample[0])
    return torch.stack(outputs)


def write_case(folder: Path, model: UNet2DConditionModel, case: dict, output: torch.Tensor) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    model.save_config(folder)
    (folder / "case.json").write_text(json.dumps(case) + "\n")
    output.contiguous().numpy().astype("<f4").tofile(folder / "expected.f32")


ATTENTION_DOWN, PLAIN_DOWN = "CrossAttnDownBlock2D", "DownBlock2D"
ATTENTION_UP, PLAIN_UP = "CrossAttnUpBlock2D", "UpBlock2D"
SD = dict(
    block_out_channels=(32, 64, 96, 96), norm_num_groups=8, attention_head_dim=8, cross_attention_dim=24, layers_per_block=2
)  # fmt: skip
XL = dict(
    block_out_channels=(16, 32, 64), norm_num_groups=8, cross_attention_dim=40, layers_per_block=2,
    down_block_types=(PLAIN_DOWN, ATTENTION_DOWN, ATTENTION_DOWN), up_block_types=(ATTENTION_UP, ATTENTION_UP, PLAIN_UP),
    attention_head_dim=[2, 4, 8], transformer_layers_per_block=[1, 2, 3], use_linear_projection=True,
    addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=20 + 6 * 8,
)  # fmt: skip
GUIDED = dict(samples=1, taken=[0, 0], text_tokens=[7, 11], height=16, width=16, timestep=601.0)
IDS = [[1024.0, 768.0, 0.0, 16.0, 1024.0, 1024.0], [1024.0, 768.0, 0.0, 0.0, 512.0, 512.0]]
CASES = {
    "sd15": (SD, GUIDED),
    "sd15-batch": (SD, dict(GUIDED, samples=2, taken=[0, 1, 0, 1], text_tokens=[7, 7, 3, 1], height=8, width=24, timestep=1.0)),
    "sd21": (dict(SD, use_linear_projection=True, attention_head_dim=[2, 4, 6, 6], cross_attention_dim=40, upcast_attention=True), dict(GUIDED, timestep=999.0)),
    "inpaint-odd": (dict(SD, in_channels=9), dict(GUIDED, height=13, width=9, timestep=21.0)),
    "lcm": (dict(SD, time_cond_proj_dim=32), dict(GUIDED, taken=[0], text_tokens=[7], guidance=8.5, timestep=759.0)),
    "sdxl": (XL, dict(GUIDED, time_ids=IDS)),
    "sdxl-odd": (XL, dict(GUIDED, time_ids=IDS, height=10, width=7, timestep=333.0)),
    "refiner": (
        dict(
            XL, block_out_channels=(24, 48, 96, 96), attention_head_dim=[3, 6, 12, 12], transformer_layers_per_block=2,
            down_block_types=(PLAIN_DOWN, ATTENTION_DOWN, ATTENTION_DOWN, PLAIN_DOWN),
            up_block_types=(PLAIN_UP, ATTENTION_UP, ATTENTION_UP, PLAIN_UP), projection_class_embeddings_input_dim=20 + 5 * 8,
        ),
        dict(GUIDED, time_ids=[[512.0, 512.0, 0.0, 0.0, 6.0], [512.0, 512.0, 0.0, 0.0, 2.5]]),
    ),
    "half-size": (
        dict(
            XL, mid_block_type=None, transformer_layers_per_block=[1, [1, 2], [2, 2]],
            reverse_transformer_layers_per_block=[[2, 2, 3], [2, 1, 1], 1],
        ),
        dict(GUIDED, time_ids=IDS, height=12),
    ),
    "rare": (
        dict(
            SD, block_out_channels=(20, 60), norm_num_groups=4, attention_head_dim=[2, 3], cross_attention_dim=24,
            down_block_types=(ATTENTION_DOWN, ATTENTION_DOWN), up_block_types=(ATTENTION_UP, ATTENTION_UP),
            layers_per_block=[1, 2], only_cross_attention=[True, False], mid_block_type="UNetMidBlock2D", flip_sin_to_cos=False,
            freq_shift=1, norm_eps=1e-3, conv_in_kernel=5, conv_out_kernel=1, out_channels=3, time_embedding_dim=44,
        ),
        dict(GUIDED, height=9, width=5),
    ),
}  # fmt: skip


def fixtures() -> None:
    for name, (config, case) in CASES.items():
        model = build(config)
        output = run(model, case)
        assert 0.2 < output.std() < 20, (name, output.std())
        write_case(FIXTURES / name, model, case, output)
        print(f"{name}: std {output.std():.3f}, {sum(p.numel() for p in model.parameters())} weights", flush=True)


def example() -> Path:
    """Builds the example, optimised as what people run is, and returns its binary."""
    command = ["cargo", "build", "-q", "--release", "-p", "lowtide-models", "--example", "predict_unet", "--message-format=json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    lines = (json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))
    return Path(next(line["executable"] for line in lines if line.get("executable")))


def draw(rng: random.Random) -> tuple[dict, dict]:
    levels, groups = rng.randint(1, 4), rng.choice([1, 2, 4, 8])
    heads = [rng.choice([1, 2, 3, 4]) for _ in range(levels)]
    # Multiples of groups and of every possible number of heads.
    unit = math.lcm(groups, 12)
    attention = [rng.random() < 0.7 for _ in range(levels)]
    config = dict(
        block_out_channels=tuple(unit * rng.randint(1, 4) for _ in range(levels)), norm_num_groups=groups,
        attention_head_dim=heads if rng.random() < 0.6 else heads[0], cross_attention_dim=rng.choice([8, 20, 33]),
        layers_per_block=rng.choice([1, 2, [rng.randint(1, 3) for _ in range(levels)]]),
        transformer_layers_per_block=[rng.randint(1, 3) for _ in range(levels)], use_linear_projection=rng.random() < 0.5,
        down_block_types=tuple(ATTENTION_DOWN if a else PLAIN_DOWN for a in attention),
        up_block_types=tuple(ATTENTION_UP if rng.random() < 0.7 else PLAIN_UP for _ in range(levels)),
        mid_block_type=rng.choice(["UNetMidBlock2DCrossAttn"] * 3 + ["UNetMidBlock2D", None]),
        in_channels=rng.choice([4, 9, 5]), out_channels=rng.choice([4, 8]), flip_sin_to_cos=rng.random() < 0.8,
        freq_shift=rng.choice([0, 0, 1]), norm_eps=rng.choice([1e-5, 1e-6, 1e-2]), conv_in_kernel=rng.choice([3, 3, 1]),
        time_cond_proj_dim=rng.choice([None, None, 16]),
    )  # fmt: skip
    count, samples = rng.randint(1, 4), rng.randint(1, 2)
    case = dict(
        samples=samples, taken=[rng.randrange(samples) for _ in range(count)], height=rng.randint(8, 21), width=rng.randint(8, 21),
        text_tokens=[rng.randint(1, 80) for _ in range(count)], timestep=rng.choice([0.0, 1.0, 499.5, 999.0]),
        guidance=rng.choice([1.0, 7.5]), chunk_rows=rng.choice([1, 65, 128, 100000]),
    )  # fmt: skip
    if rng.random() < 0.4:
        ids = rng.choice([5, 6])
        config.update(
            addition_embed_type="text_time", addition_time_embed_dim=6, projection_class_embeddings_input_dim=10 + 6 * ids
        )
        case["time_ids"] = [[float(rng.choice([0, 512, 1024, 6])) for _ in range(ids)] for _ in range(count)]
    return config, case


def compare(binary: Path, folder: Path, expected: torch.Tensor, precision: str) -> float:
    """The largest difference in standard deviations of what is expected."""
    subprocess.run([binary, str(folder), precision, "1"], check=True, capture_output=True)
    ours = torch.from_numpy(np.fromfile(folder / "output.f32", "<f4")).reshape(expected.shape)
    return ((ours - expected).abs().max() / expected.std()).item()


def unseen(cases: int, seed: int) -> bool:
    binary, broken = example(), False
    for index in range(cases):
        config, case = draw(random.Random(f"{seed}/{index}"))
        model = build(config)
        expected = run(model, case)
        with tempfile.TemporaryDirectory() as folder:
            write_case(Path(folder), model, case, expected)
            exact, rounded = (compare(binary, Path(folder), expected, precision) for precision in ("f32", "bf16"))
        wrong = not exact <= TOLERANCE_OF_STD or not rounded <= 0.3
        broken |= wrong
        print(f"{index}: {exact:.1e} in f32, {rounded:.1e} in bf16{'  WRONG ' + json.dumps([config, case]) if wrong else ''}", flush=True)
    return not broken


@torch.no_grad()
def time_step(latent: int, rounds: int, threads: int) -> None:
    """Alternates between the two, both with weights in memory; the second step of each counts. Where others compute on the
    same cores, seconds of cores say more than those of the clock."""
    torch.set_num_threads(threads)
    binary = example()
    config = dict(block_out_channels=(320, 640, 1280, 1280), cross_attention_dim=768, attention_head_dim=8)
    case = dict(samples=1, taken=[0, 0], text_tokens=[77, 77], height=latent, width=latent, timestep=601.0)
    model = UNet2DConditionModel(**config).eval()
    for precision, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16)):
        model = model.to(dtype)
        x, text = torch.randn(2, 4, latent, latent, dtype=dtype), torch.randn(2, 77, 768, dtype=dtype)
        with tempfile.TemporaryDirectory() as folder:
            model.save_config(folder)
            (Path(folder) / "case.json").write_text(json.dumps(case))
            for _ in range(rounds):
                done = subprocess.run([binary, folder, precision, str(threads), "2"], check=True, capture_output=True, text=True)
                for _ in range(2):
                    start, start_cpu = time.perf_counter(), time.process_time()
                    model(x, torch.tensor(601.0), encoder_hidden_states=text)
                    wall, cpu = time.perf_counter() - start, time.process_time() - start_cpu
                words = done.stdout.split()
                ours_cpu, ours_wall = map(float, words[-2:])
                print(
                    f"{precision}: {ours_wall:.2f} s ({ours_cpu:.2f} s of cores, {int(words[0]) / 2**20:.0f} MiB), "
                    f"diffusers {wall:.2f} s ({cpu:.2f} s), ratio {wall / ours_wall:.2f} ({cpu / ours_cpu:.2f})",
                    flush=True,
                )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["fixtures", "unseen", "time"])
    parser.add_argument("--cases", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--latent", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.what == "fixtures":
        fixtures()
    elif arguments.what == "time":
        time_step(arguments.latent, arguments.rounds, arguments.threads)
    elif not unseen(arguments.cases, arguments.seed):
        sys.exit(1)


if __name__ == "__main__":
    main()
