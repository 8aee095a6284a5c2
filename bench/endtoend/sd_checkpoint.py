"""Stable Diffusion checkpoints of real shapes with random weights, in diffusers layout and f16. Standard library only.

    python sd_checkpoint.py DIR --preset sd15 [--seed 0] [--sparse]

With --sparse the files have headers and holes: enough to open and plan a model, at no space on the disk. Weights are drawn from
+-[2^-7, 2^-6), norms are 1: what a picture shows does not matter. The tokenizer is the one that comes with Lowtide.
"""

import argparse
import json
import random
import struct
import sys
import zlib
from pathlib import Path

POOL_BYTES = 8 << 20
F16_ONE = b"\x00\x3c"

CLIP_L = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, hidden_act="quick_gelu")
CLIP_H = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16, hidden_act="gelu")
CLIP_G = dict(
    hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20, hidden_act="gelu",
    projection_dim=1280,
)  # fmt: skip
CROSS, PLAIN = "Cross", "Plain"

# widths, kinds of the levels on the way down, transformer layers by level, heads by level, width of the text, further settings
PRESETS = {
    "sd15": dict(encoders=[CLIP_L], widths=[320, 640, 1280, 1280], levels=[CROSS, CROSS, CROSS, PLAIN], depth=[1] * 4, heads=8, cross=768),
    "sd15-small": dict(
        encoders=[dict(CLIP_L, num_hidden_layers=4)], widths=[128, 256, 512, 512], levels=[CROSS, CROSS, CROSS, PLAIN], depth=[1] * 4, heads=8,
        cross=768, vae=[64, 128, 256, 256],
    ),
    "sd21": dict(
        encoders=[CLIP_H], widths=[320, 640, 1280, 1280], levels=[CROSS, CROSS, CROSS, PLAIN], depth=[1] * 4, heads=[5, 10, 20, 20], cross=1024,
        linear=True, prediction="v_prediction",
    ),
    "sdxl": dict(
        encoders=[CLIP_L, CLIP_G], widths=[320, 640, 1280], levels=[PLAIN, CROSS, CROSS], depth=[1, 2, 10], heads=[5, 10, 20], cross=2048,
        linear=True, added=2816,
    ),
    "sdxl-refiner": dict(
        encoders=[None, CLIP_G], widths=[384, 768, 1536, 1536], levels=[PLAIN, CROSS, CROSS, PLAIN], depth=[4] * 4, heads=[6, 12, 24, 24],
        cross=1280, linear=True, added=2560,
    ),
}  # fmt: skip
for family in ("sd15", "sdxl"):
    PRESETS[f"{family}-inpaint"] = dict(PRESETS[family], channels=9)


class Tensors:
    """Names and shapes of one component."""

    def __init__(self):
        self.shapes = {}

    def biased(self, name, *shape):
        self.shapes[f"{name}.weight"] = shape
        self.shapes[f"{name}.bias"] = shape[:1]

    def weight(self, name, *shape):
        self.shapes[f"{name}.weight"] = shape

    def resnet(self, name, before, after, time=None):
        self.biased(f"{name}.norm1", before)
        self.biased(f"{name}.conv1", after, before, 3, 3)
        if time:
            self.biased(f"{name}.time_emb_proj", after, time)
        self.biased(f"{name}.norm2", after)
        self.biased(f"{name}.conv2", after, after, 3, 3)
        if before != after:
            self.biased(f"{name}.conv_shortcut", after, before, 1, 1)

    def transformer(self, name, width, layers, preset):
        point = () if preset.get("linear") else (1, 1)
        self.biased(f"{name}.norm", width)
        self.biased(f"{name}.proj_in", width, width, *point)
        for layer in range(layers):
            at = f"{name}.transformer_blocks.{layer}"
            for k, keys in (("attn1", width), ("attn2", preset["cross"])):
                self.weight(f"{at}.{k}.to_q", width, width)
                self.weight(f"{at}.{k}.to_k", width, keys)
                self.weight(f"{at}.{k}.to_v", width, keys)
                self.biased(f"{at}.{k}.to_out.0", width, width)
            for norm in ("norm1", "norm2", "norm3"):
                self.biased(f"{at}.{norm}", width)
            self.biased(f"{at}.ff.net.0.proj", 8 * width, width)
            self.biased(f"{at}.ff.net.2", width, 4 * width)
        self.biased(f"{name}.proj_out", width, width, *point)


