"""How long a detector takes here, in onnxruntime and in torch, in turn, and whether the boxes are the same.

    cargo build -p lowtide-engine --example time_detector && cargo build -p lowtide-cli
    python detect.py --model 320n.onnx --lowtide-model 320n.onnx --target ../../target/debug PICTURE...

Ours is a whole look: picture to letterbox, network, boxes. The others' time is that of the network alone. torch runs the same architecture in the
same sizes with random weights, norms folded, as `tools/reference/yolov8.py` has it.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools/reference"))
import yolov8  # noqa: E402


def onnxruntime_s(model, size, rounds, threads):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(model), options)
    (name,) = [i.name for i in session.get_inputs()]
    x = np.random.default_rng(0).random((1, 3, *size), dtype=np.float32)
    session.run(None, {name: x})
    return median(lambda: session.run(None, {name: x}), rounds)


def torch_s(classes, size, rounds, threads):
    import torch

    torch.set_num_threads(threads)
    net = yolov8.Network([16, 32, 64, 128, 256], (1, 2), classes, 64, max(64, min(classes, 100))).eval()
    for module in net.modules():
        if isinstance(module, yolov8.Conv):
            module.conv = torch.nn.utils.fusion.fuse_conv_bn_eval(module.conv, module.bn)
            module.bn = torch.nn.Identity()
    x = torch.rand(1, 3, *size)
    with torch.inference_mode():
        net(x)
        return median(lambda: net(x), rounds)


def median(call, rounds):
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return sorted(seconds)[rounds // 2]


def far(ours, theirs):
    """The largest distance of edges, of pairs of the same class in the same order; None where things differ."""
    key = lambda t: (t["class"], [round(e / 8) for e in t["box"]])
    if sorted(t["class"] for t in ours) != sorted(t["class"] for t in theirs):
        return None
    worst = 0.0
    for a in theirs:
        near = [max(abs(x - y) for x, y in zip(a["box"], b["box"])) for b in ours if b["class"] == a["class"]]
        worst = max(worst, min(near))
    return worst


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("pictures", nargs="+", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--lowtide-model", type=Path)
    parser.add_argument("--target", type=Path, default=ROOT / "target/debug")
    parser.add_argument("--size", type=int, default=640)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--boxes-only", action="store_true")
    args = parser.parse_args()
    ours_model = args.lowtide_model or args.model
    failed = False
    for picture in args.pictures:
        call = [args.target / "lowtide", "detect", picture, "--detector", ours_model, "--confidence", "0.25",
                "--side", str(args.size), "--json"]
        told = json.loads(subprocess.run(call, check=True, capture_output=True, text=True).stdout)
        theirs = yolov8.boxes(args.model, picture, args.size)
        worst = far(told["detections"], theirs)
        scores = [abs(a["score"] - b["score"]) for a, b in zip(told["detections"], theirs)]
        bad = worst is None or worst > 1
        failed |= bad
        print(f"{picture.name}: {len(theirs)} things, ours {len(told['detections'])}; edges within {worst} px, scores within "
              f"{max(scores, default=0):.5f}{'  <-- differs' if bad else ''}")
    if not args.boxes_only:
        size = (args.size, args.size)
        for _ in range(2):
            call = [args.target / "examples/time_detector", ours_model, args.pictures[0], str(args.size), str(args.rounds)]
            print("lowtide    ", subprocess.run(call, check=True, capture_output=True, text=True).stdout.strip())
            print(f"onnxruntime median {onnxruntime_s(args.model, size, args.rounds, args.threads):.4f}")
            print(f"torch       median {torch_s(18, size, args.rounds, args.threads):.4f}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
