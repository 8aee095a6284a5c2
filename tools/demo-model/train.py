"""Trains the transformer and the text encoder, in as many sittings as it takes.

    python train.py WORK --hours 3 [--from CHECKPOINT]
    python train.py WORK --until 18:00 --decay 0.3

A sitting begins with WORK/state.pt where there is one, else with the weights of CHECKPOINT, else with random ones. It saves there,
every few minutes and at its end, all that a later sitting needs: weights, averaged weights, optimiser, random generators, counts.
In the last part of a sitting, `--decay`, the learning rate falls to nothing. That part is saved as WORK/decayed.pt instead, and the
next sitting goes on from before it; `export.py` takes the newer of the two. With `--decay 0` a sitting only goes on.

The first sitting fixes the tokenizer, in WORK/tokenizer: the checkpoint's, or one made of the captions.
"""

import argparse
import datetime
import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import tokenizer as tokens
from model import Forward, block, initialise, is_matrix, text_encoder, text_forward, trained, transformer
from optimiser import Optimiser
from variants import Variant, caption

SAVE_EVERY_S = 240
REPORT_EVERY_STEPS = 50
WARM_UP_STEPS = 80
"""Of a first sitting; a quarter of them when the optimiser's state is there."""


class Data:
    """Latents and captions, an object as often as its tier says."""

    def __init__(self, work: Path, tier_weights: dict[str, float]):
        self.objects = json.loads((work / "objects.json").read_text())
        self.latents, self.variants = [], []
        for path in sorted((work / "latents").glob("*.pt")):
            shard = torch.load(path)
            self.latents.append(shard["latents"])
            self.variants += [Variant(*row) for row in shard["variants"]]
        if not self.latents:
            raise SystemExit(f"no latents in {work / 'latents'}: run `python vae.py encode {work}` first")
        self.latents = torch.cat(self.latents)
        self.of_object = {}
        for row, variant in enumerate(self.variants):
            self.of_object.setdefault(variant.object, []).append(row)
        self.drawn_from = sorted(self.of_object)
        weights = np.array([tier_weights[self.objects[index]["tier"]] for index in self.drawn_from], float)
        self.cumulative = np.cumsum(weights / weights.sum())
        self.waiting = []

    def draw(self, count: int, rng: np.random.Generator) -> list[int]:
        """Rows. Objects come in turn, in proportion to their weight, rather than by chance alone."""
        while len(self.waiting) < count:
            places = np.searchsorted(self.cumulative, (np.arange(512) + rng.random()) / 512)
            chosen = [self.drawn_from[place] for place in places.clip(0, len(self.drawn_from) - 1)]
            self.waiting = [chosen[k] for k in rng.permutation(len(chosen))] + self.waiting
        rows = []
        for _ in range(count):
            of_it = self.of_object[self.waiting.pop()]
            # The first is the object as it is, on white: what a bare name asks for.
            rows.append(of_it[0] if rng.random() < 0.25 else of_it[int(rng.integers(len(of_it)))])
        return rows

    def captions(self, rows: list[int], rng: np.random.Generator, dropped: float) -> list[str]:
        """`dropped` of them empty, for guidance."""
        found = []
        for row in rows:
            variant = self.variants[row]
            found.append("" if rng.random() < dropped else caption(variant, self.objects[variant.object], rng))
        return found


