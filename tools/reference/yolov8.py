"""What YOLOv8 computes, by an implementation of our own in torch.

    python yolov8.py fixtures                                  # writes crates/engine/tests/fixtures/yolov8
    python yolov8.py boxes MODEL.onnx PICTURE [--size 640]     # boxes by onnxruntime, as `lowtide detect --json` has them
    python yolov8.py real MODEL.onnx FOLDER                    # the same of the photographs in crates/engine/tests/fixtures/yolov8/real

Written from the published architecture (https://docs.ultralytics.com/models/yolov8/), under the names of its checkpoints. The networks of the
fixtures are narrow, and random but for norms that keep their maps near one.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "crates/engine/tests/fixtures/yolov8"
BINS = 16


class Conv(nn.Module):
    def __init__(self, cin, cout, k=1, s=1):
        super().__init__()
        self.conv = nn.Conv2d(cin, cout, k, s, k // 2, bias=False)
        self.bn = nn.BatchNorm2d(cout, eps=1e-3)

    def forward(self, x):
        return F.silu(self.bn(self.conv(x)))


class Bottleneck(nn.Module):
    def __init__(self, c, add):
        super().__init__()
        self.cv1, self.cv2, self.add = Conv(c, c, 3), Conv(c, c, 3), add

    def forward(self, x):
        y = self.cv2(self.cv1(x))
        return x + y if self.add else y


class C2f(nn.Module):
    def __init__(self, cin, cout, n, add):
        super().__init__()
        self.c = cout // 2
        self.cv1 = Conv(cin, 2 * self.c)
        self.cv2 = Conv((2 + n) * self.c, cout)
        self.m = nn.ModuleList(Bottleneck(self.c, add) for _ in range(n))

    def forward(self, x):
        paths = list(self.cv1(x).split(self.c, 1))
        for bottleneck in self.m:
            paths.append(bottleneck(paths[-1]))
        return self.cv2(torch.cat(paths, 1))


class SPPF(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.cv1, self.cv2 = Conv(c, c // 2), Conv(2 * c, c)

    def forward(self, x):
        maps = [self.cv1(x)]
        for _ in range(3):
            maps.append(F.max_pool2d(maps[-1], 5, 1, 2))
        return self.cv2(torch.cat(maps, 1))


class Proto(nn.Module):
    def __init__(self, cin, hidden, count):
        super().__init__()
        self.cv1 = Conv(cin, hidden, 3)
        self.upsample = nn.ConvTranspose2d(hidden, hidden, 2, 2)
        self.cv2, self.cv3 = Conv(hidden, hidden, 3), Conv(hidden, count)

    def forward(self, x):
        return self.cv3(self.cv2(self.upsample(self.cv1(x))))


def branch(cin, hidden, out):
    return nn.Sequential(Conv(cin, hidden, 3), Conv(hidden, hidden, 3), nn.Conv2d(hidden, out, 1))


class Heads(nn.Module):
    def __init__(self, seen, classes, box_hidden, class_hidden, outlines):
        super().__init__()
        self.cv2 = nn.ModuleList(branch(c, box_hidden, 4 * BINS) for c in seen)
        self.cv3 = nn.ModuleList(branch(c, class_hidden, classes) for c in seen)
        if outlines:
            count, hidden, proto_hidden = outlines
            self.cv4 = nn.ModuleList(branch(c, hidden, count) for c in seen)
            self.proto = Proto(seen[0], proto_hidden, count)


class Network(nn.Module):
    def __init__(self, c, depths, classes, box_hidden, class_hidden, outlines=None):
        super().__init__()
        n = depths
        self.model = nn.ModuleDict({
            "0": Conv(3, c[0], 3, 2), "1": Conv(c[0], c[1], 3, 2), "2": C2f(c[1], c[1], n[0], True),
            "3": Conv(c[1], c[2], 3, 2), "4": C2f(c[2], c[2], n[1], True),
            "5": Conv(c[2], c[3], 3, 2), "6": C2f(c[3], c[3], n[1], True),
            "7": Conv(c[3], c[4], 3, 2), "8": C2f(c[4], c[4], n[0], True), "9": SPPF(c[4]),
            "12": C2f(c[4] + c[3], c[3], n[0], False), "15": C2f(c[3] + c[2], c[2], n[0], False),
            "16": Conv(c[2], c[2], 3, 2), "18": C2f(c[2] + c[3], c[3], n[0], False),
            "19": Conv(c[3], c[3], 3, 2), "21": C2f(c[3] + c[4], c[4], n[0], False),
            "22": Heads((c[2], c[3], c[4]), classes, box_hidden, class_hidden, outlines),
        })

    def forward(self, x):
        m = self.model
        kept = {}
        for k in range(10):
            x = m[str(k)](x)
            kept[k] = x
        double = lambda x: F.interpolate(x, scale_factor=2.0, mode="nearest")
        x12 = m["12"](torch.cat([double(kept[9]), kept[6]], 1))
        x15 = m["15"](torch.cat([double(x12), kept[4]], 1))
        x18 = m["18"](torch.cat([m["16"](x15), x12], 1))
        x21 = m["21"](torch.cat([m["19"](x18), kept[9]], 1))
        heads, seen = m["22"], (x15, x18, x21)
        out = {}
        for k, x in enumerate(seen):
            out[f"edges.{k}"], out[f"classes.{k}"] = heads.cv2[k](x)[0], heads.cv3[k](x)[0]
            if hasattr(heads, "cv4"):
                out[f"outlines.{k}"] = heads.cv4[k](x)[0]
        if hasattr(heads, "cv4"):
            out["prototypes"] = heads.proto(x15)[0]
        return out


def decoded(out):
    """Corners in pixels, scores of classes, coefficients: a row a place, level after level."""
    rows = []
    for k, stride in enumerate((8, 16, 32)):
        edges, classes = out[f"edges.{k}"], out[f"classes.{k}"]
        _, h, w = classes.shape
        shares = edges.reshape(4, BINS, h * w).softmax(1)
        far = (shares * torch.arange(BINS, dtype=torch.float32)[None, :, None]).sum(1)
        y, x = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")
        x, y = x.flatten(), y.flatten()
        corners = torch.stack([x - far[0], y - far[1], x + far[2], y + far[3]]) * stride
        parts = [corners, classes.flatten(1).sigmoid()]
        if f"outlines.{k}" in out:
            parts.append(out[f"outlines.{k}"].flatten(1))
        rows.append(torch.cat(parts).T)
    return torch.cat(rows)


def sifted(rows, classes, score, overlap, most=300):
    """Rows (corners, score, class, coefficients), the best first, each thing once."""
    best, kind = rows[:, 4:4 + classes].max(1)
    rows = torch.cat([rows[:, :4], best[:, None], kind[:, None].float(), rows[:, 4 + classes:]], 1)
    rows = rows[rows[:, 4] > score]
    rows = rows[rows[:, 4].argsort(descending=True, stable=True)]
    kept = []
    for row in rows:
        if len(kept) < most and not any(o[5] == row[5] and share(row, o) > overlap for o in kept):
            kept.append(row)
    return torch.stack(kept) if kept else rows[:0]


def share(a, b):
    """What both boxes cover of what either does."""
    lt, rb = torch.maximum(a[:2], b[:2]), torch.minimum(a[2:4], b[2:4])
    both = (rb - lt).clamp(min=0).prod()
    area = lambda r: (r[2:4] - r[:2]).clamp(min=0).prod()
    return both / (area(a) + area(b) - both)


def is_clear(rows, classes, score, overlap):
    """Whether no rounding decides which things there are."""
    scores = rows[:, 4:4 + classes].sort(1, descending=True)
    best, second = scores.values[:, 0], scores.values[:, 1]
    near = rows[best > score - 1e-3]
    gaps = best[best > score - 1e-3].sort().values.diff()
    shares = [share(a, b) for i, a in enumerate(near) for b in near[:i]]
    return (
        (best - score).abs().min() > 1e-4 and (best - second)[best > score].min() > 1e-4 and gaps.min() > 2e-6
        and all(abs(float(s) - overlap) > 1e-4 for s in shares)
    )


def masks(prototypes, rows, size):
    """Where the outlines are, within their boxes, in the pixels of the input."""
    if not len(rows):
        return torch.zeros((0, *size), dtype=torch.uint8)
    values = (rows[:, 6:] @ prototypes.flatten(1)).reshape(-1, *prototypes.shape[1:])
    values = F.interpolate(values[None], size=size, mode="bilinear", align_corners=False)[0]
    y, x = torch.arange(size[0])[:, None] + 0.5, torch.arange(size[1])[None] + 0.5
    for value, row in zip(values, rows):
        value[~((x > row[0]) & (x < row[2]) & (y > row[1]) & (y < row[3]))] = -1
    return (values > 0).to(torch.uint8)


def settle(net, seed):
    """Random weights, then norms of what comes by, so that no map dies out or explodes."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                fan = module.weight[0].numel()
                module.weight.copy_(torch.randn(module.weight.shape, generator=g) * fan**-0.5)
                if module.bias is not None:
                    module.bias.copy_(torch.randn(module.bias.shape, generator=g) * 0.5)
            elif isinstance(module, nn.BatchNorm2d):
                module.weight.copy_(1 + 0.2 * torch.randn(module.weight.shape, generator=g))
                module.bias.copy_(0.3 * torch.randn(module.bias.shape, generator=g))
                module.momentum = None
        net.train()
        net(torch.rand(1, 3, 64, 96, generator=g))
        net.eval()
        for name, parameter in net.named_parameters():
            # Edges a few places away, so that boxes overlap, and outlines with two sides.
            if name.endswith(".2.weight") and ".cv3." not in name:
                parameter.mul_(3)
            if ".cv2." in name and name.endswith(".2.bias"):
                parameter.sub_(0.8 * torch.arange(BINS, dtype=torch.float32).repeat(4))
    return net


