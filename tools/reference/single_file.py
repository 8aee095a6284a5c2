"""Checkpoints in one file: the names that the training code gave, for models in diffusers' layout.

    python single_file.py [FOLDER]             default ../../crates/weights/tests/fixtures/single_file
    python single_file.py --convert MODEL FILE  a model's folder to one .safetensors or .ckpt

The first form records, for each family at its real size and for small ones nobody publishes, every name and shape of
the one file and what diffusers' own conversion makes of it: which tensor, which rows of it, turned or not. No weight is
needed for that. The second form writes real files, so that both layouts can be drawn with.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders import single_file_utils as theirs
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

HERE = Path(__file__).resolve().parent


def swap(name: str, pairs: list[tuple[str, str]]) -> str:
    for ours, old in pairs:
        name = name.replace(ours, old)
    return name


RESNET = [("norm1.", "in_layers.0."), ("conv1.", "in_layers.2."), ("time_emb_proj.", "emb_layers.1."),
          ("norm2.", "out_layers.0."), ("conv2.", "out_layers.3."), ("conv_shortcut.", "skip_connection.")]
UNET = [("time_embedding.linear_1.", "time_embed.0."), ("time_embedding.linear_2.", "time_embed.2."),
        ("add_embedding.linear_1.", "label_emb.0.0."), ("add_embedding.linear_2.", "label_emb.0.2."),
        ("conv_in.", "input_blocks.0.0."), ("conv_norm_out.", "out.0."), ("conv_out.", "out.2.")]


def unet_name(name: str, layers: int, crossed_up: list[bool]) -> str:
    """The trained name of one of the U-Net's tensors."""
    part = name.split(".")
    if part[0] == "mid_block":
        if part[1] == "attentions":
            return ".".join(["middle_block.1"] + part[3:])
        return swap(f"middle_block.{2 * int(part[2])}.{'.'.join(part[3:])}", RESNET)
    if part[0] not in ("down_blocks", "up_blocks"):
        return swap(name, UNET)
    level, kind, number, rest = int(part[1]), part[2], int(part[3]), ".".join(part[4:])
    down = part[0] == "down_blocks"
    side = "input_blocks" if down else "output_blocks"
    block = level * (layers + 1) + number + (1 if down else 0)
    if kind == "downsamplers":
        return f"{side}.{(level + 1) * (layers + 1)}.0.op.{rest.removeprefix('conv.')}"
    if kind == "upsamplers":
        return f"{side}.{level * (layers + 1) + layers}.{2 if crossed_up[level] else 1}.{rest}"
    if kind == "attentions":
        return f"{side}.{block}.1.{rest}"
    return f"{side}.{block}.0.{swap(rest, RESNET)}"


def vae_name(name: str, levels: int) -> str:
    part = name.split(".")
    name = swap(name, [("mid_block.resnets.0.", "mid.block_1."), ("mid_block.resnets.1.", "mid.block_2."),
                       ("mid_block.attentions.0.group_norm.", "mid.attn_1.norm."),
                       ("mid_block.attentions.0.to_q.", "mid.attn_1.q."), ("mid_block.attentions.0.to_k.", "mid.attn_1.k."),
                       ("mid_block.attentions.0.to_v.", "mid.attn_1.v."), ("mid_block.attentions.0.to_out.0.", "mid.attn_1.proj_out."),
                       ("conv_norm_out.", "norm_out."), ("conv_shortcut.", "nin_shortcut.")])
    if len(part) > 2 and part[1] in ("down_blocks", "up_blocks"):
        level = int(part[2]) if part[1] == "down_blocks" else levels - 1 - int(part[2])
        side = part[1].removesuffix("_blocks")
        name = swap(name, [(f"{part[1]}.{part[2]}.resnets.", f"{side}.{level}.block."),
                           (f"{part[1]}.{part[2]}.{side}samplers.0.", f"{side}.{level}.{side}sample.")])
    return name


