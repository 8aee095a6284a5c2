"""Hues of a picture, and the same picture in another colour."""

from dataclasses import dataclass

import numpy as np

# What a coloured object turns to, in degrees of hue.
HUES = {"red": 0, "orange": 27, "yellow": 50, "green": 125, "blue": 215, "purple": 272, "pink": 325}
OBJECT_COLOURS = [*HUES, "gray", "black"]
BACKGROUNDS = {
    "red": (226, 62, 62),
    "orange": (250, 150, 50),
    "yellow": (250, 216, 80),
    "green": (96, 190, 96),
    "blue": (76, 134, 232),
    "purple": (150, 92, 212),
    "pink": (250, 152, 192),
    "brown": (140, 96, 62),
    "gray": (150, 150, 150),
    "black": (20, 20, 22),
}
COLOURED = 0.35
"""How much of an object has a clear colour if its main hue is to be turned; one with less is tinted."""
TINT = {"red": 0.75, "orange": 0.75, "yellow": 0.65, "green": 0.65, "blue": 0.65, "purple": 0.6, "pink": 0.42}
"""Saturation of what is tinted."""
COLOUR_WORDS = set("red orange yellow green blue purple pink brown gray grey black white".split())


def to_hsv(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hue in degrees, saturation and value in 0..1, of (..., 3) in 0..1."""
    most, least = rgb.max(-1), rgb.min(-1)
    spread = most - least
    coloured = spread > 1e-6
    safe = np.where(coloured, spread, 1)
    r, g, b = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    hue = np.where(most == r, ((g - b) / safe) % 6, np.where(most == g, (b - r) / safe + 2, (r - g) / safe + 4)) * 60
    return np.where(coloured, hue, 0) % 360, np.where(most > 0, spread / np.maximum(most, 1e-6), 0), most


def to_rgb(hue: np.ndarray, saturation: np.ndarray, value: np.ndarray) -> np.ndarray:
    sector = (hue % 360) / 60
    chroma = value * saturation
    second = chroma * (1 - np.abs(sector % 2 - 1))
    zero = np.zeros_like(sector)
    which = sector.astype(int) % 6
    c, x, z = chroma, second, zero
    rows = ([c, x, z, z, x, c], [x, c, c, x, z, z], [z, z, x, c, c, x])
    return np.stack([np.choose(which, row) + value - chroma for row in rows], -1)


def hue_gap(a: np.ndarray, b: float) -> np.ndarray:
    """Degrees between two hues, at most 180."""
    return np.abs((a - b + 180) % 360 - 180)


@dataclass
class Hues:
    """A picture by hue, and which hue is its main one."""

    hue: np.ndarray
    saturation: np.ndarray
    value: np.ndarray
    rgb: np.ndarray
    opacity: np.ndarray
    main: float
    """Degrees."""
    saturated: float
    """How much of the object has a clear colour, 0..1."""
    name: str | None
    """The word for the main hue, when nearly all that has a colour has this one."""

    @staticmethod
    def of(picture: np.ndarray) -> "Hues":
        """picture: (H, W, 4) uint8, colours multiplied by the opacity."""
        opacity = picture[..., 3] / 255.0
        rgb = (picture[..., :3] / 255.0 / np.maximum(opacity, 1e-3)[..., None]).clip(0, 1)
        hue, saturation, value = to_hsv(rgb)
        clear = (saturation > 0.25) & (value > 0.15) & (opacity > 0.5)
        weight = saturation * value * opacity * clear
        saturated = clear.sum() / max(1, (opacity > 0.5).sum())
        histogram = np.histogram(hue, bins=36, range=(0, 360), weights=weight)[0]
        peak = int((histogram + np.roll(histogram, 1) + np.roll(histogram, -1)).argmax()) * 10 + 5
        near = (hue_gap(hue, peak) < 30) * weight
        total = max(near.sum(), 1e-6)
        angle = np.deg2rad(hue)
        main = np.rad2deg(np.arctan2((near * np.sin(angle)).sum(), (near * np.cos(angle)).sum())) % 360
        name = None
        if saturated > 0.45 and near.sum() / max(weight.sum(), 1e-6) > 0.7:
            name = hue_name(main, (near * saturation).sum() / total, (near * value).sum() / total)
        return Hues(hue, saturation, value, rgb, opacity, float(main), float(saturated), name)

    def recoloured(self, colour: str) -> np.ndarray:
        """The picture's colours with the main hue turned to `colour`; windows, leaves and tongues keep theirs. What has hardly any
        colour is tinted: a gray elephant can be pink."""
        hue, saturation, value = self.hue, self.saturation, self.value
        if colour == "gray":
            return to_rgb(hue, saturation * 0.06, value * 0.8 + 0.02)
        if colour == "black":
            return to_rgb(hue, saturation * 0.06, value * 0.33)
        if self.saturated <= COLOURED:
            share = np.clip((0.5 - saturation) / 0.2, 0, 1)[..., None]
            tinted = to_rgb(np.full_like(hue, HUES[colour]), np.full_like(hue, TINT[colour]), value)
            return self.rgb + (tinted - self.rgb) * share
        share = np.clip((75 - hue_gap(hue, self.main)) / 30, 0, 1)
        turn = (HUES[colour] - self.main + 180) % 360 - 180
        beside = (hue - self.main + 180) % 360 - 180
        if colour in ("yellow", "orange", "pink"):
            value = value + (value**0.6 - value) * share
        if colour in ("yellow", "orange"):
            saturation = saturation + (np.minimum(1, saturation * 1.1) - saturation) * share
        if colour == "pink":
            saturation = saturation * (1 - 0.35 * share)
        if colour in ("blue", "purple", "red", "green") and self.name in ("yellow", "orange"):
            value = value * (1 - 0.08 * share)
        return to_rgb(hue + share * (turn - beside * 0.5), saturation, value)


def hue_name(hue: float, saturation: float, value: float) -> str | None:
    """None between two names."""
    if hue < 14 or hue > 344:
        return "pink" if saturation < 0.5 else "red"
    if hue < 40:
        return "brown" if value < 0.72 else "yellow" if hue > 33 else "orange"
    for name, low, high in (("yellow", 40, 64), ("green", 75, 165), ("blue", 190, 250), ("purple", 255, 292), ("pink", 300, 344)):
        if low < hue <= high:
            return name
    return None
