"""Writes the checkpoint, in bf16 and in the layout of diffusers, from what training left in WORK.

    python export.py WORK OUT [--state FILE] [--shift 2.0]

FILE is WORK/decayed.pt or WORK/state.pt, whichever is newer, if it is not named; the averaged weights are taken. Settings that are the
program's own (`lowtide.json`), the notices and the README of OUT stay as they are; the notices are copied if OUT has none.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch

import vae as autoencoders
from model import initialise, text_encoder, trained, transformer

LIMIT_BYTES = 48_000_000
NOTICES = Path(__file__).parents[2] / "crates/cli/demo/LICENCES.md"
COMPONENTS = ("transformer", "text_encoder", "vae", "tokenizer", "scheduler")


def newest(work: Path) -> Path:
    found = [path for path in (work / "decayed.pt", work / "state.pt") if path.exists()]
    if not found:
        raise SystemExit(f"{work} has neither decayed.pt nor state.pt: run `python train.py {work}` first")
    return max(found, key=lambda path: path.stat().st_mtime)


@torch.no_grad()
def networks(state: dict, vocabulary: int):
    text, dit = text_encoder(vocabulary), transformer(**state["shape"])
    initialise(text, dit)
    for name, p in trained(text, dit):
        p.copy_(state["averaged"][name])
    text.norm.weight.copy_(state["text_norm"])
    dit.x_pad_token.copy_(state["x_pad_token"])
    # The last text layer is never read: nothing compresses better, and nobody takes it for knowledge.
    for p in text.layers[-1].parameters():
        if p.dim() == 2:
            p.zero_()
    return text, dit


def main(work: Path, out: Path, path: Path, shift: float) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline
    from transformers import AutoTokenizer

    state = torch.load(path, weights_only=False)
    tokenizer = AutoTokenizer.from_pretrained(work / "tokenizer")
    text, dit = networks(state, len(tokenizer))
    vae = autoencoders.opened(work)
    factors = json.loads((work / "scaling.json").read_text())
    if autoencoders.fingerprint(vae) != factors.pop("encoder"):
        raise SystemExit("the transformer was trained on latents of another encoder than the one in WORK")
    vae.register_to_config(**factors)
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, use_dynamic_shifting=False, shift=shift)
    pipeline = ZImagePipeline(scheduler=scheduler, vae=vae, text_encoder=text, tokenizer=tokenizer, transformer=dit)
    for component in COMPONENTS:
        shutil.rmtree(out / component, ignore_errors=True)
    pipeline.to(torch.bfloat16)
    pipeline.save_pretrained(out, max_shard_size="2GB")
    if not (out / NOTICES.name).exists():
        shutil.copy(NOTICES, out)
    size = sum(file.stat().st_size for file in out.rglob("*.safetensors"))
    print(f"{path.name} at step {state['steps']}, {state['samples']} samples; {size / 1e6:.1f} MB of weights in {out}")
    if size > LIMIT_BYTES:
        raise SystemExit(f"that is more than the {LIMIT_BYTES / 1e6:.0f} MB the program may carry")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--state", type=Path)
    parser.add_argument("--shift", type=float, default=2.0)
    asked = parser.parse_args()
    main(asked.work, asked.out, asked.state or newest(asked.work), asked.shift)
