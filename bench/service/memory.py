"""Memory of a worker over many cycles of a job and a release: does it come back to where it began?

    python3 bench/service/memory.py --lowtide target/release/lowtide --cycles 100

Standard library only; Linux, since it reads /proc. Starts `lowtide serve` in a folder of its own, makes one picture a
cycle with the model that comes with the program, and reads the worker's resident memory 2 s after the job, once with
`after_job: release` and once by an idle timer of 1 s.
"""

import argparse
import json
import pathlib
import subprocess
import tempfile
import time
import urllib.request


def resident(pid):
    """(all, not of files) in MiB."""
    fields = {}
    for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, value = line.split(":")
        fields[name] = int(value.split()[0]) / 1024
    return fields["Rss"], fields["Private_Dirty"]


class Service:
    def __init__(self, program, folder, *settings):
        self.folder = pathlib.Path(folder)
        arguments = [program, "serve", "--port", "0", "--data-dir", folder, "--set", "log.level=quiet"]
        for setting in settings:
            arguments += ["--set", setting]
        self.process = subprocess.Popen(arguments, stderr=subprocess.DEVNULL)
        while True:
            try:
                self.url = json.loads((self.folder / "server.json").read_text())["url"]
                worker = self.get("/health/ready")["workers"][0]
                break
            except (OSError, ValueError, KeyError, IndexError):
                time.sleep(0.01)
        self.worker = int(worker["worker"].rsplit("-", 1)[1])

    def get(self, path):
        with urllib.request.urlopen(self.url + path) as answer:
            return json.load(answer)

    def make(self, number, **wishes):
        body = {"request": {"prompt": "a red heart", "seed": number, "steps": 4}, **wishes}
        request = urllib.request.Request(
            self.url + "/v1/jobs", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:
            job = json.load(answer)["id"]
        done = self.get(f"/v1/jobs/{job}?wait_s=60")
        assert done["state"] == "done", done

    def residency(self):
        detail = self.get("/gpu/stats?detail=1")["detail"]["workers"][0]["status"]
        return next(model for model in detail["models"] if model["name"] == "demo")

    def end(self):
        self.process.terminate()
        self.process.wait()


def cycles(service, count, every, wishes, name):
    time.sleep(2)
    start = resident(service.worker)
    print(f"{name}: at the start {start[0]:.1f} MiB resident, {start[1]:.1f} MiB of them its own")
    highest = 0.0
    for number in range(1, count + 1):
        service.make(number, **wishes)
        highest = max(highest, resident(service.worker)[0])
        while service.residency()["residency"] != "unloaded":
            time.sleep(0.05)
        if number % every == 0 or number == 1:
            time.sleep(2)
            now = resident(service.worker)
            memory = service.get("/gpu/stats?detail=1")["detail"]["workers"][0]["status"]["memory"]
            print(
                f"  after cycle {number:3}: {now[0]:.1f} MiB ({now[0] - start[0]:+.1f}), own {now[1]:.1f} MiB "
                f"({now[1] - start[1]:+.1f}); "
                f"asked for {memory['allocated'] / 2**20:.2f} MiB; at the end of a job up to {highest:.1f} MiB"
            )
    return now[1] - start[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lowtide", required=True)
    parser.add_argument("--cycles", type=int, default=100)
    options = parser.parse_args()
    grown = {}
    with tempfile.TemporaryDirectory() as folder:
        service = Service(options.lowtide, folder)
        grown["release"] = cycles(service, options.cycles, 20, {"after_job": "release"}, "after_job: release")
        server = resident(service.process.pid)
        print(f"  the server: {server[0]:.1f} MiB resident, {server[1]:.1f} MiB of them its own")
        service.end()
    with tempfile.TemporaryDirectory() as folder:
        service = Service(options.lowtide, folder, "worker.idle_timeout=1s")
        grown["idle timer"] = cycles(service, max(1, options.cycles // 5), 5, {}, "idle timer of 1 s")
        service.end()
    worst = max(grown.values())
    print(f"grown by at most {worst:.1f} MiB: {'within' if worst <= 5 else 'MORE THAN'} 5 MiB of the start")
    raise SystemExit(worst > 5)


if __name__ == "__main__":
    main()
