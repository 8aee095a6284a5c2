"""The networks, and a batched forward of them that training needs.

    python model.py        compares it with diffusers' own, on random weights

diffusers' transformer takes a list of pictures and of captions of any size, one after the other. Here all have the same size,
so that a batch is one matrix product; the numbers are the same. Letters: B batch, H and W latent height and width, C channels,
T tokens, D width.
"""

import torch
import torch.nn.functional as F

TEXT_LENGTH = 32
"""Caption tokens; the transformer pads to a multiple of 32, so no fewer would be cheaper."""

TEXT_WIDTH = 256
HEAD_WIDTHS = {64: [16, 24, 24], 48: [16, 16, 16], 32: [8, 12, 12]}
"""How a head's channels are shared among the three axes of the rotary embedding."""


def text_encoder(vocabulary: int):
    from transformers import Qwen3Config, Qwen3Model

    return Qwen3Model(
        Qwen3Config(
            vocab_size=vocabulary,
            hidden_size=TEXT_WIDTH,
            intermediate_size=768,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=64,
            max_position_embeddings=2048,
            rope_theta=1000000.0,
            rms_norm_eps=1e-6,
            attention_bias=False,
            tie_word_embeddings=True,
        )
    )


def transformer(width: int, heads: int, layers: int):
    from diffusers import ZImageTransformer2DModel

    return ZImageTransformer2DModel(
        dim=width,
        n_layers=layers,
        n_refiner_layers=1,
        n_heads=heads,
        n_kv_heads=heads,
        cap_feat_dim=TEXT_WIDTH,
        axes_dims=HEAD_WIDTHS[width // heads],
        axes_lens=[1024, 512, 512],
    )


def autoencoder():
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=[32, 64, 128, 128],
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=16,
        sample_size=128,
        use_quant_conv=False,
        use_post_quant_conv=False,
        force_upcast=True,
    )


@torch.no_grad()
def initialise(text, dit) -> None:
    """Weights to start from: matrices by their width, gates open a third, an output of nothing."""
    for name, p in dit.named_parameters():
        final = "final" in name
        if "norm" in name:
            p.fill_(1)
        elif "adaLN" in name and p.dim() == 2:
            p.zero_() if final else p.normal_(0, 0.02)
        elif "adaLN" in name:
            p.zero_()
            if not final:
                quarter = p.shape[0] // 4
                p[quarter : 2 * quarter] = 0.35
                p[3 * quarter :] = 0.35
        elif "pad_token" in name:
            p.normal_(0, 0.02)
        elif p.dim() == 2:
            p.normal_(0, p.shape[1] ** -0.5)
        else:
            p.zero_()
    dit.all_final_layer["2-1"].linear.weight.zero_()
    text.embed_tokens.weight.normal_(0, 1.0)


def trained(text, dit) -> list[tuple[str, torch.nn.Parameter]]:
    """What is trained, by name. The last text layer and norm are never read, nor is the padding of pictures."""
    last = f"layers.{len(text.layers) - 1}."
    of_text = [(f"text.{n}", p) for n, p in text.named_parameters() if not n.startswith(last) and n != "norm.weight"]
    return of_text + [(f"transformer.{n}", p) for n, p in dit.named_parameters() if n != "x_pad_token"]


def is_matrix(name: str, p: torch.Tensor) -> bool:
    """Whether it is one of the matrices that the layers multiply tokens with."""
    return p.dim() == 2 and ("layers" in name or "refiner" in name) and "adaLN" not in name


def rms(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5) * weight).to(x.dtype)


