"""A network of about 400 M parameters at 512x512, 4 steps: lowtide next to diffusers, in both precisions.

    python medium.py --lowtide ../../target/release/lowtide --model DIR [--pairs 3] [--threads 2]

A missing DIR is written first (random weights). The pages say what was; there is no bar here.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from measure import MIB, Page, lowtide, median, peer_times, quiet, wait_until_idle, weight_bytes
from medium_checkpoint import ensure

PROMPT = "a red heart on a white background"
PAUSE_SECONDS = 0.3


def measure(page: Page, arguments, precision: str, picture: Path) -> None:
    import torch

    from reference import Request, load

    pipeline = None
    if not arguments.skip_peer:
        pipeline = load(arguments.model, {"f32": torch.float32, "bf16": torch.bfloat16}[precision])
    width, height = (int(part) for part in arguments.size.split("x"))
    request = Request(PROMPT, width=width, height=height, steps=arguments.steps, guidance=arguments.guidance, seed=7)
    options = ["--size", arguments.size, "--steps", str(arguments.steps), "--guidance", str(arguments.guidance), "--seed", "7"]
    options += ["--precision", precision, "--threads", str(arguments.threads)]
    if pipeline:
        peer_times(pipeline, request)
    page.add("", f"## {precision}, {arguments.size}, {arguments.steps} steps, {arguments.threads} threads", "")
    page.table(["pair", "who", "encode", "step", "decode", "whole", "peak"])
    theirs_all, ours_all, idle = [], [], []
    for pair in range(arguments.pairs):
        idle.append(wait_until_idle(arguments.patience))
        if pipeline:
            theirs = peer_times(pipeline, request)
            theirs_all.append(theirs)
            page.row(
                pair, "diffusers, warm", f"{theirs.encode_seconds:.3f} s", f"{theirs.step_seconds:.3f} s",
                f"{theirs.decode_seconds:.3f} s", f"{theirs.total_seconds:.2f} s", "-",
            )  # fmt: skip
            time.sleep(PAUSE_SECONDS)
        if arguments.lowtide:
            ours = lowtide(arguments.lowtide, PROMPT, arguments.model, picture, options)
            phases = ours.json()["seconds"]
            step = phases["denoise"] / arguments.steps
            ours_all.append((step, phases["encode"], phases["decode"], ours.seconds, ours.peak_bytes))
            page.row(
                pair, "lowtide, the process", f"{phases['encode']:.3f} s", f"{step:.3f} s", f"{phases['decode']:.3f} s",
                f"{ours.seconds:.2f} s", f"{ours.peak_bytes / MIB:.0f} MiB",
            )  # fmt: skip
            time.sleep(PAUSE_SECONDS)
    page.add("")
    if theirs_all and ours_all:
        counted = quiet([theirs.step_seconds for theirs in theirs_all], idle)
        if not counted:
            page.check(False, f"{precision}: a pair that began on an idle machine")
            return
        page.add(f"Pairs on a quiet machine: {counted}. Only these count.", "")
        step = median([ours_all[pair][0] / theirs_all[pair].step_seconds for pair in counted])
        decode = median([ours_all[pair][2] / theirs_all[pair].decode_seconds for pair in counted])
        whole = median([ours_all[pair][3] / theirs_all[pair].total_seconds for pair in counted])
        page.add(f"Of diffusers' time: step {step:.2f}, decode {decode:.2f}, the process {whole:.2f} of a warm call.")
    if ours_all:
        peak = max(values[4] for values in ours_all)
        over = (peak - weight_bytes(arguments.model)) / MIB
        page.add(f"Resident set at most {peak / MIB:.0f} MiB, {over:.0f} MiB over the stored weights.")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lowtide", type=Path, help="without it only diffusers is timed")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--skip-peer", action="store_true", help="time lowtide alone")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--size", default="512x512")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", nargs="*", default=["f32", "bf16"])
    parser.add_argument("--patience", type=float, default=60, help="seconds to wait for an idle machine before each pair")
    parser.add_argument("--out", type=Path, help="folder of the page")
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(arguments.threads)
    ensure(arguments.model)
    page = Page("medium", arguments.out)
    page.add(f"Stored weights: {weight_bytes(arguments.model) / MIB:.0f} MiB.")
    with tempfile.TemporaryDirectory() as folder:
        for precision in arguments.precision:
            measure(page, arguments, precision, Path(folder) / "medium.png")
    return page.close()


if __name__ == "__main__":
    sys.exit(main())
