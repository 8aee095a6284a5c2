"""A sheet of pictures to look at: every prompt of a list, one seed, a checkpoint's own settings, no picking.

    python sheet.py CHECKPOINT SHEET.png [--seeds 1] [--prompts prompts.txt] [--dtype float32]
    python sheet.py CHECKPOINT SHEET.png --lowtide PROGRAM

By stock diffusers, or by a built `lowtide` (which draws the same noise). Several seeds are several columns. Without another wish, size,
steps and guidance are those of CHECKPOINT/lowtide.json, as the program takes them. Prints the median seconds of a picture.

    python sheet.py CHECKPOINT SHEET.png --lowtide PROGRAM --compare

draws each by both and prints by how much they differ, in levels of 255.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

COLUMNS = 6
MARGIN = 10
LABEL_HEIGHT = 30


class Diffusers:
    def __init__(self, checkpoint: Path, settings: dict, dtype: str):
        import torch
        from diffusers import ZImagePipeline

        self.torch, self.settings = torch, settings
        self.pipeline = ZImagePipeline.from_pretrained(checkpoint, torch_dtype=getattr(torch, dtype), local_files_only=True)
        self.pipeline.set_progress_bar_config(disable=True)

    def draw(self, prompt: str, seed: int) -> Image.Image:
        return self.pipeline(
            prompt,
            height=self.settings["height"],
            width=self.settings["width"],
            num_inference_steps=self.settings["steps"],
            guidance_scale=self.settings["guidance"],
            generator=self.torch.Generator().manual_seed(seed),
        ).images[0]


class Lowtide:
    def __init__(self, program: Path, checkpoint: Path, settings: dict, dtype: str):
        self.program, self.checkpoint, self.settings = program.resolve(), checkpoint.resolve(), settings
        self.precision = dict(float32="f32", bfloat16="bf16")[dtype]

    def draw(self, prompt: str, seed: int) -> Image.Image:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "picture.png"
            asked = [self.program, "generate", prompt, "--model", self.checkpoint, "--seed", seed, "--local", "-o", out]
            asked += ["--precision", self.precision, "--size", "{width}x{height}".format(**self.settings)]
            asked += ["--steps", self.settings["steps"], "--guidance", self.settings["guidance"], "--quiet"]
            subprocess.run([str(part) for part in asked], check=True, capture_output=True)
            return Image.open(out).convert("RGB")


def lines(prompt: str) -> str:
    """At most two, broken at a space."""
    if len(prompt) < 24:
        return prompt
    space = prompt.rfind(" ", 0, 24)
    return f"{prompt[:space]}\n{prompt[space + 1 :]}"


def main(asked) -> None:
    settings = json.loads((asked.checkpoint / "lowtide.json").read_text())["defaults"]
    for option in ("steps", "guidance"):
        if getattr(asked, option) is not None:
            settings[option] = getattr(asked, option)
    prompts = [line for line in asked.prompts.read_text().splitlines() if line]
    wanted = [(prompt, seed) for prompt in prompts for seed in asked.seeds]
    drawers = []
    if asked.lowtide:
        drawers.append(Lowtide(asked.lowtide, asked.checkpoint, settings, asked.dtype))
    if not asked.lowtide or asked.compare:
        drawers.append(Diffusers(asked.checkpoint, settings, asked.dtype))
    columns = COLUMNS if len(asked.seeds) == 1 else len(asked.seeds)
    cell = (settings["width"] + 2 * MARGIN, settings["height"] + MARGIN + LABEL_HEIGHT)
    sheet = Image.new("RGB", (columns * cell[0], -(-len(wanted) // columns) * cell[1]), "white")
    pen, seconds, differences = ImageDraw.Draw(sheet), [], []
    for place, (prompt, seed) in enumerate(wanted):
        begun = time.perf_counter()
        pictures = [drawers[0].draw(prompt, seed)]
        seconds.append(time.perf_counter() - begun)
        pictures += [drawer.draw(prompt, seed) for drawer in drawers[1:]]
        if len(pictures) == 2:
            a, b = (np.asarray(picture, dtype=np.int16) for picture in pictures)
            differences.append(int(np.abs(a - b).max()))
        x, y = place % columns * cell[0], place // columns * cell[1]
        sheet.paste(pictures[0], (x + MARGIN, y + MARGIN // 2))
        label = lines(prompt) if len(asked.seeds) == 1 else f"{lines(prompt)} ({seed})"
        pen.text((x + MARGIN // 2, y + settings["height"] + MARGIN), label, fill="black")
    sheet.save(asked.sheet, optimize=True)
    print(f"{len(wanted)} pictures, {statistics.median(seconds):.2f} s each ({asked.dtype}, {settings})")
    if differences:
        middle = statistics.median(differences)
        print(f"lowtide and diffusers differ by at most {max(differences)} of 255, by {middle} in the median picture")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("sheet", type=Path)
    parser.add_argument("--prompts", type=Path, default=Path(__file__).parent / "prompts.txt")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--steps", type=int)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--lowtide", type=Path)
    parser.add_argument("--compare", action="store_true")
    main(parser.parse_args())