def open_clip(state: dict) -> dict:
    """OpenCLIP's names and forms for a text encoder of transformers."""
    out = {}
    for name, tensor in state.items():
        name = name.removeprefix("text_model.")
        if name == "text_projection.weight":
            out["text_projection"] = tensor.T.contiguous()
        elif ".self_attn." in name and ".out_proj." not in name:
            layer, end = name.split(".")[2], name.split(".")[-1]
            parts = [state[f"{prefix}encoder.layers.{layer}.self_attn.{p}_proj.{end}"]
                     for p in "qkv" for prefix in ("text_model.", "") if f"{prefix}encoder.layers.{layer}.self_attn.{p}_proj.{end}" in state]
            out[f"transformer.resblocks.{layer}.attn.in_proj_{end}"] = torch.cat(parts)
        else:
            out[swap(name, [("embeddings.token_embedding.", "token_embedding."), ("embeddings.position_embedding.weight", "positional_embedding"),
                            ("final_layer_norm.", "ln_final."), ("encoder.layers.", "transformer.resblocks."), ("self_attn.", "attn."),
                            ("layer_norm1.", "ln_1."), ("layer_norm2.", "ln_2."), ("mlp.fc1.", "mlp.c_fc."), ("mlp.fc2.", "mlp.c_proj.")])] = tensor
    return out


def clip(state: dict) -> dict:
    return {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in state.items()}


def to_single(parts: dict, family: str) -> dict:
    """The one file's tensors. `parts` has (state, config) of unet and vae, and a state of each text encoder."""
    out = {}
    state, config = parts["unet"]
    crossed = ["CrossAttn" in kind for kind in config["up_block_types"]]
    for name, tensor in state.items():
        out["model.diffusion_model." + unet_name(name, config["layers_per_block"], crossed)] = tensor
    if "vae" in parts:
        state, config = parts["vae"]
        for name, tensor in state.items():
            old = vae_name(name, len(config["block_out_channels"]))
            if ".attn_1." in old and tensor.ndim == 2:
                tensor = tensor[:, :, None, None]
            out["first_stage_model." + old] = tensor
    if "text_encoder" in parts:
        prefix, form = {"one": ("cond_stage_model.transformer.", clip), "two": ("cond_stage_model.model.", open_clip),
                        "xl": ("conditioner.embedders.0.transformer.", clip)}[family]
        out |= {prefix + name: tensor for name, tensor in form(parts["text_encoder"]).items()}
    if "text_encoder_2" in parts:
        prefix = f"conditioner.embedders.{0 if family == 'refiner' else 1}.model."
        out |= {prefix + name: tensor for name, tensor in open_clip(parts["text_encoder_2"]).items()}
    return out


class Trace:
    """Stands for a tensor of the one file, and remembers what diffusers did to it."""

    def __init__(self, name, shape, first=0, turned=False):
        self.name, self.shape, self.first, self.turned = name, tuple(shape), first, turned

    @property
    def ndim(self):
        return len(self.shape)

    @property
    def T(self):
        return Trace(self.name, self.shape[::-1], self.first, not self.turned)

    def contiguous(self):
        return self

    clone = detach = contiguous

    def __getitem__(self, key):
        keys = key if isinstance(key, tuple) else (key,)
        if len(keys) > 2:
            assert keys[:2] == (slice(None), slice(None)) and set(keys[2:]) == {0} and set(self.shape[2:]) == {1}
            return Trace(self.name, self.shape[:2], self.first, self.turned)
        start, stop, _ = keys[0].indices(self.shape[0])
        return Trace(self.name, (stop - start, *self.shape[1:]), self.first + start, self.turned)


def converted(file: dict, family: str, parts: dict) -> dict:
    """What diffusers' conversion gives for each component."""
    traces = {name: Trace(name, shape) for name, shape in file.items()}
    out = {"unet": theirs.convert_ldm_unet_checkpoint(dict(traces), parts["unet"][1])}
    if "vae" in parts:
        out["vae"] = theirs.convert_ldm_vae_checkpoint(dict(traces), parts["vae"][1])
    hidden = lambda config: SimpleNamespace(config=SimpleNamespace(hidden_size=config["hidden_size"]))
    if family in ("one", "xl") and "text_encoder" in parts:
        out["text_encoder"] = theirs.convert_ldm_clip_checkpoint(dict(traces))
    elif family == "two" and "text_encoder" in parts:
        out["text_encoder"] = theirs.convert_open_clip_checkpoint(hidden(parts["text_encoder"][1]), dict(traces))
        out["text_encoder"].pop("text_projection.weight", None)
    if "text_encoder_2" in parts:
        prefix = f"conditioner.embedders.{0 if family == 'refiner' else 1}.model."
        out["text_encoder_2"] = theirs.convert_open_clip_checkpoint(hidden(parts["text_encoder_2"][1]), dict(traces), prefix=prefix)
    return out


CLIP_L = {"vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
          "max_position_embeddings": 77, "hidden_act": "quick_gelu", "projection_dim": 768}
