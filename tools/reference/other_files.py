"""Small files of other programs for `crates/weights`, and the tensors that are in them as safetensors: an ONNX export, and
a network of Ultralytics' kind saved whole. Needs onnx (1.23.2) besides the rest.

    python other_files.py [FOLDER]    default ../../crates/weights/tests/fixtures/other
"""

import collections
import sys
import types
import warnings
from pathlib import Path

import numpy
import onnx
import torch
from onnx import numpy_helper
from safetensors.torch import save_file

HERE = Path(__file__).resolve().parent


class Conv(torch.nn.Module):
    """A convolution, a norm and an activation, as detectors have them."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.conv = torch.nn.Conv2d(c_in, c_out, 3, padding=1, bias=False)
        self.bn = torch.nn.BatchNorm2d(c_out)
        self.act = torch.nn.SiLU()

    def forward(self, x):
        return self.act(self.bn(self.conv(x)))


class Net(torch.nn.Module):
    """Every way in which an exporter takes a name away."""

    def __init__(self):
        super().__init__()
        self.stem = Conv(3, 4)
        self.body = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 1), torch.nn.PReLU(4), Conv(4, 6))
        self.mix = torch.nn.Linear(6, 5)
        self.plain = torch.nn.Linear(6, 2, bias=False)
        self.head = torch.nn.Linear(5, 3)

    def forward(self, x):
        x = self.body(self.stem(x)).flatten(2).transpose(1, 2)
        return self.head(self.mix(x)[:, 0]), self.plain(x)


def export(net: Net, folder: Path) -> None:
    path = folder / "net.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net, (torch.zeros(1, 3, 8, 8),), str(path), dynamo=False, opset_version=13)
    model = onnx.load(path)
    model.metadata_props.add(key="names", value="{0: 'face', 1: 'hand'}")
    onnx.save(model, path)
    state = dict(net.state_dict())
    expected = {}
    for name, tensor in state.items():
        module = name.rsplit(".", 1)[0]
        if module.endswith(".bn"):
            continue
        bn = module.removesuffix(".conv") + ".bn"
        if name.endswith(".conv.weight") and f"{bn}.weight" in state:
            # What the exporter folds: the norm into the convolution before it.
            scale = state[f"{bn}.weight"] / torch.sqrt(state[f"{bn}.running_var"] + 1e-5)
            expected[name] = tensor * scale[:, None, None, None]
            expected[f"{module}.bias"] = state[f"{bn}.bias"] - state[f"{bn}.running_mean"] * scale
        else:
            expected[name] = tensor
    save_file({n: t.detach().clone() for n, t in expected.items()}, folder / "net.safetensors")


def spelt_out(folder: Path) -> None:
    """Numbers in the fields for single ones, as a program without numpy writes them."""
    generator = numpy.random.default_rng(5)
    f32 = generator.standard_normal((2, 3), dtype=numpy.float32)
    half = generator.standard_normal(4, dtype=numpy.float32).astype(numpy.float16)
    tensors = {
        "f32": f32,
        "f16": half,
        "f64": generator.standard_normal(3),
        "i64": numpy.array([-5, 1 << 40, 0], dtype=numpy.int64),
        "i32": numpy.array([[-1, 2]], dtype=numpy.int32),
        "u8": numpy.array([0, 255], dtype=numpy.uint8),
        "bool": numpy.array([True, False]),
        "scalar": numpy.array(2.5, dtype=numpy.float32),
        "empty": numpy.zeros((0, 4), dtype=numpy.float32),
    }
    made = []
    for name, array in tensors.items():
        kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        made.append(onnx.helper.make_tensor(name, kind, array.shape, array.flatten().tolist()))
    # A constant among the nodes, and one initialiser under two names.
    constant = onnx.helper.make_node("Constant", [], ["in.node"], value=numpy_helper.from_array(f32 * 2))
    twin = onnx.helper.make_node("Identity", ["f32"], ["twin"])
    text = onnx.helper.make_tensor("text", onnx.TensorProto.STRING, [1], [b"never a weight"])
    graph = onnx.helper.make_graph([constant, twin], "g", [], [], [*made, text])
    onnx.save(onnx.helper.make_model(graph), folder / "spelt.onnx")
    tensors |= {"in.node": f32 * 2, "twin": f32}
    save_file({n: torch.from_numpy(numpy.ascontiguousarray(a).copy()).reshape(a.shape) for n, a in tensors.items()}, folder / "spelt.safetensors")


def pretend(name: str, *classes: type) -> None:
    """Classes of a package that no reader has."""
    parts = name.split(".")
    for at in range(1, len(parts) + 1):
        sys.modules.setdefault(".".join(parts[:at]), types.ModuleType(parts[at - 1]))
    for made in classes:
        made.__module__ = name
        made.__qualname__ = made.__name__
        setattr(sys.modules[name], made.__name__, made)


class DetectionModel(torch.nn.Module):
    def __init__(self, fill: float):
        super().__init__()
        self.model = torch.nn.Sequential(Conv(3, 4), Conv(4, 2))
        self.names = {0: "face", 1: "it's a \"hand\""}
        self.yaml = {"nc": 2, "depth_multiple": 0.33, "backbone": [[-1, 1, "Conv", [4, 3, 2]]]}
        self.stride = torch.tensor([8.0, 16.0])
        self.register_buffer("grid", torch.zeros(2), persistent=False)
        torch.nn.init.constant_(self.model[1].conv.weight, fill)


def trainer(folder: Path) -> None:
    """What a trainer of detectors leaves: the network twice, as objects; the averaged one is the one to use."""
    pretend("detectors.nn.modules.conv", Conv)
    pretend("detectors.nn.tasks", DetectionModel)
    model, ema = DetectionModel(1.0), DetectionModel(2.0).half()
    optimizer = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.01, "params": [0]}]}
    saved = {
        "epoch": 3, "best_fitness": numpy.float64(0.5), "model": model, "ema": ema, "updates": 9,
        "optimizer": optimizer, "train_args": {"task": "detect", "imgsz": 640}, "date": "2026", "version": "8",
    }
    torch.save(saved, folder / "both.pt")
    torch.save({**saved, "model": ema, "ema": None, "optimizer": None}, folder / "stripped.pt")
    save_file({n: t.clone() for n, t in ema.state_dict().items()}, folder / "ema.safetensors")


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "../../crates/weights/tests/fixtures/other"
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(11)
    net = Net().eval()
    for norm in net.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
            torch.nn.init.normal_(norm.bias)
            torch.nn.init.normal_(norm.running_mean)
            torch.nn.init.uniform_(norm.running_var, 0.5, 2.0)
    export(net, folder)
    spelt_out(folder)
    trainer(folder)


if __name__ == "__main__":
    main()
