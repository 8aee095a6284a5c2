"""Writes crates/engine/tests/fixtures/clip: what transformers and diffusers make of prompts and tiny CLIP text encoders.

    python clip.py bpe_simple_vocab_16e6.txt.gz [--out DIR]      # the file as for clip_vocabulary.py
"""

import argparse
import json
import random
import shutil
from pathlib import Path

import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from clip_vocabulary import read

DEFAULT_OUT = Path(__file__).resolve().parents[2] / "crates/engine/tests/fixtures/clip"
SIZE_MAX_BYTES = 1 << 20
LENGTH = 77
START, END = "<|startoftext|>", "<|endoftext|>"

# What is told apart: class, names with or without the prefix, activation, how the pooled row is found, storage.
ENCODERS = {
    "legacy-end": dict(seed=1, names="old", dtype=torch.float32, eos=2, act="quick_gelu", tokens=LENGTH),
    "plain-names": dict(seed=2, names="new", dtype=torch.bfloat16, eos=58, act="gelu", tokens=24),
    "projected": dict(seed=3, names="old", dtype=torch.float16, eos=2, act="gelu", tokens=24, projection=20),
    "projected-first-end": dict(seed=4, names="old", dtype=torch.float32, eos=58, act="quick_gelu", tokens=24, projection=40),
    "tanh": dict(seed=5, names="old", dtype=torch.bfloat16, eos=58, act="gelu_new", tokens=24),
}

TEXTS = [
    "", " ", "\t\n ", "a photo of a cat", "A Photo of a CAT!!!", "an astronaut riding a horse, (detailed:1.3), [blurry]",
    "don't, I'LL, we've, it's, they'd, I'm, you're, o'clock, 'tis, rock'n'roll, 's 't 're", "1234567890 3.14159 2nd 007 ½ ² ٣ Ⅷ",
    "masterpiece, best quality, ultra-detailed, 8k, f/1.8, 35mm --ar 16:9", "hello\u00a0world\u3000wide\u2003space\u2028line\u0085next",
    "zero\u200bwidth\ufeffmarks\u180e", "caf\u00e9 cafe\u0301 na\u00efve", "\u1e9b\u0323 \u2126 \u212b \ufb01 \u0958 \ufb1d", "İstanbul ıssız ŞIK ẞ STRASSE ǅ",
    "日本語のテキスト、漢字", "한국어 텍스트 \u1112\u1161\u11ab", "простой текст ПО-РУССКИ", "ελληνικά ΣΊΣΥΦΟΣ", "עברית العربية فارسی", "ไทย हिन्दी தமிழ்",
    "🎨🖼️ 👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽", "a😀b😀😀c", "<|endoftext|>", "a<|endoftext|>b <|startoftext|> c", "<|ENDOFTEXT|> <|endoftext", "<token> <token>_1 a<b>c",
    "!", "wow! great!!! (really!) a!b", "best quality!, 8k!", "!?! ?!", "stop!now !go", "\u00a1hola! \uff01",
    "snake_case camelCase kebab-case", "C++ & C# @home #tag $5 100% 50/50", "...!?!?,,,;;;:::", "\\(escaped\\) \\\\ back", "line one\nline two\r\nline three",
    "\x00\x01\x1f\x7f", "￥１２３ＡＢＣ", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝓼𝓬𝓻𝓲𝓹𝓽", "e\u0302\u0323 \u1ec7 o\u031b\u0323", "supercalifragilisticexpialidocious pneumonoultramicroscopicsilicovolcanoconiosis",
    "x" * 400, "cat, dog " * 120, "ha" * 150, "😀" * 60, "' s 't" * 30,
]
POOLS = [
    "abcdefghijklmnopqrstuvwxyz", "ABCXYZ", "0123456789", "      \t\n", ",.;:!?'\"()[]{}<>|-_/\\@#$%^&*+=~`", "éèüñçøåßœ", "日本漢字かなカナ", "русскийТЕКСТ",
    "😀🎨👍🏽\u200d\ufe0f", "\u0301\u0323\u0308\u031b", "'stremlvd",
]


