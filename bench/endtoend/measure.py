"""Runs of the binary and of the peer, and the page they are written to."""

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "tools" / "reference"))

MIB = 1 << 20


@dataclass
class Run:
    """One process, from its start to its end."""

    code: int
    seconds: float
    peak_bytes: int
    cpu_seconds: float
    stdout: str
    stderr: str

    def json(self) -> dict:
        """The last line on standard output."""
        if self.code != 0:
            raise SystemExit(f"exit code {self.code}: {self.stderr.strip() or self.stdout.strip()}")
        return json.loads(self.stdout.strip().splitlines()[-1])


def run(command: list[str]) -> Run:
    with tempfile.NamedTemporaryFile("r") as facts:
        launch = [sys.executable, "-S", "-E", str(Path(__file__).with_name("launch.py")), facts.name]
        done = subprocess.run(launch + command, capture_output=True, text=True)
        content = facts.read().split()
        if len(content) != 4:
            raise SystemExit(f"could not start {command[0]}: {done.stderr.strip()}")
        code, seconds, peak, cpu = content
        return Run(int(code), float(seconds), int(peak), float(cpu), done.stdout, done.stderr)


def lowtide(binary: Path, prompt: str, model: Path, out: Path, options: list[str], prefix: tuple = ()) -> Run:
    """`lowtide generate` to a picture; a picture left over from before is removed first."""
    out.unlink(missing_ok=True)
    command = [*prefix, str(binary.resolve()), "generate", prompt, "--model", str(model), "-o", str(out), "--json"]
    done = run(command + options)
    if done.code == 0 and not out.exists():
        raise SystemExit(f"exit code 0 and no picture at {out}")
    return done


def weight_bytes(model: Path) -> int:
    return sum(file.stat().st_size for file in model.glob("*/*.safetensors"))


@dataclass
class PeerTimes:
    """One warm call of diffusers."""

    step_seconds: float
    encode_seconds: float
    decode_seconds: float
    total_seconds: float


def peer_times(pipeline, request) -> PeerTimes:
    """Times one call: encoding up to the first use of the transformer, the median step, what comes after the last."""
    entered, ends = [], []
    hook = pipeline.transformer.register_forward_pre_hook(lambda *_: entered.append(time.perf_counter()))
    started = time.perf_counter()
    pipeline(
        request.prompt,
        negative_prompt=request.negative,
        height=request.height,
        width=request.width,
        num_inference_steps=request.steps,
        guidance_scale=request.guidance,
        generator=seeded(request.seed),
        output_type="np",
        callback_on_step_end=lambda *_: ends.append(time.perf_counter()) or {},
    )
    ended = time.perf_counter()
    hook.remove()
    # Mean, not median: the bar is per step times the number of steps.
    step = (ends[-1] - entered[0]) / len(ends)
    return PeerTimes(step, entered[0] - started, ended - ends[-1], ended - started)


def seeded(seed: int):
    import torch

    return torch.Generator("cpu").manual_seed(seed)


def median(values: list[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


# A pair counts when it began on an idle machine and the peer's step was at most this much slower than in its
# quietest pair: another process on the same cores slows a spinning peer twenty times, and would make any
# program look fast.
QUIET_RATIO_MAX = 1.25
BUSY_SHARE_MAX = 0.08


def busy_share(seconds: float = 1.0) -> float:
    """The share of all cores that was in use during the next `seconds`."""

    def ticks() -> tuple[int, int]:
        fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        return sum(fields), fields[3] + fields[4]

    total, idle = ticks()
    time.sleep(seconds)
    total_after, idle_after = ticks()
    return 1.0 - (idle_after - idle) / max(total_after - total, 1)


def wait_until_idle(seconds_max: float) -> bool:
    """Waits until nobody else uses the machine; says whether that came to be."""
    give_up = time.monotonic() + seconds_max
    while busy_share() > BUSY_SHARE_MAX:
        if time.monotonic() > give_up:
            return False
        time.sleep(2)
    return True


def quiet(peer_steps: list[float], idle: list[bool]) -> list[int]:
    """The pairs in which nobody else was using the machine."""
    began_idle = [index for index, good in enumerate(idle) if good]
    fastest = min((peer_steps[index] for index in began_idle), default=0.0)
    return [index for index in began_idle if peer_steps[index] <= QUIET_RATIO_MAX * fastest]


def processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
        name = re.search(r"model name\s*:\s*(.+)", text).group(1)
        family = re.search(r"cpu family\s*:\s*(\d+)", text).group(1)
        model = re.search(r"^model\s*:\s*(\d+)", text, re.MULTILINE).group(1)
        wide = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if re.search(rf"\b{flag}\b", text)]
        return f"{name} (family {family}, model {model}; {', '.join(wide)})"
    except (OSError, AttributeError):
        return platform.processor() or platform.machine()


def machine() -> str:
    """A folder's name: processor and cores."""
    name = re.sub(r"\(.*", "", processor()).strip().lower()
    return f"{re.sub(r'[^a-z0-9]+', '-', name).strip('-')}-{os.cpu_count()}-cores"


def commit() -> str:
    done = subprocess.run(["git", "-C", str(REPOSITORY), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


class Page:
    """What a benchmark prints, kept under `bench/runs/<date>-<machine>/`."""

    def __init__(self, name: str, folder: Path | None):
        self.file = (folder or REPOSITORY / "bench" / "runs" / f"{date.today()}-{machine()}") / f"{name}.md"
        self.lines: list[str] = []
        self.failures: list[str] = []
        shown = [Path(part).name if part.startswith("/") else part for part in sys.argv[1:]]
        self.add(f"# {name}", "", f"{processor()}, {os.cpu_count()} cores; commit {commit()}.", "")
        self.add(f"    python bench/endtoend/{Path(sys.argv[0]).name} {' '.join(shown)}", "")

    def add(self, *lines: str) -> None:
        for line in lines:
            print(line, flush=True)
            self.lines.append(line)

    def table(self, titles: list[str]) -> None:
        self.add("| " + " | ".join(titles) + " |", "|" + " --- |" * len(titles))

    def row(self, *cells) -> None:
        self.add("| " + " | ".join(str(cell) for cell in cells) + " |")

    def check(self, good: bool, sentence: str) -> None:
        self.add(f"- {'ok' if good else 'MISSED'}: {sentence}")
        if not good:
            self.failures.append(sentence)

    def close(self) -> int:
        """Writes the page; returns the exit code."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text("\n".join(self.lines) + "\n")
        print(f"\nwritten to {self.file}", flush=True)
        return 1 if self.failures else 0
