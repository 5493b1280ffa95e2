#!/usr/bin/env python3
"""Carries TCP from one network namespace to servers in another, by the engine and by its peers, in turns. See scripts/bench.

Of each: Gbit/s of one and of eight connections, both ways, by iperf3; processor time for that; connections a second, one after the
other; and microseconds for a byte there and back. The servers are on an address of `lo` in the namespace where the contender runs;
the kernel of the other namespace is its guest, behind a tap device with the MTU that the contender's name says. Peers run at 1500
bytes, which is what a guest has, and at their own best.
"""

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

SERVER = "93.184.215.14"
# Of the namespace where the engine runs, so that it takes a rule.
CONFIG = {"policy": {"allow": [SERVER]}, "resolvers": []}
ECHO_PORT = 7
IPERF_PORT = 5201
DEADLINE_S = 60
SECONDS = 4
HOST, GUEST = "voidrun-bench-host", "voidrun-bench-guest"
TRAFFIC = {
    "1 to host": [],
    "1 to guest": ["--reverse"],
    "8 to host": ["--parallel", "8"],
    "8 to guest": ["--parallel", "8", "--reverse"],
}


def ip(line):
    subprocess.run(["ip", *line.split()], check=True)


def within(namespace, *command):
    return ["ip", "netns", "exec", namespace, *command]


def until(what, done):
    deadline = time.monotonic() + DEADLINE_S
    while not done():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {DEADLINE_S} s")
        time.sleep(0.01)


@contextlib.contextmanager
def process(command, **options):
    started = subprocess.Popen(command, **options)
    try:
        yield started
    finally:
        started.kill()
        started.wait()


@contextlib.contextmanager
def namespaces():
    for name in (HOST, GUEST):
        ip(f"netns add {name}")
    try:
        for name in (HOST, GUEST):
            ip(f"-n {name} link set lo up")
        ip(f"-n {HOST} addr add {SERVER}/32 dev lo")
        # The peers take their guest's address and route from a device.
        ip(f"-n {HOST} tuntap add outside mode tap")
        ip(f"-n {HOST} addr add 198.51.100.2/24 dev outside")
        ip(f"-n {HOST} link set outside up")
        ip(f"-n {HOST} route add default via 198.51.100.1")
        yield
    finally:
        for name in (HOST, GUEST):
            ip(f"netns del {name}")


@contextlib.contextmanager
def engine(args, _mtu):
    command = within(HOST, args.engine, "tap0", json.dumps(CONFIG))
    with process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as started:
        if started.stdout.readline() != "ready\n":
            raise RuntimeError("the engine has ended")
        ip(f"-n {HOST} link set tap0 netns {GUEST}")
        ip(f"-n {GUEST} link set tap0 address 02:76:6f:69:64:02 mtu 1500 up")
        ip(f"-n {GUEST} addr add 192.0.0.2/30 dev tap0")
        ip(f"-n {GUEST} route add default via 192.0.0.1")
        yield started.pid


def has_route():
    routes = subprocess.run(["ip", "-n", GUEST, "route", "show", "default"], capture_output=True, text=True, check=True)
    return bool(routes.stdout)


@contextlib.contextmanager
def pasta(_args, mtu):
    command = within(
        HOST, "pasta", "--foreground", "--quiet", "--config-net", "--mtu", str(mtu), "--ns-ifname", "tap0",
        "--tcp-ports", "none", "--udp-ports", "none", "--tcp-ns", "none", "--udp-ns", "none",
        "--runas", "0", "--netns", f"/run/netns/{GUEST}",
    )  # fmt: skip
    with process(command, stderr=subprocess.DEVNULL) as started:
        until("pasta", has_route)
        yield started.pid


