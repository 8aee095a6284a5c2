"""Training pictures: an object in a colour before a background, and captions that say so."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from colours import BACKGROUNDS, OBJECT_COLOURS, Hues
from data import SIZE


@dataclass
class Variant:
    object: int
    """Index into objects.json."""
    colour: str | None
    """None: its own colours."""
    background: str | None
    """None: white."""


def moved(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A little smaller, turned and shifted, so that a seed decides where and how the object stands."""
    scale = rng.uniform(0.8, 1.0)
    angle = np.deg2rad(rng.uniform(-10, 10))
    dx, dy = rng.uniform(-6, 6, 2) * (1 if scale > 0.9 else 1.6)
    c, s, middle = np.cos(angle) / scale, np.sin(angle) / scale, SIZE / 2
    matrix = (c, s, middle - c * (middle + dx) - s * (middle + dy), -s, c, middle + s * (middle + dx) - c * (middle + dy))
    # Channel by channel: Pillow would take the picture's colours for ones not yet multiplied by the opacity.
    channels = [Image.fromarray(np.ascontiguousarray(picture[..., k])) for k in range(4)]
    filtered = [c.transform((SIZE, SIZE), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC) for c in channels]
    found = np.stack([np.asarray(channel) for channel in filtered], -1)
    # Bicubic weights overshoot at edges; a colour times an opacity is at most that opacity.
    return np.minimum(found, found[..., 3:])


def choose(object: dict, index: int, count: int, rng: np.random.Generator) -> list[Variant]:
    """`count` variants of an object: as it is on white first, then in its own and other colours, nearly half of them on white."""
    colours = [None]
    if object["recolourable"]:
        colours = [colour for colour in OBJECT_COLOURS if colour != object["own"]]
        rng.shuffle(colours)
    found = []
    for k in range(count):
        # A third keeps its own colours; the others are gone through in turn, so that none is missing by chance.
        colour = None if k % 3 == 0 else colours[k % len(colours)]
        white = k == 0 or rng.random() < 0.45
        background = None if white else str(rng.choice([name for name in BACKGROUNDS if name != colour]))
        found.append(Variant(index, colour, background))
    return found


class Drawing:
    """Draws variants."""

    def __init__(self, pictures: np.ndarray):
        self.pictures, self.hues = pictures, {}

    def draw(self, variant: Variant, rng: np.random.Generator, still: bool) -> np.ndarray:
        """(H, W, 3) uint8; still: where the object stands in its picture."""
        if variant.object not in self.hues:
            self.hues[variant.object] = Hues.of(self.pictures[variant.object])
        hues = self.hues[variant.object]
        rgb = hues.rgb if variant.colour is None else hues.recoloured(variant.colour)
        opacity = hues.opacity[..., None]
        picture = (np.concatenate([rgb * opacity, opacity], -1).clip(0, 1) * 255 + 0.5).astype(np.uint8)
        if not still:
            picture = moved(picture, rng)
        behind = np.ones(3)
        if variant.background is not None:
            behind = (np.array(BACKGROUNDS[variant.background]) / 255 + rng.normal(0, 0.03, 3)).clip(0, 1)
        picture = picture / 255.0
        return ((picture[..., :3] + (1 - picture[..., 3:]) * behind).clip(0, 1) * 255 + 0.5).astype(np.uint8)


def with_article(name: str) -> str:
    last = name.split()[-1]
    if last.endswith("s") and not last.endswith(("ss", "us", "is")):
        return name
    return ("an " if name[0] in "aeiou" else "a ") + name


def caption(variant: Variant, object: dict, rng: np.random.Generator) -> str:
    """What a person might type to get this; mostly the object's first name, sometimes another one or another wording."""

    def one_of(names: list[str]) -> str:
        return names[0] if rng.random() < 0.6 else names[int(rng.integers(len(names)))]

    if variant.colour is not None:
        name = f"{variant.colour} {one_of(object['bare'])}"
    elif object["says_own"] and rng.random() < 0.3:
        name = f"{object['own']} {one_of(object['bare'])}"
    else:
        name = one_of(object["captions"])
    manner = rng.random()
    text = with_article(name) if manner < 0.8 or manner >= 0.92 else name
    if manner >= 0.96:
        text = f"a 3d icon of {text}"
    elif manner >= 0.92:
        text = f"an emoji of {text}"
    if variant.background is None:
        return f"{text} on a white background" if rng.random() < 0.12 else text
    behind = with_article(variant.background)
    manner = rng.random()
    if manner < 0.8:
        return f"{text} on {behind} background"
    return f"{text} with {behind} background" if manner < 0.9 else f"{text} on {variant.background} background"
