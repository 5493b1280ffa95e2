#!/usr/bin/env python3
"""Makes sandboxes and runs `echo` in each: booted, gone on from where one like it had booted, and from a snapshot, in turns. Then many
at once, and what that costs. See scripts/bench.

ms from the request for a sandbox to the whole answer of its first command, and of the request for its removal to its last file's.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from api import Api  # noqa: E402

MEMORY_MIB = 512
AT_ONCE = 20
# The steps of a machine's process, in the order in which it does them, and what they are.
STEPS = {"jail": "process", "kernel": "RAM", "vm": "KVM", "devices": "devices", "vcpus": "state", "started": "vCPUs"}


class Bench:
    def __init__(self, home, socket):
        self.home, self.socket = home, socket

    def create(self, **how):
        body = {"image": "code", "mem": MEMORY_MIB, **how}
        if "fromSnapshot" in how:
            del body["image"], body["mem"]
        return self.ask("POST", "/sandboxes", body)["data"]

    def ask(self, *request):
        # A connection each, as of somebody who has just come.
        return Api(self.socket).ask(*request)

    def first_output(self, **how):
        """The sandbox, and ms to the answer of the request for it and to that of its first command."""
        began = time.monotonic()
        sandbox = self.create(**how)
        created = time.monotonic()
        answer = self.ask("POST", f"/sandboxes/{sandbox['id']}/exec", {"command": "echo", "args": ["hello"]})
        if answer["data"]["stdout"] != "hello\n":
            raise RuntimeError(answer)
        return sandbox, (created - began) * 1000, (time.monotonic() - began) * 1000

    def stats(self, sandbox):
        return self.ask("GET", f"/sandboxes/{sandbox['id']}/stats")["data"]["machine"]

    def remove(self, sandbox):
        """ms to the answer, and to where nothing is left."""
        began = time.monotonic()
        self.ask("DELETE", f"/sandboxes/{sandbox['id']}")
        answered = time.monotonic()
        directory = self.home / "sandboxes" / sandbox["id"]
        while directory.exists():
            time.sleep(0.002)
        return (answered - began) * 1000, (time.monotonic() - began) * 1000


def process_of(sandbox):
    """That of its machine; root may look."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes()
            if line.startswith(b"voidrun\0vmm\0") and any(sandbox["id"] in os.readlink(fd) for fd in (process / "fd").iterdir()):
                return process
        except OSError:
            pass  # It has just ended.
    raise RuntimeError(f"no process runs {sandbox['id']}")


def page_faults(process):
    """Of all its threads, and pages that are its own alone."""
    fields = (process / "stat").read_text().rpartition(")")[2].split()
    dirty = re.search(r"Private_Dirty:\s+(\d+)", (process / "smaps_rollup").read_text())[1]
    return int(fields[7]) + int(fields[9]), int(dirty) // 4


def measure(bench, runs):
    source, _, _ = bench.first_output(warm=False)
    bench.ask("POST", f"/sandboxes/{source['id']}/snapshots", {"name": "bench"})
    bench.remove(source)
    ways = {"cold": {"warm": False}, "warm": {"warm": True}, "clone": {"fromSnapshot": "bench"}}
    # The first is kept for the others, and what it is read from is in the page cache then.
    for how in ways.values():
        for _ in range(2):
            bench.remove(bench.first_output(**how)[0])
            time.sleep(1)
    figures, counts, steps = {}, {}, {}
    for run in range(runs):
        for way in sorted(ways, reverse=run % 2 == 1):
            sandbox, created, output = bench.first_output(**ways[way])
            expected = {"cold": "kernel", "warm": "warm", "clone": "snapshot"}[way]
            if sandbox["start"]["from"] != expected:
                raise RuntimeError(f"{way}: {sandbox['start']}")
            machine = bench.stats(sandbox)
            faults, dirty = page_faults(process_of(sandbox))
            removed, gone = bench.remove(sandbox)
            for name, ms in {"created": created, "output": output, "removed": removed, "gone": gone}.items():
                figures.setdefault(f"{way} {name}", []).append(ms)
            count = {
                "returns of KVM_RUN": sum(machine["exits"].values()),
                "page faults": faults,
                "private dirty pages": dirty,
                "PSS KiB": machine["pssKib"],
            }
            for name, value in count.items():
                counts.setdefault(f"{way} {name}", []).append(value)
            before = 0
            for step, at in machine["start"]:
                steps.setdefault(f"{way} {STEPS.get(step, step)}", []).append((at - before) / 1000)
                before = at
    return figures, counts, steps