@contextlib.contextmanager
def slirp4netns(_args, mtu):
    command = within(
        HOST, "slirp4netns", "--configure", "--mtu", str(mtu), "--netns-type", "path", f"/run/netns/{GUEST}", "tap0"
    )
    with process(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as started:
        until("slirp4netns", has_route)
        yield started.pid


CONTENDERS = {
    "voidrun 1500": (engine, 1500),
    "pasta 65520": (pasta, 65520),
    "pasta 1500": (pasta, 1500),
    "slirp4netns 65520": (slirp4netns, 65520),
    "slirp4netns 1500": (slirp4netns, 1500),
}


def processor_seconds(pid):
    """Of a process and what it has started and waits for."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def serve():
    with socket.create_server((SERVER, ECHO_PORT), backlog=512) as listener:
        while True:
            client, _ = listener.accept()
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with client:
                while data := client.recv(64):
                    client.sendall(data)


def ask():
    """In the guest: connections a second, and microseconds for a byte there and back."""
    count, began = 500, time.monotonic()
    for _ in range(count):
        with socket.create_connection((SERVER, ECHO_PORT), timeout=DEADLINE_S) as client:
            client.sendall(b"x")
            client.recv(1)
    rate = count / (time.monotonic() - began)
    with socket.create_connection((SERVER, ECHO_PORT), timeout=DEADLINE_S) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        trips = []
        for _ in range(2000):
            began = time.monotonic()
            client.sendall(b"x")
            client.recv(1)
            trips.append((time.monotonic() - began) * 1e6)
    print(json.dumps({"connections/s": rate, "round trip us": statistics.median(trips)}))


def once(args, contender, mtu):
    """All figures of one run."""
    figures = {}
    with namespaces(), process(within(HOST, sys.executable, __file__, "--serve")), contender(args, mtu) as pid:
        until("the echo server", lambda: listening(HOST, ECHO_PORT))
        for what, options in TRAFFIC.items():
            before = processor_seconds(pid)
            received = carry(what, options)
            figures[f"Gbit/s {what}"] = received["bits_per_second"] / 1e9
            figures[f"s/GiB {what}"] = (processor_seconds(pid) - before) / (received["bytes"] / 2**30)
        command = within(GUEST, sys.executable, __file__, "--ask")
        answer = subprocess.run(command, check=True, capture_output=True, text=True, timeout=DEADLINE_S)
        figures.update(json.loads(answer.stdout))
    return figures


def carry(what, options):
    """What iperf3 says that its receiver has got. A server each, since one may still be busy with its last client."""
    server = within(HOST, "iperf3", "--server", "--one-off", "--bind", SERVER)
    with process(server, stdout=subprocess.DEVNULL):
        until("iperf3", lambda: listening(HOST, IPERF_PORT))
        command = within(GUEST, "iperf3", "--client", SERVER, "--time", str(SECONDS), "--json", *options)
        answer = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S)
    end = json.loads(answer.stdout).get("end")
    if answer.returncode or not end:
        raise RuntimeError(f"iperf3 {what}: {answer.stdout}{answer.stderr}")
    return end["sum_received"]


def listening(namespace, port):
    command = ["ip", "netns", "exec", namespace, "cat", "/proc/net/tcp"]
    table = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return any(line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "0A" for line in table.splitlines()[1:])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--serve", action="store_true")
    parser.add_argument("--ask", action="store_true")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--engine")
    parser.add_argument("--figures")
    args = parser.parse_args()
    if args.serve:
        return serve()
    if args.ask:
        return ask()
    figures = {name: [] for name in CONTENDERS}
    with open(args.figures, "w") as table:
        for run in range(args.runs):
            order = list(CONTENDERS.items())
            for name, (contender, mtu) in order if run % 2 == 0 else reversed(order):
                got = once(args, contender, mtu)
                figures[name].append(got)
                for what, figure in got.items():
                    print(name, run, what, f"{figure:.4f}", sep="\t", file=table, flush=True)
    kinds = list(next(iter(figures.values()))[0])
    width = max(len(kind) for kind in kinds)
    print(" " * width, *(f"{name:>18}" for name in figures))
    for kind in kinds:
        medians = (statistics.median(got[kind] for got in runs) for runs in figures.values())
        print(f"{kind:<{width}}", *(f"{median:18.2f}" for median in medians))
    return None


if __name__ == "__main__":
    main()
