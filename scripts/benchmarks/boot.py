#!/usr/bin/env python3
"""Boots machines by `voidrun run` and by QEMU's microvm machine in turns and tells how long they take. See scripts/bench.

Both boot the same agent from the same root file system with 256 MiB and one vCPU. Of each run: ms from the start of the
process to the agent's first word (its Hello frame), and to the end of `true` in the guest (its Exit frame).
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

MEMORY_MIB = 256
PORT = 1024  # protocol::HOST_PORT and AGENT_PORT
CID = 3
HELLO, REQUEST, STARTED, EXIT = 1, 2, 3, 5  # protocol::FrameType
DEADLINE_S = 60
EXECS = 20


def send_frame(stream, kind, message):
    payload = json.dumps(message).encode()
    stream.sendall(struct.pack("<IB", len(payload), kind) + payload)


def receive(stream, count):
    data = b""
    while len(data) < count:
        piece = stream.recv(count - len(data))
        if not piece:
            raise EOFError("the agent has ended the stream")
        data += piece
    return data


def receive_frame(stream, kind):
    length, found = struct.unpack("<IB", receive(stream, 5))
    payload = receive(stream, length)
    if found != kind:
        raise ValueError(f"frame {found} where {kind} was expected: {payload!r}")
    return json.loads(payload)


def run_true(stream):
    send_frame(stream, REQUEST, {"type": "exec", "command": {"argv": ["true"]}})
    receive_frame(stream, STARTED)
    if receive_frame(stream, EXIT).get("exitCode") != 0:
        raise ValueError("`true` has failed")


def initramfs(agent):
    """As src/agent.rs makes it: the agent and its configuration, a cpio archive in the newc format."""
    archive = bytearray()

    def add(name, mode, content=b"", device=(0, 0)):
        fields = [0, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(name) + 1, 0]
        archive.extend(b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0")
        archive.extend(b"\0" * (-len(archive) % 4) + content)
        archive.extend(b"\0" * (-len(archive) % 4))

    add("dev", 0o040755)
    add("dev/kmsg", 0o020644, device=(1, 11))
    add("dev/null", 0o020666, device=(1, 3))
    add("config.json", 0o100644, json.dumps({"hostname": "bench"}).encode())
    add("init", 0o100755, Path(agent).read_bytes())
    add("TRAILER!!!", 0)
    return bytes(archive)


def boot_voidrun(args):
    command = [args.voidrun, "run", "--timings", "--memory", f"{MEMORY_MIB}M", "--kernel", args.kernel, "code", "true"]
    began = time.monotonic()
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=DEADLINE_S)
    if ended.returncode != 0:
        raise RuntimeError(f"voidrun: {ended.returncode}: {ended.stderr}")
    report = json.loads(ended.stderr.strip().splitlines()[-1])
    # Both clocks are CLOCK_MONOTONIC: what the system needs to start the program counts.
    lead = report["monotonicMs"] - began * 1000
    steps = {name: lead + ms for name, ms in report["stepsMs"].items()}
    return steps["created"], steps["exited"], {"lead": lead, **report}


def boot_qemu(args, initrd):
    listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    listener.bind((socket.VMADDR_CID_ANY, PORT))
    listener.listen()
    listener.settimeout(DEADLINE_S)
    machine = "microvm,x-option-roms=off,pit=off,pic=off,isa-serial=off,rtc=off,acpi=off,auto-kernel-cmdline=on"
    command = [
        "qemu-system-x86_64", "-M", machine, "-accel", "kvm", "-cpu", "host", "-smp", "1", "-m", str(MEMORY_MIB),
        "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
        "-kernel", args.peer_kernel, "-initrd", initrd,
        # What our own machines are told, see src/sandbox/launch.rs, as far as it has to do with time.
        "-append", "quiet loglevel=1 reboot=k panic=-1 tsc=reliable no_timer_check pci=off random.trust_cpu=on",
        "-drive", f"id=root,file={args.rootfs},format=raw,if=none,snapshot=on",
        "-device", "virtio-blk-device,drive=root,logical_block_size=4096,physical_block_size=4096",
        "-device", "virtio-rng-device", "-device", f"vhost-vsock-device,guest-cid={CID}",
    ]  # fmt: skip
    began = time.monotonic()
    qemu = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        control, _ = listener.accept()
        receive_frame(control, HELLO)
        ready = time.monotonic()
        stream = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        stream.settimeout(DEADLINE_S)
        stream.connect((CID, PORT))
        run_true(stream)
        done = time.monotonic()
    except Exception as error:
        qemu.kill()
        raise RuntimeError(f"QEMU: {error!r}: {qemu.communicate()[1].decode()}") from error
    qemu.kill()
    qemu.wait()
    listener.close()
    return (ready - began) * 1000, (done - began) * 1000, {}


def exec_counts(args):
    """What one `true` in a machine that is up costs: device notifications and interrupts, and returns of KVM_RUN."""
    command = [args.voidrun, "run", "--memory", f"{MEMORY_MIB}M", "--kernel", args.kernel, "code", "sh", "-c"]
    command.append("echo up; exec sleep 600")
    sandboxes = Path(os.environ["VOIDRUN_HOME"]) / "sandboxes"
    before = set(sandboxes.glob("*"))
    cli = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    try:
        if cli.stdout.readline() != b"up\n":
            raise RuntimeError("the machine for the counts did not come up")
        (directory,) = set(sandboxes.glob("*")) - before
        control = socket.socket(socket.AF_UNIX)
        control.connect(str(directory / "control.sock"))
        answers = control.makefile("rb")
        answers.readline()

        def metrics():
            control.sendall(b'{"request":"metrics"}\n')
            return json.loads(answers.readline())

        def one():
            stream = socket.socket(socket.AF_UNIX)
            stream.connect(str(directory / "vsock.sock"))
            stream.sendall(f"CONNECT {PORT}\n".encode())
            while receive(stream, 1) != b"\n":
                pass
            run_true(stream)

        for _ in range(3):  # The files of `true` are in the guest's page cache then.
            one()
        start = metrics()
        for _ in range(EXECS):
            one()
        end = metrics()
    finally:
        cli.terminate()
        cli.wait()
    counts = {}
    for device, counters in end["devices"].items():
        for name, count in counters.items():
            counts[f"{device} {name}"] = (count - start["devices"][device][name]) / EXECS
    for name, count in end["exits"].items():
        counts[f"exits {name}"] = (count - start["exits"][name]) / EXECS
    return counts


def main():
    parser = argparse.ArgumentParser()
    for name in ("voidrun", "agent", "rootfs", "kernel", "peer-kernel", "figures"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--runs", type=int, required=True)
    args = parser.parse_args()
    with tempfile.NamedTemporaryFile() as initrd:
        initrd.write(initramfs(args.agent))
        initrd.flush()
        contenders = {"voidrun": lambda: boot_voidrun(args), "qemu": lambda: boot_qemu(args, initrd.name)}
        for boot in contenders.values():  # Programs, kernel and image are in the page cache then.
            boot()
        figures = {name: [] for name in contenders}
        for run in range(args.runs):
            for name in sorted(contenders, reverse=run % 2 == 1):
                figures[name].append(contenders[name]())
            print(f"==> {run + 1} of {args.runs}", file=sys.stderr)
    with open(args.figures, "w") as file:
        for name, runs in figures.items():
            for ready, done, report in runs:
                print(name, f"{ready:.1f}", f"{done:.1f}", json.dumps(report), sep="\t", file=file)
    tell(args, figures, exec_counts(args))


def tell(args, figures, per_exec):
    print(f"\n{'':20}{'first word':>34}{'end of `true`':>34}   (ms, N = {args.runs}: min, median, max)")
    medians = {}
    for name, runs in figures.items():
        line = f"{name:20}"
        for column in (0, 1):
            values = [run[column] for run in runs]
            medians[name, column] = statistics.median(values)
            line += f"{min(values):12.0f}{medians[name, column]:11.0f}{max(values):11.0f}"
        print(line)
    goal = 0.8 if args.kernel == args.peer_kernel else 0.6
    for column, what in ((0, "first word"), (1, "end of `true`")):
        ratio = medians["voidrun", column] / medians["qemu", column]
        verdict = "met" if ratio <= goal else "MISSED"
        print(f"voidrun / qemu, {what}: {ratio:.2f} of medians, at most {goal}: {verdict}")

    reports = [run[2] for run in figures["voidrun"]]
    print("\nwhere the time of voidrun goes (medians, ms)")

    def step(what, value):
        print(f"  {what:44}{statistics.median(value(report) for report in reports):9.1f}")

    start = lambda report, name: dict(report["stats"]["machine"]["start"])[name] / 1000  # noqa: E731
    agent = lambda report: (report["stats"]["agent"]["readyUs"] - report["stats"]["agent"]["beganUs"]) / 1000  # noqa: E731
    step("the program starts", lambda r: r["lead"])
    step("the image is found", lambda r: r["stepsMs"]["image"])
    previous = None
    for name, what in (
        ("jail", "VMM: it is up and locked in"),
        ("kernel", "VMM: RAM, kernel loaded"),
        ("vm", "VMM: KVM's machine"),
        ("devices", "VMM: devices"),
        ("vcpus", "VMM: vCPUs, tables, initramfs"),
        ("started", "VMM: vCPUs run"),
    ):
        step(what, lambda r, a=previous, b=name: start(r, b) - (start(r, a) if a else 0))
        previous = name
    boot = lambda r: r["stepsMs"]["created"] - r["stepsMs"]["image"] - start(r, "started") - agent(r)  # noqa: E731
    step("the guest's kernel, the daemon, and the rest", boot)
    step("the agent: disk mounted, system set up", agent)
    step("`true`: started", lambda r: r["stepsMs"]["started"] - r["stepsMs"]["created"])
    step("`true`: ended", lambda r: r["stepsMs"]["exited"] - r["stepsMs"]["started"])

    exits = [report["stats"]["machine"]["exits"] for report in reports]
    print("\nreturns of KVM_RUN for a boot and `true`: at most", max(sum(run.values()) for run in exits), "(goal 300)")
    for name in sorted(exits[0]):
        print(f"  {name:44}{statistics.median(run[name] for run in exits):9.0f}")
    print("one more `true` in a machine that is up")
    for name, count in sorted(per_exec.items()):
        print(f"  {name:44}{count:9.1f}")
    notifications = sum(count for name, count in per_exec.items() if name.endswith("notifications"))
    print(f"  notifications in all {notifications:.1f}, at most 6: {'met' if notifications <= 6 else 'MISSED'}")
    own = max(report["stats"]["machine"]["ownKib"] for report in reports) / 1024
    verdict = "met" if own <= 5 else "MISSED"
    print(f"the VMM's own memory beside {MEMORY_MIB} MiB of guest RAM: {own:.1f} MiB, at most 5: {verdict}")


if __name__ == "__main__":
    main()
