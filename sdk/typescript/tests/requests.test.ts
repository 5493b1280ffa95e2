import assert from "node:assert/strict";
import { once } from "node:events";
import type { AddressInfo } from "node:net";
import { afterEach, test } from "node:test";

import * as sdk from "@voidrun/sdk";
import { VoidRun, type Snapshot } from "@voidrun/sdk";

import { json, serveSandbox, Wire } from "./server.js";

afterEach(() => {
  for (const name of ["VR_API_URL", "VOIDRUN_API_URL", "VR_API_KEY", "VOIDRUN_API_KEY"]) delete process.env[name];
});

test("the Unix socket is taken, also with a key; absent fields are not sent, null ones not told", async () => {
  await using wire = await Wire.serve((_, response) =>
    json(response, 201, { data: { id: "id1", name: "box", exitReason: null, labels: { a: "b" } } }),
  );
  const sandbox = await new VoidRun({ apiKey: "secret" }).createSandbox({ cpu: 2, mem: 2048, name: undefined });
  assert.deepEqual(sandbox.info, { id: "id1", name: "box", labels: { a: "b" } });
  const [request] = wire.received;
  assert.equal(`${request!.method} ${request!.url} ${request!.body}`, 'POST /v1/sandboxes {"cpu":2,"mem":2048}');
  assert.equal(request!.headers["x-api-key"], undefined);
});

test("the addresses of all calls", async () => {
  const { wire, sandbox } = await serveSandbox((_, response) =>
    json(response, 200, { data: { sessionId: "s/1", sessions: null, files: null }, processes: [] }),
  );
  await using _ = wire;
  await sandbox.start();
  await sandbox.setNetwork({ allow: ["*.example.org"] });
  await sandbox.denials({ after: 7 });
  await sandbox.commands.run({ command: "true" });
  await sandbox.commands.list();
  await sandbox.commands.wait(7);
  await sandbox.commands.kill(7);
  assert.deepEqual(await sandbox.files.list("/a b&c"), []);
  await sandbox.files.upload("/f", "ü");
  await sandbox.files.upload("/f", new Uint8Array([65, 66]));
  await sandbox.files.upload(
    "/f",
    (async function* () {
      yield "pie";
      yield new Uint8Array([67]);
    })(),
  );
  await sandbox.files.create("/f", "text");
  await sandbox.files.stat("/f");
  await sandbox.files.mkdir("/d");
  await sandbox.files.move("/f", "/g");
  await sandbox.files.copy("/g", "/f");
  await sandbox.files.chmod("/f", 0o640);
  await sandbox.files.delete("/f");
  assert.deepEqual(await sandbox.files.search("/", "*.py"), []);
  assert.equal(await sandbox.pty.createSession(), "s/1");
  assert.deepEqual(await sandbox.pty.listSessions(), []);
  await sandbox.pty.resize("s/1", { cols: 100, rows: 40 });
  await sandbox.pty.deleteSession("s/1");
  await sandbox.ports.add(80);
  await sandbox.ports.add({ protocol: "http", port: 80, hostAddress: "::1", hostPort: undefined });
  await sandbox.ports.list();
  await sandbox.ports.remove(8080);
  await assert.rejects(sandbox.ports.remove(Number.NaN), TypeError);
  await sandbox.publicUrls();
  await sandbox.remove();
  assert.deepEqual(
    wire.received.map(({ method, url, body }) => `${method} ${url.replace("/v1/sandboxes/id1", "")} ${body}`.trim()),
    [
      "POST /start",
      "GET",
      'PATCH  {"network":{"allow":["*.example.org"]}}',
      "GET /network/denials?after=7",
      'POST /commands/run {"command":"true"}',
      "GET /commands/list",
      'POST /commands/wait {"pid":7}',
      'POST /commands/kill {"pid":7}',
      "GET /files?path=%2Fa+b%26c",
      "POST /files/upload?path=%2Ff ü",
      "POST /files/upload?path=%2Ff AB",
      "POST /files/upload?path=%2Ff pieC",
      'POST /files/create?path=%2Ff {"content":"text"}',
      "GET /files/stat?path=%2Ff",
      "POST /files/mkdir?path=%2Fd",
      "POST /files/move?from=%2Ff&to=%2Fg",
      "POST /files/copy?from=%2Fg&to=%2Ff",
      "POST /files/chmod?path=%2Ff&mode=640",
      "DELETE /files?path=%2Ff",
      "GET /files/search?path=%2F&pattern=*.py",
      'POST /pty/sessions {"cols":80,"rows":24}',
      "GET /pty/sessions",
      'POST /pty/sessions/s%2F1/resize {"cols":100,"rows":40}',
      "DELETE /pty/sessions/s%2F1",
      'POST /ports {"port":80}',
      'POST /ports {"protocol":"http","port":80,"hostAddress":"::1"}',
      "GET /ports",
      "DELETE /ports/8080",
      "GET /public-urls",
      "DELETE",
    ],
  );
});

