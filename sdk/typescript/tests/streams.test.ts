import assert from "node:assert/strict";
import { once } from "node:events";
import type { ServerResponse } from "node:http";
import { test } from "node:test";
import { setTimeout as delay } from "node:timers/promises";

import { ApiError, ConnectionError, StreamError, type ExitEvent } from "@voidrun/sdk";

import { EXIT, json, output, serveSandbox } from "./server.js";

test("a stream's output, in order, and its exit", async () => {
  const exit = '{"stream":"exit","exitCode":3,"durationMs":5,"signal":null}\n';
  const { wire, sandbox } = await serveSandbox((_, response) => {
    response.write(output("stdout", "one\n") + output("stderr", "two\n") + '\n{"stream":"news","data":1}\n');
    response.end(output("stdout", "three\n") + exit);
  });
  await using _ = wire;
  const told: unknown[] = [];
  const returned = await sandbox.execStream(
    { command: "x", timeout: 0 },
    {
      onStdout: (data) => void told.push(["out", data]),
      onStderr: (data) => void told.push(["err", data]),
      onExit: (event) => void told.push(event),
      onError: (error) => void told.push(error),
    },
  );
  const ended = { exitCode: 3, durationMs: 5 };
  assert.deepEqual(told, [["out", "one\n"], ["err", "two\n"], ["out", "three\n"], ended]);
  assert.deepEqual(returned, ended);
  const [request] = wire.received;
  assert.equal(`${request!.method} ${request!.url}`, "POST /v1/sandboxes/id1/exec-stream");
  assert.deepEqual(JSON.parse(request!.body), { command: "x", timeout: 0 });
  assert.equal(request!.headers.accept, "application/x-ndjson");
});

test("no character is cut, however the bytes are", async () => {
  const text = "\ufeffgrün €5 👍🏽\r\n";
  const bytes = Buffer.from(text);
  const { wire, sandbox } = await serveSandbox(async (_, response) => {
    // One event a byte, of both streams in turn, and the wire itself in pieces of seven bytes.
    const lines = [...bytes].flatMap((byte) => [
      output("stdout", Uint8Array.of(byte)),
      output("stderr", Uint8Array.of(byte)),
    ]);
    // At the end a character that never becomes whole.
    const all = Buffer.from(lines.join("") + output("stdout", bytes.subarray(-8, -4)) + EXIT);
    response.socket!.setNoDelay();
    for (let at = 0; at < all.length; at += 7) {
      if (!response.write(all.subarray(at, at + 7))) await once(response, "drain");
      await new Promise(setImmediate);
    }
    response.end();
  });
  await using _ = wire;
  let out = "";
  let err = "";
  let empty = 0;
  await sandbox.execStream(
    { command: "x" },
    { onStdout: (data) => void ((out += data), (empty += +!data)), onStderr: (data) => void (err += data) },
  );
  assert.deepEqual([out, err, empty], [text + bytes.subarray(-8, -4).toString(), text, 0]);
});

test("a slow handler slows the sender down, and is never told two things at once", async () => {
  const piece = output("stdout", "x".repeat(48 << 10));
  const pieces = 1000;
  let sent = 0;
  const { wire, sandbox } = await serveSandbox(async (_, response) => {
    for (; sent < pieces; sent++) if (!response.write(piece)) await once(response, "drain");
    response.end(EXIT);
  });
  await using _ = wire;
  let [length, inside, stalledAt] = [0, 0, 0];
  await sandbox.execStream(
    { command: "x" },
    {
      onStdout: async (data) => {
        assert.equal(++inside, 1);
        if (length === 0) {
          // Until the sender has stood still for a while.
          for (stalledAt = -1; stalledAt !== sent; await delay(200)) stalledAt = sent;
        } else {
          await new Promise(setImmediate);
        }
        length += data.length;
        inside--;
      },
    },
  );
  assert.ok(stalledAt < pieces / 10, `${stalledAt} of ${pieces} pieces were sent while the handler was at work`);
  assert.equal(length, pieces * (48 << 10));
});

test("a stream that breaks off is an error and no success", async () => {
  const endings: [name: string, body: string, how: "end" | "destroy", message: RegExp][] = [
    ["StreamError", output("stdout", "a"), "end", /ended before the command/],
    ["StreamError", output("stdout", "a") + EXIT.slice(0, -5), "end", /ended before the command/],
    ["StreamError", "", "end", /ended before the command/],
    ["StreamError", "{]\n", "end", /not JSON: \{\]/],
    ["StreamError", "[1]\n", "end", /no field 'stream': \[1\]/],
    ["ConnectionError", output("stdout", "a"), "destroy", /exec-stream: the connection .* failed/],
    ["UnavailableError", '{"stream":"error","status":503,"detail":"the machine is gone"}\n', "end", /machine is gone/],
  ];
  for (const [name, body, how, message] of endings) {
    const { wire, sandbox } = await serveSandbox((_, response) => {
      if (how === "end") response.end(body);
      else response.write(body, () => response.destroy());
    });
    await using _ = wire;
    await assert.rejects(sandbox.execStream({ command: "x" }), { name, message });

    const errors: Error[] = [];
    const exits: ExitEvent[] = [];
    const handlers = {
      onError: (error: Error) => void errors.push(error),
      onExit: (e: ExitEvent) => void exits.push(e),
    };
    assert.equal(await sandbox.execStream({ command: "x" }, handlers), undefined);
    assert.deepEqual([errors.map((error) => error.name), exits], [[name], []]);
    const told: unknown = errors[0];
    assert.ok(told instanceof StreamError || told instanceof ConnectionError || told instanceof ApiError);
  }
});