CLIP_H = {**CLIP_L, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
          "hidden_act": "gelu", "projection_dim": 1024}
CLIP_G = {**CLIP_L, "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20,
          "hidden_act": "gelu", "projection_dim": 1280}
VAE = {"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "latent_channels": 4}
CROSS, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"


def unet_config(channels, down, context, layers=2, **more):
    up = [kind.replace("Down", "Up") for kind in reversed(down)]
    return {"block_out_channels": channels, "down_block_types": down, "up_block_types": up, "cross_attention_dim": context,
            "layers_per_block": layers, "in_channels": 4, **more}


ONE = unet_config([320, 640, 1280, 1280], [CROSS] * 3 + [PLAIN], 768, attention_head_dim=8)
TWO = unet_config([320, 640, 1280, 1280], [CROSS] * 3 + [PLAIN], 1024, attention_head_dim=[5, 10, 20, 20], use_linear_projection=True)
XL = unet_config([320, 640, 1280], [PLAIN, CROSS, CROSS], 2048, attention_head_dim=[5, 10, 20], use_linear_projection=True,
                 transformer_layers_per_block=[1, 2, 10], addition_embed_type="text_time", addition_time_embed_dim=256,
                 projection_class_embeddings_input_dim=2816)
REFINER = unet_config([384, 768, 1536, 1536], [PLAIN, CROSS, CROSS, PLAIN], 1280, attention_head_dim=[6, 12, 24, 24], use_linear_projection=True,
                      transformer_layers_per_block=4, addition_embed_type="text_time", addition_time_embed_dim=256,
                      projection_class_embeddings_input_dim=2560)
TINY_CLIP = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 1,
             "max_position_embeddings": 77, "hidden_act": "quick_gelu", "projection_dim": 64}
TINY_OPEN = {**TINY_CLIP, "hidden_act": "gelu", "num_hidden_layers": 3, "hidden_size": 128, "num_attention_heads": 2, "projection_dim": 48}
TINY_VAE = {"block_out_channels": [32, 64, 32], "layers_per_block": 1, "latent_channels": 4}
TINY_ONE = unet_config([32, 64], [CROSS, PLAIN], 64, layers=1, attention_head_dim=8)
TINY_XL = unet_config([64, 128], [PLAIN, CROSS], 192, layers=1, attention_head_dim=[1, 2], use_linear_projection=True,
                      transformer_layers_per_block=[1, 3], addition_embed_type="text_time", addition_time_embed_dim=8,
                      projection_class_embeddings_input_dim=48 + 6 * 8)
TINY_TWO = {key: value for key, value in TINY_XL.items() if not key.startswith(("addition", "projection"))}
TINY_REFINER = TINY_XL | {"projection_class_embeddings_input_dim": 48 + 5 * 8, "transformer_layers_per_block": 2,
                          "down_block_types": [CROSS, PLAIN], "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"]}
NINE = {"in_channels": 9}

# name: family, class, U-Net, VAE, first and second text encoder, what the scheduler predicts
CASES = {
    "sd-1": ("one", "StableDiffusionPipeline", ONE, VAE, CLIP_L, None, "epsilon"),
    "sd-2": ("two", "StableDiffusionPipeline", TWO, VAE, CLIP_H, None, "v_prediction"),
    "sdxl": ("xl", "StableDiffusionXLPipeline", XL, VAE, CLIP_L, CLIP_G, "epsilon"),
    "sdxl-refiner": ("refiner", "StableDiffusionXLImg2ImgPipeline", REFINER, VAE, None, CLIP_G, "epsilon"),
    "tiny-1": ("one", "StableDiffusionPipeline", TINY_ONE, TINY_VAE, TINY_CLIP, None, "epsilon"),
    "tiny-2": ("two", "StableDiffusionPipeline", TINY_TWO, TINY_VAE, TINY_OPEN, None, "v_prediction"),
    "tiny-xl": ("xl", "StableDiffusionXLPipeline", TINY_XL, TINY_VAE, TINY_CLIP, TINY_OPEN, "epsilon"),
    "tiny-1-inpaint": ("one", "StableDiffusionInpaintPipeline", TINY_ONE | NINE, None, TINY_CLIP, None, "epsilon"),
    "tiny-2-inpaint": ("two", "StableDiffusionInpaintPipeline", TINY_TWO | NINE, TINY_VAE, None, None, "epsilon"),
    "tiny-xl-inpaint": ("xl", "StableDiffusionXLInpaintPipeline", TINY_XL | NINE, TINY_VAE, None, TINY_OPEN, "epsilon"),
    "tiny-refiner": ("refiner", "StableDiffusionXLImg2ImgPipeline", TINY_REFINER, TINY_VAE, None, TINY_OPEN, "epsilon"),
    "tiny-unet-only": ("xl", "StableDiffusionXLPipeline", TINY_XL, None, None, None, "epsilon"),
}