test("sandboxes are listed by page and labels", async () => {
  const meta = { page: 2, limit: 1, total: 3, totalPages: 3 };
  await using wire = await Wire.serve((_, response) => json(response, 200, { data: [{ id: "i", name: "n" }], meta }));
  const list = await new VoidRun().listSandboxes({ page: 2, limit: 1, labels: { team: "a", env: "b" } });
  assert.deepEqual([list.sandboxes.map(({ id, name }) => [id, name]), list.meta], [[["i", "n"]], meta]);
  assert.equal(wire.received[0]!.url, "/v1/sandboxes?page=2&limit=1&labels=team%3Da%2Cenv%3Db");
});

test("a snapshot is taken of a sandbox, shown, listed and removed", async () => {
  const snapshot: Snapshot = {
    name: "ready",
    image: "code",
    cpu: 2,
    mem: 1024,
    diskMB: 20480,
    network: true,
    sandbox: "box",
    kernel: "/boot/vmlinuz",
    release: "0.1.0",
    labels: { team: "a" },
    createdAt: "2026-01-02T03:04:05.678Z",
    bytes: 4096,
  };
  const { wire, sandbox } = await serveSandbox(({ method, url }, response) =>
    json(response, method === "POST" ? 201 : 200, { data: url === "/v1/snapshots" ? [snapshot] : snapshot }),
  );
  await using _ = wire;
  const vr = new VoidRun();
  assert.deepEqual(await sandbox.snapshot("ready", { labels: { team: "a" } }), snapshot);
  assert.deepEqual(await sandbox.snapshot("ready"), snapshot);
  assert.deepEqual(await vr.listSnapshots(), [snapshot]);
  assert.deepEqual(await vr.getSnapshot("ready"), snapshot);
  await vr.removeSnapshot("a/b");
  // It would be the address of all of them.
  await assert.rejects(vr.getSnapshot(""), TypeError);
  await assert.rejects(vr.removeSnapshot(""), TypeError);
  assert.deepEqual(
    wire.received.map(({ method, url, body }) => `${method} ${url} ${body}`.trim()),
    [
      'POST /v1/sandboxes/id1/snapshots {"name":"ready","labels":{"team":"a"}}',
      'POST /v1/sandboxes/id1/snapshots {"name":"ready"}',
      "GET /v1/snapshots",
      "GET /v1/snapshots/ready",
      "DELETE /v1/snapshots/a%2Fb",
    ],
  );
});

test("a sandbox from a snapshot is asked for by that alone, and tells how it has started", async () => {
  const told = { fromSnapshot: "ready", start: { from: "snapshot", ms: 42 } };
  await using wire = await Wire.serve((_, response) =>
    json(response, 201, { data: { id: "id1", name: "box", ...told } }),
  );
  const { info } = await new VoidRun().createSandbox({ fromSnapshot: "ready" });
  assert.deepEqual([info.fromSnapshot, info.start], [told.fromSnapshot, told.start]);
  await new VoidRun().createSandbox({ warm: false });
  assert.deepEqual(
    wire.received.map(({ body }) => body),
    ['{"fromSnapshot":"ready"}', '{"warm":false}'],
  );
});

