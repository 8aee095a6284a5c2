"""Writes the fixtures of `crates/engine/tests/fixtures`: tiny checkpoints and what diffusers makes of them.

    python make_fixtures.py [--out DIR] [--only NAME ...]
"""

import argparse
import dataclasses
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

import layers
import noise
from cases import CASES
from reference import Request, load, render, run
from tiny import Spec, write_checkpoint

DEFAULT_OUT = Path(__file__).resolve().parents[2] / "crates" / "engine" / "tests" / "fixtures"
SIZE_MAX_BYTES = 1 << 20


def check_telling(spec: Spec, pipeline, request: Request, result: dict) -> dict:
    """Refuses a case that a wrong implementation could pass; returns what was measured."""
    facts = {
        "latents_std": result["latents"].std().item(),
        "image_std": result["image"].std().item(),
        "image_clipped": ((result["image"] <= 0) | (result["image"] >= 1)).float().mean().item(),
    }
    assert 0.5 < facts["latents_std"] < 3.0, facts
    assert 0.08 < facts["image_std"] < 0.4, facts
    assert facts["image_clipped"] < 0.4, facts
    other = run(pipeline, dataclasses.replace(request, prompt=request.prompt + " green", count=1))
    facts["prompt_effect"] = ((other["latents"] - result["latents"][:1]).std() / result["latents"].std()).item()
    if request.guidance > 0:
        unguided = run(pipeline, dataclasses.replace(request, guidance=0.0))
        facts["guidance_effect"] = ((unguided["latents"] - result["latents"]).std() / result["latents"].std()).item()
        assert facts["guidance_effect"] > 0.03, facts
    if request.cfg_normalization > 0:
        free = run(pipeline, dataclasses.replace(request, cfg_normalization=0.0))
        facts["normalization_effect"] = ((free["latents"] - result["latents"]).std() / result["latents"].std()).item()
        assert facts["normalization_effect"] > 0.01, facts
    if request.cfg_truncation < 1:
        free = run(pipeline, dataclasses.replace(request, cfg_truncation=1.0))
        facts["truncation_effect"] = ((free["latents"] - result["latents"]).std() / result["latents"].std()).item()
        assert facts["truncation_effect"] > 0.01, facts
    return facts


def make_case(spec: Spec, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    write_checkpoint(spec, folder / "checkpoint")
    pipeline = load(folder / "checkpoint")
    request = Request(**spec.request)
    result = run(pipeline, request)
    facts = check_telling(spec, pipeline, request, result)
    save_file(result, folder / "expected.safetensors")
    case = {
        "request": dataclasses.asdict(request),
        "tolerance": spec.tolerance,
        "rendered": render(pipeline, request.prompt),
        "rendered_negative": render(pipeline, request.negative or ""),
        "tokens": len(result["input_ids"]),
        "negative_tokens": len(result.get("negative_input_ids", ())),
        "sigmas": pipeline.scheduler.sigmas.tolist(),
        "measured": facts,
    }
    (folder / "case.json").write_text(json.dumps(case, indent=2, ensure_ascii=False) + "\n")
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    assert size <= SIZE_MAX_BYTES, f"{folder.name}: {size} bytes"
    rounded = {name: round(value, 3) for name, value in facts.items()}
    print(f"{folder.name:20} {size:8} bytes, {case['tokens']} + {case['negative_tokens']} tokens, {rounded}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    parser.add_argument("--only", nargs="*", help="names of cases, or 'layers', 'noise'")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    wanted = lambda name: not arguments.only or name in arguments.only
    for spec in CASES:
        if wanted(spec.name):
            make_case(spec, arguments.out / "z-image" / spec.name)
    if wanted("layers"):
        layers.make(arguments.out / "layers")
    if wanted("noise"):
        noise.make(arguments.out / "noise")


if __name__ == "__main__":
    main()
