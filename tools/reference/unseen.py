"""Draws configurations nobody has looked at before."""

import random

from tiny import Spec

WORDS = "a red blue old small heart cat boat circle hat, light night sea 9 12 über ✓ 心 table's \"quoted\" drawing of the".split()


def draw_prompt(rng: random.Random, words_max: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(0, words_max)))


def draw_text(rng: random.Random) -> dict:
    kv_heads = rng.choice([1, 2, 3])
    return dict(
        hidden_size=rng.choice([16, 24, 32, 56, 96]),
        intermediate_size=rng.choice([24, 40, 64, 129]),
        num_hidden_layers=rng.randint(2, 4),
        num_attention_heads=kv_heads * rng.choice([1, 2, 4]),
        num_key_value_heads=kv_heads,
        head_dim=rng.choice([4, 8, 16, 20, 32, 64]),
        rms_norm_eps=rng.choice([1e-5, 1e-6]),
        rope_theta=rng.choice([1e4, 1e6, 5e6]),
    )


def draw_vae(rng: random.Random) -> dict:
    groups = rng.choice([1, 2, 4, 8, 32])
    choices = [width for width in (4, 8, 12, 16, 24, 32, 40, 64) if width % groups == 0]
    return dict(
        block_out_channels=sorted(rng.choice(choices) for _ in range(4)),
        layers_per_block=rng.randint(1, 3),
        norm_num_groups=groups,
        latent_channels=rng.choice([1, 4, 8, 12, 16]),
        scaling_factor=rng.uniform(0.2, 1.5),
        shift_factor=rng.uniform(-0.3, 0.3),
        mid_block_add_attention=rng.random() < 0.85,
        use_post_quant_conv=rng.random() < 0.2,
    )


def draw_transformer(rng: random.Random) -> dict:
    return dict(
        n_heads=rng.randint(1, 6),
        axes_dims=[2 * rng.randint(1, 6) for _ in range(3)],
        n_layers=rng.randint(1, 4),
        n_refiner_layers=rng.randint(1, 2),
        norm_eps=rng.choice([1e-5, 1e-6]),
        rope_theta=rng.choice([100.0, 256.0, 10000.0]),
        qk_norm=rng.random() < 0.85,
        t_scale=rng.choice([1000.0, 1000.0, 700.0]),
    )


def draw_scheduler(rng: random.Random) -> dict:
    settings = dict(shift=rng.choice([1.0, 2.0, 3.0, 6.0, 7.3]))
    if rng.random() < 0.4:
        settings.update(use_dynamic_shifting=True, time_shift_type=rng.choice(["exponential", "linear"]))
        if rng.random() < 0.5:
            settings.update(base_shift=0.3, max_shift=1.8, base_image_seq_len=8, max_image_seq_len=100)
    return settings


def draw_request(rng: random.Random) -> dict:
    guided = rng.random() < 0.7
    long = rng.random() < 0.1
    return dict(
        prompt=draw_prompt(rng, 250 if long else 25),
        negative=draw_prompt(rng, 20) if guided and rng.random() < 0.6 else None,
        width=16 * rng.randint(1, 9),
        height=16 * rng.randint(1, 9),
        steps=4,
        guidance=rng.choice([1.0, 2.5, 4.0, 7.5]) if guided else 0.0,
        seed=rng.choice([rng.randrange(100), rng.randrange(2**32), rng.randrange(2**63)]),
        count=rng.choice([1, 1, 1, 2, 3]),
        cfg_normalization=rng.choice([0.0, 0.0, 1.0, 0.8]) if guided else 0.0,
        cfg_truncation=rng.choice([1.0, 1.0, 0.5]) if guided else 1.0,
    )


def draw_spec(seed: int, index: int) -> Spec:
    rng = random.Random(f"{seed}/{index}")
    return Spec(
        name=f"unseen-{seed}-{index}",
        seed=rng.randrange(2**31),
        transformer=draw_transformer(rng),
        text=draw_text(rng),
        vae=draw_vae(rng),
        scheduler=draw_scheduler(rng),
        request=draw_request(rng),
        dtype=rng.choice(["f32", "bf16", "f16"]),
        time_dtype=rng.choice(["f32", "bf16", "fp8"]),
        template=rng.choice(["plain", "agent", "inline"]),
        pre_tokenizer=rng.choice(["bytes", "words"]),
        shard=rng.choice([None, None, "50KB", "300KB"]),
        text_names=rng.choice(["model", "causal_lm"]),
        text_config=rng.choice(["new", "old"]),
    )
