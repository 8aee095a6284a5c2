"""Ten budgets, from everything resident down to the smallest that is accepted, each under `prlimit --data` of the budget + 64 MiB.

    python budgets.py --lowtide ../../target/release/lowtide --model DIR [--size 512x512] [--steps 4]

A missing DIR is written first. For every budget: the run finishes; on exact rungs the pixels are those of the first run;
the allocator's peak is within the budget; the prediction is within the larger of 10 % and 4 MiB of the peak.
"""

import argparse
import hashlib
import sys
import tempfile
from pathlib import Path

from measure import MIB, Page, lowtide, run, weight_bytes

PROMPT = "a red heart on a white background"
HEADROOM = 64 * MIB
PREDICTION_RATIO_MAX = 0.10
PREDICTION_BYTES_MAX = 4 * MIB
DOES_NOT_FIT = 3


def plenty() -> int:
    """A budget that holds everything: what is free now, in bytes."""
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) * 1024


class Planner:
    """Asks the binary what it would do, without running anything."""

    def __init__(self, arguments, options: list[str]):
        self.command = [str(arguments.lowtide.resolve()), "plan", PROMPT, "--model", str(arguments.model), "--json", *options]

    def peak(self, budget: int) -> int | None:
        """The planned peak in bytes, or nothing where the budget is refused."""
        done = run([*self.command, "--budget", str(budget)])
        if done.code == DOES_NOT_FIT:
            return None
        line = done.json()
        return line.get("plan", line)["peak"]

    def smallest(self, enough: int, precision: int = MIB // 4) -> int:
        """The smallest accepted budget, by halving."""
        refused = 0
        while enough - refused > precision:
            middle = (enough + refused) // 2
            if self.peak(middle) is None:
                refused = middle
            else:
                enough = middle
        return enough


def pixels(picture: Path) -> str:
    from PIL import Image

    with Image.open(picture) as image:
        return hashlib.sha256(f"{image.size}{image.mode}".encode() + image.tobytes()).hexdigest()[:12]


def mib(count: float) -> str:
    return f"{count / MIB:.1f}"


def worst_phase(line: dict) -> tuple[str, int, int, bool]:
    """The phase whose prediction is furthest off: its name, predicted and measured bytes, and whether that is allowed."""
    predicted, measured = line["memory"]["predicted_peak"], line["memory"]["measured_peak"]

    def excess(phase: str) -> float:
        return abs(predicted[phase] - measured[phase]) - max(PREDICTION_RATIO_MAX * measured[phase], PREDICTION_BYTES_MAX)

    phase = max(measured, key=excess)
    return phase, predicted[phase], measured[phase], excess(phase) <= 0


def run_budget(page: Page, arguments, options: list[str], budget: int, picture: Path, first: str | None) -> str | None:
    limit = budget + HEADROOM
    done = lowtide(
        arguments.lowtide, PROMPT, arguments.model, picture, [*options, "--budget", str(budget)],
        prefix=("/usr/bin/prlimit", f"--data={limit}"),
    )  # fmt: skip
    if done.code != 0:
        last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        page.row(mib(budget), "-", "-", "-", "-", f"exit code {done.code}", "-", "-", "FAILED")
        page.failures.append(f"{mib(budget)} MiB: exit code {done.code}: {last}")
        return first
    line = done.json()
    measured = max(line["memory"]["measured_peak"].values())
    phase, predicted, seen, close = worst_phase(line)
    exact = line["quality"] == "exact" and not line["approximate"]
    digest = pixels(picture)
    same = first is None or digest == first
    faults = [
        text
        for good, text in [
            (measured <= budget, "peak over the budget"),
            (close, f"prediction of {phase}"),
            (same or not exact, "other pixels"),
        ]
        if not good
    ]
    page.row(
        mib(budget), mib(measured), f"{phase} {mib(predicted)} / {mib(seen)}", mib(done.peak_bytes), f"{line['bytes_read'] / MIB:.0f}",
        f"{done.seconds:.2f} s", "exact" if exact else ", ".join(line["approximate"]), digest, "; ".join(faults) or "ok",
    )  # fmt: skip
    page.failures += [f"{mib(budget)} MiB: {fault}" for fault in faults]
    return first or (digest if exact else None)


def sweep(page: Page, arguments, precision: str, picture: Path) -> None:
    options = ["--size", arguments.size, "--steps", str(arguments.steps), "--guidance", str(arguments.guidance)]
    options += ["--seed", "7", "--precision", precision, "--quality", arguments.quality, "--threads", str(arguments.threads)]
    planner = Planner(arguments, options)
    most = planner.peak(plenty())
    if most is None:
        raise SystemExit("refused even with all free memory as the budget")
    least = planner.smallest(most)
    page.add("", f"## {precision}, {arguments.size}, {arguments.steps} steps", "")
    page.add(f"Everything resident: {mib(most)} MiB. Smallest accepted: {mib(least)} MiB. In MiB:", "")
    page.table(["budget", "allocator's peak", "furthest phase, predicted / measured", "resident set", "read", "time", "rung", "pixels", ""])
    first = None
    for index in range(arguments.budgets):
        budget = most - (most - least) * index // (arguments.budgets - 1)
        first = run_budget(page, arguments, options, budget, picture, first)
    page.add("")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lowtide", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--size", default="512x512")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--budgets", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quality", default="auto", choices=["auto", "exact"])
    parser.add_argument("--precision", nargs="*", default=["f32", "bf16"])
    parser.add_argument("--out", type=Path, help="folder of the page")
    arguments = parser.parse_args()
    if not (arguments.model / "model_index.json").exists():
        from medium_checkpoint import ensure

        ensure(arguments.model)
    page = Page("budgets", arguments.out)
    page.add(f"Stored weights: {mib(weight_bytes(arguments.model))} MiB. Each run under `prlimit --data` of the budget + 64 MiB.")
    with tempfile.TemporaryDirectory() as folder:
        for precision in arguments.precision:
            sweep(page, arguments, precision, Path(folder) / "picture.png")
    page.add(*(f"- {failure}" for failure in page.failures))
    page.check(not page.failures, "every run finished, within its budget, as predicted, with the same pixels on exact rungs")
    return page.close()


if __name__ == "__main__":
    sys.exit(main())
