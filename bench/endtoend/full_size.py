"""Full-size Z-Image on a GPU: lowtide under budgets next to diffusers with and without offload.

    python full_size.py --lowtide lowtide-cuda [--model DIR] [--size 1024] [--steps 8] [--budgets 8 12 16 24]
                        [--peer resident model group] [--limit SECONDS]

A missing DIR is written first: Z-Image's own shapes (6.2 B parameters of transformer, 4.0 B of text encoder, the VAE), random
weights in bf16, 20.5 GB. Prints a table: seconds of denoising one picture, as a run of twice the steps takes longer than one of
these steps, so that what only happens once (files, kernels) is in neither; the peak in bytes; and each ratio. Whatever there is
no time or no memory for is named as skipped.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROMPT = "a red heart on a white background"
BARS = {"group": 0.9, "model": 0.7, "resident": 1.1}


def write(model: Path) -> None:
    """Random weights of the published shapes, in shards, without ever holding more than one of them twice."""
    import torch
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
    from transformers import Qwen3Config, Qwen3Model

    begun = time.time()
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):
        transformer = ZImageTransformer2DModel()
        text = Qwen3Model(
            Qwen3Config(
                hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, num_attention_heads=32,
                num_key_value_heads=8, head_dim=128, vocab_size=4096, rope_theta=1e6, tie_word_embeddings=True,
            )
        )  # fmt: skip
        vae = AutoencoderKL(
            latent_channels=16, block_out_channels=[128, 256, 512, 512], layers_per_block=2, norm_num_groups=32,
            down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4,
            use_quant_conv=False, use_post_quant_conv=False, scaling_factor=0.3611, shift_factor=0.1159, sample_size=1024,
        )  # fmt: skip
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tree() / "crates/cli/demo/tokenizer")
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, use_dynamic_shifting=False, shift=3.0)
    pipeline = ZImagePipeline(scheduler=scheduler, vae=vae, text_encoder=text, tokenizer=tokenizer, transformer=transformer)
    pipeline.save_pretrained(model, max_shard_size="4GB")
    del pipeline
    if device == "cuda":
        torch.cuda.empty_cache()
    print(f"wrote {sum(f.stat().st_size for f in model.rglob('*.safetensors')) / 1e9:.1f} GB in {time.time() - begun:.0f} s", flush=True)


def tree() -> Path:
    """The project's folder: this file lies in it, or was carried to target/gpu-check."""
    for folder in Path(__file__).resolve().parents:
        if (folder / "crates/cli/demo").is_dir():
            return folder
    raise SystemExit("the demo model's tokenizer is not to be found: run this inside the project's tree")


def ours(asked, budget: int | None) -> tuple[float, int]:
    """Seconds of denoising, and the peak of the pool."""

    def once(steps: int) -> tuple[float, int]:
        with tempfile.TemporaryDirectory() as folder:
            command = [asked.lowtide, "generate", PROMPT, "--local", "--model", asked.model, "--device", "cuda:0", "--json"]
            command += ["--size", f"{asked.size}x{asked.size}", "--steps", steps, "--guidance", "0", "--seed", "7"]
            command += ["-o", Path(folder) / "picture.png"]
            if budget:
                command += ["--budget", str(budget * 10**9)]
            done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=asked.limit)
        if done.returncode:
            raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"status {done.returncode}")
        told = json.loads(done.stdout.splitlines()[-1])
        return told["seconds"]["denoise"], max(told["memory"]["measured_peak"].values())

    (few, _), (many, peak) = once(asked.steps), once(2 * asked.steps)
    return many - few, peak


def theirs(asked, way: str) -> tuple[float, int]:
    import torch
    from diffusers import ZImagePipeline

    pipeline = ZImagePipeline.from_pretrained(asked.model, torch_dtype=torch.bfloat16, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    if way == "resident":
        pipeline.to("cuda")
    elif way == "model":
        pipeline.enable_model_cpu_offload()
    else:
        pipeline.enable_group_offload(
            onload_device=torch.device("cuda"), offload_device=torch.device("cpu"), offload_type="leaf_level", use_stream=True
        )

    def once(steps: int) -> float:
        torch.cuda.synchronize()
        begun = time.perf_counter()
        pipeline(
            PROMPT, height=asked.size, width=asked.size, num_inference_steps=steps, guidance_scale=0.0,
            generator=torch.Generator().manual_seed(7),
        )  # fmt: skip
        torch.cuda.synchronize()
        return time.perf_counter() - begun

    once(1)
    torch.cuda.reset_peak_memory_stats()
    few, many = once(asked.steps), once(2 * asked.steps)
    peak = torch.cuda.max_memory_allocated()
    del pipeline
    torch.cuda.empty_cache()
    return many - few, peak


def row(name: str, measured, remark: str = "") -> None:
    seconds, peak = measured
    print(f"{name:28} {seconds:8.2f} s {peak / 1e9:8.2f} GB  {remark}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--lowtide", type=Path, default=Path(__file__).resolve().parent / "lowtide-cuda")
    parser.add_argument("--model", type=Path, default=Path(tempfile.gettempdir()) / "z-image-random")
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--budgets", type=int, nargs="*", default=[24, 16, 12, 8])
    parser.add_argument("--peer", nargs="*", default=["resident", "model", "group"])
    parser.add_argument("--limit", type=float, default=120)
    asked = parser.parse_args()
    if not (asked.model / "model_index.json").exists():
        write(asked.model)
    peers, failed = {}, False
    for way in asked.peer:
        try:
            peers[way] = theirs(asked, way)
            row(f"diffusers, {way}", peers[way])
        except Exception as wrong:  # noqa: BLE001 - one way that fails must not keep the others from being measured
            print(f"diffusers, {way}: skipped: {str(wrong).splitlines()[0][:150]}", flush=True)
    for budget in [None, *asked.budgets]:
        name = "lowtide, no budget" if budget is None else f"lowtide, {budget} GB"
        try:
            measured = ours(asked, budget)
        except (RuntimeError, subprocess.TimeoutExpired) as wrong:
            print(f"{name}: FAILED: {wrong}", flush=True)
            failed = True
            continue
        compared = ["resident"] if budget is None else ["group", "model"]
        ratios = [f"{measured[0] / peers[way][0]:.2f} of {way} (bar {BARS[way]})" for way in compared if way in peers]
        over = budget is not None and measured[1] > budget * 1e9
        failed |= over
        row(name, measured, "; ".join(ratios + ["OVER ITS BUDGET"] * over))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
