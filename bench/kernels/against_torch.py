"""Times kernels here and in PyTorch, in alternating pairs, and prints the ratio of each shape.

    cargo build --release -p lowtide-kernels --example time_kernels
    python bench/kernels/against_torch.py target/release/examples/time_kernels \
        [--only PATTERN] [--pairs 5] [--threads 2] [--clock wall|cpu]

On a busy machine `--threads 1 --clock cpu` compares processor time, which others disturb less. To force an instruction set on both, set LOWTIDE_ISA and, for PyTorch,
ATEN_CPU_CAPABILITY, ONEDNN_MAX_CPU_ISA and MKL_ENABLE_INSTRUCTIONS. A ratio below one means less
time here than in PyTorch. The bar is 1.0 for large shapes and 1.3 for small ones.
"""

import argparse
import re
import statistics
import subprocess
import time

import torch
import torch.nn.functional as F

torch.set_grad_enabled(False)

# name, size class, kernel, sizes
SHAPES = [
    ("demo qkv", "small", "linear", (96, 288, 288)),
    ("demo up", "small", "linear", (192, 288, 768)),
    ("demo down", "small", "linear", (192, 768, 288)),
    ("time embedding", "small", "linear", (1, 256, 1152)),
    ("modulation", "small", "linear", (1, 1152, 4608)),
    ("Qwen3-0.6B q", "small", "linear", (64, 1024, 2048)),
    ("Qwen3-4B q", "large", "linear", (64, 2560, 4096)),
    ("Qwen3-4B up", "large", "linear", (64, 2560, 9728)),
    ("medium qkv", "large", "linear", (1088, 1152, 1152)),
    ("medium up", "large", "linear", (1088, 1152, 3072)),
    ("medium down", "large", "linear", (1088, 3072, 1152)),
    ("Z-Image qkv", "large", "linear", (4128, 3840, 3840)),
    ("Z-Image up", "large", "linear", (1056, 3840, 10240)),
    ("Z-Image down", "large", "linear", (1056, 10240, 3840)),
    ("SDXL to_q", "large", "linear", (1024, 1280, 1280)),
    ("SDXL ff", "large", "linear", (1024, 1280, 10240)),
    ("SD1.5 to_q", "large", "linear", (4096, 320, 320)),
    ("SD1.5 geglu", "large", "linear", (4096, 320, 2560)),
    ("SD1.5 ff out", "large", "linear", (4096, 1280, 320)),
    ("SD1.5 to_k of 77", "small", "linear", (77, 768, 320)),
    ("SD1.5 time of a resnet", "small", "linear", (2, 1280, 640)),
    ("SDXL to_k of 77", "small", "linear", (77, 2048, 1280)),
    ("medium gated", "large", "swiglu", (1088, 1152, 3072)),
    ("VAE 512 at 64", "large", "conv", (512, 512, 64, 64, 3, 1)),
    ("VAE 256 at 128", "large", "conv", (256, 256, 128, 128, 3, 1)),
    ("VAE 128 at 256", "large", "conv", (128, 128, 256, 256, 3, 1)),
    ("VAE 64 at 256", "large", "conv", (64, 64, 256, 256, 3, 1)),
    ("VAE 32 at 64", "small", "conv", (32, 32, 64, 64, 3, 1)),
    ("VAE 64 at 16", "small", "conv", (64, 64, 16, 16, 3, 1)),
    ("VAE shortcut", "large", "conv", (256, 128, 256, 256, 1, 1)),
    ("VAE in", "small", "conv", (16, 512, 64, 64, 3, 1)),
    ("VAE out", "small", "conv", (128, 3, 256, 256, 3, 1)),
    ("SDXL 640 at 64", "large", "conv", (640, 640, 64, 64, 3, 1)),
    ("SDXL down", "large", "conv", (320, 320, 128, 128, 3, 2)),
    ("SD1.5 320 at 64", "large", "conv", (320, 320, 64, 64, 3, 1)),
    ("SD1.5 640 at 32", "large", "conv", (640, 640, 32, 32, 3, 1)),
    ("SD1.5 1280 at 16", "large", "conv", (1280, 1280, 16, 16, 3, 1)),
    ("SD1.5 1280 at 8", "small", "conv", (1280, 1280, 8, 8, 3, 1)),
    ("SD1.5 joined 2560 at 8", "small", "conv", (2560, 1280, 8, 8, 3, 1)),
    ("SD1.5 joined 2560 at 16", "large", "conv", (2560, 1280, 16, 16, 3, 1)),
    ("SD1.5 joined 1920 at 32", "large", "conv", (1920, 640, 32, 32, 3, 1)),
    ("SD1.5 joined 960 at 64", "large", "conv", (960, 320, 64, 64, 3, 1)),
    ("SD1.5 shortcut 1920 at 32", "large", "conv", (1920, 640, 32, 32, 1, 1)),
    ("SD1.5 down 320", "large", "conv", (320, 320, 64, 64, 3, 2)),
    ("SD1.5 down 640", "large", "conv", (640, 640, 32, 32, 3, 2)),
    ("SD1.5 down 1280", "small", "conv", (1280, 1280, 16, 16, 3, 2)),
    ("SD1.5 in", "small", "conv", (4, 320, 64, 64, 3, 1)),
    ("SD1.5 out", "small", "conv", (320, 4, 64, 64, 3, 1)),
    ("SDXL 320 at 128", "large", "conv", (320, 320, 128, 128, 3, 1)),
    ("SDXL 1280 at 32", "large", "conv", (1280, 1280, 32, 32, 3, 1)),
    ("SDXL joined 960 at 128", "large", "conv", (960, 320, 128, 128, 3, 1)),
    ("demo", "small", "attention", (96, 96, 6, 6, 48)),
    ("1k, 12 heads", "large", "attention", (1088, 1088, 12, 12, 96)),
    ("1k, 8 heads", "large", "attention", (1024, 1024, 8, 8, 64)),
    ("4k, 30 heads", "large", "attention", (4128, 4128, 30, 30, 128)),
    ("SDXL self", "large", "attention", (4096, 4096, 10, 10, 64)),
    ("SDXL cross", "large", "attention", (4096, 77, 10, 10, 64)),
    ("SD1.5 self 40", "large", "attention", (4096, 4096, 8, 8, 40)),
    ("SD1.5 cross 40", "large", "attention", (4096, 77, 8, 8, 40)),
    ("SD1.5 self 80", "large", "attention", (1024, 1024, 8, 8, 80)),
    ("SD1.5 cross 80", "large", "attention", (1024, 77, 8, 8, 80)),
    ("SD1.5 self 160", "large", "attention", (256, 256, 8, 8, 160)),
    ("SD1.5 cross 160", "large", "attention", (256, 77, 8, 8, 160)),
    ("SD1.5 self of 64", "small", "attention", (64, 64, 8, 8, 160)),
    ("Qwen3 grouped", "small", "attention", (128, 128, 16, 8, 128)),
    ("VAE middle", "large", "attention", (4096, 4096, 1, 1, 512)),
]

