"""Random requests made from /openapi.json: `schemathesis_run.py [url] [examples per operation] [seed]`."""

import importlib.util
import os
import subprocess
import sys

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


def main(url, examples, seed):
    command = [
        os.path.join(os.path.dirname(sys.executable), "schemathesis"),
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
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    arguments = sys.argv[1:] + [None, None, None]
    sys.exit(main((arguments[0] or "http://127.0.0.1:7860").rstrip("/"), int(arguments[1] or 30), int(arguments[2] or 1)))