def at_once(bench, how, figures):
    """ms until all of many have answered; PSS of each then, in KiB."""
    sandboxes, failures = [], []

    def one():
        try:
            sandboxes.append(bench.first_output(**how)[0])
        except Exception as error:  # noqa: BLE001 # told below
            failures.append(error)

    threads = [threading.Thread(target=one) for _ in range(AT_ONCE)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ms = (time.monotonic() - began) * 1000
    if failures:
        raise failures[0]
    pss = [bench.stats(sandbox)["pssKib"] for sandbox in sandboxes]
    for sandbox in sandboxes:
        bench.remove(sandbox)
    figures.append(ms)
    return pss


def system_calls(voidrun, home):
    """Of the process of a machine, until its first command has answered, from a log of them."""
    counts = {}
    with tempfile.TemporaryDirectory() as logs:
        with Daemon(voidrun, home, ["strace", "-D", "-f", "-ff", "-qq", "-o", f"{logs}/log"]) as bench:
            for way, how in {"cold": {"warm": False}, "clone": {"fromSnapshot": "bench"}}.items():
                sandbox = bench.first_output(**how)[0]
                threads = [thread.name for thread in (process_of(sandbox) / "task").iterdir()]
                # From its own beginning on: before, it was the daemon's. A thread of KVM's has no log.
                logged = [Path(logs, f"log.{thread}") for thread in threads]
                calls = [log.read_text(errors="replace") for log in logged if log.exists()]
                counts[way] = sum(len(log[max(log.find("execve("), 0) :].splitlines()) for log in calls)
                bench.remove(sandbox)
    return counts


class Daemon:
    def __init__(self, voidrun, home, before=()):
        self.home = home
        environment = {**os.environ, "VOIDRUN_HOME": str(home), "XDG_RUNTIME_DIR": str(home), "HOME": str(home)}
        self.process = subprocess.Popen([*before, voidrun, "daemon"], env=environment, stderr=subprocess.PIPE, text=True)

    def __enter__(self):
        for line in self.process.stderr:
            if "serves" in line:
                break
        else:
            raise RuntimeError("the daemon has not come up")
        threading.Thread(target=self.process.stderr.read, daemon=True).start()
        (socket,) = (self.home / "voidrun").glob("*.sock")
        return Bench(self.home, str(socket))

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(60)


def table(title, rows, digits):
    print(f"\n{title:32}{'min':>10}{'median':>10}{'max':>10}")
    for name, values in rows.items():
        if None not in values:
            print(f"{name:32}{min(values):10.{digits}f}{statistics.median(values):10.{digits}f}{max(values):10.{digits}f}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, required=True)
    parser.add_argument("--voidrun", required=True)
    parser.add_argument("--figures", required=True)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        home, shared = Path(directory), Path(os.environ["VOIDRUN_HOME"])
        for part in ("blobs", "images", "refs", "store.json"):
            (home / part).symlink_to(shared / part)
        # Of what they may have together, clones take little.
        configuration = home / ".config" / "voidrun"
        configuration.mkdir(parents=True)
        (configuration / "config.toml").write_text('[limits]\nmemory = "64GiB"\n')
        together, pss = {"one": [], f"{AT_ONCE} at once": []}, []
        with Daemon(args.voidrun, home) as bench:
            figures, counts, steps = measure(bench, args.runs)
            for _ in range(max(1, args.runs // 10)):
                sandbox, _, ms = bench.first_output(warm=True)
                together["one"].append(ms)
                bench.remove(sandbox)
                pss += at_once(bench, {"fromSnapshot": "bench"}, together[f"{AT_ONCE} at once"])
        table(f"ms, N = {args.runs}", figures, 1)
        table("ms of the machine's process", steps, 2)
        table("counts", counts, 0)
        table("ms, warm", together, 1)
        table(f"PSS of {AT_ONCE} at once, KiB each", {"clone": pss}, 0)
        calls = system_calls(args.voidrun, home)
    print("\nsystem calls of the machine's process:", ", ".join(f"{way} {count}" for way, count in calls.items()))
    cold, warm, clone = (statistics.median(figures[f"{way} output"]) for way in ("cold", "warm", "clone"))
    one, many = (statistics.median(values) for values in together.values())
    print(f"\nwarm / cold {warm / cold:.3f} (goal 0.1), clone / cold {clone / cold:.3f}, {AT_ONCE} at once / one {many / one:.1f} (goal 8)")
    with open(args.figures, "w") as file:
        for name, values in {**figures, **steps, **counts, **together}.items():
            file.writelines(f"{name}\t{value}\n" for value in values)


if __name__ == "__main__":
    main()