def build(case: tuple) -> dict:
    """The networks of a case, without memory for their weights."""
    family, _, unet, vae, first, second, _ = case
    with torch.device("meta"):
        parts = {"unet": (UNet2DConditionModel(**unet).state_dict(), unet)}
        if vae:
            model = AutoencoderKL(down_block_types=["DownEncoderBlock2D"] * len(vae["block_out_channels"]),
                                  up_block_types=["UpDecoderBlock2D"] * len(vae["block_out_channels"]), **vae)
            parts["vae"] = (model.state_dict(), dict(model.config))
        if first:
            parts["text_encoder"] = (CLIPTextModel(CLIPTextConfig(**first)).state_dict(), first)
        if second:
            parts["text_encoder_2"] = (CLIPTextModelWithProjection(CLIPTextConfig(**second)).state_dict(), second)
    return parts


def record(case: tuple) -> dict:
    family, class_name, unet, vae, first, second, prediction = case
    parts = build(case)
    states = {name: part if name in ("unet", "vae") else part[0] for name, part in parts.items()}
    file = {name: list(tensor.shape) for name, tensor in to_single(states, family).items()}
    out = converted(file, family, parts)
    configs = {"unet": unet, "vae": vae, "text_encoder": first, "text_encoder_2": second}
    if family == "two" and first:
        dropped = 1 if first["num_hidden_layers"] == 24 else 0
        configs["text_encoder"] = {k: v for k, v in first.items() if k != "projection_dim"} | {"num_hidden_layers": first["num_hidden_layers"] - dropped}
    if not second:
        # Nothing in the file tells it then.
        configs["unet"] = unet | {"addition_time_embed_dim": None}
    components = {}
    for component, tensors in out.items():
        # diffusers made of the file what the network was built of: the mapping here is the inverse of theirs.
        state = parts[component][0]
        built = {f"text_model.{name.removeprefix('text_model.')}" if component == "text_encoder" else name: list(t.shape) for name, t in state.items()}
        made = {name: list(trace.shape) for name, trace in tensors.items()}
        left = {name for name in built if "layers.23." in name and family == "two"}
        assert made == {name: shape for name, shape in built.items() if name not in left}, component
        components[component] = {
            "config": {key: value for key, value in configs[component].items() if value is not None},
            "tensors": {name: [t.name, t.first, int(t.turned), list(t.shape)] for name, t in tensors.items()},
        }
    return {"class": class_name, "prediction": prediction, "file": file, "components": components}


def convert(model: Path, target: Path) -> None:
    """One file of a model's folder."""
    index = json.loads((model / "model_index.json").read_text())
    load = lambda part: load_file(next((model / part).glob("*.safetensors")))
    config = lambda part: json.loads((model / part / "config.json").read_text())
    parts = {"unet": (load("unet"), config("unet")), "vae": (load("vae"), config("vae"))}
    encoders = [part for part in ("text_encoder", "text_encoder_2") if index.get(part, [None])[0]]
    parts |= {part: load(part) for part in encoders}
    xl = parts["unet"][1].get("addition_embed_type") == "text_time"
    two = parts["unet"][1].get("use_linear_projection")
    family = ("xl" if "text_encoder" in parts else "refiner") if xl else ("two" if two else "one")
    tensors = {name: tensor.clone().contiguous() for name, tensor in to_single(parts, family).items()}
    if target.suffix == ".safetensors":
        save_file(tensors, target)
    else:
        torch.save({"state_dict": tensors}, target)


def main() -> None:
    if sys.argv[1:2] == ["--convert"]:
        return convert(Path(sys.argv[2]), Path(sys.argv[3]))
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "../../crates/weights/tests/fixtures/single_file"
    folder.mkdir(parents=True, exist_ok=True)
    for name, case in CASES.items():
        text = json.dumps(record(case), separators=(",", ":")).replace('],"', '],\n"').replace('{"', '{\n"')
        (folder / f"{name}.json").write_text(text + "\n")
        print(f"{name}: {len(text)} bytes")


if __name__ == "__main__":
    main()
