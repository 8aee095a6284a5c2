"""The autoencoder: trains it, measures it, and encodes the training pictures.

    python vae.py train   WORK --minutes 30 [--from CHECKPOINT] [--decoder-only]
    python vae.py measure WORK
    python vae.py encode  WORK [--shard 0] [--everyday 40] [--common 16] [--rest 6]

`train` goes on from WORK/vae.safetensors where there is one. One picture in 29 is held out, which `measure` reads (a checkpoint
gone on from may have seen them all the same); beside them it reads pictures that are no objects, which nobody trains on. With `--decoder-only` the encoder stays, and with it every latent: a transformer
trained on them remains right.

`encode` draws variants of the objects (variants.py), encodes them and writes WORK/latents/SHARD.pt; another shard has other colours,
backgrounds and places. Shards of another encoder are not mixed: each one says what encoder it comes from.
"""

import argparse
import dataclasses
import hashlib
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from data import SIZE
from model import autoencoder
from optimiser import Optimiser
from variants import Drawing, choose

HELD_OUT_EVERY = 29
FILE = "vae.safetensors"


def held_out(count: int) -> np.ndarray:
    return np.arange(count) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1


class Pictures:
    """Pictures before plain colours, half of them white; (B, 3, H, W) in -1..1."""

    def __init__(self, pictures: np.ndarray):
        self.pictures = torch.from_numpy(pictures)
        k = torch.tensor([1.0, 1.0, 1.0]) / math.sqrt(3)
        self.across = torch.tensor([[0, -k[2], k[1]], [k[2], 0, -k[0]], [-k[1], k[0], 0]])

    def turned(self, rgb: torch.Tensor, opacity: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        """Two in five with their hues turned, by a rotation about the gray axis."""
        count = len(rgb)
        angle = torch.from_numpy((rng.random(count) * 2 - 1) * math.pi * (rng.random(count) < 0.4)).float()
        turn = torch.eye(3) + torch.sin(angle)[:, None, None] * self.across
        turn = turn + (1 - torch.cos(angle))[:, None, None] * (self.across @ self.across)
        return torch.einsum("nhwc,ndc->nhwd", rgb, turn).clamp(0, 1).minimum(opacity.expand_as(rgb))

    def batch(self, count: int, crop: int, rng: np.random.Generator) -> torch.Tensor:
        chosen = self.pictures[torch.from_numpy(rng.integers(0, len(self.pictures), count))].float() / 255
        rgb, opacity = chosen[..., :3], chosen[..., 3:]
        rgb = self.turned(rgb, opacity, rng)
        x = self.placed(rgb, opacity, rng)
        if rng.random() < 0.5:
            x = x.flip(3)
        top, left = rng.integers(0, SIZE - crop + 1, 2)
        return x[:, :, top : top + crop, left : left + crop].contiguous(memory_format=torch.channels_last)

    def all(self, rng: np.random.Generator) -> torch.Tensor:
        chosen = self.pictures.float() / 255
        x = self.placed(chosen[..., :3], chosen[..., 3:], rng)
        return x.contiguous(memory_format=torch.channels_last)

    @staticmethod
    def placed(rgb: torch.Tensor, opacity: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        count = len(rgb)
        behind = torch.from_numpy(rng.random((count, 1, 1, 3)) * 0.8 + rng.random((count, 1, 1, 1)) * 0.2).float()
        white = torch.from_numpy(rng.random((count, 1, 1, 1)) < 0.5)
        return (rgb + (1 - opacity) * torch.where(white, torch.ones_like(behind), behind)).permute(0, 3, 1, 2) * 2 - 1


def psnr(expected: torch.Tensor, found: torch.Tensor) -> float:
    """Decibels of (B, 3, H, W) in -1..1, the mean over pictures."""
    error = (expected - found.float().clamp(-1, 1)).pow(2).mean((1, 2, 3)) / 4
    return float(-10 * torch.log10(error).mean())


def slopes(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


def opened(work: Path, start: Path | None = None):
    """The network of WORK, or of a checkpoint, which then is that of WORK, or a new one."""
    vae = autoencoder()
    if start and not (work / FILE).exists():
        weights = load_file(start / "vae/diffusion_pytorch_model.safetensors")
        save_file({name: tensor.float() for name, tensor in weights.items()}, work / FILE)
    if (work / FILE).exists():
        vae.load_state_dict(load_file(work / FILE))
    return vae.to(memory_format=torch.channels_last)


def is_wide(name: str, p: torch.Tensor) -> bool:
    edge = "decoder.conv_out" in name or "encoder.conv_in" in name
    return p.dim() >= 2 and min(p.shape[0], p[0].numel()) >= 32 and not edge


@torch.no_grad()
def restored(vae, x: torch.Tensor) -> torch.Tensor:
    return torch.cat([vae.decode(vae.encode(part).latent_dist.mode()).sample for part in x.split(8)])


class Losses:
    """What a step minimises: the pictures' differences, their slopes', a little of the latents' spread, and the half-size rule:
    latents scaled to half size decode to the picture at half size, so that the latents mean the same at any size."""

    def __init__(self, vae, decoder_only: bool):
        self.vae, self.decoder_only = vae, decoder_only

    def __call__(self, x: torch.Tensor, half: bool) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            with torch.set_grad_enabled(not self.decoder_only):
                spread = self.vae.encode(x).latent_dist
                mean, log_variance = spread.mean.float(), spread.logvar.float()
            z = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
            y = self.vae.decode(z).sample.float()
            halved = 0.0
            if half:
                halved = (self.vae.decode(F.avg_pool2d(z, 2)).sample.float() - F.avg_pool2d(x, 2)).abs().mean()
        steep = sum((a - b).abs().mean() for a, b in zip(slopes(x), slopes(y)))
        difference = (x - y).abs().mean() + 0.5 * (x - y).pow(2).mean() + 0.5 * steep
        surprise = 0.5 * (mean * mean + log_variance.exp() - 1 - log_variance).mean()
        return difference + 2e-4 * surprise + 0.25 * halved


def train(asked) -> None:
    torch.manual_seed(asked.seed)
    rng = np.random.default_rng(asked.seed)
    vae = opened(asked.work, asked.start)
    named = [(n, p) for n, p in vae.named_parameters() if not asked.decoder_only or n.startswith("decoder.")]
    optimiser = Optimiser(named, is_wide, asked.rate, asked.rate / 2, decay=0.0)
    pixels = np.load(asked.work / "pictures.npy")
    known = pixels[~held_out(len(pixels))]
    if (asked.work / "more.npy").exists():
        known = np.concatenate([known, np.load(asked.work / "more.npy")])
    known = Pictures(known)
    unseen = Pictures(pixels[held_out(len(pixels))]).all(np.random.default_rng(99))
    losses, begun, saved, step = Losses(vae, asked.decoder_only), time.time(), time.time(), 0
    while (done := (time.time() - begun) / (asked.minutes * 60)) < 1:
        # Crops first, as they are cheap; whole pictures at the end.
        x = known.batch(10, 64, rng) if done < 0.5 else known.batch(3, SIZE, rng)
        loss = losses(x, half=step % 3 == 0)
        optimiser.zero()
        loss.backward()
        if torch.isfinite(torch.nn.utils.clip_grad_norm_([p for _, p in named], 1.0)):
            optimiser.step(min(1.0, (step + 1) / 20) * min(1.0, (1 - done) / 0.7) + 0.005)
        step += 1
        if step % 100 == 0:
            print(f"step {step}, {time.time() - begun:.0f} s, loss {float(loss):.4f}", flush=True)
        if time.time() - saved > 240 or step == 1:
            saved = time.time()
            save_file(plain(vae), asked.work / FILE)
    save_file(plain(vae), asked.work / FILE)
    print(f"{step} steps; held-out pictures: {psnr(unseen, restored(vae, unseen)):.2f} dB")


def plain(vae) -> dict:
    return {name: tensor.detach().contiguous().clone() for name, tensor in vae.state_dict().items()}


def measure(asked) -> None:
    """As stored: weights in bf16, arithmetic in f32."""
    vae = opened(asked.work, asked.start)
    with torch.no_grad():
        for p in vae.parameters():
            p.copy_(p.bfloat16().float())
    pixels = np.load(asked.work / "pictures.npy")
    sets = {"held-out": pixels[held_out(len(pixels))], "known": pixels[:: HELD_OUT_EVERY]}
    if (asked.work / "unseen.npy").exists():
        sets["never seen"] = np.load(asked.work / "unseen.npy")
    for name, chosen in sets.items():
        x = Pictures(chosen).all(np.random.default_rng(99))
        print(f"{len(x)} {name} pictures: {psnr(x, restored(vae, x)):.2f} dB")


def fingerprint(vae) -> str:
    """Of the encoder."""
    digest = hashlib.sha256()
    for name, tensor in sorted(vae.state_dict().items()):
        if name.startswith("encoder."):
            digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def factors_of(latents: torch.Tensor, start: Path | None) -> dict:
    """The checkpoint's, if one goes on from it; else those that make mean 0 and spread 1 of these latents."""
    if start:
        config = json.loads((start / "vae/config.json").read_text())
        return {name: config[name] for name in ("shift_factor", "scaling_factor")}
    return dict(shift_factor=round(float(latents.mean()), 6), scaling_factor=round(float(1 / latents.std()), 6))


@torch.no_grad()
def encode(asked) -> None:
    vae = opened(asked.work, asked.start).eval()
    folder = asked.work / "latents"
    folder.mkdir(exist_ok=True)
    mark, scaling = fingerprint(vae), asked.work / "scaling.json"
    if scaling.exists() and json.loads(scaling.read_text())["encoder"] != mark:
        raise SystemExit(f"{folder} has latents of another encoder: delete it and {scaling} to begin anew, or give back the old one")
    rng, drawing = np.random.default_rng(1000 + asked.shard), Drawing(np.load(asked.work / "pictures.npy"))
    objects = json.loads((asked.work / "objects.json").read_text())
    counts = dict(everyday=asked.everyday, common=asked.common, rest=asked.rest)
    rows, latents, waiting = [], [], []

    def empty() -> None:
        x = torch.from_numpy(np.stack(waiting)).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.autocast("cpu", torch.bfloat16):
            latents.append(vae.encode(x.contiguous(memory_format=torch.channels_last)).latent_dist.mode().float())
        waiting.clear()

    for index, object in enumerate(objects):
        for k, variant in enumerate(choose(object, index, counts[object["tier"]], rng)):
            rows.append(dataclasses.astuple(variant))
            waiting.append(drawing.draw(variant, rng, still=k == 0 or rng.random() < 0.55))
            if len(waiting) == 32:
                empty()
    if waiting:
        empty()
    latents = torch.cat(latents)
    if not scaling.exists():
        scaling.write_text(json.dumps(dict(factors_of(latents, asked.start), encoder=mark)))
    factors = json.loads(scaling.read_text())
    latents = ((latents - factors["shift_factor"]) * factors["scaling_factor"]).bfloat16()
    torch.save(dict(latents=latents, variants=rows), folder / f"{asked.shard}.pt")
    print(f"{len(rows)} pictures of {len({row[0] for row in rows})} objects, spread {float(latents.float().std()):.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("verb", choices=["train", "measure", "encode"])
    parser.add_argument("work", type=Path)
    parser.add_argument("--from", dest="start", type=Path, help="a checkpoint, where WORK has no weights yet")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--decoder-only", action="store_true")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--shard", type=int, default=0)
    parser.add_argument("--everyday", type=int, default=40, help="variants of each everyday object")
    parser.add_argument("--common", type=int, default=16)
    parser.add_argument("--rest", type=int, default=6)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    dict(train=train, measure=measure, encode=encode)[asked.verb](asked)