def folded(state):
    """The norms within the convolutions, as exporters leave them."""
    out = {}
    for name, tensor in state.items():
        if name.endswith(".conv.weight"):
            bn = name[: -len("conv.weight")] + "bn."
            scale = state[bn + "weight"] / (state[bn + "running_var"] + 1e-3).sqrt()
            out[name] = tensor * scale[:, None, None, None]
            out[name[:-6] + "bias"] = state[bn + "bias"] - state[bn + "running_mean"] * scale
        elif ".bn." not in name:
            out[name] = tensor
    return out


def clean(state):
    return {k: v.detach().contiguous().clone() for k, v in state.items() if "num_batches" not in k}


@torch.no_grad()
def fixtures():
    c = [8, 8, 16, 16, 24]
    cases = {
        "detect": (Network(c, (1, 2), 3, 16, 8), 3, "f16", (64, 96)),
        "segment": (Network(c, (2, 1), 2, 16, 16, (8, 12, 16)), 2, "folded", (96, 64)),
    }
    for case, (net, classes, form, size) in cases.items():
        for seed in range(1000):
            settle(net, seed)
            if form == "f16":
                half = lambda v: v.half().float() if v.is_floating_point() else v
                net.load_state_dict({k: half(v) for k, v in net.state_dict().items()})
            state = clean(net.state_dict())
            picture = torch.randint(0, 256, (3, *size), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
            out = net(picture[None].float() / 255)
            rows = sifted(decoded(out), classes, 0.6, 0.5)
            if 5 < len(rows) < 60 and len(set(rows[:, 5].tolist())) > 1 and is_clear(decoded(out), classes, 0.6, 0.5):
                break
        else:
            raise AssertionError("no clear case")
        assert len(sifted(decoded(out), classes, 0.6, 0.99)) > len(rows)
        expected = {"picture": picture.permute(1, 2, 0).contiguous(), "rows": rows[:, :6].contiguous(), **out}
        if "prototypes" in out:
            expected["masks"] = masks(out["prototypes"], rows, size)
            covered = expected["masks"].float().mean()
            assert 0.005 < covered < 0.9, covered
        stored = {k: v.half() for k, v in state.items()} if form == "f16" else folded(state)
        folder = FIXTURES / case
        folder.mkdir(parents=True, exist_ok=True)
        names = {k: f"thing {k}" for k in range(classes)}
        save_file(clean(stored), folder / "model.safetensors", {"names": str(names), "task": case})
        save_file({k: v.contiguous().clone() for k, v in expected.items()}, folder / "expected.safetensors")
        print(case, len(rows), "things", sum(p.numel() for p in net.parameters()), "parameters")


def boxes(model, picture, size):
    """The same preparation as the program's: bilinear without smoothing, the long side to `size`, grey around."""
    import ast

    import onnxruntime
    from PIL import Image, ImageOps

    rgb = np.asarray(ImageOps.exif_transpose(Image.open(picture)).convert("RGB"))
    h, w = rgb.shape[:2]
    gain = min(size / h, size / w)
    nh, nw = round(h * gain), round(w * gain)
    x = torch.from_numpy(rgb.copy()).permute(2, 0, 1)[None].float()
    x = F.interpolate(x, size=(nh, nw), mode="bilinear", align_corners=False).round()
    ph, pw = -nh % 32, -nw % 32
    top, left = round(ph / 2 - 0.1), round(pw / 2 - 0.1)
    x = F.pad(x, (left, pw - left, top, ph - top), value=114) / 255
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    session = onnxruntime.InferenceSession(str(model), options)
    (name,) = [i.name for i in session.get_inputs()]
    out = torch.from_numpy(session.run(None, {name: x.numpy()})[0][0]).T
    classes = out.shape[1] - 4
    corners = torch.cat([out[:, :2] - out[:, 2:4] / 2, out[:, :2] + out[:, 2:4] / 2], 1)
    rows = sifted(torch.cat([corners, out[:, 4:]], 1), classes, 0.25, 0.7)
    names = session.get_modelmeta().custom_metadata_map.get("names")
    names = ast.literal_eval(names) if names else {}
    found = []
    for row in rows.tolist():
        edges = [(row[k] - (left, top)[k % 2]) / gain for k in range(4)]
        edges = [min(max(e, 0), (w, h)[k % 2]) for k, e in enumerate(edges)]
        found.append({"box": edges, "score": row[4], "class": int(row[5]), "label": names.get(int(row[5]))})
    return found


def real(model, folder):
    """What onnxruntime finds in the photographs of `folder`, for the tests."""
    cases = []
    for picture in sorted(folder.glob("*.png")):
        for side in (320, 640):
            cases.append({"picture": picture.name, "side": side, "things": boxes(model, picture, side)})
    (folder / "expected.json").write_text(json.dumps(cases, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("fixtures")
    verb = verbs.add_parser("boxes")
    verb.add_argument("model", type=Path)
    verb.add_argument("picture", type=Path)
    verb.add_argument("--size", type=int, default=640)
    verb = verbs.add_parser("real")
    verb.add_argument("model", type=Path)
    verb.add_argument("folder", type=Path)
    args = parser.parse_args()
    if args.verb == "fixtures":
        fixtures()
    elif args.verb == "real":
        real(args.model, args.folder)
    else:
        print(json.dumps(boxes(args.model, args.picture, args.size), indent=1))