def randomize(module: torch.nn.Module, seed: int) -> None:
    """Weights that make every term show: norms away from 1, biases away from 0, states of about unit size."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        values = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1:
            values = 0.3 * values + (1.0 if name.endswith("weight") else 0.0)
        elif "embedding" not in name:
            values = values * (1.5 / parameter.shape[1] ** 0.5)
        parameter.data.copy_(values)


def stored(module: torch.nn.Module, spec: dict) -> dict:
    """The weights under the names and in the form that the case is about; the module computes with the same values."""
    for parameter in module.parameters():
        parameter.data = parameter.data.to(spec["dtype"]).float()
    weights = {name: value.to(spec["dtype"]).contiguous() for name, value in module.state_dict().items()}
    if spec["names"] == "old" and "embeddings.token_embedding.weight" in weights:
        weights = {f"text_model.{name}": value for name, value in weights.items()}
        weights["text_model.embeddings.position_ids"] = torch.arange(LENGTH)[None]
    return weights


def encoder_of(spec: dict, hidden: int, vocabulary: int) -> torch.nn.Module:
    config = CLIPTextConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=hidden * 5 // 2, num_hidden_layers=4, num_attention_heads=2,
        max_position_embeddings=LENGTH, hidden_act=spec["act"], eos_token_id=spec["eos"], bos_token_id=0, pad_token_id=1,
        projection_dim=spec.get("projection", hidden), attn_implementation="eager",
    )
    model = (CLIPTextModelWithProjection if "projection" in spec else CLIPTextModel)(config).eval()
    randomize(model, spec["seed"])
    return model


def write_encoder(model: torch.nn.Module, spec: dict, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    weights = stored(model, spec)
    save_file(weights, folder / "model.safetensors")
    model.config.to_json_file(folder / "config.json")


@torch.no_grad()
def make_encoder(spec: dict, folder: Path) -> None:
    model = encoder_of(spec, 32, 60)
    write_encoder(model, spec, folder)
    generator = torch.Generator().manual_seed(spec["seed"])
    ids = torch.randint(3, 55, (2, spec["tokens"]), generator=generator)
    ids[:, 0] = 57
    ids[0, 7:] = 58  # padded with the end token
    ids[1, 12], ids[1, 13:] = 58, 0
    if spec["eos"] == 2:
        ids[1, 5] = 59  # the highest id need not be the end token
    out = model(ids, output_hidden_states=True)
    inner = getattr(model, "text_model", model)
    values = {"ids": ids, "pooled": out.text_embeds if "projection" in spec else out.pooler_output}
    for skip, state in enumerate(reversed(out.hidden_states)):
        values[f"hidden_{skip}"] = state
        if skip in (0, 1, 4):
            values[f"normed_{skip}"] = inner.final_layer_norm(state)
    assert len(out.hidden_states) == 5
    torch.testing.assert_close(values["normed_0"], out.last_hidden_state)
    assert (values["hidden_0"] - values["hidden_1"]).std() > 0.1 * values["hidden_0"].std()
    save_file({name: value.contiguous() for name, value in values.items()}, folder / "expected.safetensors")


def tokenizer_of(ids: dict, merges: list, count: int | None = None, **special: str) -> tuple[dict, list]:
    """The whole vocabulary, or that of the first `count` merges."""
    if count is None:
        return ids, merges
    kept = [token for token, i in ids.items() if i < 512 + count] + [START, END]
    return {token: i for i, token in enumerate(kept)}, merges[:count]


def make_tokens(vocabulary: dict, merges: list, out: Path) -> None:
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges)
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    draw = random.Random(5)
    texts = list(TEXTS)
    for _ in range(300):
        pools = draw.sample(POOLS, draw.randint(1, 4))
        texts.append("".join(draw.choice(draw.choice(pools)) for _ in range(draw.randint(1, 40))))
    # With `!` as padding it is a token of its own, found wherever it stands.
    padded = CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token="!")
    rows = []
    for text in texts:
        row = {"text": text, "ids": tokenizer(text, add_special_tokens=False).input_ids}
        other = padded(text, add_special_tokens=False).input_ids
        rows.append(row if other == row["ids"] else {**row, "ids_padded_with_zero": other})
    assert sum("ids_padded_with_zero" in row for row in rows) >= 10
    (out / "tokens.json").write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")


def write_tokenizer(folder: Path, vocabulary: dict, merges: list, pad: str, form: str) -> CLIPTokenizer:
    folder.mkdir(parents=True, exist_ok=True)
    special = {"bos_token": START, "eos_token": END, "unk_token": END}
    if form == "tokenizer.json":
        tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token=pad, model_max_length=LENGTH)
        tokenizer.save_pretrained(folder)
    else:
        (folder / "vocab.json").write_text(json.dumps(vocabulary))
        (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(merge) for merge in merges) + "\n")
        # As the files of Stable Diffusion 2.1 have it: the map is right, not the configuration.
        config = {**special, "pad_token": END, "model_max_length": LENGTH, "tokenizer_class": "CLIPTokenizer"}
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
        kept = {"content": START, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
        (folder / "special_tokens_map.json").write_text(json.dumps({**special, "bos_token": kept, "pad_token": pad}, indent=2) + "\n")
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    assert tokenizer.pad_token == pad, tokenizer.pad_token
    return tokenizer


def write_model(folder: Path, name: str, parts: dict) -> None:
    index = {"_class_name": name, **{part: ["transformers", kind] for part, kind in parts.items()}}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


REQUESTS = [
    dict(prompt="a photo of a cat", negative="", clip_skip=None),
    dict(prompt="", negative="blurry, low quality", clip_skip=1),
    dict(prompt="a red house by the sea, " * 30, negative="bad", clip_skip=2),
]


def save_cases(folder: Path, cases: list[dict]) -> None:
    values = {f"{i}.{name}": value.contiguous() for i, case in enumerate(cases) for name, value in case["values"].items()}
    save_file(values, folder / "expected.safetensors")
    requests = [{name: value for name, value in case.items() if name != "values"} for case in cases]
    (folder / "requests.json").write_text(json.dumps(requests, indent=2) + "\n")


@torch.no_grad()
def make_sd(vocabulary: dict, merges: list, folder: Path) -> None:
    """Stable Diffusion 1.5's way, with a learned token of three vectors."""
    tokenizer = write_tokenizer(folder / "tokenizer", vocabulary, merges, "!", "vocab.json")
    spec = dict(seed=11, names="old", dtype=torch.float32, eos=2, act="quick_gelu")
    model = encoder_of(spec, 16, len(vocabulary))
    write_encoder(model, spec, folder / "text_encoder")
    write_model(folder, "StableDiffusionPipeline", {"text_encoder": "CLIPTextModel", "tokenizer": "CLIPTokenizer"})
    # diffusers 0.42 looks for an inner model that transformers 5 no longer has.
    object.__setattr__(model, "text_model", model)
    pipeline = StableDiffusionPipeline(None, model, tokenizer, None, EulerDiscreteScheduler(), None, None, requires_safety_checker=False)
    cases = []

    def encode(prompt: str, negative: str, clip_skip: int | None) -> None:
        embeds = pipeline.encode_prompt(prompt, "cpu", 1, True, negative, clip_skip=clip_skip)
        values = {"prompt": embeds[0][0], "negative": embeds[1][0]}
        cases.append(dict(prompt=prompt, negative=negative, clip_skip=clip_skip, values=values))

    for request in REQUESTS:
        encode(**request)
    vectors = torch.randn(3, 16, generator=torch.Generator().manual_seed(12))
    save_file({"<thing>": vectors}, folder / "thing.safetensors")
    save_file({"emb_params": vectors[:1] + 0.5}, folder / "style.safetensors")
    pipeline.load_textual_inversion(folder / "thing.safetensors")
    pipeline.load_textual_inversion(vectors[:1].add(0.5)[0], token="style-7")
    encode("a photo of <thing>, on a beach", "style-7, blurry <thing>", None)
    encode("one, " * 36 + "<thing>", "<thing>" * 2, None)
    save_cases(folder, cases)


