#!/usr/bin/env python3
"""Runs `true` and `python3 -c 'print(1)'` over the daemon's socket, and the same by a small program in the guest, in turns.
See scripts/bench.

Of each: ms from the request to the whole answer, on a connection that stays; in the guest ms from posix_spawn to the end of
output and process, by the guest's clock. And a byte there and back through vsock. All in one sandbox that is up.
"""

import argparse
import json
import os
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from api import DEADLINE_S, Api  # noqa: E402

PORT = 5000
COMMANDS = {"true": ["true"], "python": ["python3", "-c", "print(1)"]}
COUNTED = 20


class Exchange:
    """A request that is sent again and again, over a connection of its own. Written out beforehand, and of the answer no more is
    looked at than where it ends: http.client takes about 6 ms for a request in the lab, which is not what is measured here."""

    def __init__(self, path, target, body):
        content = json.dumps(body).encode()
        head = f"POST /v1{target} HTTP/1.1\r\nHost: voidrun\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        self.request = head.encode() + content
        self.stream = socket.socket(socket.AF_UNIX)
        self.stream.settimeout(DEADLINE_S)
        self.stream.connect(path)

    def run(self):
        """The answer: its head and its content."""
        self.stream.sendall(self.request)
        answer = b""
        while True:
            head, end, content = answer.partition(b"\r\n\r\n")
            if end:
                _, _, length = head.lower().partition(b"\r\ncontent-length:")
                if len(content) == int(length.partition(b"\r\n")[0]):
                    return head, content
            piece = self.stream.recv(1 << 16)
            if not piece:
                raise EOFError("the daemon has closed the connection")
            answer += piece


def timed(work):
    began = time.monotonic()
    work()
    return (time.monotonic() - began) * 1000


def measure(args, home, api, sandbox):
    with open(args.spawn, "rb") as program:
        api.ask("POST", f"/sandboxes/{sandbox}/files/upload?path=/spawn", program.read())
    api.ask("POST", f"/sandboxes/{sandbox}/files/chmod?path=/spawn&mode=755")
    lines = ["\n".join(argv) for argv in COMMANDS.values()]
    path = f"/sandboxes/{sandbox}/commands/run"
    # Its arguments have newlines in them, which a shell's quotes keep.
    api.ask("POST", path, {"command": f"/spawn {PORT} " + " ".join("'" + line.replace("'", "'\\''") + "'" for line in lines)})
    directory = home / "sandboxes" / sandbox
    control = socket.socket(socket.AF_UNIX)
    control.connect(str(directory / "control.sock"))
    answers = control.makefile("rb")
    answers.readline()

    def metrics():
        control.sendall(b'{"request":"metrics"}\n')
        return json.loads(answers.readline())

    vsock = connect(directory)

    def echo():
        vsock.sendall(b"e")
        if vsock.recv(1) != b"e":
            raise EOFError("the program in the guest has ended")

    def exchange(argv):
        return Exchange(api.path, f"/sandboxes/{sandbox}/exec", {"command": argv[0], "args": argv[1:]})

    exchanges = {name: exchange(argv) for name, argv in COMMANDS.items()}

    def over_socket(name):
        answers = []
        ms = timed(lambda: answers.append(exchanges[name].run()))
        ((head, content),) = answers
        if not head.startswith(b"HTTP/1.1 2") or json.loads(content)["data"]["exitCode"] != 0:
            raise RuntimeError(f"{name}: {head.decode()} {content.decode()}")
        return ms

    def in_guest(name):
        vsock.sendall(str(list(COMMANDS).index(name)).encode())
        (ns,) = struct.unpack("<q", vsock.recv(8, socket.MSG_WAITALL))
        if ns < 0:
            raise RuntimeError(f"{name} has failed in the guest")
        return ns / 1e6

    contenders = {"vsock": lambda: timed(echo)}
    for name in COMMANDS:
        contenders[f"exec {name}"] = lambda name=name: over_socket(name)
        contenders[f"spawn {name}"] = lambda name=name: in_guest(name)
    for contender in contenders.values():  # The files are in the guest's page cache then.
        for _ in range(3):
            contender()
    figures = {name: [] for name in contenders}
    for run in range(args.runs):
        for name in sorted(contenders, reverse=run % 2 == 1):
            figures[name].append(contenders[name]())
    # While nothing else goes on: how often the guest has told its devices of something, and they it.
    counts = {}
    for name in COMMANDS:
        before = metrics()
        for _ in range(COUNTED):
            over_socket(name)
        after = metrics()
        counts[name] = {
            f"{device} {what}": (count - before["devices"][device][what]) / COUNTED
            for device, counters in after["devices"].items()
            for what, count in counters.items()
        }
    return figures, counts