def text_encoder(config, projects):
    tensors, width = Tensors(), config["hidden_size"]
    tensors.weight("text_model.embeddings.token_embedding", 49408, width)
    tensors.weight("text_model.embeddings.position_embedding", 77, width)
    for layer in range(config["num_hidden_layers"]):
        at = f"text_model.encoder.layers.{layer}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            tensors.biased(f"{at}.self_attn.{name}", width, width)
        tensors.biased(f"{at}.layer_norm1", width)
        tensors.biased(f"{at}.layer_norm2", width)
        tensors.biased(f"{at}.mlp.fc1", config["intermediate_size"], width)
        tensors.biased(f"{at}.mlp.fc2", width, config["intermediate_size"])
    tensors.biased("text_model.final_layer_norm", width)
    if projects:
        tensors.weight("text_projection", config["projection_dim"], width)
    return tensors.shapes


def unet(preset):
    tensors, widths, levels, depth = Tensors(), preset["widths"], preset["levels"], preset["depth"]
    time = 4 * widths[0]
    tensors.biased("conv_in", widths[0], preset.get("channels", 4), 3, 3)
    tensors.biased("time_embedding.linear_1", time, widths[0])
    tensors.biased("time_embedding.linear_2", time, time)
    if added := preset.get("added"):
        tensors.biased("add_embedding.linear_1", time, added)
        tensors.biased("add_embedding.linear_2", time, time)
    width = widths[0]
    for level, wide in enumerate(widths):
        at = f"down_blocks.{level}"
        for layer in range(2):
            tensors.resnet(f"{at}.resnets.{layer}", width, wide, time)
            width = wide
            if levels[level] == CROSS:
                tensors.transformer(f"{at}.attentions.{layer}", wide, depth[level], preset)
        if level + 1 < len(widths):
            tensors.biased(f"{at}.downsamplers.0.conv", wide, wide, 3, 3)
    tensors.resnet("mid_block.resnets.0", width, width, time)
    tensors.transformer("mid_block.attentions.0", width, depth[-1], preset)
    tensors.resnet("mid_block.resnets.1", width, width, time)
    back = list(reversed(widths))
    for level, wide in enumerate(back):
        at, down = f"up_blocks.{level}", len(widths) - 1 - level
        beyond = back[min(level + 1, len(back) - 1)]
        for layer in range(3):
            skip = beyond if layer == 2 else wide
            tensors.resnet(f"{at}.resnets.{layer}", width + skip, wide, time)
            width = wide
            if levels[down] == CROSS:
                tensors.transformer(f"{at}.attentions.{layer}", wide, depth[down], preset)
        if level + 1 < len(back):
            tensors.biased(f"{at}.upsamplers.0.conv", wide, wide, 3, 3)
    tensors.biased("conv_norm_out", widths[0])
    tensors.biased("conv_out", 4, widths[0], 3, 3)
    return tensors.shapes


def vae(widths):
    tensors = Tensors()

    def middle(half):
        last = widths[-1]
        tensors.resnet(f"{half}.mid_block.resnets.0", last, last)
        tensors.biased(f"{half}.mid_block.attentions.0.group_norm", last)
        for name in ("to_q", "to_k", "to_v", "to_out.0"):
            tensors.biased(f"{half}.mid_block.attentions.0.{name}", last, last)
        tensors.resnet(f"{half}.mid_block.resnets.1", last, last)

    for half, order, layers, kind, change in (
        ("encoder", widths, 2, "down", "downsamplers"),
        ("decoder", widths[::-1], 3, "up", "upsamplers"),
    ):
        tensors.biased(f"{half}.conv_in", order[0], 3 if half == "encoder" else 4, 3, 3)
        width = order[0]
        for level, wide in enumerate(order):
            for layer in range(layers):
                tensors.resnet(f"{half}.{kind}_blocks.{level}.resnets.{layer}", width, wide)
                width = wide
            if level + 1 < len(order):
                tensors.biased(f"{half}.{kind}_blocks.{level}.{change}.0.conv", wide, wide, 3, 3)
        middle(half)
        tensors.biased(f"{half}.conv_norm_out", order[-1])
        tensors.biased(f"{half}.conv_out", 8 if half == "encoder" else 3, order[-1], 3, 3)
    tensors.biased("quant_conv", 8, 8, 1, 1)
    tensors.biased("post_quant_conv", 4, 4, 1, 1)
    return tensors.shapes


