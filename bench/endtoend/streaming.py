"""What streaming costs: pairs of runs with everything resident and with 40 % of the weights, the file in the page cache.

    python streaming.py --lowtide ../../target/release/lowtide --model DIR [--share 0.4] [--pairs 3] [--precision bf16]

A missing DIR is written first. Pixels are compared. On a machine that others use as well, processor time is the figure to go by:
the loader's copies are in it, only its waiting for the disk is not, of which there is none.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from budgets import PROMPT, pixels, plenty
from measure import MIB, Page, lowtide, weight_bytes

BAR = 1.05


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lowtide", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--size", default="512x512")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--share", type=float, default=0.4)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", nargs="*", default=["f32", "bf16"])
    parser.add_argument("--out", type=Path, help="folder of the page")
    arguments = parser.parse_args()
    if not (arguments.model / "model_index.json").exists():
        from medium_checkpoint import ensure

        ensure(arguments.model)
    page = Page("streaming", arguments.out)
    weights = weight_bytes(arguments.model)
    few = int(weights * arguments.share)
    page.add(f"Stored weights: {weights / MIB:.0f} MiB; {arguments.share:.0%} of them as the budget: {few / MIB:.0f} MiB.")
    for precision in arguments.precision:
        page.add("", f"## {precision}, {arguments.size}, {arguments.steps} steps, {arguments.threads} threads", "")
        page.table(["pair", "budget", "read", "whole", "processor time", "pixels"])
        options = ["--size", arguments.size, "--steps", str(arguments.steps), "--seed", "7", "--precision", precision]
        options += ["--threads", str(arguments.threads)]
        walls, processors, digests = [], [], set()
        with tempfile.TemporaryDirectory() as folder:
            picture = Path(folder) / "picture.png"
            for pair in range(arguments.pairs):
                runs = []
                for budget in (plenty(), few):
                    done = lowtide(arguments.lowtide, PROMPT, arguments.model, picture, [*options, "--budget", str(budget)])
                    if done.code != 0:
                        raise SystemExit(done.stderr)
                    runs.append(done)
                    digests.add(pixels(picture))
                    name = "40 %" if budget == few else "resident"
                    read = done.json()["bytes_read"] / MIB
                    page.row(pair, name, f"{read:.0f} MiB", f"{done.seconds:.2f} s", f"{done.cpu_seconds:.2f} s", pixels(picture))
                walls.append(runs[1].seconds / runs[0].seconds)
                processors.append(runs[1].cpu_seconds / runs[0].cpu_seconds)
        wall, processor = statistics.median(walls), statistics.median(processors)
        page.add("", f"Streamed over resident, medians of pairs: {wall:.3f} of the time, {processor:.3f} of the processor time.")
        page.check(len(digests) == 1, f"{precision}: the same pixels")
        page.check(min(wall, processor) <= BAR, f"{precision}: at most {BAR} of the time, or of processor time where others kept the cores busy")
    return page.close()


if __name__ == "__main__":
    sys.exit(main())
