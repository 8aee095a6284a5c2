"""What changing models costs: two checkpoints of one family in turn under a budget that holds one, files in the page cache.

    python switching.py --lowtide ../../target/release/lowtide --folder DIR [--preset sd15] [--rounds 5]

Standard library only. DIR gets two checkpoints, `a` and `b`, of the same shapes and different random weights, unless they are there.
`lowtide serve` then does jobs for A, B, A, B; each has to read its model again, since the budget holds one. Beside every job the
same files are read with pread in a loop, in pieces of 4 MiB, as fast as this machine gives them at that moment: into one buffer
again and again, and into fresh memory, which is what weights that stay are read into.
"""

import argparse
import json
import mmap
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from measure import MIB, Page, weight_bytes
from sd_checkpoint import PRESETS, write_checkpoint

BAR = 1.1
# Blocks are counted with the padding between their tensors.
PADDING = 1.002
PIECE_BYTES = 4 * MIB
FRESH_BYTES = 64 * MIB


def read_rate(model: Path, fresh: bool) -> float:
    """Bytes a second of reading the weights of a model once."""
    total, start = 0, time.perf_counter()
    memory, at = mmap.mmap(-1, FRESH_BYTES), 0
    for file in sorted(model.glob("*/*.safetensors")):
        handle = os.open(file, os.O_RDONLY)
        offset = 0
        while True:
            if fresh and at + PIECE_BYTES > FRESH_BYTES:
                memory.close()
                memory, at = mmap.mmap(-1, FRESH_BYTES), 0
            with memoryview(memory) as view, view[at : at + PIECE_BYTES] as piece:
                count = os.preadv(handle, [piece], offset)
            if count == 0:
                break
            offset += count
            total += count
            at += PIECE_BYTES if fresh else 0
        os.close(handle)
    memory.close()
    return total / (time.perf_counter() - start)


def used_bytes(model: Path) -> int:
    """Bytes of the weights that a text-to-image job moves: not the tables, of which rows are read, and not the VAE's encoder."""
    total = 0
    for file in model.glob("*/*.safetensors"):
        with file.open("rb") as opened:
            header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            if ".embeddings." not in name and not name.startswith(("encoder.", "quant_conv.")):
                total += end - begin
    return total


