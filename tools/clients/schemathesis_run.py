"""Random requests made from /openapi.json: `schemathesis_run.py [url] [examples per operation] [seed]`."""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import urllib.request

SKIPPED = 77

if importlib.util.find_spec("schemathesis") is None:
    print("SKIPPED: the package `schemathesis` is not installed (pip install schemathesis)", file=sys.stderr)
    sys.exit(SKIPPED)

# Left out, and why.
EXCLUDED_CHECKS = [
    # A cancelled job is still there to be looked at: DELETE ends its work, not its record.
    "use_after_free",
]
EXCLUDED_PATHS = [
    # Streams that end only with the job, or never.
    "/v1/events",
    "/v1/jobs/{id}/events",
    # After one of these nothing else would be worked on.
    "/v1/workers/{id}/drain",
    "/v1/workers/{id}/pause",
    "/v1/queue/hold",
]


HERE = os.path.dirname(os.path.abspath(__file__))


def known_ids(url):
    """A job and an artifact that exist: nobody guesses an id."""
    body = json.dumps({"request": {"prompt": "a red heart"}}).encode()
    request = urllib.request.Request(f"{url}/v1/jobs", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        job = json.load(answer)["id"]
    with urllib.request.urlopen(f"{url}/v1/jobs/{job}?wait_s=60") as answer:
        artifacts = json.load(answer)["artifacts"]
    assert artifacts, "the service makes a picture before it is tried with random requests"
    return job, artifacts[0]["id"]


def configuration(url, folder):
    """The file beside this one, and the ids."""
    job, artifact = known_ids(url)
    with open(os.path.join(HERE, "schemathesis.toml"), encoding="utf-8") as file:
        text = file.read()
    for path, name in [("^/v1/jobs/", job), ("^/v1/artifacts/", artifact)]:
        text += f'\n[[operations]]\ninclude-path-regex = "{path}"\nparameters = {{ id = "{name}" }}\n'
    path = os.path.join(folder, "schemathesis.toml")
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    return path


def main(url, examples, seed):
    # It keeps notes of its own about failures; the next run begins anew.
    with tempfile.TemporaryDirectory() as folder:
        return run(url, (examples, seed), folder)


def run(url, amount, folder):
    examples, seed = amount
    command = [
        os.path.join(os.path.dirname(sys.executable), "schemathesis"),
        f"--config-file={configuration(url, folder)}",
        "run",
        f"{url}/openapi.json",
        f"--max-examples={examples}",
        f"--seed={seed}",
        "--checks=all",
        f"--exclude-checks={','.join(EXCLUDED_CHECKS)}",
        "--request-timeout=60",
        "--phases=examples,coverage,fuzzing",
    ]
    for path in EXCLUDED_PATHS:
        command.append(f"--exclude-path={path}")
    print("seed", seed, flush=True)
    return subprocess.run(command, check=False, cwd=folder).returncode


if __name__ == "__main__":
    arguments = sys.argv[1:] + [None, None, None]
    sys.exit(main((arguments[0] or "http://127.0.0.1:7860").rstrip("/"), int(arguments[1] or 30), int(arguments[2] or 1)))
