"""Compares a built `lowtide` with diffusers, on networks it has never seen or on the demo checkpoint.

    python compare.py --lowtide ../../target/release/lowtide [--cases 10] [--seed 0] [--keep DIR]
    python compare.py --lowtide ../../target/release/lowtide --demo DIR [--prompts 6]

Exit code 1 when a promise is broken.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from reference import Request, load, run
from tiny import write_checkpoint
from unseen import draw_spec

PROMPTS = [
    "a red heart on a white background",
    "a blue cat face on a yellow background",
    "a green car on a black background",
    "a smiling face",
    "an orange fox on a white background",
    "a purple flower on a green background",
    "a pink pig face on a blue background",
    "a yellow star on a gray background",
]
PSNR_MIN_DB = 35.0


class Lowtide:
    """The binary, called as a user calls it."""

    def __init__(self, binary: Path, folder: Path):
        self.binary, self.folder = binary.resolve(), folder

    def generate(self, model: Path, request: Request, noise: torch.Tensor | None, precision: str) -> tuple[dict, dict]:
        """Returns the dumped tensors and the JSON line."""
        dump, picture = self.folder / "dump.safetensors", self.folder / "x.png"
        command = [
            str(self.binary), "generate", request.prompt, "--model", str(model),
            "--size", f"{request.width}x{request.height}", "--steps", str(request.steps),
            "--guidance", str(request.guidance), "--seed", str(request.seed), "--count", str(request.count),
            "--cfg-truncation", str(request.cfg_truncation), "--precision", precision,
            "--dump", str(dump), "-o", str(picture), "--json",
        ]  # fmt: skip
        if request.negative is not None:
            command += ["--negative", request.negative]
        if request.cfg_normalization > 0:
            command += ["--cfg-normalization", str(request.cfg_normalization)]
        if noise is not None:
            save_file({"noise": noise.contiguous()}, self.folder / "noise.safetensors")
            command += ["--noise", str(self.folder / "noise.safetensors")]
        dump.unlink(missing_ok=True)
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            lines = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()
            raise RuntimeError(f"exit code {done.returncode}: {lines[-1]}")
        return load_file(dump), json.loads(done.stdout.strip().splitlines()[-1])


def distances(ours: dict, reference: dict) -> tuple[float, float]:
    """Largest difference of latents, in their standard deviations, and of the image."""
    for name in ("latents", "image"):
        if ours[name].shape != reference[name].shape:
            raise RuntimeError(f"{name}: {tuple(ours[name].shape)}, expected {tuple(reference[name].shape)}")
    latents = (ours["latents"] - reference["latents"]).abs().max() / reference["latents"].std()
    return latents.item(), (ours["image"] - reference["image"]).abs().max().item()


def describe(spec) -> str:
    request, text, network = spec.request, spec.text, spec.transformer
    heads = f"{text['num_attention_heads']}/{text['num_key_value_heads']}x{text['head_dim']}"
    shape = f"{network['n_layers']}+{network['n_refiner_layers']} layers, {network['n_heads']}x{sum(network['axes_dims'])}"
    vae = f"{'-'.join(map(str, spec.vae['block_out_channels']))}/{spec.vae['norm_num_groups']}"
    size = f"{request['width']}x{request['height']}x{request['count']}"
    return f"{size:11} g {request['guidance']:<4} {shape:20} text {heads:9} vae {vae:15} {spec.dtype:4}"


def compare_unseen(lowtide: Lowtide, arguments, folder: Path) -> int:
    failures = 0
    for index in range(arguments.cases):
        spec = draw_spec(arguments.seed, index)
        model = folder / spec.name
        write_checkpoint(spec, model)
        request = Request(**spec.request)
        reference = run(load(model), request)
        # One image starts from the file, several from the seed, so that both ways are looked at.
        noise = reference["noise"] if request.count == 1 and index % 2 == 0 else None
        try:
            ours, _ = lowtide.generate(model, request, noise, "f32")
            latents, image = distances(ours, reference)
            good = latents <= spec.tolerance["latents_of_std"] and image <= spec.tolerance["image"]
            result = f"latents {latents:8.1e} of std, image {image * 255:6.3f}/255  {'ok' if good else 'FAILED'}"
        except (RuntimeError, OSError, ValueError, KeyError) as error:
            good, result = False, f"FAILED: {error}"
        failures += not good
        print(f"{spec.name:14} {describe(spec)}  {result}", flush=True)
    print(f"{arguments.cases - failures} of {arguments.cases} within 2e-3 of the latents' deviation and 2/255")
    return failures


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    error = (a - b).pow(2).mean().item()
    return math.inf if error == 0 else -10.0 * math.log10(error)


def rms(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a - b).pow(2).mean().sqrt().item()


def compare_demo(lowtide: Lowtide, arguments) -> int:
    """f32 against f32, then how far each one's bf16 is from diffusers' f32."""
    full, half = load(arguments.demo), load(arguments.demo, torch.bfloat16)
    failures, ours_total, theirs_total = 0, 0.0, 0.0
    print("prompt                                     f32 PSNR   seed's own noise   bf16 RMS from f32: lowtide, diffusers")
    for index, prompt in enumerate(PROMPTS[: arguments.prompts]):
        request = Request(prompt=prompt, width=128, height=128, steps=20, guidance=4.0, seed=arguments.seed + index)
        reference = run(full, request)
        theirs = run(half, request, latents=reference["noise"])
        ours, _ = lowtide.generate(arguments.demo, request, reference["noise"], "f32")
        drawn, _ = lowtide.generate(arguments.demo, request, None, "f32")
        rounded, _ = lowtide.generate(arguments.demo, request, reference["noise"], "bf16")
        values = psnr(ours["image"], reference["image"]), psnr(drawn["image"], reference["image"])
        ours_bf16, theirs_bf16 = rms(rounded["image"], reference["image"]), rms(theirs["image"], reference["image"])
        failures += min(values) <= PSNR_MIN_DB
        ours_total += ours_bf16**2
        theirs_total += theirs_bf16**2
        print(f"{prompt:42} {values[0]:6.1f} dB {values[1]:12.1f} dB {ours_bf16:22.5f} {theirs_bf16:11.5f}", flush=True)
    ours_rms, theirs_rms = (math.sqrt(total / arguments.prompts) for total in (ours_total, theirs_total))
    print(f"bf16 over all prompts: lowtide {ours_rms:.5f}, diffusers {theirs_rms:.5f}")
    failures += ours_rms > theirs_rms
    return failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lowtide", type=Path, required=True)
    parser.add_argument("--cases", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="keep the checkpoints in this folder")
    parser.add_argument("--demo", type=Path, help="compare on this checkpoint instead")
    parser.add_argument("--prompts", type=int, default=6)
    arguments = parser.parse_args()
    arguments.prompts = min(arguments.prompts, len(PROMPTS))
    with tempfile.TemporaryDirectory() as temporary:
        lowtide = Lowtide(arguments.lowtide, Path(temporary))
        if arguments.demo:
            failures = compare_demo(lowtide, arguments)
        else:
            failures = compare_unseen(lowtide, arguments, arguments.keep or Path(temporary))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
