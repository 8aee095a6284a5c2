"""Small files of torch.save in both forms, and the tensors that are in them as safetensors.

    python torch_files.py [FOLDER]    default ../../crates/weights/tests/fixtures/torch
"""

import collections
import os
import sys
import types
from pathlib import Path

import torch
from safetensors.torch import save_file

HERE = Path(__file__).resolve().parent


def tensors() -> dict[str, torch.Tensor]:
    """One of every kind that a checkpoint has: types, orders, views, scalars, nothing."""
    generator = torch.Generator().manual_seed(7)
    base = torch.randn((6, 5), generator=generator)
    return {
        "a.f32": base,
        "a.rows": base[2:4],  # a view of the same storage
        "a.turned": base.t(),  # another order, no gaps
        "b.f16": torch.randn((3, 4), generator=generator).half(),
        "b.bf16": torch.randn((2, 2, 3, 3), generator=generator).bfloat16(),
        "b.channels_last": torch.randn((2, 3, 4, 5), generator=generator).to(memory_format=torch.channels_last),
        "b.f64": torch.randn(3, generator=generator, dtype=torch.float64),
        "c.i64": torch.arange(77).reshape(1, 77),
        "c.u8": torch.arange(5, dtype=torch.uint8),
        "c.bool": torch.tensor([True, False]),
        "c.scalar": torch.tensor(3.5),
        "c.empty": torch.zeros((0, 4)),
        "d.parameter": torch.nn.Parameter(torch.randn(4, generator=generator)),
    }


def leftovers() -> dict:
    """What a trainer leaves beside the weights: objects of packages that no reader has."""
    module = types.ModuleType("a_trainer.callbacks")

    class Saver:
        def __init__(self):
            self.best = {"loss": 0.25, "path": "x.ckpt"}

    class Kept(dict):
        pass

    for made in (Saver, Kept):
        made.__module__ = "a_trainer.callbacks"
        made.__qualname__ = made.__name__
        setattr(module, made.__name__, made)
    sys.modules["a_trainer"] = types.ModuleType("a_trainer")
    sys.modules["a_trainer.callbacks"] = module
    kept = Kept(step=3)
    return {
        "epoch": 4,
        "global_step": 875000,
        "callbacks": {Saver: Saver(), "kept": kept},
        "optimizer_states": [{"state": {0: {"step": 1, "exp_avg": torch.ones(3)}}, "lr": 1e-4}],
        "hyper_parameters": collections.defaultdict(list, {"layers": [1, 2]}),
        "lr_schedulers": [(1, 2.5, None, {"a", "b"})],
        "big": 1 << 80,
    }


class Net(torch.nn.Module):
    """A network saved whole, as people do."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(3, 2)
        self.blocks = torch.nn.ModuleList([torch.nn.Conv2d(2, 2, 3), torch.nn.BatchNorm2d(2)])


class Command:
    """What a hostile file does: its rebuilding runs a command."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def contiguous(state: dict) -> dict:
    return {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "../../crates/weights/tests/fixtures/torch"
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(3)
    state, net = tensors(), Net()
    save_file(contiguous(state), folder / "expected.safetensors")
    save_file(contiguous(net.state_dict()), folder / "net.safetensors")
    typed = {"f8": torch.randn(6).to(torch.float8_e4m3fn), "u16": torch.arange(4).to(torch.uint16)}
    save_file(typed, folder / "typed.safetensors")
    torch.save(state, folder / "zip.pt")
    torch.save(state, folder / "legacy.pt", _use_new_zipfile_serialization=False)
    torch.save(collections.OrderedDict(state), folder / "protocol4.pt", pickle_protocol=4)
    ordered = collections.OrderedDict(state)
    ordered._metadata = {"": {"version": 1}}
    torch.save({**leftovers(), "state_dict": ordered}, folder / "trainer.ckpt")
    torch.save({"state_dict": ordered, **leftovers()}, folder / "trainer-legacy.ckpt", _use_new_zipfile_serialization=False)
    torch.save(net, folder / "net.pt")
    torch.save(typed, folder / "typed.pt")
    torch.save({"w": torch.ones(2), "x": Command("touch lowtide-was-here")}, folder / "command.pt")
    embedding = {"string_to_token": {"*": torch.tensor(265)}, "string_to_param": {"*": state["a.f32"]}, "name": "cat", "step": 9}
    torch.save(embedding, folder / "embedding.pt")
    # Orders that are no order: elements twice, and gaps.
    torch.save({"w": torch.ones(1).expand(4)}, folder / "expanded.pt")
    torch.save({"w": torch.ones(4, 4)[:, :2]}, folder / "gaps.pt")


if __name__ == "__main__":
    main()
