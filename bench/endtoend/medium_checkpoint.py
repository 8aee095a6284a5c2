"""A Z-Image checkpoint of about 400 M random parameters, stored in bf16.

    python medium_checkpoint.py DIR
"""

import sys
from pathlib import Path

import measure  # noqa: F401  (makes tools/reference importable)


def ensure(folder: Path) -> None:
    """Writes the checkpoint when the folder is not there."""
    if (folder / "model_index.json").exists():
        return
    from tiny import Spec, write_checkpoint

    print(f"writing a checkpoint of 400 M random parameters to {folder}", flush=True)
    write_checkpoint(
        Spec(
            name="medium",
            seed=400,
            transformer=dict(n_heads=16, axes_dims=[16, 24, 24], axes_lens=[1024, 512, 512], n_layers=18, n_refiner_layers=2),
            text=dict(
                hidden_size=768, intermediate_size=2304, num_hidden_layers=12, num_attention_heads=12,
                num_key_value_heads=4, head_dim=64,
            ),
            vae=dict(
                block_out_channels=[64, 128, 256, 256], layers_per_block=2, norm_num_groups=32, latent_channels=16,
                scaling_factor=0.3611, shift_factor=0.1159,
            ),
            scheduler=dict(shift=3.0),
            request={},
            time_dtype="bf16",
            template="agent",
            pre_tokenizer="words",
        ),
        folder,
    )  # fmt: skip


if __name__ == "__main__":
    ensure(Path(sys.argv[1]))
