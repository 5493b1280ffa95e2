import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { chmod, mkdir, readFile, rm, symlink, writeFile } from "node:fs/promises";
import { createConnection } from "node:net";
import { join } from "node:path";
import { afterEach, test } from "node:test";

import { DaemonError, VoidRun } from "@voidrun/sdk";

// Not of the package's interface: nothing but an environment can be asked for it.
import { resolveEndpoint } from "../dist/endpoint.js";
import { json, runtimeDirectory, Wire } from "./server.js";

const PATH = process.env["PATH"]!;

afterEach(() => {
  process.env["PATH"] = PATH;
  delete process.env["VOIDRUN_BIN"];
});

/** A program named `voidrun` that notes how it was called. */
async function program(directory: string, script: string): Promise<string> {
  await mkdir(join(directory, "bin"), { recursive: true });
  const path = join(directory, "bin", "voidrun");
  await writeFile(path, `#!/bin/sh\necho "$*" >>"${directory}/calls"\n${script}\n`, { mode: 0o755 });
  return path;
}

/** Starts a server at the socket in the background, answers when it listens, and leaves it the pipe of standard error. */
const START = `${process.execPath} -e '
  const server = require("node:http").createServer((_, response) => {
    response.end(JSON.stringify({ data: { id: "id1", name: "box" } }));
  });
  server.listen(process.env.XDG_RUNTIME_DIR + "/voidrun/voidrun.sock", () => console.log(process.pid));
  setTimeout(() => process.exit(), 20_000);
' >"$XDG_RUNTIME_DIR/pid" &
while [ ! -s "$XDG_RUNTIME_DIR/pid" ]; do sleep 0.05; done`;

function listens(socketPath: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = createConnection(socketPath, () => resolve(true)).once("error", () => resolve(false));
    socket.end();
  });
}

test("the daemon is started where there is none, once for many requests, and again when it is gone", async () => {
  for (const how of ["VOIDRUN_BIN", "PATH"]) {
    const directory = await runtimeDirectory();
    // A killed daemon's socket is still there.
    const voidrun = await program(
      directory,
      `rm -f "$XDG_RUNTIME_DIR/voidrun/voidrun.sock" "$XDG_RUNTIME_DIR/pid"\n${START}`,
    );
    if (how === "PATH") process.env["PATH"] = `${directory}/bin:${PATH}`;
    else process.env["VOIDRUN_BIN"] = voidrun;

    const client = new VoidRun();
    for (const starts of [1, 2]) {
      const found = await Promise.all(Array.from({ length: 5 }, () => client.getSandbox("box")));
      assert.deepEqual(
        found.map(({ name }) => name),
        Array(5).fill("box"),
      );
      assert.equal(await readFile(join(directory, "calls"), "utf8"), "daemon --detach\n".repeat(starts));
      const pid = Number(await readFile(join(directory, "pid"), "utf8"));
      process.kill(pid, "SIGKILL");
      while (await listens(join(directory, "voidrun", "voidrun.sock")));
    }
    delete process.env["VOIDRUN_BIN"];
    await rm(directory, { recursive: true });
  }
});