class Training:
    def __init__(self, arguments, work: Path):
        self.arguments, self.work = arguments, work
        self.rng = np.random.default_rng(arguments.seed)
        torch.manual_seed(arguments.seed)
        self.steps = self.samples = 0
        state = torch.load(work / "state.pt", weights_only=False) if (work / "state.pt").exists() else None
        if state:
            self.shape = state["shape"]
        elif arguments.start:
            config = json.loads((arguments.start / "transformer/config.json").read_text())
            self.shape = dict(width=config["dim"], heads=config["n_heads"], layers=config["n_layers"])
        else:
            self.shape = dict(width=arguments.width, heads=arguments.heads, layers=arguments.layers)
        self.tokenizer = self.open_tokenizer()
        self.text, self.dit = text_encoder(len(self.tokenizer)), transformer(**self.shape)
        initialise(self.text, self.dit)
        if arguments.start and not state:
            self.load_checkpoint(arguments.start)
        self.named = trained(self.text, self.dit)
        self.optimiser = Optimiser(self.named, is_matrix, arguments.rate, arguments.rate / 2)
        self.averaged = {name: p.detach().clone() for name, p in self.named}
        if state:
            self.load(state)
        self.first_step = self.steps
        self.forward = Forward(self.dit, torch.compile(block, dynamic=False) if arguments.compile else block)
        self.data = Data(work, dict(everyday=1.0, common=arguments.common, rest=arguments.rest))
        self.losses = []

    def open_tokenizer(self):
        from transformers import AutoTokenizer

        folder = self.work / "tokenizer"
        if not folder.exists():
            if self.arguments.start:
                folder.mkdir()
                for file in (self.arguments.start / "tokenizer").iterdir():
                    shutil.copyfile(file, folder / file.name)
            else:
                tokens.make(json.loads((self.work / "objects.json").read_text()), folder)
        return AutoTokenizer.from_pretrained(folder)

    def load_checkpoint(self, folder: Path) -> None:
        from safetensors.torch import load_file

        # The last text layer's norms and the like may be missing; nothing of them is read.
        self.text.load_state_dict(load_file(folder / "text_encoder/model.safetensors"), strict=False)
        self.dit.load_state_dict(load_file(folder / "transformer/diffusion_pytorch_model.safetensors"))

    @torch.no_grad()
    def load(self, state: dict) -> None:
        for name, p in self.named:
            p.copy_(state["weights"][name])
            self.averaged[name].copy_(state["averaged"][name])
        self.text.norm.weight.copy_(state["text_norm"])
        self.dit.x_pad_token.copy_(state["x_pad_token"])
        self.optimiser.load(state["optimiser"])
        self.steps, self.samples = state["steps"], state["samples"]
        torch.set_rng_state(state["torch_rng"])
        self.rng.bit_generator.state = state["numpy_rng"]

    def save(self, name: str) -> None:
        state = dict(
            shape=self.shape,
            weights={name: p.detach() for name, p in self.named},
            averaged=self.averaged,
            text_norm=self.text.norm.weight.detach(),
            x_pad_token=self.dit.x_pad_token.detach(),
            optimiser=self.optimiser.state(),
            steps=self.steps,
            samples=self.samples,
            torch_rng=torch.get_rng_state(),
            numpy_rng=self.rng.bit_generator.state,
        )
        part = self.work / f"{name}.part"
        torch.save(state, part)
        os.replace(part, self.work / name)

    def step(self, factor: float) -> None:
        arguments, batch = self.arguments, self.arguments.batch
        rows = self.data.draw(batch, self.rng)
        ids, mask = tokens.encode(self.tokenizer, self.data.captions(rows, self.rng, dropped=0.1))
        pictures = self.data.latents[rows].float()
        # How much noise: mostly around the middle, a tenth anywhere.
        noise_share = torch.sigmoid(torch.randn(batch) + arguments.noise)
        noise_share = torch.where(torch.rand(batch) < 0.1, torch.rand(batch), noise_share)
        noise, share = torch.randn_like(pictures), noise_share[:, None, None, None]
        noisy = (1 - share) * pictures + share * noise
        with torch.autocast("cpu", torch.bfloat16):
            found = self.forward(noisy, 1 - noise_share, text_forward(self.text, ids), mask)
        # The pipeline negates what the transformer says.
        loss = F.mse_loss(found.float(), pictures - noise)
        self.optimiser.zero()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_([p for _, p in self.named], 1.0)
        if torch.isfinite(norm):
            self.optimiser.step(factor)
        self.average()
        self.steps += 1
        self.samples += batch
        self.losses.append(loss.item())

    @torch.no_grad()
    def average(self) -> None:
        """Early on the memory is short, so that the random start is soon forgotten."""
        share = max(1 / self.arguments.average, 1 / (self.steps / 6 + 1.5))
        torch._foreach_lerp_(list(self.averaged.values()), [p.detach() for _, p in self.named], share)

    def factor(self, done: float) -> float:
        """done: how much of the sitting's time is over, 0..1."""
        warm_up = WARM_UP_STEPS / 4 if self.first_step else WARM_UP_STEPS
        warm = min(1.0, (self.steps - self.first_step + 1) / warm_up)
        return warm * (min(1.0, max(0.02, (1 - done) / self.arguments.decay)) if self.arguments.decay else 1.0)

    def run(self, end: float) -> None:
        begun = saved = time.time()
        first_samples, decaying = self.samples, False
        while (now := time.time()) < end:
            done = (now - begun) / (end - begun)
            if not decaying and done > 1 - self.arguments.decay:
                self.save("state.pt")
                decaying = True
            factor = self.factor(done)
            self.step(factor)
            if self.steps % REPORT_EVERY_STEPS == 0:
                rate = (self.samples - first_samples) / (time.time() - begun)
                loss = np.mean(self.losses[-REPORT_EVERY_STEPS:])
                self.say(f"step {self.steps}, {self.samples} samples, {rate:.1f} a second, rate x {factor:.2f}, loss {loss:.4f}")
            if time.time() - saved > SAVE_EVERY_S:
                self.save("decayed.pt" if decaying else "state.pt")
                saved = time.time()
        self.save("decayed.pt" if decaying else "state.pt")

    def say(self, text: str) -> None:
        line = f"{datetime.datetime.now():%Y-%m-%d %H:%M:%S} {text}"
        print(line, flush=True)
        with (self.work / "log.txt").open("a") as log:
            log.write(line + "\n")


def ends(arguments) -> float:
    if arguments.until is None:
        return time.time() + arguments.hours * 3600
    hour, minute = map(int, arguments.until.split(":"))
    end = datetime.datetime.now().replace(hour=hour, minute=minute, second=0)
    if end < datetime.datetime.now():
        end += datetime.timedelta(days=1)
    return end.timestamp()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--from", dest="start", type=Path, help="a checkpoint to start from, in the first sitting")
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--until", help="hours:minutes, instead of --hours")
    parser.add_argument("--decay", type=float, default=0.3, help="the last part of the sitting, in which the learning rate falls")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=2e-3, help="learning rate of the matrices; half of it for the rest")
    parser.add_argument("--average", type=int, default=300, help="steps that the averaged weights remember")
    parser.add_argument("--noise", type=float, default=0.5, help="mean of the logit of the share of noise")
    parser.add_argument("--common", type=float, default=0.25, help="how often a common object comes, to one of an everyday one")
    parser.add_argument("--rest", type=float, default=0.05, help="the same of the rest")
    parser.add_argument("--width", type=int, default=288)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    end = ends(asked)
    training = Training(asked, asked.work)
    known = f"{len(training.data.variants)} pictures of {len(training.data.drawn_from)} objects"
    training.say(f"begins at step {training.steps} with {known}")
    training.run(end)
    training.say(f"ends at step {training.steps}, {training.samples} samples")
