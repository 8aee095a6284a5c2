"""Chains under budgets that hold their models together, in part, and not: the same picture, and where the time goes.

    python chain.py --lowtide ../../target/release/lowtide --folder DIR [--preset sd15] [--rounds 3]
    python chain.py … --detector 320n.onnx --upscaler REALESRGAN_X4PLUSANIME_UP4X.param

Standard library only. DIR gets two checkpoints, `a` and `b`, of the same shapes and different random weights, unless they are there.
Each run is a process of its own that draws with A and draws over that with B; with a detector and an upscaler it draws with A,
repairs with B what the detector likes best (at a confidence so low that it likes something in any picture), and makes that larger.
Before it the files are read once, so that they are in the page cache, and their read bandwidth into fresh memory is measured, which is
what weights that stay are read into. The steps are done one by one by hand first, and every chain has to give the same bytes.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import MIB, Page, weight_bytes
from sd_checkpoint import PRESETS, write_checkpoint
from switching import PADDING, read_rate, used_bytes

BAR = 1.1
WAITING_SHARE = 0.05
PROMPT = "a lighthouse at night"


def run(program: Path, arguments: list) -> dict:
    done = subprocess.run([str(program), *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, arguments))}\n{done.stderr}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def steps_of(arguments, models: dict, drawn: Path, folder: Path) -> list[tuple[list, dict]]:
    """The steps after the first: the command that does it by hand, and what a chain calls it."""
    common = {"steps": arguments.steps, "guidance": 1, "seed": 2}
    options = ["--steps", arguments.steps, "--guidance", 1, "--seed", 2, "--prompt", PROMPT, "--model", models["b"]]
    if not arguments.detector:
        by_hand = ["generate", PROMPT, *options[:6], "--model", models["b"], "--image", drawn, "--strength", arguments.strength]
        return [(by_hand, {"kind": "text-to-image", "model": str(models["b"]), "request": {**common, "strength": arguments.strength}})]
    detector = f"{arguments.detector.resolve()}"
    one = {"detector": detector, "confidence": 0.001, "mask_k": 1, "strength": arguments.strength}
    thing = f"{detector},confidence=0.001,mask_k=1,strength={arguments.strength}"
    upscaler = str(arguments.upscaler.resolve())
    return [
        (["detail", drawn, *options, "--detail", thing], {"kind": "detail", "model": str(models["b"]), "request": {**common, "passes": [one]}}),
        (["upscale", folder / "step-1.png", "--model", upscaler], {"kind": "upscale", "model": upscaler, "request": {}}),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lowtide", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--preset", choices=PRESETS, default="sd15")
    parser.add_argument("--rounds", type=int, default=3, help="chains under each budget")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--strength", type=float, default=0.5)
    parser.add_argument("--shares", type=float, nargs="+", default=[2.6, 1.7, 1.25], help="budgets, of one model's weights")
    parser.add_argument("--detector", type=Path, help="a step repairs")
    parser.add_argument("--upscaler", type=Path, help="and a last one enlarges")
    parser.add_argument("--out", type=Path, help="folder of the page")
    arguments = parser.parse_args()
    program = arguments.lowtide.resolve()
    models = {name: arguments.folder / name for name in ("a", "b")}
    for seed, folder in enumerate(models.values()):
        if not (folder / "model_index.json").exists():
            write_checkpoint(folder, arguments.preset, seed)
    weights = weight_bytes(models["a"])
    if bool(arguments.detector) != bool(arguments.upscaler):
        parser.error("a detector and an upscaler come together")
    page = Page("chain", arguments.out)
    what = f"B draws over it with strength {arguments.strength}"
    if arguments.detector:
        what = f"B repairs a thing in it with strength {arguments.strength}, {arguments.upscaler.stem} enlarges it"
    page.add(
        f"Two {arguments.preset} checkpoints of {weights / MIB:.0f} MiB each: A draws {arguments.size}x{arguments.size} in {arguments.steps} steps, {what}.",
        f"Files in the page cache. Load of the machine at the start: {os.getloadavg()[0]:.1f}.",
        "",
    )
    side = f"{arguments.size}x{arguments.size}"
    first = [PROMPT, "--model", models["a"], "--steps", arguments.steps, "--guidance", 1, "--size", side, "--seed", 1]
    common = ["--local", "--json"]
    with tempfile.TemporaryDirectory() as folder:
        drawn, chained = (Path(folder) / f"{name}.png" for name in ("drawn", "chained"))
        by_hand = [run(program, ["generate", *first, "-o", drawn, *common])]
        reference, then = drawn, []
        for number, (command, step) in enumerate(steps_of(arguments, models, drawn, Path(folder)), 1):
            reference = Path(folder) / f"step-{number}.png"
            by_hand.append(run(program, [*command, "-o", reference, *common]))
            then += ["--then", json.dumps(step)]
        reference = reference.read_bytes()
        # What each step reads when it is alone and nothing is cut short: every byte it uses, once.
        used = [one["bytes_read"] for one in by_hand]
        names = "ABCDEFGH"[: len(used)]
        page.table(
            ["budget", "total", "work", "loading", "waiting", "share", *(f"read {name}" for name in names), "of it ahead", "bandwidth", "waiting, of the bar", "peak"]
        )
        checks = {"same bytes as by hand": True, "each byte read once, or as the plan says": True, "peak within the budget": True}
        shares, bars = {}, {}
        for share in arguments.shares:
            budget = int(weights * share)
            for _ in range(arguments.rounds):
                rates = [read_rate(model, fresh=True) for model in models.values()]
                bandwidth = statistics.mean(rates)
                told = run(program, ["generate", *first, *then, "--budget", budget, "-o", chained, *common])
                seconds, steps = told["chain"]["seconds"], told["chain"]["steps"]
                read = [step["bytes_read"] + step["bytes_ahead"] for step in steps]
                peak = max(told["memory"]["measured_peak"].values())
                # What was read ahead was overlapped. What a step read while it computed is counted as waited for.
                allowed = sum(step["bytes_read"] for step in steps) / bandwidth * BAR
                bar = seconds["waiting"] / allowed
                checks["same bytes as by hand"] &= chained.read_bytes() == reference
                checks["each byte read once, or as the plan says"] &= all(
                    got <= max(expected, step["planned"]["bytes_read"] + step["bytes_ahead"]) * PADDING
                    for got, expected, step in zip(read, used, steps)
                )
                checks["peak within the budget"] &= peak <= budget
                shares.setdefault(share, []).append(seconds["waiting"] / seconds["total"])
                bars.setdefault(share, []).append(bar)
                page.row(
                    f"{budget / MIB:.0f} MiB", *(f"{seconds[part]:.2f} s" for part in ("total", "work", "loading", "waiting")),
                    f"{100 * shares[share][-1]:.1f} %", *(f"{count / MIB:.0f} MiB" for count in read), f"{sum(step['bytes_ahead'] for step in steps) / MIB:.0f} MiB",
                    f"{bandwidth / 1024 / MIB:.2f} GiB/s", f"{bar:.2f}", f"{peak / MIB:.0f} MiB",
                )  # fmt: skip
    page.add(
        "",
        f"By hand the steps read {', '.join(f'{count / MIB:.0f}' for count in used)} MiB; a job of A uses {used_bytes(models['a']) / MIB:.0f} MiB of its files.",
        "The bar is bytes / bandwidth * 1.1, without the bytes that were read ahead.",
        "",
    )
    for what, held in checks.items():
        page.check(held, what)
    for share in arguments.shares:
        budget = weights * share / MIB
        page.check(
            statistics.median(shares[share]) < WAITING_SHARE,
            f"{budget:.0f} MiB: waiting is {100 * statistics.median(shares[share]):.1f} % of the whole (median; below 5)",
        )
        page.check(statistics.median(bars[share]) <= 1.0, f"{budget:.0f} MiB: waiting is {statistics.median(bars[share]):.2f} of its bar (median)")
    return page.close()


if __name__ == "__main__":
    sys.exit(main())
