import assert from "node:assert/strict";
import { chmod, mkdir, readFile, rm, writeFile } from "node:fs/promises";
import { createConnection } from "node:net";
import { join } from "node:path";
import { afterEach, test } from "node:test";

import { DaemonError, VoidRun } from "@voidrun/sdk";

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
  await assert.rejects(new VoidRun().listSandboxes(), { name: "ConnectionError", message: /no connection .* ENOENT/ });
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

test("a directory that others can write to is not trusted", async () => {
  await using wire = await Wire.serve((_, response) => json(response, 200, { data: [], meta: {} }));
  const directory = join(process.env["XDG_RUNTIME_DIR"]!, "voidrun");
  await new VoidRun().listSandboxes();
  await chmod(directory, 0o722);
  await assert.rejects(new VoidRun().listSandboxes(), { name: "ConnectionError", message: /only you can write to/ });
  assert.equal(wire.received.length, 1);
});

test("a socket whose path is longer than addresses are", async () => {
  await using wire = await Wire.serve((_, response) => json(response, 200, { data: [], meta: {} }));
  const directory = process.env["XDG_RUNTIME_DIR"]!;
  // The same directory, by a long way.
  process.env["XDG_RUNTIME_DIR"] = directory + "/voidrun/..".repeat(20);
  await new VoidRun().listSandboxes();
  assert.equal(wire.received.length, 1);
});
