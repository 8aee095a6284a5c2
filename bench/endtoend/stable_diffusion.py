"""Stable Diffusion 1.5 in its real shape with random weights: lowtide next to diffusers, in both precisions.

    python stable_diffusion.py --lowtide ../../target/release/lowtide --model DIR [--pairs 3] [--steps 2] [--threads 2]

A missing DIR is written first (2 GiB, f16). A call of diffusers is a warm one (the first is not, with --no-warm), one of
lowtide a whole process. Seconds of processors are compared as well as those of the clock, since others may compute on
the same machine; the page says what was, there is no bar here.
"""

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from measure import MIB, Page, lowtide, median, seeded, weight_bytes

PROMPT = "a red heart on a white background"
BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, timestep_spacing="leading")


def ensure(folder: Path) -> None:
    """Writes the checkpoint when the folder is not there: torch's own initial weights, seeded."""
    if (folder / "model_index.json").exists():
        return
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    print(f"writing a checkpoint of random weights to {folder}", flush=True)
    torch.manual_seed(15)
    # CLIP's own rules over an alphabet of bytes alone.
    letters = list(bytes_to_unicode().values())
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(
        vocab={token: index for index, token in enumerate(tokens)}, merges=[], pad_token="<|endoftext|>", model_max_length=77
    )
    text = CLIPTextConfig(
        vocab_size=49_408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
        bos_token_id=512, eos_token_id=513, pad_token_id=513, projection_dim=768,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4, sample_size=512,
        down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4,
    )  # fmt: skip
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    pipeline = StableDiffusionPipeline(
        vae=vae.half(), unet=unet.half(), text_encoder=CLIPTextModel(text).half(), tokenizer=tokenizer,
        scheduler=DDIMScheduler(clip_sample=False, set_alpha_to_one=False, **BETAS),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(folder)


@dataclass
class PeerCall:
    """A call of diffusers: seconds of the clock by phase, and of processors in all and of a step."""

    encode: float
    step: float
    decode: float
    whole: float
    whole_processors: float
    step_processors: float


def load(folder: Path, precision: str):
    import torch
    from diffusers import StableDiffusionPipeline

    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[precision]
    pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=dtype, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def call(pipeline, arguments) -> PeerCall:
    now = lambda: (time.perf_counter(), time.process_time())  # noqa: E731
    entered, ends = [], []
    hook = pipeline.unet.register_forward_pre_hook(lambda *_: entered.append(now()))
    began = now()
    pipeline(
        PROMPT, width=arguments.width, height=arguments.height, num_inference_steps=arguments.steps,
        guidance_scale=arguments.guidance, generator=seeded(7), output_type="np",
        callback_on_step_end=lambda *_: ends.append(now()) or {},
    )  # fmt: skip
    ended = now()
    hook.remove()
    first, last = entered[0], ends[-1]
    return PeerCall(
        first[0] - began[0], (last[0] - first[0]) / len(ends), ended[0] - last[0], ended[0] - began[0],
        ended[1] - began[1], (last[1] - first[1]) / len(ends),
    )  # fmt: skip


def ours(arguments, precision: str, picture: Path, steps: int):
    options = ["--local", "--size", f"{arguments.width}x{arguments.height}", "--steps", str(steps), "--seed", "7"]
    options += ["--guidance", str(arguments.guidance), "--precision", precision, "--threads", str(arguments.threads)]
    return lowtide(arguments.lowtide, PROMPT, arguments.model, picture, options)


def measure(page: Page, arguments, precision: str, picture: Path) -> None:
    pipeline = load(arguments.model, precision)
    shape = f"{arguments.width}x{arguments.height}, {arguments.steps} steps, {arguments.threads} threads"
    page.add("", f"## {precision}, {shape}", "")
    page.table(["pair", "who", "encode", "step", "decode", "whole", "processors", "of a step", "peak"])
    if arguments.warm:
        call(pipeline, arguments)
    steps, wholes, clocks, peak = [], [], [], 0
    for pair in range(arguments.pairs):
        theirs = call(pipeline, arguments)
        who = "diffusers, warm" if arguments.warm or pair > 0 else "diffusers, its first call"
        page.row(
            pair, who, f"{theirs.encode:.2f} s", f"{theirs.step:.2f} s", f"{theirs.decode:.2f} s",
            f"{theirs.whole:.2f} s", f"{theirs.whole_processors:.2f} s", f"{theirs.step_processors:.2f} s", "-",
        )  # fmt: skip
        long = ours(arguments, precision, picture, arguments.steps)
        # What one more step costs, in seconds of processors: the difference of two runs.
        short = ours(arguments, precision, picture, 1)
        step = (long.cpu_seconds - short.cpu_seconds) / (arguments.steps - 1)
        seconds = long.json()["seconds"]
        page.row(
            pair, "lowtide, the process", f"{seconds['encode']:.2f} s", f"{seconds['denoise'] / arguments.steps:.2f} s",
            f"{seconds['decode']:.2f} s", f"{long.seconds:.2f} s", f"{long.cpu_seconds:.2f} s", f"{step:.2f} s",
            f"{long.peak_bytes / MIB:.0f} MiB",
        )  # fmt: skip
        steps.append(step / theirs.step_processors)
        wholes.append(long.cpu_seconds / theirs.whole_processors)
        clocks.append(long.seconds / theirs.whole)
        peak = max(peak, long.peak_bytes)
    page.add("")
    page.add(
        f"Of diffusers' seconds of processors, median of pairs ({len(steps)}): a step {median(steps):.2f}, the process "
        f"{median(wholes):.2f} of a call. Of its seconds of the clock: {median(clocks):.2f}."
    )
    over = (peak - weight_bytes(arguments.model)) / MIB
    page.add(f"Resident set at most {peak / MIB:.0f} MiB, {over:+.0f} MiB beside the stored weights.")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lowtide", type=Path, help="without it the checkpoint is written and nothing else done")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--height", type=int, default=512)
    parser.add_argument("--steps", type=int, default=2, help="at least 2: a step's cost is a difference of two runs")
    parser.add_argument("--guidance", type=float, default=7.5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", nargs="*", default=["f32", "bf16"])
    parser.add_argument("--warm", action=argparse.BooleanOptionalAction, default=True, help="a call of diffusers that is not counted")
    parser.add_argument("--out", type=Path, help="folder of the page")
    arguments = parser.parse_args()
    if arguments.steps < 2:
        parser.error("--steps must be at least 2")
    import torch

    torch.set_num_threads(arguments.threads)
    ensure(arguments.model)
    if not arguments.lowtide:
        return 0
    page = Page("stable-diffusion", arguments.out)
    page.add(f"Stored weights: {weight_bytes(arguments.model) / MIB:.0f} MiB.")
    with tempfile.TemporaryDirectory() as folder:
        for precision in arguments.precision:
            measure(page, arguments, precision, Path(folder) / "picture.png")
    return page.close()


if __name__ == "__main__":
    sys.exit(main())
