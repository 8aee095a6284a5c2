"""Runs a published client of the Stable Diffusion web UI (PyPI `webuiapi` 0.9.17) against a running server, unchanged.

    lowtide serve [--set models.dirs=NETWORKS --set models.detectors=DETECTORS] &
    pip install webuiapi==0.9.17 && python webui.py [PORT [DETECTOR]]
"""

import sys

SKIPPED = 77

try:
    import webuiapi
    from PIL import Image, ImageDraw
except ImportError:
    print("SKIPPED: the package `webuiapi` is not installed (pip install webuiapi)", file=sys.stderr)
    sys.exit(SKIPPED)

api = webuiapi.WebUIApi(host="127.0.0.1", port=int(sys.argv[1]) if len(sys.argv) > 1 else 7860, sampler="", steps=8)

names = api.util_get_model_names()
assert "demo" in names, names
assert "Euler a" in api.util_get_sampler_names()
assert "karras" in api.util_get_scheduler_names()
api.util_set_model("demo")
assert api.util_get_current_model() == "demo"
api.util_wait_for_ready(check_interval=0.2)

drawn = api.txt2img(prompt="a red heart", negative_prompt="blue", seed=1, width=128, height=128, cfg_scale=4, batch_size=2)
assert len(drawn.images) == 2 and drawn.image.size == (128, 128)
assert drawn.info["all_seeds"] == [1, 2], drawn.info
again = api.txt2img(prompt="a red heart", negative_prompt="blue", seed=1, width=128, height=128, cfg_scale=4)
assert again.image.tobytes() == drawn.images[0].tobytes(), "the same seed is another picture"

told = api.png_info(drawn.image).info
assert "a red heart" in told and "Seed: 1" in told, told

changed = api.img2img(images=[drawn.image], prompt="a blue heart", seed=3, denoising_strength=0.7, width=128, height=128, cfg_scale=4)
assert changed.image.size == (128, 128)

mask = Image.new("L", (128, 128), 0)
ImageDraw.Draw(mask).rectangle((0, 0, 63, 127), fill=255)
inpainted = api.img2img(
    images=[drawn.image], mask_image=mask, prompt="a blue heart", seed=3, denoising_strength=0.9,
    width=128, height=128, cfg_scale=4, inpaint_full_res=False, inpainting_fill=1, mask_blur=0,
)
right = lambda image: image.convert("RGB").crop((96, 0, 128, 128)).tobytes()
left = lambda image: image.convert("RGB").crop((0, 0, 48, 128)).tobytes()
assert right(inpainted.image) == right(drawn.image), "what is not masked changed"
assert left(inpainted.image) != left(drawn.image), "what is masked did not change"

networks = [one["name"] for one in api.get_upscalers() if one["name"] != "None"]
if networks:
    large = api.extra_single_image(drawn.image, upscaler_1=networks[0], upscaling_resize=2)
    assert large.image.size == (256, 256), large.image.size
    several = api.extra_batch_images(drawn.images, upscaler_1=networks[0], upscaling_resize=2)
    assert [image.size for image in several.images] == [(256, 256)] * 2
    second = api.txt2img(
        prompt="a red heart", seed=1, width=128, height=128, cfg_scale=4, enable_hr=True, hr_scale=1.5,
        hr_upscaler=networks[0], hr_second_pass_steps=4, denoising_strength=0.5,
    )  # fmt: skip
    assert second.image.size == (192, 192), second.image.size
else:
    print("SKIPPED: pictures made larger: there is no network in models.dirs", file=sys.stderr)
if len(sys.argv) > 2:
    assert api.has_adetailer
    unit = webuiapi.ADetailer(ad_model=sys.argv[2], ad_confidence=0.001, ad_mask_k_largest=1, ad_prompt="a blue heart")
    repaired = api.txt2img(prompt="a red heart", negative_prompt="blue", seed=1, width=128, height=128, cfg_scale=4, adetailer=[unit])
    assert repaired.image.size == (128, 128)
    assert repaired.image.tobytes() != drawn.images[0].tobytes(), "nothing was drawn anew"
else:
    print("SKIPPED: ADetailer: no detector was named", file=sys.stderr)

try:
    api.txt2img(prompt="x", restore_faces=True, width=128, height=128)
    sys.exit("restore_faces was accepted")
except RuntimeError as error:
    assert error.args[0] == 422 and "restore_faces" in error.args[1], error

assert api.get_memory()["ram"]["total"] > 0
assert api.get_progress()["state"]["job_count"] == 0
api.interrupt()
api.refresh_checkpoints()
api.custom_post("unload-checkpoint", baseurl=True)
api.custom_post("reload-checkpoint", baseurl=True)
print("webuiapi 0.9.17: all as expected")