class Pool:
    """Random f16 numbers; every tensor begins elsewhere in them."""

    def __init__(self, seed):
        draw = random.Random(seed)
        pool = bytearray(POOL_BYTES)
        pool[0::2] = draw.randbytes(POOL_BYTES // 2)
        pool[1::2] = draw.randbytes(POOL_BYTES // 2).translate(bytes(byte & 0x83 | 0x20 for byte in range(256)))
        self.pool = bytes(pool)

    def pieces(self, name, size):
        if "norm" in name and name.endswith(".weight"):
            yield F16_ONE * (size // 2)
            return
        at = 2 * (zlib.crc32(name.encode()) % (POOL_BYTES // 2))
        while size > 0:
            piece = self.pool[at : at + size]
            yield piece
            size -= len(piece)
            at = 0


def write(file, shapes, pool):
    """A safetensors file; a sparse one without a pool."""
    header, at = {}, 0
    for name, shape in sorted(shapes.items()):
        size = 2
        for dim in shape:
            size *= dim
        header[name] = dict(dtype="F16", shape=list(shape), data_offsets=[at, at + size])
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        if pool is None:
            out.truncate(8 + len(text) + at)
            return
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            for piece in pool.pieces(name, end - begin):
                out.write(piece)


def configs(preset, encoders):
    cross = [kind == CROSS for kind in preset["levels"]]
    widths, pooled = preset.get("vae", [128, 256, 512, 512]), "added" in preset
    refiner = preset["encoders"][0] is None
    network = dict(
        _class_name="UNet2DConditionModel", block_out_channels=preset["widths"], in_channels=preset.get("channels", 4), out_channels=4, layers_per_block=2,
        down_block_types=["CrossAttnDownBlock2D" if is_cross else "DownBlock2D" for is_cross in cross],
        up_block_types=["CrossAttnUpBlock2D" if is_cross else "UpBlock2D" for is_cross in cross[::-1]],
        attention_head_dim=preset["heads"], cross_attention_dim=preset["cross"], transformer_layers_per_block=preset["depth"],
        use_linear_projection=bool(preset.get("linear")), norm_num_groups=32, norm_eps=1e-5, act_fn="silu", flip_sin_to_cos=True, freq_shift=0,
        sample_size=64,
    )  # fmt: skip
    if pooled:
        network |= dict(addition_embed_type="text_time", addition_time_embed_dim=256, projection_class_embeddings_input_dim=preset["added"])
    index = dict(
        _class_name=f"StableDiffusion{'XL' if pooled else ''}{'Img2Img' if refiner else 'Inpaint' if 'channels' in preset else ''}Pipeline",
        _diffusers_version="0.42.1", scheduler=["diffusers", "EulerDiscreteScheduler"], unet=["diffusers", "UNet2DConditionModel"],
        vae=["diffusers", "AutoencoderKL"],
    )  # fmt: skip
    if refiner:
        index["requires_aesthetics_score"] = True
    files = {
        "unet/config.json": network,
        "scheduler/scheduler_config.json": dict(
            _class_name="EulerDiscreteScheduler", beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000,
            prediction_type=preset.get("prediction", "epsilon"), steps_offset=1, timestep_spacing="leading",
        ),
        "vae/config.json": dict(
            _class_name="AutoencoderKL", block_out_channels=widths, down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4, in_channels=3, out_channels=3, latent_channels=4, layers_per_block=2, norm_num_groups=32,
            act_fn="silu", sample_size=512, scaling_factor=0.13025 if pooled else 0.18215,
        ),
    }  # fmt: skip
    for component, config in encoders.items():
        projects = component == "text_encoder_2"
        kind = "CLIPTextModelWithProjection" if projects else "CLIPTextModel"
        index[component] = ["transformers", kind]
        files[f"{component}/config.json"] = dict(
            config, architectures=[kind], model_type="clip_text_model", vocab_size=49408, max_position_embeddings=77, layer_norm_eps=1e-5,
            bos_token_id=49406, eos_token_id=49407, pad_token_id=1,
        )  # fmt: skip
    files["model_index.json"] = index
    return files


def write_checkpoint(folder, name, seed=0, sparse=False):
    """Writes the checkpoint; returns the bytes of its weights."""
    preset = PRESETS[name]
    pool = None if sparse else Pool(seed)
    encoders = {f"text_encoder{'_2' if k else ''}": config for k, config in enumerate(preset["encoders"]) if config}
    for component, config in encoders.items():
        write(folder / component / "model.safetensors", text_encoder(config, component == "text_encoder_2"), pool)
    write(folder / "unet/diffusion_pytorch_model.safetensors", unet(preset), pool)
    write(folder / "vae/diffusion_pytorch_model.safetensors", vae(preset.get("vae", [128, 256, 512, 512])), pool)
    for file, config in configs(preset, encoders).items():
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text(json.dumps(config, indent=2) + "\n")
    return sum(file.stat().st_size for file in folder.glob("*/*.safetensors"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", type=Path)
    parser.add_argument("--preset", choices=PRESETS, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sparse", action="store_true")
    arguments = parser.parse_args()
    if arguments.dir.exists():
        sys.exit(f"{arguments.dir} is there already; give a folder that is not")
    total = write_checkpoint(arguments.dir, arguments.preset, arguments.seed, arguments.sparse)
    print(f"{arguments.dir}: {total / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
