"""Tiny random Stable Diffusion checkpoints, and what diffusers makes of them.

    python stable_diffusion.py fixtures [--out DIR] [--only NAME ...]
    python stable_diffusion.py compare --lowtide ../../target/release/lowtide [--cases 20] [--seed 0] [--keep DIR]

`fixtures` writes the cases of `crates/engine/tests/fixtures/stable-diffusion`. `compare` draws families, sizes, samplers,
schedules, pictures and masks nobody has looked at before, and asks a built `lowtide`. Exit code 1 when one differs.
"""

import argparse
import dataclasses
import inspect
import json
import random
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.utils import logging
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from tiny import calibrate_image, randomize

# These diffusers look for a part that these transformers no longer have by its name.
if not hasattr(CLIPTextModel, "text_model"):
    CLIPTextModel.text_model = property(lambda self: self)

logging.disable_progress_bar()
logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
transformers.logging.set_verbosity_error()

DEFAULT_OUT = Path(__file__).resolve().parents[2] / "crates" / "engine" / "tests" / "fixtures" / "stable-diffusion"
SIZE_MAX_BYTES = 1 << 20
PROMPT = "a red cat, on a blue boat"
NEGATIVE = "dark, small"

SCHEDULERS = {
    "DDIM": ("DDIMScheduler", {}),
    "PLMS": ("PNDMScheduler", {"skip_prk_steps": True}),
    "Euler": ("EulerDiscreteScheduler", {}),
    "Euler a": ("EulerAncestralDiscreteScheduler", {}),
    "Heun": ("HeunDiscreteScheduler", {}),
    "DPM++ 2M": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "DPM++ SDE": ("DPMSolverSDEScheduler", {}),
    "DPM++ 2M SDE": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "UniPC": ("UniPCMultistepScheduler", {}),
    "LCM": ("LCMScheduler", {}),
}
SCHEDULES = {
    "normal": {},
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "beta": {"use_beta_sigmas": True},
}
# Those whose class has the three options.
SPACED = ["Euler", "Heun", "DPM++ 2M", "DPM++ SDE", "DPM++ 2M SDE", "UniPC"]


@dataclass
class Family:
    """What tells one kind of checkpoint from another."""

    pipeline: str
    levels: tuple = (16, 32)
    linear: bool = False
    heads: object = 2
    prediction: str = "epsilon"
    inpaints: bool = False
    encoders: tuple = ("text_encoder",)
    depths: object = 1
    score: bool = False
    act: str = "quick_gelu"
    scheduler: str = "PNDMScheduler"
    options: dict = field(default_factory=dict)


FAMILIES = {
    "sd15": Family("StableDiffusion"),
    "sd15-inpaint": Family("StableDiffusionInpaint", inpaints=True),
    "sd21": Family(
        "StableDiffusion", linear=True, heads=(2, 4), prediction="v_prediction", act="gelu", scheduler="DDIMScheduler"
    ),
    "sdxl": Family(
        "StableDiffusionXL", levels=(8, 24), linear=True, heads=(2, 4), encoders=("text_encoder", "text_encoder_2"), depths=(1, 2),
        scheduler="EulerDiscreteScheduler",
    ),
    "sdxl-inpaint": Family(
        "StableDiffusionXLInpaint", levels=(8, 24), linear=True, heads=(2, 4), encoders=("text_encoder", "text_encoder_2"),
        depths=(1, 2), inpaints=True, scheduler="EulerDiscreteScheduler",
    ),
    "sdxl-refiner": Family(
        "StableDiffusionXLImg2Img", levels=(8, 24), linear=True, heads=(2, 4), encoders=("text_encoder_2",), depths=(1, 2), score=True,
        scheduler="EulerDiscreteScheduler",
    ),
}  # fmt: skip