ENOUGH = 0.08


def operations(kernel, s):
    """Floating-point operations of a call."""
    if kernel == "linear":
        return 2 * s[0] * s[1] * s[2]
    if kernel == "swiglu":
        return 4 * s[0] * s[1] * s[2]
    if kernel == "conv":
        cin, cout, rows, width, k, stride = s
        return 2 * cin * cout * k * k * (rows // stride) * (width // stride)
    tq, tk, heads, _, d = s
    return 4 * tq * tk * heads * d


def call(kernel, dtype, s):
    """A function that makes PyTorch do the same."""
    r = lambda *shape: torch.rand(*shape).sub_(0.5).to(dtype)
    if kernel == "linear":
        x, w, b = r(s[0], s[1]), r(s[2], s[1]), r(s[2])
        return lambda: F.linear(x, w, b)
    if kernel == "swiglu":
        x, w1, w3 = r(s[0], s[1]), r(s[2], s[1]), r(s[2], s[1])
        return lambda: F.silu(F.linear(x, w1)) * F.linear(x, w3)
    if kernel == "conv":
        cin, cout, rows, width, k, stride = s
        x, w = r(1, cin, rows, width), r(cout, cin, k, k)
        return lambda: F.conv2d(x, w, None, stride, k // 2)
    tq, tk, heads, kv_heads, d = s
    q, k, v = (
        r(1, t, h, d).transpose(1, 2) for t, h in ((tq, heads), (tk, kv_heads), (tk, kv_heads))
    )
    grouped = heads != kv_heads
    return lambda: F.scaled_dot_product_attention(q, k, v, enable_gqa=grouped)


def median_seconds(f, now):
    f()
    start, times = now(), []
    while now() - start < ENOUGH or len(times) < 3:
        one = now()
        f()
        times.append(now() - one)
    return statistics.median(times)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("--only", default="")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    options = parser.parse_args()
    pattern, rounds = re.compile(options.only), options.pairs
    torch.set_num_threads(options.threads)
    now = time.perf_counter if options.clock == "wall" else time.process_time
    command = [options.program, str(options.threads), options.clock]
    ours = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    print(f"here: {ours.stdout.readline().strip()}; PyTorch {torch.__version__}, "
          f"{torch.backends.cpu.get_cpu_capability()}, {options.threads} threads, {options.clock} clock; {rounds} pairs")
    print(f"{'shape':<46} {'':<5} {'here GF/s':>9} {'torch':>7} {'ratio':>6}  {'pairs':<13}")
    for name, size, kernel, s in SHAPES:
        for precision, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16)):
            label = f"{kernel} {name} {'x'.join(map(str, s))}"
            if not pattern.search(f"{label} {precision} {size}"):
                continue
            f = call(kernel, dtype, s)
            here, there = [], []
            for _ in range(rounds):
                there.append(median_seconds(f, now))
                # PyTorch's threads spin a while after a call.
                time.sleep(0.03)
                ours.stdin.write(f"{kernel} {precision} {' '.join(map(str, s))}\n")
                ours.stdin.flush()
                here.append(int(ours.stdout.readline()) * 1e-9)
            ratios = sorted(a / b for a, b in zip(here, there))
            ratio = statistics.median(ratios)
            bar = 1.0 if size == "large" else 1.3
            rate = lambda t: operations(kernel, s) / statistics.median(t) * 1e-9
            print(f"{label:<46} {precision:<5} {rate(here):>9.0f} {rate(there):>7.0f} {ratio:>6.2f}"
                  f"  {ratios[0]:.2f}..{ratios[-1]:.2f} {'' if ratio <= bar else 'over ' + str(bar)}",
                  flush=True)


main()
