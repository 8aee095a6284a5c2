"""The official OpenAI client makes pictures, lists models and understands errors: `openai_images.py [url] [model]`."""

import base64
import struct
import sys
import urllib.request
import zlib

SKIPPED = 77

try:
    import openai
except ImportError:
    print("SKIPPED: the package `openai` is not installed (pip install openai)", file=sys.stderr)
    sys.exit(SKIPPED)

PNG = b"\x89PNG\r\n\x1a\n"


def png(width, height, pixel):
    """A picture of 8-bit red, green, blue and alpha; `pixel(x, y)` gives the four."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + bytes(value for x in range(width) for value in pixel(x, y)) for y in range(height))
    head = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    return PNG + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def edits(client, model):
    """Pictures from a picture, with and without a mask."""
    pictures = client.images
    blue = png(128, 128, lambda x, y: (40, 80, 200, 255))
    hole = png(128, 128, lambda x, y: (0, 0, 0, 0 if x < 48 and y < 48 else 255))
    made = pictures.edit(
        model=model, image=("blue.png", blue), mask=("hole.png", hole), prompt="a red heart", n=2, size="128x128",
        response_format="b64_json", extra_body={"seed": 5, "steps": 4},
    )
    assert len(made.data) == 2
    for picture in made.data:
        assert base64.b64decode(picture.b64_json).startswith(PNG)
    print("two pictures, changed where the mask can be seen through")
    made = pictures.edit(model=model, image=[("blue.png", blue)], prompt="a red heart", extra_body={"strength": 0.5})
    with urllib.request.urlopen(made.data[0].url) as answer:
        assert answer.read().startswith(PNG)
    print("a picture from a picture, as image[]")
    for image, mask, param in [(b"GIF89a", None, "image"), (blue, blue, "mask"), (PNG + b"cut off", None, "image")]:
        given = {"mask": ("mask.png", mask)} if mask else {}
        error = refused(
            openai.BadRequestError,
            lambda: pictures.edit(model=model, image=("a.png", image), prompt="a", **given),
        )
        assert error.param == param, error.body
    print("what is no picture or no mask is told apart")


def refused(kind, call):
    """What the client makes of a refusal; fails where there is none."""
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} was expected")


def main(url, model):
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0, timeout=120)
    pictures = client.images

    names = [entry.id for entry in client.models.list()]
    assert names, "there is a model"
    model = model or names[0]
    assert client.models.retrieve(model).id == model
    print(f"models: {', '.join(names)}")

    made = pictures.generate(model=model, prompt="a red heart", size="128x128", response_format="b64_json", n=2)
    assert made.created > 1_600_000_000 and len(made.data) == 2
    for picture in made.data:
        assert base64.b64decode(picture.b64_json).startswith(PNG) and picture.url is None
    print("two pictures as base64")

    made = pictures.generate(model=model, prompt="a red heart", response_format="url", size="auto")
    with urllib.request.urlopen(made.data[0].url) as answer:
        assert answer.headers["content-type"] == "image/png" and answer.read().startswith(PNG)
    print(f"a picture at {made.data[0].url}")

    made = pictures.generate(
        model=model, prompt="a red heart", quality="medium", user="somebody", background="auto", moderation="low",
        output_format="png", extra_body={"seed": 5, "steps": 2, "guidance": 1.5, "negative_prompt": "blue"},
    )
    assert made.data[0].b64_json and made.data[0].url
    print("everything a client may say besides")

    error = refused(openai.BadRequestError, lambda: pictures.generate(model=model, prompt="a", size="7x"))
    assert error.param == "size" and error.type == "invalid_request_error", error.body
    error = refused(openai.BadRequestError, lambda: pictures.generate(model=model, prompt="a", n=11))
    assert error.param == "n", error.body
    error = refused(openai.NotFoundError, lambda: pictures.generate(model="no-such-model", prompt="a"))
    assert error.code == "model_not_found", error.body
    refused(openai.NotFoundError, lambda: client.models.retrieve("no-such-model"))
    print("errors in its own words")

    edits(client, model)

    raw = pictures.with_raw_response.generate(model=model, prompt="a red heart")
    assert raw.http_response.status_code == 200 and raw.parse().data
    print(f"passed with openai {openai.__version__}")


if __name__ == "__main__":
    arguments = sys.argv[1:] + [None, None]
    main((arguments[0] or "http://127.0.0.1:7860").rstrip("/"), arguments[1])
