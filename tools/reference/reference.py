"""Runs the stock diffusers pipeline and keeps what a comparison needs."""

from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from diffusers import ZImagePipeline
from diffusers.utils import logging

logging.disable_progress_bar()
logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
transformers.logging.set_verbosity_error()


@dataclass
class Request:
    """One call of the pipeline, in the words of `case.json`."""

    prompt: str
    width: int
    height: int
    steps: int
    guidance: float
    seed: int
    negative: str | None = None
    count: int = 1
    cfg_normalization: float = 0.0
    cfg_truncation: float = 1.0


def load(folder: Path, dtype: torch.dtype = torch.float32) -> ZImagePipeline:
    pipeline = ZImagePipeline.from_pretrained(folder, dtype=dtype, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw_noise(pipeline: ZImagePipeline, request: Request) -> torch.Tensor:
    """Initial latents (N, C, H/8, W/8); image k is drawn from seed + k by a generator of its own."""
    generators = [torch.Generator("cpu").manual_seed(request.seed + k) for k in range(request.count)]
    channels = pipeline.transformer.config.in_channels
    return pipeline.prepare_latents(
        request.count, channels, request.height, request.width, torch.float32, torch.device("cpu"), generators
    )


def render(pipeline: ZImagePipeline, prompt: str) -> str:
    return pipeline.tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True, enable_thinking=True
    )


def tokenize(pipeline: ZImagePipeline, prompt: str) -> torch.Tensor:
    """The token ids that are not padding, cut at 512 as the pipeline cuts them."""
    inputs = pipeline.tokenizer(
        [render(pipeline, prompt)], padding="max_length", max_length=512, truncation=True, return_tensors="pt"
    )
    return inputs.input_ids[0][inputs.attention_mask[0].bool()]


@torch.no_grad()
def run(pipeline: ZImagePipeline, request: Request, latents: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    """One call; returns `noise`, token ids, embeddings, `latents_step1`, `latents`, `image` (N, 3, H, W) in 0..1."""
    noise = draw_noise(pipeline, request) if latents is None else latents
    steps: list[torch.Tensor] = []

    def keep(_pipeline, _index, _time, values):
        steps.append(values["latents"].float().clone())
        return {}

    image = pipeline(
        request.prompt,
        negative_prompt=request.negative,
        height=request.height,
        width=request.width,
        num_inference_steps=request.steps,
        guidance_scale=request.guidance,
        num_images_per_prompt=request.count,
        cfg_normalization=request.cfg_normalization,
        cfg_truncation=request.cfg_truncation,
        latents=noise.clone(),
        output_type="pt",
        callback_on_step_end=keep,
    ).images
    result = {
        "noise": noise,
        "latents_step1": steps[0],
        "latents": steps[-1],
        "image": image.float(),
        "input_ids": tokenize(pipeline, request.prompt),
        "prompt_embeds": pipeline._encode_prompt([request.prompt])[0].float(),
    }
    if request.guidance > 0:
        negative = request.negative or ""
        result["negative_input_ids"] = tokenize(pipeline, negative)
        result["negative_prompt_embeds"] = pipeline._encode_prompt([negative])[0].float()
    return {name: value.contiguous() for name, value in result.items()}