test("a request that is refused is told like what fails in the stream", async () => {
  const { wire, sandbox } = await serveSandbox((_, response) => json(response, 409, { detail: "box is stopped" }));
  await using _ = wire;
  await assert.rejects(sandbox.execStream({ command: "x" }), { name: "ConflictError", detail: "box is stopped" });
  const errors: string[] = [];
  await sandbox.commands.attach(7, { onError: (error) => void errors.push(error.name) });
  assert.deepEqual(errors, ["ConflictError"]);
});

test("an abort, and an error of a handler, end the stream at both ends", async () => {
  for (const how of ["abort", "throw"]) {
    let closed!: () => void;
    const left = new Promise<void>((resolve) => (closed = resolve));
    const { wire, sandbox } = await serveSandbox((_, response) => {
      response.once("close", closed);
      response.write(output("stdout", "a"));
    });
    await using _ = wire;
    const controller = new AbortController();
    const onStdout = () => {
      if (how === "throw") throw new RangeError("enough");
      controller.abort(new RangeError("enough"));
    };
    const onError = () => assert.fail("is not told of these");
    const stream = sandbox.execStream({ command: "x" }, { onStdout, onError }, { signal: controller.signal });
    await assert.rejects(stream, { name: "RangeError", message: "enough" });
    await left;
  }
});

test("a line without end is not kept without end", async () => {
  const { wire, sandbox } = await serveSandbox((_, response) => {
    const junk = Buffer.alloc(1 << 20, "x");
    const more = () => {
      while (response.write(junk));
    };
    response.on("drain", more);
    more();
  });
  await using _ = wire;
  await assert.rejects(sandbox.execStream({ command: "x" }), { name: "StreamError", message: /longer than/ });
});

test("a background process is followed", async () => {
  const { wire, sandbox } = await serveSandbox(
    (_, response) => response.end(output("stderr", "hi") + EXIT) && undefined,
  );
  await using _ = wire;
  let told = "";
  const exit = await sandbox.commands.attach(7, { onStderr: (data) => void (told += data) });
  assert.deepEqual([told, exit, wire.received[0]!.body], ["hi", { exitCode: 0 }, '{"pid":7}']);
});

test("code runs in one answer, or streams where somebody listens", async () => {
  const { wire, sandbox } = await serveSandbox(({ headers }, response) => {
    const result = { success: true, results: null, exitCode: 0, error: null };
    const logs = { stdout: ["a", "b"], stderr: [] };
    if (headers.accept === "application/json")
      return json(response, 200, { ...result, stdout: "ab", stderr: "", logs });
    response.end(output("stdout", "a") + output("stdout", "b") + JSON.stringify({ stream: "exit", ...result }) + "\n");
  });
  await using _ = wire;
  const told: string[] = [];
  const options = { language: "python", timeout: 5, cwd: "/", env: { A: "b" } } as const;
  const whole = await sandbox.runCode("print()", options);
  const streamed = await sandbox.runCode("print()", { ...options, onStdout: (data) => void told.push(data) });
  assert.deepEqual(whole, {
    success: true,
    results: null,
    exitCode: 0,
    stdout: "ab",
    stderr: "",
    logs: { stdout: ["a", "b"], stderr: [] },
  });
  assert.deepEqual(streamed, whole);
  assert.deepEqual(told, ["a", "b"]);
  for (const { url, body } of wire.received) {
    assert.equal(url, "/v1/sandboxes/id1/code");
    assert.deepEqual(JSON.parse(body), { code: "print()", ...options });
  }
});

test("a file comes in pieces, of any bytes", async () => {
  const bytes = Uint8Array.from({ length: 70_000 }, (_, index) => index % 256);
  const { wire, sandbox } = await serveSandbox((_, response) => response.end(bytes) && undefined);
  await using _ = wire;
  assert.deepEqual(await sandbox.files.download("/f"), bytes);
  let length = 0;
  for await (const chunk of sandbox.files.downloadStream("/f")) length += chunk.length;
  assert.equal(length, bytes.length);
  assert.deepEqual(
    wire.received.map(({ url }) => url),
    Array(2).fill("/v1/sandboxes/id1/files/download?path=%2Ff"),
  );
});

test("an upload whose source fails, fails", async () => {
  const { wire, sandbox } = await serveSandbox(() => assert.fail("the request never becomes whole"));
  await using _ = wire;
  wire.server.on("clientError", () => {});
  const source = (async function* () {
    yield "begun";
    throw new Error("the source is gone");
  })();
  await assert.rejects(sandbox.files.upload("/f", source), { name: "ConnectionError", message: /the source is gone/ });
});

test("an upload that is refused while it goes on: why, and nothing more is read", async () => {
  const { wire, sandbox } = await serveSandbox(() => assert.fail("the request never becomes whole"));
  await using _ = wire;
  wire.server.removeAllListeners("request");
  wire.server.on("request", (_, response: ServerResponse) => json(response, 507, { detail: "/f: no space left" }));
  let over!: () => void;
  const ended = new Promise<void>((resolve) => (over = resolve));
  const source = (async function* () {
    try {
      for (;;) yield new Uint8Array(1 << 16);
    } finally {
      over();
    }
  })();
  await assert.rejects(sandbox.files.upload("/f", source), { name: "LimitError", detail: "/f: no space left" });
  await ended;
});
