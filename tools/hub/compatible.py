"""Proves that what `lowtide pull` writes is what Python's huggingface_hub and diffusers read, and the other way round.

    python tools/hub/compatible.py path/to/lowtide

A model's folder (the demo's, unless another is named) is served by a small hub on loopback. Then:

1. `lowtide pull` fetches it; huggingface_hub, offline, finds the same snapshot, and its scan of the cache has no warning;
   diffusers, offline, reads configurations and the VAE's weights by the repository's name.
2. huggingface_hub fetches it into another cache; `lowtide pull` then fetches nothing, and `models verify` agrees.
3. Both fetch into one empty cache at the same time: both succeed, and each large file crosses the wire once.
4. `lowtide` fetches what it needs; then huggingface_hub completes the same snapshot.

Needs huggingface_hub and diffusers with torch; written for huggingface_hub 2.4 and diffusers 0.42.
"""

import argparse
import hashlib
import http.server
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading

REPO = "lowtide/compatible"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = 1 << 20
ROOT = pathlib.Path(__file__).resolve().parents[2]


def git_sum(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Hub(http.server.ThreadingHTTPServer):
    """Serves a folder as a repository and counts the bytes of each file that it sends."""

    daemon_threads = True

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), Handler)
        files = [path for path in folder.rglob("*") if path.is_file()]
        self.files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
        self.sent = {}
        self.lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def entry(self, path):
        data = self.files[path]
        entry = {"size": len(data), "blobId": git_sum(data)}
        if len(data) >= LARGE:
            sha = hashlib.sha256(data).hexdigest()
            entry["lfs"] = {"sha256": sha, "oid": sha, "size": len(data), "pointerSize": 130}
        return entry

    def etag(self, path):
        entry = self.entry(path)
        return entry["lfs"]["sha256"] if "lfs" in entry else entry["blobId"]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(False)

    def do_GET(self):
        self.answer(True)

    def answer(self, body):
        path = self.path.split("?")[0]
        hub = self.server
        if path.startswith(f"/api/models/{REPO}/tree/"):
            files = [
                {"type": "file", "path": name, "oid": hub.entry(name)["blobId"], **hub.entry(name)} for name in hub.files
            ]
            return self.send(200, json.dumps(files).encode(), {}, body)
        if path == f"/api/models/{REPO}" or path.startswith(f"/api/models/{REPO}/revision/"):
            siblings = [{"rfilename": name, **hub.entry(name)} for name in hub.files]
            info = {"_id": "1", "id": REPO, "modelId": REPO, "sha": COMMIT, "private": False, "siblings": siblings}
            return self.send(200, json.dumps(info).encode(), {}, body)
        for revision in (COMMIT, "main"):
            name = path.removeprefix(f"/{REPO}/resolve/{revision}/")
            if name in hub.files:
                return self.file(name, body)
        headers = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}
        self.send(404, b"", headers, body)

    def file(self, name, body):
        data = self.server.files[name]
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{self.server.etag(name)}"', "Accept-Ranges": "bytes"}
        status, begin = 200, 0
        if wanted := self.headers.get("Range"):
            begin = int(wanted.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
            status = 206
        if body:
            with self.server.lock:
                self.server.sent[name] = self.server.sent.get(name, 0) + len(data) - begin
        self.send(status, data[begin:], headers, body)

    def send(self, status, data, headers, body):
        self.send_response(status)
        for name, value in {"Content-Length": len(data), "Content-Type": "application/json", **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if body:
            self.wfile.write(data)


def environment(hub, home, **more):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return {**kept, "HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "HOME": str(home), **more}


def lowtide(program, hub, home, *arguments):
    command = [program, *arguments]
    done = subprocess.run(command, env=environment(hub, home), capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: {done.stderr}")
    return done.stdout


def python(hub, home, script, **more):
    """Runs a script in a process of its own: huggingface_hub reads its variables when it is imported."""
    done = subprocess.run([sys.executable, "-c", script], env=environment(hub, home, **more), capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{script}\n{done.stderr}")
    return done.stdout.strip().splitlines()[-1]


SNAPSHOT = f"from huggingface_hub import snapshot_download; print(snapshot_download({REPO!r}))"
SCAN = f"""
from huggingface_hub import scan_cache_dir
found = scan_cache_dir()
assert not found.warnings, found.warnings
repo, = found.repos
assert repo.repo_id == {REPO!r}, repo
revision, = repo.revisions
assert revision.refs == frozenset({{"main"}}), revision
print(len(revision.files), repo.size_on_disk)
"""
FROM_PRETRAINED = f"""
from diffusers import AutoencoderKL, DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from transformers import AutoConfig, PreTrainedTokenizerFast
config = DiffusionPipeline.load_config({REPO!r})
vae = AutoencoderKL.from_pretrained({REPO!r}, subfolder="vae")
FlowMatchEulerDiscreteScheduler.from_pretrained({REPO!r}, subfolder="scheduler")
AutoConfig.from_pretrained({REPO!r}, subfolder="text_encoder")
PreTrainedTokenizerFast.from_pretrained({REPO!r}, subfolder="tokenizer")
print(config["_class_name"], sum(weight.numel() for weight in vae.parameters()))
"""


def assert_once(hub):
    wrong = {name: sent for name, sent in hub.sent.items() if len(hub.files[name]) >= LARGE and sent != len(hub.files[name])}
    assert not wrong, f"sent more than once, or not whole: {wrong}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("lowtide", help="the program")
    parser.add_argument("--model", type=pathlib.Path, default=ROOT / "crates/cli/demo", help="the folder that is served")
    args = parser.parse_args()
    offline = {"HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        hub, home = Hub(args.model), folder / "one"
        pulled = lowtide(args.lowtide, hub, home, "pull", REPO).strip()
        found = python(hub, home, SNAPSHOT, **offline)
        assert pathlib.Path(pulled).resolve() == pathlib.Path(found).resolve(), (pulled, found)
        print("1. pulled by lowtide, found offline by huggingface_hub:", python(hub, home, SCAN, **offline))
        print("   read offline by diffusers:", python(hub, home, FROM_PRETRAINED, **offline))
        assert_once(hub)

        hub, home = Hub(args.model), folder / "two"
        python(hub, home, SNAPSHOT)
        hub.sent.clear()
        last = json.loads(lowtide(args.lowtide, hub, home, "pull", REPO, "--json").splitlines()[-1])
        assert last["fetched"] == 0 and not hub.sent, (last, hub.sent)
        lowtide(args.lowtide, hub, home, "models", "verify", REPO)
        print("2. fetched by huggingface_hub, found and verified by lowtide:", last["files"], last["bytes"])

        hub, home = Hub(args.model), folder / "three"
        both = [
            threading.Thread(target=lowtide, args=(args.lowtide, hub, home, "pull", REPO)),
            threading.Thread(target=python, args=(hub, home, SNAPSHOT)),
        ]
        for thread in both:
            thread.start()
        for thread in both:
            thread.join()
        lowtide(args.lowtide, hub, home, "models", "verify", REPO)
        print("3. fetched by both at once:", python(hub, home, SCAN, **offline))
        assert_once(hub)

        hub, home = Hub(args.model), folder / "four"
        lowtide(args.lowtide, hub, home, "pull", REPO)
        python(hub, home, SNAPSHOT)
        print("4. completed by huggingface_hub:", python(hub, home, SCAN, **offline))
        assert_once(hub)


main()