class Service:
    """`lowtide serve` in a folder of its own."""

    def __init__(self, program: Path, models: Path, budget: int, folder: str):
        command = [str(program.resolve()), "serve", "--port", "0", "--data-dir", folder, "--models", str(models)]
        for setting in (f"device.budget={budget}", "models.elsewhere=false", "log.level=quiet"):
            command += ["--set", setting]
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        file, give_up = Path(folder) / "server.json", time.monotonic() + 60
        while True:
            try:
                self.url = json.loads(file.read_text())["url"]
                self.get("/health/ready")
                return
            except (OSError, ValueError, KeyError):
                if time.monotonic() > give_up or self.process.poll() is not None:
                    raise SystemExit("lowtide serve does not answer") from None
                time.sleep(0.05)

    def get(self, path: str) -> dict:
        with urllib.request.urlopen(self.url + path, timeout=120) as answer:
            return json.load(answer)

    def job(self, model: str, request: dict) -> dict:
        """Does a job; returns its report, with the seconds from the request to the result."""
        body = json.dumps({"model": model, "request": request}).encode()
        start = time.perf_counter()
        asked = urllib.request.Request(self.url + "/v1/jobs", body, {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(asked, timeout=60) as answer:
                job = json.load(answer)["id"]
        except urllib.error.HTTPError as refused:
            raise SystemExit(f"{model}: {refused.read().decode()}") from None
        while True:
            told = self.get(f"/v1/jobs/{job}?wait_s=60")
            if told["state"] not in ("queued", "claimed", "running"):
                break
        if told["state"] != "done":
            raise SystemExit(json.dumps(told, indent=1))
        return told["report"] | {"whole_s": time.perf_counter() - start}

    def end(self) -> None:
        self.process.terminate()
        self.process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lowtide", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--preset", choices=PRESETS, default="sd15")
    parser.add_argument("--rounds", type=int, default=5, help="jobs for each of the two")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--share", type=float, default=1.35, help="of one model's weights, as the budget")
    parser.add_argument("--out", type=Path, help="folder of the page")
    arguments = parser.parse_args()
    models = {name: arguments.folder / name for name in ("a", "b")}
    for seed, folder in enumerate(models.values()):
        if not (folder / "model_index.json").exists():
            write_checkpoint(folder, arguments.preset, seed)
    weights = weight_bytes(models["a"])
    budget = int(weights * arguments.share)
    page = Page("switching", arguments.out)
    page.add(
        f"Two {arguments.preset} checkpoints of {weights / MIB:.0f} MiB each, under a budget of {budget / MIB:.0f} MiB;",
        f"{arguments.size}x{arguments.size}, {arguments.steps} steps, guidance 1. Load of the machine at the start: {os.getloadavg()[0]:.1f}.",
        "",
    )
    page.table(["job", "whole", "computing", "waited", "read", "pread, one buffer", "pread, fresh memory", "waited, of one buffer's", "of fresh memory's"])
    request = dict(steps=arguments.steps, guidance=1.0, width=arguments.size, height=arguments.size)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        service = Service(arguments.lowtide, arguments.folder, budget, folder)
        try:
            for number in range(2 * arguments.rounds):
                name = "ab"[number % 2]
                # Also puts the files into the page cache.
                rates = [read_rate(models[name], fresh) for fresh in (False, True)]
                report = service.job(name, request | {"seed": number, "prompt": f"lighthouse {number} at night"})
                rates = [max(rate, read_rate(models[name], fresh)) for rate, fresh in zip(rates, (False, True))]
                waited, read = report["load_seconds"], report["bytes_read"]
                computing = sum(report["seconds"].values()) - waited
                ratios = [waited / (read / rate) for rate in rates]
                rows.append((report["whole_s"], computing, waited, read, *rates, *ratios))
                page.row(
                    f"{number} {name}", f"{report['whole_s']:.2f} s", f"{computing:.2f} s", f"{waited:.2f} s", f"{read / MIB:.1f} MiB",
                    f"{rates[0] / MIB / 1024:.2f} GiB/s", f"{rates[1] / MIB / 1024:.2f} GiB/s", *(f"{ratio:.2f}" for ratio in ratios),
                )  # fmt: skip
            again = [service.job("b", request | {"seed": number, "prompt": f"another lighthouse {number}"}) for number in range(arguments.rounds)]
        finally:
            service.end()
    switches = list(zip(*rows[2:]))
    whole, computing, waited, read, buffer, fresh, of_buffer, of_fresh = map(statistics.median, switches)
    without = statistics.median(report["whole_s"] for report in again)
    page.add(
        "",
        f"Medians of the {len(rows) - 2} switches (without the first two jobs): {whole:.2f} s in all, {waited:.2f} s of them waiting for {read / MIB:.0f} MiB. A loop of",
        f"pread takes {read / buffer:.2f} s for these into one buffer, which stays in the processor's cache, and {read / fresh:.2f} s into fresh memory, which is what weights",
        f"that stay are read into. A job of the same model again, weights kept: {without:.2f} s (median of {len(again)}). So a switch costs {whole - without:.2f} s, of which",
        "waiting is only a part: reading takes cores from computing.",
        "",
    )
    used = used_bytes(models["a"])
    once = all(used <= row[3] <= used * PADDING for row in rows)
    page.check(once, f"every switch reads each byte that the job uses once: {used / MIB:.1f} MiB in the files")
    page.check(all(report["bytes_read"] == 0 for report in again), "a job without a switch reads nothing")
    for name, median, column in (("one buffer", of_buffer, switches[6]), ("fresh memory", of_fresh, switches[7])):
        told = f"median {median:.2f}, most {max(column):.2f}"
        page.check(median <= BAR, f"waiting at most bytes / bandwidth * {BAR}, by the bandwidth into {name} ({told}); overlap not credited")
    return page.close()


if __name__ == "__main__":
    sys.exit(main())
