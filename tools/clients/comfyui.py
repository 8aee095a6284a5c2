"""Runs a published client of ComfyUI's API (PyPI `comfy-api-simplified` 1.6.0) against a running server, unchanged.

    lowtide serve &
    pip install comfy-api-simplified==1.6.0 pillow && python comfyui.py [PORT]
"""

import io
import sys
import tempfile

SKIPPED = 77

try:
    from comfy_api_simplified import ComfyApiWrapper, ComfyWorkflowWrapper
    from comfy_api_simplified.exceptions import ComfyApiError
    from PIL import Image
except ImportError:
    print("SKIPPED: the package `comfy-api-simplified` is not installed", file=sys.stderr)
    sys.exit(SKIPPED)


def node(class_type, title, **inputs):
    return {"class_type": class_type, "inputs": inputs, "_meta": {"title": title}}


def graph():
    return ComfyWorkflowWrapper({
        "3": node("KSampler", "KSampler", seed=1, steps=8, cfg=4.0, sampler_name="euler", scheduler="normal", denoise=1.0,
                  model=["4", 0], positive=["6", 0], negative=["7", 0], latent_image=["5", 0]),
        "4": node("CheckpointLoaderSimple", "Load Checkpoint", ckpt_name="demo"),
        "5": node("EmptyLatentImage", "Empty Latent", width=128, height=128, batch_size=1),
        "6": node("CLIPTextEncode", "positive", text="a red heart", clip=["4", 1]),
        "7": node("CLIPTextEncode", "negative", text="", clip=["4", 1]),
        "8": node("VAEDecode", "VAE Decode", samples=["3", 0], vae=["4", 2]),
        "9": node("SaveImage", "Save Image", filename_prefix="lowtide", images=["8", 0]),
    })


port = sys.argv[1] if len(sys.argv) > 1 else "7860"
api = ComfyApiWrapper(f"http://127.0.0.1:{port}/")
picture = lambda results: Image.open(io.BytesIO(next(iter(results.values())))).convert("RGB")

first = picture(api.queue_and_wait_images(graph(), "Save Image"))
assert first.size == (128, 128)
again = picture(api.queue_and_wait_images(graph(), "Save Image"))
assert first.tobytes() == again.tobytes(), "the same seed is another picture"

with tempfile.NamedTemporaryFile(suffix=".png") as file:
    first.save(file.name)
    sent = api.upload_image(file.name)
changed = graph()
changed["10"] = node("LoadImage", "Load Image", image=f"{sent['subfolder']}/{sent['name']}")
changed["11"] = node("VAEEncode", "VAE Encode", pixels=["10", 0], vae=["4", 2])
changed.set_node_param("KSampler", "latent_image", ["11", 0])
changed.set_node_param("KSampler", "denoise", 0.7)
changed.set_node_param("positive", "text", "a blue heart")
assert picture(api.queue_and_wait_images(changed, "Save Image")).tobytes() != first.tobytes()

wrong = graph()
wrong["8"]["class_type"] = "ImageSharpen"
try:
    api.queue_prompt(wrong)
    sys.exit("a node that is not supported was accepted")
except ComfyApiError as error:
    assert "400" in str(error), error

assert api.get_queue() == {"queue_running": [], "queue_pending": []}
assert api.get_system_stats()["devices"][0]["vram_total"] > 0
assert "KSampler" in api.get_object_info("KSampler")
api.interrupt()
print("comfy-api-simplified 1.6.0: all as expected")
