import assert from "node:assert/strict";
import { once } from "node:events";
import { test } from "node:test";
import { WebSocketServer, type WebSocket } from "ws";

import type { FileEvent } from "@voidrun/sdk";

import { json, serveSandbox } from "./server.js";

/** A sandbox whose WebSockets are handed to `accept`, with their address. */
async function serveSockets(accept: (socket: WebSocket, url: string) => void) {
  const { wire, sandbox } = await serveSandbox((_, response) => json(response, 200, { data: { sessionId: "s1" } }));
  const sockets = new WebSocketServer({ noServer: true });
  wire.server.on("upgrade", (request, socket, head) => {
    sockets.handleUpgrade(request, socket, head, (webSocket) => accept(webSocket, request.url!));
  });
  return { wire, sandbox };
}

test("a terminal: bytes in, text out, to its end", async () => {
  const urls: string[] = [];
  const { wire, sandbox } = await serveSockets((socket, url) => {
    urls.push(url);
    socket.on("message", (data, isBinary) => {
      assert.ok(isBinary);
      // Back in pieces of one byte.
      for (const byte of data as Buffer) socket.send(Uint8Array.of(byte));
      if (data.toString().endsWith("exit\n")) socket.close(1000);
    });
  });
  await using _ = wire;
  for (const sessionId of [undefined, "s/1"]) {
    let shown = "";
    await using terminal = await sandbox.pty.connect({ sessionId, onData: (data) => void (shown += data) });
    await terminal.write("grün 👍\n");
    await terminal.write(Buffer.from("exit\n"));
    await terminal.closed;
    assert.equal(shown, "grün 👍\nexit\n");
    await assert.rejects(terminal.write("more"), { name: "StreamError", message: /takes no input/ });
  }
  assert.deepEqual(urls, ["/v1/sandboxes/id1/pty", "/v1/sandboxes/id1/pty/sessions/s%2F1"]);
});

test("a terminal that is closed, aborted, or breaks", async () => {
  const servers: WebSocket[] = [];
  const { wire, sandbox } = await serveSockets((socket) => servers.push(socket));
  await using _ = wire;
  const onData = () => {};

  const closed = await sandbox.pty.connect({ onData });
  const [code] = (await Promise.all([once(servers[0]!, "close"), closed.close()]))[0];
  assert.equal(code, 1000);
  await closed.closed;
  await closed.close();

  const controller = new AbortController();
  const aborted = await sandbox.pty.connect({ onData, signal: controller.signal });
  controller.abort(new RangeError("enough"));
  await assert.rejects(aborted.closed, { name: "RangeError", message: "enough" });
  await assert.rejects(sandbox.pty.connect({ onData, signal: controller.signal }), { message: "enough" });

  for (const [kill, message] of [
    [(socket: WebSocket) => socket.terminate(), /broke off \(code 1006\)/],
    [(socket: WebSocket) => socket.close(1011, "failed"), /broke off \(code 1011\)/],
  ] as const) {
    const broken = await sandbox.pty.connect({ onData });
    kill(servers.at(-1)!);
    await assert.rejects(broken.closed, { name: "StreamError", message });
  }

  const failing = await sandbox.pty.connect({
    onData: () => {
      throw new RangeError("mine");
    },
  });
  servers.at(-1)!.send("x");
  await assert.rejects(failing.closed, { name: "RangeError", message: "mine" });
});

test("an abort while the daemon has not accepted yet", async () => {
  const { wire, sandbox } = await serveSandbox(() => assert.fail("there is no request"));
  await using _ = wire;
  const controller = new AbortController();
  wire.server.on("upgrade", () => controller.abort(new RangeError("enough")));
  await assert.rejects(sandbox.pty.connect({ onData: () => {}, signal: controller.signal }), { message: "enough" });
});

test("a terminal that is refused", async () => {
  const { wire, sandbox } = await serveSandbox(() => assert.fail("there is no request"));
  await using _ = wire;
  const problem = JSON.stringify({ detail: "no session 's1'" });
  wire.server.on("upgrade", (_, socket) => {
    socket.end(`HTTP/1.1 404 Not Found\r\ncontent-length: ${problem.length}\r\nconnection: close\r\n\r\n${problem}`);
  });
  const connecting = sandbox.pty.connect({ sessionId: "s1", onData: () => {} });
  await assert.rejects(connecting, { name: "NotFoundError", detail: "no session 's1'" });
});

test("a watch tells one event after the other", async () => {
  const events: FileEvent[] = [
    { type: "created", path: "/w/a", size: 1 },
    { type: "deleted", path: "/w/a" },
  ];
  const { wire, sandbox } = await serveSockets((socket, url) => {
    assert.equal(url, "/v1/sandboxes/id1/files/watch/s1/stream");
    for (const event of events) socket.send(JSON.stringify({ oldPath: null, ...event }));
  });
  await using _ = wire;
  const told: FileEvent[] = [];
  let inside = 0;
  await using watcher = await sandbox.files.watch("/w", {
    recursive: true,
    onEvent: async (event) => {
      assert.equal(++inside, 1);
      await new Promise(setImmediate);
      inside--;
      if (told.push(event) === events.length) await watcher.close();
    },
  });
  await watcher.closed;
  assert.deepEqual(told, events);
  assert.deepEqual(JSON.parse(wire.received[0]!.body), { path: "/w", recursive: true });
});