def tokenizer(pad: str) -> CLIPTokenizer:
    """CLIP's own rules over an alphabet of bytes alone: 514 tokens."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    tokens = letters + [letter + "</w>" for letter in letters] + ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], pad_token=pad, model_max_length=77)


def text_encoder(name: str, family: Family, hidden: int, rng: random.Random):
    projection = name == "text_encoder_2"
    config = CLIPTextConfig(
        vocab_size=514, hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=3, num_attention_heads=4,
        max_position_embeddings=77, hidden_act="gelu" if projection else family.act, bos_token_id=512,
        eos_token_id=513, pad_token_id=0 if projection else 513, projection_dim=24,
    )  # fmt: skip
    model = (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)
    randomize(model, rng.randrange(2**31))
    for part, parameter in model.named_parameters():
        if "embedding" in part:
            parameter.data.mul_(0.7 if "token" in part else 0.3)
    return model


def unet(family: Family, states: int, rng: random.Random) -> UNet2DConditionModel:
    levels = len(family.levels)
    shape = dict(
        sample_size=8,
        in_channels=9 if family.inpaints else 4,
        out_channels=4,
        block_out_channels=family.levels,
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=states,
        attention_head_dim=family.heads,
        use_linear_projection=family.linear,
        down_block_types=("CrossAttnDownBlock2D",) * (levels - 1) + ("DownBlock2D" if not family.depths != 1 else "CrossAttnDownBlock2D",),
        up_block_types=("UpBlock2D" if not family.depths != 1 else "CrossAttnUpBlock2D",) + ("CrossAttnUpBlock2D",) * (levels - 1),
    )
    if "XL" in family.pipeline:
        numbers = 5 if family.score else 6
        shape.update(
            transformer_layers_per_block=family.depths,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=8 * numbers + 24,
        )
    model = UNet2DConditionModel(**shape)
    randomize(model, rng.randrange(2**31))
    return model


@torch.no_grad()
def calibrate(model: UNet2DConditionModel) -> None:
    """Scales the last convolution so that what is said of noise has unit variance."""
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn((1, model.config.in_channels, 8, 6), generator=generator)
    text = torch.randn((1, 77, model.config.cross_attention_dim), generator=generator)
    added = None
    if model.config.addition_embed_type:
        numbers = (model.config.projection_class_embeddings_input_dim - 24) // 8
        added = {"text_embeds": torch.randn((1, 24), generator=generator), "time_ids": torch.full((1, numbers), 64.0)}
    said = model(noise, 500, text, added_cond_kwargs=added).sample
    model.conv_out.weight.data /= said.std()
    model.conv_out.bias.data /= said.std()


def write(family: Family, folder: Path, seed: int, dtype: torch.dtype) -> None:
    """A checkpoint in the diffusers layout."""
    rng = random.Random(seed)
    hidden = {"text_encoder": 24 if "XL" in family.pipeline else 32, "text_encoder_2": 24}
    states = sum(hidden[name] for name in family.encoders)
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 16, 16), layers_per_block=1, norm_num_groups=4, latent_channels=4,
        scaling_factor=0.13025 if "XL" in family.pipeline else 0.18215, sample_size=64,
        down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4,
    )  # fmt: skip
    randomize(vae, rng.randrange(2**31))
    spec = dataclasses.make_dataclass("Spec", ["seed"])(rng.randrange(2**31))
    vae.config.shift_factor = 0.0
    calibrate_image(vae, spec)
    network = unet(family, states, rng)
    calibrate(network)
    scheduler = getattr(diffusers, family.scheduler)(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000, steps_offset=1,
        timestep_spacing="leading", prediction_type=family.prediction,
        **({"skip_prk_steps": True} if family.scheduler == "PNDMScheduler" else {}),
        **({"clip_sample": False, "set_alpha_to_one": False} if family.scheduler == "DDIMScheduler" else {}),
    )  # fmt: skip
    parts = dict(vae=vae, unet=network, scheduler=scheduler)
    for name in ("text_encoder", "text_encoder_2"):
        suffix = name.removeprefix("text_encoder")
        there = name in family.encoders
        parts[name] = text_encoder(name, family, hidden[name], rng) if there else None
        parts["tokenizer" + suffix] = tokenizer("!" if suffix else "<|endoftext|>") if there else None
    if "XL" not in family.pipeline:
        parts.pop("text_encoder_2"), parts.pop("tokenizer_2")
        parts.update(safety_checker=None, feature_extractor=None, image_encoder=None)
        if family.inpaints:
            parts.pop("image_encoder")
            parts["image_encoder"] = None
    for name in ("vae", "unet", "text_encoder", "text_encoder_2"):
        if parts.get(name) is not None:
            parts[name] = parts[name].to(dtype)
    extra = {"requires_safety_checker": False} if "XL" not in family.pipeline else {}
    if family.score or family.pipeline == "StableDiffusionXLInpaint":
        extra["requires_aesthetics_score"] = family.score
    pipeline = getattr(diffusers, family.pipeline + "Pipeline")(**parts, **extra)
    pipeline.save_pretrained(folder)


def load(folder: Path, kind: str):
    pipeline = getattr(diffusers, kind + "Pipeline").from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def kind_of(family: Family, request: dict) -> str:
    """The sibling of the pipeline that does what is asked."""
    base = "StableDiffusionXL" if "XL" in family.pipeline else "StableDiffusion"
    if request.get("mask"):
        return base + "Inpaint"
    return base + "Img2Img" if request.get("image") else base


def picture(width: int, height: int, seed: int) -> Image.Image:
    """Soft colours and a few edges."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand((1, 3, 4, 4), generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1)[0]
    smooth[:, height // 3 : height // 2, width // 4 : width // 2] = torch.rand((3, 1, 1), generator=generator)
    return Image.fromarray((smooth * 255).round().byte().permute(1, 2, 0).numpy())


def mask(width: int, height: int) -> Image.Image:
    drawn = Image.new("L", (width, height), 0)
    drawn.paste(255, (width // 4, height // 4, width // 4 * 3, height))
    return drawn


def merge_into_encoders(pipeline, texts: dict[str, torch.Tensor], strength: float) -> None:
    """Adds strength * alpha / rank * up @ down to every layer that kohya's names mean."""
    for prefix, component in (("lora_te_", "text_encoder"), ("lora_te1_", "text_encoder"), ("lora_te2_", "text_encoder_2")):
        for name, layer in getattr(pipeline, component, torch.nn.Module()).named_modules():
            key = prefix + "text_model_" + name.removeprefix("text_model.").replace(".", "_")
            if f"{key}.lora_up.weight" in texts:
                up, down = texts[f"{key}.lora_up.weight"], texts[f"{key}.lora_down.weight"]
                layer.weight.data += strength * texts[f"{key}.alpha"] / down.shape[0] * up @ down


def decode(pipeline, latents: torch.Tensor) -> torch.Tensor:
    return pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor, return_dict=False)[0]


def draw_once(pipeline, request: dict, seed: int, steps: int, given: dict) -> torch.Tensor:
    """Latents of one call."""
    arguments = dict(
        prompt=request["prompt"],
        negative_prompt=request.get("negative"),
        num_inference_steps=steps,
        guidance_scale=request["guidance"],
        generator=torch.Generator().manual_seed(seed),
        eta=request.get("eta", 0.0),
        output_type="latent",
        **given,
    )
    for key in ("clip_skip", "guidance_rescale"):
        if request.get(key):
            # A second pass is another pipeline, and not all of them have every argument.
            if key not in inspect.signature(type(pipeline).__call__).parameters:
                continue
            arguments[key] = request[key]
    return pipeline(**arguments).images


def second_pass(pipeline, family: Family, request: dict, seed: int, latents: torch.Tensor) -> torch.Tensor:
    """What web UIs call hires fix, made of stock parts: the result enlarged, and image to image with the same seed."""
    asked = request["hires"]
    size = (asked["width"], asked["height"])
    if asked["upscaler"] == "lanczos":
        drawn = pipeline.image_processor.postprocess(decode(pipeline, latents), output_type="pil")[0]
        larger = drawn.resize(size, Image.Resampling.LANCZOS)
    else:
        mode = {"latent": "bilinear", "latent-nearest": "nearest-exact"}[asked["upscaler"]]
        larger = torch.nn.functional.interpolate(latents, size=(size[1] // 8, size[0] // 8), mode=mode)
    kind = getattr(diffusers, kind_of(family, {"image": True}) + "Pipeline")
    sibling = kind.from_pipe(pipeline)
    sibling.set_progress_bar_config(disable=True)
    given = dict(image=larger, strength=asked["strength"])
    return draw_once(sibling, request, seed, asked["steps"], given)


@torch.no_grad()
def run(folder: Path, family: Family, request: dict, inputs: Path) -> dict[str, torch.Tensor]:
    """One call of diffusers; `latents` (N, C, h, w) and `image` (N, 3, H, W) in 0..1."""
    pipeline = load(folder, kind_of(family, request))
    if request.get("sampler"):
        name, options = SCHEDULERS[request["sampler"]]
        options = {**options, **SCHEDULES[request.get("schedule") or "normal"]}
        pipeline.scheduler = getattr(diffusers, name).from_config(pipeline.scheduler.config, **options)
    for index, (file, strength) in enumerate(request.get("loras", [])):
        state = load_file(inputs / file)
        # These diffusers do not find the layers of text encoders by the names these transformers give them.
        texts = {name: value for name, value in state.items() if name.startswith("lora_te")}
        pipeline.load_lora_weights({k: v for k, v in state.items() if k not in texts}, adapter_name=f"a{index}")
        merge_into_encoders(pipeline, texts, strength)
    if request.get("loras"):
        names = [f"a{index}" for index in range(len(request["loras"]))]
        pipeline.set_adapters(names, [strength for _, strength in request["loras"]])
    for name, file in request.get("embeddings", {}).items():
        pipeline.load_textual_inversion(inputs / file, token=name)
    results = []
    for k in range(request.get("count", 1)):
        seed = request["seed"] + k
        if request.get("sampler") == "DPM++ SDE":
            # Without a seed its path differs from run to run.
            config = pipeline.scheduler.config
            pipeline.scheduler = type(pipeline.scheduler).from_config(config, noise_sampler_seed=seed)
        given = {}
        if request.get("image"):
            given.update(image=Image.open(inputs / request["image"]), strength=request["strength"])
        if request.get("mask"):
            given["mask_image"] = Image.open(inputs / request["mask"])
        if not request.get("image") or request.get("mask"):
            given.update(width=request["width"], height=request["height"])
        latents = draw_once(pipeline, request, seed, request["steps"], given)
        if request.get("hires"):
            latents = second_pass(pipeline, family, request, seed, latents)
        image = decode(pipeline, latents)
        results.append((latents.float(), (image / 2 + 0.5).clamp(0, 1).float()))
    return {
        "latents": torch.cat([latents for latents, _ in results]).contiguous(),
        "image": torch.cat([image for _, image in results]).contiguous(),
    }


def lora(folder: Path, file: Path, seed: int, style: str) -> None:
    """A LoRA of rank 2 on every attention of a checkpoint's networks, named as `style` names things."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for component, prefix in (("unet", "lora_unet"), ("text_encoder", "lora_te"), ("text_encoder_2", "lora_te2")):
        if not (folder / component).exists():
            continue
        if component == "text_encoder" and (folder / "text_encoder_2").exists():
            prefix = "lora_te1"
        file_name = "diffusion_pytorch_model" if component == "unet" else "model"
        for name, weight in load_file(folder / component / f"{file_name}.safetensors").items():
            parts = name.removesuffix(".weight").split(".")
            wanted = ("to_q", "to_k", "to_v", "q_proj", "k_proj", "v_proj", "out_proj")
            if not name.endswith(".weight") or not (parts[-1] in wanted or parts[-2:] == ["to_out", "0"]):
                continue
            down = torch.randn((2, weight.shape[1]), generator=generator) / weight.shape[1] ** 0.5
            up = torch.randn((weight.shape[0], 2), generator=generator) * 0.5
            if style == "kohya":
                if component != "unet" and parts[0] != "text_model":
                    parts = ["text_model", *parts]
                key = "_".join([prefix, *parts])
                tensors[f"{key}.lora_down.weight"], tensors[f"{key}.lora_up.weight"] = down, up
                tensors[f"{key}.alpha"] = torch.tensor(1.0)
            elif component == "unet":
                key = ".".join([component, *parts])
                tensors[f"{key}.lora_A.weight"], tensors[f"{key}.lora_B.weight"] = down, up
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)


def request(**more) -> dict:
    plain = dict(
        prompt=PROMPT, negative=NEGATIVE, width=64, height=48, steps=4, guidance=5.0, seed=7, count=1, strength=0.6
    )
    return {**plain, **more}


def cases(name: str, family: Family) -> dict[str, dict]:
    """The requests of a family's fixture."""
    given = dict(image="picture.png")
    masked = dict(image="picture.png", mask="mask.png")
    if family.inpaints:
        return {
            "inpaint": request(**masked, strength=1.0),
            "inpaint-part": request(**masked, strength=0.6, sampler="Euler a"),
        }
    if family.score:
        return {"refine": request(**given, strength=0.5), "refine-inpaint": request(**masked, strength=0.8)}
    found = {
        "plain": request(count=2),
        "alone": request(guidance=1.0, negative=None),
        "no-negative": request(negative=None),
        "clip-skip": request(clip_skip=1),
        "rescaled": request(guidance_rescale=0.7, guidance=7.5),
        "image": request(**given),
        "image-ancestral": request(**given, sampler="Euler a", strength=0.8),
        "inpaint": request(**masked, strength=0.8),
        "inpaint-whole": request(**masked, strength=1.0, sampler="Euler a"),
    }
    for sampler in SCHEDULERS if name in ("sd15", "sd21") else ("Euler a", "DPM++ 2M", "UniPC"):
        if sampler == "LCM" and family.prediction != "epsilon":
            continue
        found[f"sampler {sampler}"] = request(sampler=sampler, steps=5)
        found[f"image {sampler}"] = request(**given, sampler=sampler, steps=6, strength=0.7)
        if sampler in SPACED and name == "sd15":
            for schedule in ("karras", "exponential", "beta"):
                found[f"{schedule} {sampler}"] = request(sampler=sampler, schedule=schedule, steps=5)
    if name != "sd21":
        found["lora kohya"] = request(loras=[["kohya.safetensors", 0.8]])
        found["lora peft"] = request(loras=[["peft.safetensors", -0.5]])
        found["loras"] = request(loras=[["kohya.safetensors", 0.6], ["peft.safetensors", 1.1]], steps=2)
    found["eta"] = request(sampler="DDIM", eta=0.7)
    # In single precision 10 x 0.7 is less than 7.
    found["image-counted"] = request(**given, steps=10, strength=0.7, sampler="Euler a")
    if name == "sd15":
        larger = dict(width=96, height=64, steps=5, strength=0.6)
        for upscaler in ("latent", "latent-nearest", "lanczos"):
            found[f"hires {upscaler}"] = request(hires=dict(larger, upscaler=upscaler), count=2, steps=3)
        found["hires Euler a"] = request(hires=dict(larger, upscaler="lanczos"), sampler="Euler a")
        found["hires DPM++ SDE"] = request(hires=dict(larger, upscaler="latent"), sampler="DPM++ SDE", schedule="karras")
        learned = {"thing": "thing.safetensors", "style-7": "style-7.pt"}
        found["embeddings"] = request(prompt="a thing, on a boat, style-7", negative="thing", embeddings=learned)
        found["embedding Euler a"] = request(prompt="a style-7 cat", embeddings=learned, sampler="Euler a", count=2)
    return found


def make(name: str, out: Path) -> None:
    family, folder = FAMILIES[name], out / name
    shutil.rmtree(folder, ignore_errors=True)
    write(family, folder / "checkpoint", seed=sum(map(ord, name)), dtype=torch.float16)
    picture(64, 48, 3).save(folder / "picture.png")
    mask(64, 48).save(folder / "mask.png")
    if name in ("sd15", "sdxl"):
        lora(folder / "checkpoint", folder / "kohya.safetensors", 1, "kohya")
        lora(folder / "checkpoint", folder / "peft.safetensors", 2, "peft")
    if name == "sd15":
        generator = torch.Generator().manual_seed(4)
        save_file({"emb_params": torch.randn((3, 32), generator=generator)}, folder / "thing.safetensors")
        learned = {"string_to_param": {"*": torch.randn((2, 32), generator=generator)}, "name": "style-7"}
        torch.save(learned, folder / "style-7.pt")
    expected, all_cases = {}, cases(name, family)
    for case, asked in all_cases.items():
        result = run(folder / "checkpoint", family, asked, folder)
        expected[f"{case}.latents"] = result["latents"]
        # Pictures are larger; a few say that what decodes is right.
        if case in ("plain", "inpaint", "refine"):
            expected[f"{case}.image"] = result["image"]
        spread = result["latents"].std().item()
        assert 0.1 < spread < 300, (name, case, spread)
        print(f"{name:14} {case:28} latents' deviation {spread:.3f}", flush=True)
    save_file(expected, folder / "expected.safetensors")
    (folder / "cases.json").write_text(json.dumps(all_cases, indent=1) + "\n")
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{name}: {size} bytes")
    assert size <= SIZE_MAX_BYTES, size


def draw(rng: random.Random, family: Family) -> dict:
    """A request nobody has looked at."""
    from unseen import draw_prompt

    asked = request(
        prompt=draw_prompt(rng, 12), negative=rng.choice([None, "", draw_prompt(rng, 6)]),
        width=8 * rng.randint(4, 14), height=8 * rng.randint(4, 14), steps=rng.randint(2, 7),
        guidance=rng.choice([1.0, 3.0, 7.5]), seed=rng.randrange(2**32), count=rng.choice([1, 1, 2]),
        guidance_rescale=rng.choice([0.0, 0.0, 0.5]), clip_skip=rng.choice([0, 0, 1]),
    )  # fmt: skip
    sampler = rng.choice([None, *SCHEDULERS])
    if sampler == "LCM" and family.prediction != "epsilon":
        sampler = None
    if sampler:
        asked["sampler"] = sampler
        if sampler in SPACED:
            asked["schedule"] = rng.choice(list(SCHEDULES))
    if sampler == "DDIM":
        asked["eta"] = rng.choice([0.0, 0.4, 1.0])
    given, masked = rng.random() < 0.5 or family.score or family.inpaints, rng.random() < 0.5 or family.inpaints
    if given and "XL" not in family.pipeline:
        # These pipelines of diffusers have no such argument.
        asked["guidance_rescale"] = 0.0
    if given:
        asked["image"] = "picture.png"
        asked["strength"] = rng.choice([0.5, 0.7, 0.9, 1.0])
        asked["steps"] += 2
        if masked:
            asked["mask"] = "mask.png"
    return asked


def ask(binary: Path, model: Path, asked: dict, inputs: Path) -> dict[str, torch.Tensor]:
    """The same of a built `lowtide`, called as a user calls it."""
    dump = inputs / "dump.safetensors"
    command = [
        str(binary.resolve()), "generate", asked["prompt"], "--local", "--model", str(model),
        "--size", f"{asked['width']}x{asked['height']}", "--steps", str(asked["steps"]),
        "--guidance", str(asked["guidance"]), "--seed", str(asked["seed"]), "--count", str(asked["count"]),
        "--precision", "f32", "--prompt-reading", "literal", "--dump", str(dump), "-o", str(inputs / "x.png"), "--json",
    ]  # fmt: skip
    if asked["negative"] is not None:
        command += ["--negative", asked["negative"]]
    for key in ("sampler", "schedule", "eta", "clip_skip", "guidance_rescale"):
        if asked.get(key):
            command += ["--" + key.replace("_", "-"), str(asked[key])]
    for key in ("image", "mask"):
        if asked.get(key):
            command += ["--" + key, str(inputs / asked[key])]
    if asked.get("image"):
        command += ["--strength", str(asked["strength"])]
    if asked.get("mask"):
        command += ["--mask-blur", "0"]
    dump.unlink(missing_ok=True)
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        lines = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()
        raise RuntimeError(f"exit code {done.returncode}: {lines[-1]}")
    return load_file(dump)


def compare(arguments) -> int:
    failures = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        for index in range(arguments.cases):
            rng = random.Random(f"{arguments.seed}/{index}")
            name = rng.choice(list(FAMILIES))
            family = FAMILIES[name]
            model = folder / f"{name}-{arguments.seed}-{index}"
            write(family, model, rng.randrange(2**31), rng.choice([torch.float16, torch.float32, torch.bfloat16]))
            asked = draw(rng, family)
            picture(asked["width"], asked["height"], index).save(folder / "picture.png")
            mask(asked["width"], asked["height"]).save(folder / "mask.png")
            what = {k: v for k, v in asked.items() if k not in ("prompt", "negative", "seed")}
            try:
                expected = run(model, family, asked, folder)
                ours = ask(arguments.lowtide, model, asked, folder)
                off = ((ours["latents"] - expected["latents"]).abs().max() / expected["latents"].std()).item()
                image = (ours["image"] - expected["image"]).abs().max().item() * 255
                good = off <= 2e-3 and image <= 2
                result = f"latents {off:8.1e} of std, image {image:6.3f}/255  {'ok' if good else 'FAILED'}"
            except (RuntimeError, OSError, ValueError, KeyError) as error:
                good, result = False, f"FAILED: {error}"
            failures += not good
            print(f"{index:3} {name:13} {result}  {what}", flush=True)
    print(f"{arguments.cases - failures} of {arguments.cases} within 2e-3 of the latents' deviation and 2/255")
    return failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    fixtures = verbs.add_parser("fixtures")
    fixtures.add_argument("--out", type=Path, default=DEFAULT_OUT)
    fixtures.add_argument("--only", nargs="*")
    comparing = verbs.add_parser("compare")
    comparing.add_argument("--lowtide", type=Path, required=True)
    comparing.add_argument("--cases", type=int, default=20)
    comparing.add_argument("--seed", type=int, default=0)
    comparing.add_argument("--keep", type=Path, help="keep the checkpoints in this folder")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    if arguments.verb == "compare":
        return 1 if compare(arguments) else 0
    for name in arguments.only or FAMILIES:
        make(name, arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