test("a snapshot that is not there, and one whose name is taken", async () => {
  const { wire, sandbox } = await serveSandbox(({ method }, response) => {
    const [status, kind] = method === "POST" ? [409, "nameTaken"] : [404, "noSnapshot"];
    json(response, status as number, { type: `urn:voidrun:problem:${kind}`, status, detail: `snapshot: ${kind}` });
  });
  await using _ = wire;
  const vr = new VoidRun();
  const taken = { name: "ConflictError", status: 409, detail: "snapshot: nameTaken" };
  await assert.rejects(sandbox.snapshot("ready"), taken);
  const missing = { name: "NotFoundError", status: 404, detail: "snapshot: noSnapshot" };
  await assert.rejects(vr.getSnapshot("ready"), missing);
  await assert.rejects(vr.removeSnapshot("ready"), missing);
});

test("an address by option or environment means TCP, with the key", async () => {
  await using wire = await Wire.serve((_, response) => json(response, 200, { data: [], meta: {} }));
  wire.server.close();
  wire.server.listen(0, "127.0.0.1");
  await once(wire.server, "listening");
  const address = `http://127.0.0.1:${(wire.server.address() as AddressInfo).port}`;
  await new VoidRun({ apiUrl: address, apiKey: "a" }).listSandboxes();
  process.env["VOIDRUN_API_URL"] = `${address}/api/`;
  process.env["VR_API_URL"] = "";
  process.env["VR_API_KEY"] = "b";
  await new VoidRun({ apiKey: undefined }).listSandboxes();
  process.env["VR_API_URL"] = `${address}/v1`;
  delete process.env["VR_API_KEY"];
  await new VoidRun().listSandboxes();
  assert.deepEqual(
    wire.received.map(({ url, headers }) => [url, headers["x-api-key"]]),
    [
      ["/v1/sandboxes", "a"],
      ["/api/sandboxes", "b"],
      ["/v1/sandboxes", undefined],
    ],
  );
});

test("what is no address is named", () => {
  process.env["VR_API_URL"] = "127.0.0.1:7070";
  assert.throws(() => new VoidRun(), { name: "VoidRunError", message: /VR_API_URL is '127\.0\.0\.1:7070'/ });
  assert.throws(() => new VoidRun({ apiUrl: "ftp://here" }), { message: /apiUrl is 'ftp:\/\/here'/ });
});

test("an id cannot leave its place in the address", async () => {
  await using wire = await Wire.serve((_, response) => json(response, 200, { data: { id: "a/../b?c", name: "n" } }));
  const sandbox = await new VoidRun().getSandbox("a/../b?c#d");
  await sandbox.remove();
  const urls = wire.received.map(({ url }) => url);
  assert.deepEqual(urls, ["/v1/sandboxes/a%2F..%2Fb%3Fc%23d", "/v1/sandboxes/a%2F..%2Fb%3Fc"]);
  await assert.rejects(new VoidRun().getSandbox(""), TypeError);
  await assert.rejects(async () => sandbox.commands.wait(undefined), {
    name: "TypeError",
    message: /pid is undefined/,
  });
});

test("each kind of error has its class, and tells what the daemon told", async () => {
  const kinds: [number, string][] = [
    [400, "InvalidRequestError"],
    [401, "AuthenticationError"],
    [403, "AuthenticationError"],
    [404, "NotFoundError"],
    [409, "ConflictError"],
    [413, "LimitError"],
    [418, "ApiError"],
    [422, "InvalidRequestError"],
    [429, "LimitError"],
    [500, "ApiError"],
    [501, "NotSupportedError"],
    [503, "UnavailableError"],
    [504, "GuestTimeoutError"],
    [507, "LimitError"],
  ];
  await using _ = await Wire.serve(({ url }, response) => {
    const status = Number(url.split("/").pop());
    response.setHeader("x-request-id", "r1");
    json(response, status, { title: "T", status, detail: "sandbox 'x': why", code: 4711, message: "m", error: null });
  });
  for (const [status, name] of kinds) {
    await assert.rejects(new VoidRun().getSandbox(`${status}`), (error) => {
      assert.ok(error instanceof sdk.ApiError && error instanceof sdk.VoidRunError && error instanceof Error);
      const { message, detail, code, requestId } = error;
      assert.deepEqual([error.name, error.status, message, detail], [name, status, "sandbox 'x': why", message]);
      assert.deepEqual([code, requestId], [4711, "r1"]);
      assert.ok(error instanceof (sdk as unknown as Record<string, typeof sdk.ApiError>)[name]!);
      return true;
    });
  }
});