test("a daemon that cannot be started: why, in its own words", async () => {
  const directory = await runtimeDirectory();
  process.env["VOIDRUN_BIN"] = await program(directory, 'echo "error: store: no space left" >&2\nexit 1');
  await assert.rejects(new VoidRun().listSandboxes(), (error) => {
    assert.ok(error instanceof DaemonError);
    assert.match(error.message, /voidrun daemon --detach' failed with exit code 1: error: store: no space left$/);
    return true;
  });
  process.env["VOIDRUN_BIN"] = await program(directory, "kill -9 $$");
  await assert.rejects(new VoidRun().listSandboxes(), { message: /was ended by SIGKILL: it said nothing/ });
  // One that says it runs, and does not.
  process.env["VOIDRUN_BIN"] = await program(directory, "");
  await assert.rejects(new VoidRun().listSandboxes(), {
    name: "ConnectionError",
    message: /voidrun\.sock failed: .*ENOENT/,
  });
  await rm(directory, { recursive: true });
});

test("an abort does not wait for a daemon that takes its time", async () => {
  const directory = await runtimeDirectory();
  process.env["VOIDRUN_BIN"] = await program(directory, `echo $$ >"${directory}/pid"\nexec sleep 30`);
  const began = Date.now();
  const signal = AbortSignal.timeout(500);
  const sandboxes = new VoidRun().listSandboxes({ signal });
  await assert.rejects(sandboxes, { name: "TimeoutError" });
  await assert.rejects(new VoidRun().createSandbox({ signal }), { name: "TimeoutError" });
  assert.ok(Date.now() - began < 10_000);
  process.kill(Number(await readFile(join(directory, "pid"), "utf8")));
  await rm(directory, { recursive: true });
});

test("a program that is not there: how to install it", async () => {
  const directory = await runtimeDirectory();
  process.env["PATH"] = join(directory, "empty");
  await assert.rejects(new VoidRun().listSandboxes(), {
    name: "DaemonError",
    message: /'voidrun' \(looked for in PATH\) was not found\. .*\n\n {4}tar -xzf voidrun-.* install /s,
  });
  process.env["VOIDRUN_BIN"] = "/nowhere/voidrun";
  await assert.rejects(new VoidRun().listSandboxes(), {
    message: /'\/nowhere\/voidrun' \(named by VOIDRUN_BIN\) was not/,
  });
  process.env["VOIDRUN_BIN"] = directory;
  await assert.rejects(new VoidRun().listSandboxes(), { message: /cannot be run: .*EACCES/ });
  // Nothing keeps a program from its end after that.
  assert.ok(!process.getActiveResourcesInfo().includes("Timeout"));
  await rm(directory, { recursive: true });
});

test("a directory that others can look into is not trusted", async () => {
  await using wire = await Wire.serve((_, response) => json(response, 200, { data: [], meta: {} }));
  const directory = join(process.env["XDG_RUNTIME_DIR"]!, "voidrun");
  await new VoidRun().listSandboxes();
  await chmod(directory, 0o710);
  await assert.rejects(new VoidRun().listSandboxes(), { name: "ConnectionError", message: /yours alone/ });
  assert.equal(wire.received.length, 1);
});

test("each store has a daemon of its own, and without a session's directory there is one in /tmp", async () => {
  await using wire = await Wire.serve((_, response) => json(response, 200, { data: [], meta: {} }));
  const directory = process.env["XDG_RUNTIME_DIR"]!;
  const socket = (name: string) => join(directory, "voidrun", name);
  process.env["VOIDRUN_HOME"] = join(directory, "link");
  try {
    await symlink(directory, process.env["VOIDRUN_HOME"]);
    const key = createHash("sha256").update(directory).digest("hex").slice(0, 12);
    await symlink(socket("voidrun.sock"), socket(`voidrun-${key}.sock`));
    await new VoidRun().listSandboxes();
    await rm(process.env["VOIDRUN_HOME"]);
    process.env["VOIDRUN_BIN"] = await program(directory, "");
    await assert.rejects(new VoidRun().listSandboxes(), { message: /voidrun-[0-9a-f]{12}\.sock failed: .*ENOENT/ });
  } finally {
    delete process.env["VOIDRUN_HOME"];
  }
  for (const unusable of ["", "relative", "/nonexistent", undefined]) {
    if (unusable === undefined) delete process.env["XDG_RUNTIME_DIR"];
    else process.env["XDG_RUNTIME_DIR"] = unusable;
    // Not asked: a daemon may run there.
    const endpoint = resolveEndpoint({}, process.env);
    assert.ok("socketPath" in endpoint);
    assert.equal(endpoint.socketPath(), `/tmp/voidrun-${process.geteuid!()}/voidrun.sock`);
  }
  assert.equal(wire.received.length, 1);
});

test("a daemon is found by what it says in its store, whatever the environment is", async () => {
  await using wire = await Wire.serve((_, response) => json(response, 200, { data: [], meta: {} }));
  const directory = process.env["XDG_RUNTIME_DIR"]!;
  const socket = join(directory, "voidrun", "voidrun.sock");
  // As in cron, with each way to name a store.
  for (const [name, value, store] of [
    ["VOIDRUN_HOME", join(directory, "a"), join(directory, "a")],
    ["XDG_DATA_HOME", join(directory, "b"), join(directory, "b/voidrun")],
    ["HOME", join(directory, "c"), join(directory, "c/.local/share/voidrun")],
  ] as const) {
    const before = process.env[name];
    delete process.env["XDG_RUNTIME_DIR"];
    process.env[name] = value;
    await mkdir(store, { recursive: true });
    await writeFile(join(store, "daemon.lock"), JSON.stringify({ version: "1.0.0", pid: 1, socket }));
    await new VoidRun().listSandboxes();
    // One that is coming up has not said it yet.
    await writeFile(join(store, "daemon.lock"), "");
    const endpoint = resolveEndpoint({}, process.env);
    assert.ok("socketPath" in endpoint);
    const expected = name === "HOME" ? /\/voidrun\.sock$/ : /\/voidrun-[0-9a-f]{12}\.sock$/;
    assert.match(endpoint.socketPath(), expected);
    if (before === undefined) delete process.env[name];
    else process.env[name] = before;
  }
  assert.equal(wire.received.length, 3);
});

test("a socket whose path is longer than addresses are", async () => {
  await using wire = await Wire.serve((_, response) => json(response, 200, { data: [], meta: {} }));
  const directory = process.env["XDG_RUNTIME_DIR"]!;
  // The same directory, by a long way.
  process.env["XDG_RUNTIME_DIR"] = directory + "/voidrun/..".repeat(20);
  await new VoidRun().listSandboxes();
  assert.equal(wire.received.length, 1);
});
