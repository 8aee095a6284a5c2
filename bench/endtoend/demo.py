"""The demo checkpoint from process start to PNG, next to diffusers' warm steps in the same minute.

    python demo.py --lowtide ../../target/release/lowtide --model DIR [--pairs 7] [--threads 2]

The bar: at most 0.7 s plus 1.1 times diffusers' warm step time per step, and at most the weights plus 80 MiB of memory.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from measure import MIB, Page, lowtide, median, peer_times, quiet, wait_until_idle, weight_bytes

START_SECONDS_MAX = 0.7
STEP_RATIO_MAX = 1.1
MEMORY_OVER_WEIGHTS_MAX = 80 * MIB
PROMPT = "a red heart on a white background"
# A pause, so that the peer's spinning threads have gone to sleep before we start, and the other way round.
PAUSE_SECONDS = 0.3


def measure(page: Page, arguments, precision: str, picture: Path) -> None:
    import torch

    from reference import Request, load

    pipeline = load(arguments.model, {"f32": torch.float32, "bf16": torch.bfloat16}[precision])
    request = Request(PROMPT, width=128, height=128, steps=arguments.steps, guidance=4.0, seed=7)
    options = ["--size", "128x128", "--steps", str(arguments.steps), "--guidance", "4", "--seed", "7"]
    options += ["--precision", precision, "--threads", str(arguments.threads)]
    peer_times(pipeline, request)
    page.add("", f"## {precision}, {arguments.steps} steps, {arguments.threads} threads", "")
    page.table(["pair", "diffusers step", "diffusers warm call", "bar", "lowtide", "of the bar", "encode + denoise + decode", "peak"])
    ratios, times, steps, peaks, own_steps, idle = [], [], [], [], [], []
    for pair in range(arguments.pairs):
        idle.append(wait_until_idle(arguments.patience))
        theirs = peer_times(pipeline, request)
        time.sleep(PAUSE_SECONDS)
        bar = START_SECONDS_MAX + STEP_RATIO_MAX * theirs.step_seconds * arguments.steps
        steps.append(theirs.step_seconds)
        if not arguments.lowtide:
            page.row(pair, f"{theirs.step_seconds * 1e3:.1f} ms", f"{theirs.total_seconds:.3f} s", f"{bar:.3f} s", *["-"] * 4)
            continue
        ours = lowtide(arguments.lowtide, PROMPT, arguments.model, picture, options)
        phases = ours.json()["seconds"]
        time.sleep(PAUSE_SECONDS)
        times.append(ours.seconds)
        ratios.append(ours.seconds / bar)
        peaks.append(ours.peak_bytes)
        own_steps.append(phases["denoise"] / arguments.steps)
        page.row(
            pair, f"{theirs.step_seconds * 1e3:.1f} ms", f"{theirs.total_seconds:.3f} s", f"{bar:.3f} s",
            f"{ours.seconds:.3f} s", f"{ratios[-1]:.2f}",
            f"{phases['encode']:.3f} + {phases['denoise']:.3f} + {phases['decode']:.3f} s", f"{ours.peak_bytes / MIB:.0f} MiB",
        )  # fmt: skip
    counted = quiet(steps, idle)
    steps = [steps[pair] for pair in counted]
    page.add("", f"Pairs on a quiet machine: {counted}. Only these count.", "")
    if not counted:
        page.check(False, f"{precision}: a pair that began on an idle machine")
        return
    page.add(f"diffusers' warm step: median {median(steps) * 1e3:.1f} ms, {min(steps) * 1e3:.1f} to {max(steps) * 1e3:.1f} ms.")
    if not ratios:
        return
    ratios, times, own_steps = ([values[pair] for pair in counted] for values in (ratios, times, own_steps))
    page.add(f"lowtide's step: median {median(own_steps) * 1e3:.1f} ms, {median(own_steps) / median(steps):.2f} of diffusers'.", "")
    bar_met = sum(ratio <= 1 for ratio in ratios)
    page.check(
        median(ratios) <= 1,
        f"{precision}: median {median(times):.3f} s is {median(ratios):.2f} of the bar ({bar_met} of {len(ratios)} pairs within it)",
    )
    limit = weight_bytes(arguments.model) + MEMORY_OVER_WEIGHTS_MAX
    page.check(
        max(peaks) <= limit,
        f"{precision}: resident set at most {max(peaks) / MIB:.1f} MiB; weights + 80 MiB is {limit / MIB:.1f} MiB",
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lowtide", type=Path, help="without it only diffusers is timed")
    parser.add_argument("--model", type=Path, required=True, help="the demo checkpoint")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", nargs="*", default=["f32", "bf16"])
    parser.add_argument("--patience", type=float, default=60, help="seconds to wait for an idle machine before each pair")
    parser.add_argument("--out", type=Path, help="folder of the page")
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(arguments.threads)
    page = Page("demo", arguments.out)
    page.add("Paired runs, alternating. `lowtide` is the whole process, from its start to the PNG; diffusers is warm.")
    with tempfile.TemporaryDirectory() as folder:
        for precision in arguments.precision:
            measure(page, arguments, precision, Path(folder) / "demo.png")
    return page.close()


if __name__ == "__main__":
    sys.exit(main())