def connect(directory):
    end = time.monotonic() + DEADLINE_S
    while True:
        stream = socket.socket(socket.AF_UNIX)
        stream.settimeout(DEADLINE_S)
        stream.connect(str(directory / "vsock.sock"))
        stream.sendall(f"CONNECT {PORT}\n".encode())
        answer = stream.makefile("rb", buffering=0).readline()
        if answer.startswith(b"OK "):
            return stream
        if time.monotonic() > end:
            raise RuntimeError("the program in the guest does not listen")
        time.sleep(0.05)  # It has just been started.


def tell(figures, counts, runs):
    print(f"\n{'':20}{'min':>10}{'median':>10}{'max':>10}   (ms, N = {runs})")
    medians = {}
    for name, values in figures.items():
        medians[name] = statistics.median(values)
        print(f"{name:20}{min(values):10.2f}{medians[name]:10.2f}{max(values):10.2f}")
    for name in COMMANDS:
        ratio = medians[f"exec {name}"] / medians[f"spawn {name}"]
        verdict = "met" if ratio <= 1.5 else "MISSED"
        print(f"{name}: exec / spawn in the guest: {ratio:.2f} of medians, at most 1.5: {verdict}")
        more = medians[f"exec {name}"] - medians[f"spawn {name}"]
        print(f"  {more:.2f} ms more, which is {more / medians['vsock']:.1f} round trips through vsock")
    for name, per_exec in counts.items():
        print(f"one exec of {name}")
        for what, count in sorted(per_exec.items()):
            print(f"  {what:44}{count:9.1f}")
        notifications = sum(count for what, count in per_exec.items() if what.endswith("notifications"))
        print(f"  notifications in all {notifications:.1f}, at most 6: {'met' if notifications <= 6 else 'MISSED'}")


def main():
    parser = argparse.ArgumentParser()
    for name in ("voidrun", "spawn", "figures"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--runs", type=int, required=True)
    args = parser.parse_args()
    home = Path(os.environ["VOIDRUN_HOME"])
    with tempfile.TemporaryDirectory() as runtime:
        environment = {**os.environ, "XDG_RUNTIME_DIR": runtime}
        daemon = subprocess.Popen([args.voidrun, "daemon"], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)
        try:
            for line in daemon.stderr:
                if "serves" in line:
                    break
            else:
                raise RuntimeError("the daemon has not come up")
            (path,) = Path(runtime, "voidrun").glob("*.sock")
            api = Api(str(path))
            sandbox = api.ask("POST", "/sandboxes", {"image": "code", "cpu": 1, "mem": 512})["data"]["id"]
            try:
                figures, counts = measure(args, home, api, sandbox)
            finally:
                Api(str(path)).ask("DELETE", f"/sandboxes/{sandbox}")
        finally:
            daemon.terminate()
            daemon.wait()
    with open(args.figures, "w") as file:
        for name, values in figures.items():
            print(name, *(f"{value:.3f}" for value in values), sep="\t", file=file)
    tell(figures, counts, args.runs)


if __name__ == "__main__":
    main()