def by_halves(p: torch.Tensor, head: int) -> torch.Tensor:
    """Of rows that lie head after head: in each the even ones first, then the odd ones. The rotary embedding turns neighbours; with
    queries and keys reordered alike it turns halves, whose numbers lie side by side, and their products stay what they were."""
    return p.unflatten(0, (-1, head // 2, 2)).transpose(1, 2).flatten(0, 2)


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x (B, T, heads, head width), by halves; cos and sin (T, head width / 2)."""
    first, second = x.float().chunk(2, -1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat([first * cos - second * sin, first * sin + second * cos], -1).to(x.dtype)


def block(layer, x, cos, sin, time):
    """One transformer layer. Attention is written out: on a CPU that is four times as fast as the flash kernel at this length."""
    attention, ff = layer.attention, layer.feed_forward
    y = rms(x, layer.attention_norm1.weight)
    gate_attention = gate_ff = scale_ff = None
    if layer.modulation:
        scale, gate_attention, scale_ff, gate_ff = layer.adaLN_modulation(time).unsqueeze(1).chunk(4, 2)
        gate_attention, gate_ff = gate_attention.tanh(), gate_ff.tanh()
        y = y * (1 + scale)
    split = (attention.heads, -1)
    head = attention.norm_q.weight.shape[0]
    q, k = (F.linear(y, by_halves(part.weight, head)).unflatten(-1, split) for part in (attention.to_q, attention.to_k))
    q, k = rms(q, by_halves(attention.norm_q.weight, head)), rms(k, by_halves(attention.norm_k.weight, head))
    v = attention.to_v(y).unflatten(-1, split).transpose(1, 2)
    q, k = rotated(q, cos, sin).transpose(1, 2), rotated(k, cos, sin).transpose(1, 2)
    weights = torch.softmax((q @ k.transpose(-1, -2)).float() * q.shape[-1] ** -0.5, -1).to(v.dtype)
    o = rms(attention.to_out[0]((weights @ v).transpose(1, 2).flatten(2)), layer.attention_norm2.weight)
    x = x + (o if gate_attention is None else gate_attention * o)
    y = rms(x, layer.ffn_norm1.weight)
    if scale_ff is not None:
        y = y * (1 + scale_ff)
    o = rms(ff.w2(F.silu(ff.w1(y)) * ff.w3(y)), layer.ffn_norm2.weight)
    return x + (o if gate_ff is None else gate_ff * o)


class Forward:
    """The transformer's forward. `block` may be compiled."""

    def __init__(self, dit, block=block):
        self.dit, self.block, self.tables = dit, block, {}

    def rotary(self, text_length: int, height: int, width: int):
        """Cosines and sines of picture tokens, then of caption tokens."""
        key = (text_length, height, width)
        if key not in self.tables:
            caption = torch.zeros(text_length, 3, dtype=torch.int64)
            caption[:, 0] = torch.arange(1, text_length + 1)
            axes = (torch.tensor([text_length + 1]), torch.arange(height // 2), torch.arange(width // 2))
            picture = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
            embedded = (torch.view_as_real(self.dit.rope_embedder(places)).unbind(-1) for places in (picture, caption))
            self.tables[key] = [tuple(part.contiguous() for part in parts) for parts in embedded]
        return self.tables[key]

    def __call__(self, x, time, caption, mask):
        """x (B, C, H, W) with H x W / 4 a multiple of 32, time (B) from 0, pure noise, to 1; caption (B, T, D), T a multiple of 32,
        and mask (B, T), true at tokens that are no padding. Returns (B, C, H, W)."""
        dit, block = self.dit, self.block
        batch, channels, height, width = x.shape
        tokens = height // 2 * (width // 2)
        (cos_x, sin_x), (cos_c, sin_c) = self.rotary(caption.shape[1], height, width)
        time = dit.t_embedder(time * dit.t_scale)
        patches = x.view(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 3, 5, 1)
        h = dit.all_x_embedder["2-1"](patches.reshape(batch, tokens, 4 * channels))
        for layer in dit.noise_refiner:
            h = block(layer, h, cos_x, sin_x, time)
        norm, linear = dit.cap_embedder
        c = linear(rms(caption, norm.weight))
        c = torch.where(mask[..., None], c, dit.cap_pad_token.to(c.dtype))
        for layer in dit.context_refiner:
            c = block(layer, c, cos_c, sin_c, time)
        both = torch.cat([h, c], 1)
        cos, sin = torch.cat([cos_x, cos_c]), torch.cat([sin_x, sin_c])
        for layer in dit.layers:
            both = block(layer, both, cos, sin, time)
        final = dit.all_final_layer["2-1"]
        y = F.layer_norm(both[:, :tokens], (both.shape[-1],), eps=1e-6)
        y = final.linear(y * (1 + final.adaLN_modulation(time)).unsqueeze(1))
        return y.view(batch, height // 2, width // 2, 2, 2, channels).permute(0, 5, 1, 3, 2, 4).reshape(batch, channels, height, width)


def text_forward(text, ids: torch.Tensor) -> torch.Tensor:
    """`hidden_states[-2]` of ids padded on the right (B, T): attention is causal, so padding never reaches the other tokens."""
    h = text.embed_tokens(ids)
    positions = torch.arange(ids.shape[1])[None]
    rotary = text.rotary_emb(h, positions)
    for layer in text.layers[:-1]:
        h = layer(h, attention_mask=None, position_ids=positions, position_embeddings=rotary)
        h = h[0] if isinstance(h, tuple) else h
    return h


@torch.no_grad()
def main() -> None:
    torch.manual_seed(0)
    text, dit = text_encoder(500), transformer(192, 4, 2)
    initialise(text, dit)
    for p in dit.parameters():
        if p.dim() == 2 and p.std() < 0.03:
            p.normal_(0, 0.05)
    lengths = [9, 17, 25]
    ids = torch.randint(0, 500, (3, TEXT_LENGTH))
    mask = torch.arange(TEXT_LENGTH)[None] < torch.tensor(lengths)[:, None]
    theirs = text(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[-2]
    ours = text_forward(text, ids)
    x, time = torch.randn(3, 16, 16, 16), torch.rand(3)
    captions = [theirs[i, :length] for i, length in enumerate(lengths)]
    expected = torch.stack(dit(list(x.unsqueeze(2)), time, captions, return_dict=False)[0]).squeeze(2)
    found = Forward(dit)(x, time, ours, mask)
    worst = (float((theirs - ours)[mask].abs().max()), float((expected - found).abs().max()))
    print(f"largest difference: text {worst[0]:.1e}, transformer {worst[1]:.1e}, of {float(expected.abs().max()):.1f}")
    if max(worst) > 1e-4:
        raise SystemExit("the batched forward is not diffusers'")


if __name__ == "__main__":
    main()
