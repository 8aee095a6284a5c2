"""The tokenizer: byte-level BPE with whole words for what the captions say, and Qwen's chat template around a prompt."""

from pathlib import Path

import numpy as np
import torch

from model import TEXT_LENGTH
from variants import caption, choose

VOCABULARY = 4096
TEMPLATE = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}"
)


def make(objects: list[dict], folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    rng = np.random.default_rng(3)
    texts = ["user", "assistant", "<think>", "\n\n", "\n"] * 50
    for index, object in enumerate(objects):
        texts += [caption(variant, object, rng) for variant in choose(object, index, 14, rng)]
    words = sorted({word for object in objects for name in object["captions"] + object["bare"] for word in name.split()})
    texts += [f" {word}" for word in words] * 8 + words * 3
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|endoftext|>", eos_token="<|im_end|>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)


def encode(tokenizer, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids (B, 32) padded on the right, and which are no padding. As the pipeline writes a prompt: one message of a user."""
    ids = torch.zeros(len(captions), TEXT_LENGTH, dtype=torch.long)
    mask = torch.zeros(len(captions), TEXT_LENGTH, dtype=torch.bool)
    texts = [f"<|im_start|>user\n{caption}<|im_end|>\n<|im_start|>assistant\n" for caption in captions]
    for row, encoded in enumerate(tokenizer.backend_tokenizer.encode_batch(texts)):
        found = encoded.ids[:TEXT_LENGTH]
        ids[row, : len(found)] = torch.tensor(found)
        mask[row, : len(found)] = True
    return ids, mask
