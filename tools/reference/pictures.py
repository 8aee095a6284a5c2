"""Writes crates/media/tests/fixtures/pictures: what Pillow and diffusers make of pictures and masks, as raw bytes.

`cases.json` lists files of many kinds with the pixels Pillow reads from them, and results of resizing, blurring, cutting
out and overlaying. Sources are drawn by a formula that the tests repeat: value(x, y, c) of `drawn` below.
"""

import io
import json
from pathlib import Path

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image, ImageFilter

TARGET = Path(__file__).resolve().parents[2] / "crates/media/tests/fixtures/pictures"


def drawn(width: int, height: int, channels: int = 3) -> Image.Image:
    """Slopes, stripes and some noise, from whole numbers alone."""
    y, x, c = np.mgrid[0:height, 0:width, 0:channels].astype(np.uint32)
    noise = ((x * 2654435761 + y * 40503 + c * 97) >> 7) % 64
    stripes = np.where((x + 2 * y) % 11 < 4, 120, 0)
    values = ((x * 3 + y * 5 * (c + 1)) % 128 + stripes + noise) % 256
    values = values.astype(np.uint8)
    return Image.fromarray(values if channels > 1 else values[..., 0])


def shape_mask(width: int, height: int) -> Image.Image:
    """A bright disc and a grey box."""
    y, x = np.mgrid[0:height, 0:width].astype(np.int64)
    disc = (x - width // 3) ** 2 + (y - height // 2) ** 2 < (min(width, height) // 5) ** 2
    box = (x > width // 2) & (x < width // 2 + 9) & (y > height // 4) & (y < height // 4 + 6)
    return Image.fromarray(np.where(disc, 255, np.where(box, 90, 0)).astype(np.uint8))


def raw(image: Image.Image) -> dict:
    """Size and bytes."""
    data = np.asarray(image).tobytes()
    return {"width": image.width, "height": image.height, "bytes": data.hex()}


def file(image: Image.Image, **options) -> str:
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return buffer.getvalue().hex()


def exif(orientation: int) -> bytes:
    block = Image.Exif()
    block[0x0112] = orientation
    return block.tobytes()


def upright(image: Image.Image, orientation: int) -> Image.Image:
    turns = Image.Transpose
    turn = [None, None, turns.FLIP_LEFT_RIGHT, turns.ROTATE_180, turns.FLIP_TOP_BOTTOM, turns.TRANSPOSE,
            turns.ROTATE_270, turns.TRANSVERSE, turns.ROTATE_90][orientation]  # fmt: skip
    return image if turn is None else image.transpose(turn)


def files() -> list:
    picture, grey = drawn(23, 17), drawn(23, 17, 1)
    rgba = picture.copy()
    rgba.putalpha(grey)
    white = Image.new("RGBA", rgba.size, "white")
    flat = Image.alpha_composite(white, rgba).convert("RGB")
    deep = Image.fromarray((np.asarray(grey).astype(np.uint16) * 257))
    palette = picture.quantize(16)
    seen = picture.quantize(16)
    cases = [
        ("rgb.png", file(picture, format="PNG"), picture, None, 0),
        ("rgba.png", file(rgba, format="PNG"), flat, grey, 1),
        ("grey.png", file(grey, format="PNG"), grey.convert("RGB"), None, 0),
        ("deep.png", file(deep, format="PNG"), grey.convert("RGB"), None, 0),
        ("bits.png", file(grey.convert("1"), format="PNG"), grey.convert("1").convert("RGB"), None, 0),
        ("palette.png", file(palette, format="PNG"), palette.convert("RGB"), None, 0),
        ("rgb.webp", file(picture, format="WEBP", lossless=True), picture, None, 0),
        ("rgba.webp", file(rgba, format="WEBP", lossless=True, exact=True), flat, grey, 1),
    ]  # fmt: skip
    # One entry of the palette can be seen through.
    seen_through = seen.convert("RGBA")
    index = np.asarray(seen)
    alpha = Image.fromarray(np.where(index == 3, 0, 255).astype(np.uint8))
    seen_through.putalpha(alpha)
    cases.append((
        "palette-alpha.png",
        file(seen, format="PNG", transparency=3),
        Image.alpha_composite(white, seen_through).convert("RGB"),
        alpha,
        1,
    ))  # fmt: skip
    smooth = drawn(23, 17).filter(ImageFilter.GaussianBlur(3))
    for name, mode, tolerance in [("rgb.jpg", "RGB", 3), ("grey.jpg", "L", 3), ("cmyk.jpg", "CMYK", 6)]:
        stored = file(smooth.convert(mode), format="JPEG", quality=95, subsampling=0)
        read = Image.open(io.BytesIO(bytes.fromhex(stored))).convert("RGB")
        cases.append((name, stored, read, None, tolerance))
    for orientation in range(1, 9):
        stored = file(picture, format="PNG", exif=exif(orientation))
        cases.append((f"turned-{orientation}.png", stored, upright(picture, orientation), None, 0))
    jpeg = file(smooth, format="JPEG", quality=95, subsampling=0, exif=exif(6))
    read = Image.open(io.BytesIO(bytes.fromhex(jpeg))).convert("RGB")
    cases.append(("turned-6.jpg", jpeg, upright(read, 6), None, 3))
    return [
        {"name": name, "file": stored, "rgb": raw(rgb), "alpha": alpha and raw(alpha), "tolerance": tolerance}
        for name, stored, rgb, alpha, tolerance in cases
    ]


def resizes() -> list:
    processor = VaeImageProcessor(do_convert_rgb=True)
    modes = {"resize": "default", "crop": "crop", "fill": "fill"}
    cases = []
    for (width, height), (to_width, to_height) in [
        ((61, 47), (16, 24)), ((61, 47), (24, 16)), ((20, 13), (56, 40)), ((33, 33), (33, 64)), ((90, 10), (32, 32)),
        ((7, 50), (40, 8)), ((40, 20), (21, 21)), ((20, 40), (21, 21)), ((48, 48), (48, 48)), ((64, 40), (32, 16)),
    ]:  # fmt: skip
        for ours, theirs in modes.items():
            result = processor.resize(drawn(width, height), to_height, to_width, resize_mode=theirs)
            case = {"from": [width, height], "fit": ours, "rgb": raw(result)}
            # Rows that stay black there, because twice a rounded half is not a whole, are filled by us.
            pixels = np.asarray(result)
            case["black_rows"] = [int(y) for y in range(to_height) if ours == "fill" and not pixels[y].any()]
            case["black_columns"] = [int(x) for x in range(to_width) if ours == "fill" and not pixels[:, x].any()]
            cases.append(case)
    return cases


def masks() -> dict:
    processor = VaeImageProcessor(do_normalize=False, do_binarize=True, do_convert_grayscale=True)
    blurs = []
    for width, height, radius in [(40, 28, 4), (40, 28, 0.7), (40, 28, 1), (31, 9, 12.5), (16, 16, 0), (5, 4, 3), (40, 28, 33)]:
        blurs.append({"radius": radius, "mask": raw(VaeImageProcessor.blur(shape_mask(width, height), radius))})
    latents = []
    for width, height, to_width, to_height in [(64, 48, 8, 6), (64, 48, 64, 48), (40, 40, 7, 3)]:
        mask = shape_mask(width, height)
        plane = torch.from_numpy(np.asarray(mask).astype(np.float32) / 255.0)[None, None]
        plane = processor.binarize(plane)
        small = torch.nn.functional.interpolate(plane, size=(to_height, to_width))
        latents.append({"size": [width, height], "to": [to_width, to_height], "values": small.flatten().tolist()})
    regions = []
    for width, height in [(120, 80), (80, 120), (64, 64)]:
        for to_width, to_height in [(64, 64), (96, 32), (32, 96), (512, 512)]:
            for padding in [0, 5, 32, 400]:
                region = VaeImageProcessor.get_crop_region(shape_mask(width, height), to_width, to_height, padding)
                regions.append({"size": [width, height], "to": [to_width, to_height], "padding": padding, "corners": region})
    grey = drawn(23, 17).convert("L")
    picture = drawn(19, 11)
    planes = VaeImageProcessor().preprocess(picture.resize((16, 8), Image.Resampling.LANCZOS))
    return {
        "blurs": blurs, "latents": latents, "regions": regions, "luminance": raw(grey),
        "planes": {"size": [19, 11], "to": [16, 8], "values": planes.flatten().tolist()},
    }  # fmt: skip


def overlays() -> list:
    processor = VaeImageProcessor()
    cases = []
    for width, height, corners in [(48, 40, None), (48, 40, (5, 3, 41, 39))]:
        original = drawn(width, height)
        mask = VaeImageProcessor.blur(shape_mask(width, height), 2)
        new = drawn(32, 32).transpose(Image.Transpose.ROTATE_90)
        if corners is None:
            new = new.resize((width, height), Image.Resampling.LANCZOS)
        result = processor.apply_overlay(mask, original, new, corners)
        cases.append({"mask": raw(mask), "new": raw(new), "corners": corners, "size": [width, height], "rgb": raw(result)})
    return cases


def main() -> None:
    TARGET.mkdir(parents=True, exist_ok=True)
    content = {"files": files(), "resizes": resizes(), "overlays": overlays(), **masks()}
    (TARGET / "cases.json").write_text(json.dumps(content) + "\n")
    print((TARGET / "cases.json").stat().st_size)


if __name__ == "__main__":
    main()