@torch.no_grad()
def make_sdxl(vocabulary: dict, merges: list, folder: Path) -> None:
    first = write_tokenizer(folder / "tokenizer", vocabulary, merges, END, "vocab.json")
    second = write_tokenizer(folder / "tokenizer_2", vocabulary, merges, "!", "tokenizer.json")
    specs = [
        dict(seed=21, names="old", dtype=torch.float32, eos=2, act="quick_gelu"),
        dict(seed=22, names="old", dtype=torch.float32, eos=vocabulary[END], act="gelu", projection=12),
    ]
    models = [encoder_of(specs[0], 16, len(vocabulary)), encoder_of(specs[1], 20, len(vocabulary))]
    write_encoder(models[0], specs[0], folder / "text_encoder")
    write_encoder(models[1], specs[1], folder / "text_encoder_2")
    parts = {"text_encoder": "CLIPTextModel", "text_encoder_2": "CLIPTextModelWithProjection"}
    write_model(folder, "StableDiffusionXLPipeline", {**parts, "tokenizer": "CLIPTokenizer", "tokenizer_2": "CLIPTokenizer"})
    pipeline = StableDiffusionXLPipeline(None, *models, first, second, None, EulerDiscreteScheduler(), add_watermarker=False)
    cases = []

    def encode(prompt: str, negative: str, clip_skip: int | None) -> None:
        embeds = pipeline.encode_prompt(
            prompt=prompt, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True, negative_prompt=negative, clip_skip=clip_skip
        )
        names = ["prompt", "negative", "pooled", "negative_pooled"]
        values = {name: value[0] for name, value in zip(names, embeds)}
        cases.append(dict(prompt=prompt, negative=negative, clip_skip=clip_skip, values=values))

    for request in REQUESTS:
        encode(**request)
    generator = torch.Generator().manual_seed(23)
    pair = {"clip_l": torch.randn(2, 16, generator=generator), "clip_g": torch.randn(2, 20, generator=generator)}
    save_file(pair, folder / "pair.safetensors")
    pipeline.load_textual_inversion(pair["clip_l"], token="pair", text_encoder=models[0], tokenizer=first)
    pipeline.load_textual_inversion(pair["clip_g"], token="pair", text_encoder=models[1], tokenizer=second)
    encode("a pair of cats", "pair", None)
    save_cases(folder, cases)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("merges")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    arguments = parser.parse_args()
    torch.use_deterministic_algorithms(True)
    out = arguments.out
    shutil.rmtree(out, ignore_errors=True)
    for name, spec in ENCODERS.items():
        make_encoder(spec, out / "encoders" / name)
    vocabulary, merges = read(arguments.merges)
    make_tokens(vocabulary, merges, out)
    small = tokenizer_of(vocabulary, merges, 500)
    make_sd(*small, out / "sd")
    make_sdxl(*small, out / "sdxl")
    for file in out.rglob("*"):
        assert not file.is_file() or file.stat().st_size < SIZE_MAX_BYTES, file
    load_file(out / "sd/expected.safetensors")


if __name__ == "__main__":
    main()