test("an error that is not the daemon's own", async () => {
  const bodies = ["<h1>Bad gateway</h1>", "", "null", "[", "x".repeat(3 << 20)];
  await using _ = await Wire.serve(({ url }, response) => {
    response.writeHead(502).end(bodies[Number(url.split("/").pop())]);
  });
  for (const [index, body] of bodies.entries()) {
    await assert.rejects(new VoidRun().getSandbox(`${index}`), (error) => {
      assert.ok(error instanceof sdk.ApiError);
      assert.deepEqual([error.status, error.code, error.requestId], [502, 502, undefined]);
      assert.equal(error.detail, body.slice(0, 500) || "the daemon answered with status 502");
      return true;
    });
  }
});

test("an answer that is not JSON, or not whole", async () => {
  await using _ = await Wire.serve(({ url }, response) => {
    if (url.endsWith("text")) response.end("ok");
    else response.writeHead(200, { "content-length": 100 }).write('{"data":', () => response.destroy());
  });
  await assert.rejects(new VoidRun().getSandbox("text"), { name: "VoidRunError", message: /not JSON: ok/ });
  await assert.rejects(new VoidRun().getSandbox("part"), {
    name: "ConnectionError",
    message: /GET \/sandboxes\/part: the connection to the daemon at .*voidrun\.sock failed/,
  });
});

test("an abort ends a call with the signal's reason, before it and in it", async () => {
  let closed!: () => void;
  const left = new Promise<void>((resolve) => (closed = resolve));
  const controller = new AbortController();
  const { wire, sandbox } = await serveSandbox((_, response) => {
    response.once("close", closed);
    controller.abort(new Error("enough"));
  });
  await using _ = wire;
  await assert.rejects(sandbox.exec({ command: "sleep 9" }, { signal: controller.signal }), { message: "enough" });
  await left;
  await assert.rejects(sandbox.exec({ command: "true" }, { signal: controller.signal }), { message: "enough" });
  await assert.rejects(sandbox.exec({ command: "true" }, { signal: AbortSignal.abort() }), { name: "AbortError" });
  assert.equal(wire.received.length, 1);
});

test("a daemon that does not answer is not waited for without end", async (context) => {
  const { wire, sandbox } = await serveSandbox(() => context.mock.timers.tick(120_000));
  await using _ = wire;
  context.mock.timers.enable({ apis: ["setTimeout"] });
  await assert.rejects(sandbox.files.stat("/f"), {
    name: "TimeoutError",
    message: "GET /sandboxes/id1/files/stat: no answer within 120 s",
  });
});

test("a snapshot is waited for, however long it takes", async (context) => {
  const { wire, sandbox } = await serveSandbox((_, response) => {
    context.mock.timers.tick(3_600_000);
    json(response, 201, { data: { name: "ready" } });
  });
  await using _ = wire;
  context.mock.timers.enable({ apis: ["setTimeout"] });
  assert.equal((await sandbox.snapshot("ready")).name, "ready");
});

test("exec gives what the daemon gave", async () => {
  const data = { stdout: "out", stderr: "", exitCode: 124, timedOut: true, signal: null };
  const { wire, sandbox } = await serveSandbox((_, response) => json(response, 200, { data }));
  await using _ = wire;
  const request = { command: "sleep", args: ["9"], cwd: "/", env: { A: "b" }, user: "nobody", timeout: 1 };
  const { signal: __, ...rest } = data;
  assert.deepEqual(await sandbox.exec(request), { data: rest });
  assert.deepEqual(JSON.parse(wire.received[0]!.body), request);
});

test("a scope's end removes the sandbox, unless it is gone", async () => {
  let status = 200;
  await using wire = await Wire.serve(({ method }, response) =>
    json(response, method === "DELETE" ? status : 201, { data: { id: "id1", name: "box" } }),
  );
  for (status of [200, 404]) {
    await using _ = await new VoidRun().createSandbox();
  }
  assert.deepEqual(
    wire.received.map(({ method, url }) => `${method} ${url}`),
    ["POST /v1/sandboxes", "DELETE /v1/sandboxes/id1", "POST /v1/sandboxes", "DELETE /v1/sandboxes/id1"],
  );
  status = 500;
  const sandbox = await new VoidRun().createSandbox();
  await assert.rejects(sandbox[Symbol.asyncDispose](), sdk.ApiError);
});
