import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { after, before, test } from "node:test";

import { ConflictError, InvalidRequestError, NotFoundError, VoidRun, type FileEvent, type Sandbox } from "@voidrun/sdk";

// With real sandboxes: by `npm run test:real`, where guests can run.

const vr = new VoidRun();
let sandbox: Sandbox;

before(async () => {
  sandbox = await vr.createSandbox({ mem: 512, envVars: { GREETING: "hello" }, labels: { sdk: "test" } });
});

after(() => sandbox?.[Symbol.asyncDispose]());

test("a sandbox is found by name and label, and is what was asked for", async () => {
  const { id, name, info } = await vr.getSandbox(sandbox.name);
  assert.deepEqual([id, name], [sandbox.id, sandbox.name]);
  assert.deepEqual([info.mem, info.cpu, info.image, info.state], [512, 1, "code", "running"]);
  const { sandboxes, meta } = await vr.listSandboxes({ labels: { sdk: "test" } });
  assert.deepEqual([sandboxes.map((found) => found.id), meta.total], [[sandbox.id], 1]);
});

test("a command's arguments, directory, environment, user and failure", async () => {
  const env = { NAME: "a b\nü" };
  const shown = await sandbox.exec({
    command: 'echo "$GREETING $NAME"; pwd; id -un; exit 3',
    cwd: "/tmp",
    env,
    user: "nobody",
  });
  assert.deepEqual([shown.data.stdout, shown.data.exitCode], ["hello a b\nü\n/tmp\nnobody\n", 3]);
  const { data } = await sandbox.exec({ command: "printf", args: ["%s|", "$HOME", "* 'x'", ""] });
  assert.equal(data.stdout, "$HOME|* 'x'||");
});

test("a command at its deadline is ended, and that is no error", async () => {
  const { data } = await sandbox.exec({ command: "echo begun; sleep 600", timeout: 1 });
  assert.deepEqual([data.stdout, data.exitCode, data.timedOut], ["begun\n", 124, true]);
});

test("a stream is lossless, whatever its pieces are", async () => {
  const script = 'import sys; sys.stdout.write("".join(f"{n}\\u20ac\\U0001f44d\\r\\n" for n in range(200000)))';
  const expected = Array.from({ length: 200_000 }, (_, n) => `${n}\u20ac\u{1f44d}\r\n`).join("");
  const hash = createHash("sha256");
  const onStdout = (text: string) => hash.update(text);
  const exit = await sandbox.execStream({ command: "python3", args: ["-c", script], timeout: 0 }, { onStdout });
  assert.equal(exit?.exitCode, 0);
  assert.equal(hash.digest("hex"), createHash("sha256").update(expected).digest("hex"));
});

test("an abort ends the command in the guest", async () => {
  const controller = new AbortController();
  const onStdout = () => controller.abort(new Error("enough"));
  const stream = sandbox.execStream(
    { command: "echo begun; exec sleep 4711", timeout: 0 },
    { onStdout },
    { signal: controller.signal },
  );
  await assert.rejects(stream, { message: "enough" });
  const gone = "while pgrep -f 'sleep [4]711' >/dev/null; do sleep 0.1; done";
  assert.equal((await sandbox.exec({ command: gone, timeout: 60 })).data.exitCode, 0);
});

test("a process in the background: listed, followed, ended, waited for twice", async () => {
  const { pid } = await sandbox.commands.run({ command: "echo begun; exec sleep 600" });
  const [listed] = (await sandbox.commands.list()).processes.filter((process) => process.pid === pid);
  assert.deepEqual([listed?.running, listed?.exitCode], [true, undefined]);
  let killed: Promise<unknown> | undefined;
  const exit = await sandbox.commands.attach(pid, { onStdout: () => (killed ??= sandbox.commands.kill(pid)) });
  assert.deepEqual(await killed, { success: true, message: "process killed" });
  assert.equal(exit?.exitCode, 143);
  assert.equal((await sandbox.commands.wait(pid)).data.exitCode, 143);
  assert.equal((await sandbox.commands.wait(pid)).exitCode, 143);
  assert.equal((await sandbox.commands.kill(pid)).success, false);
  await assert.rejects(sandbox.commands.wait(999_999), NotFoundError);
});

test("files: in and out, looked at and changed", async () => {
  const { files } = sandbox;
  const strange = "/root/f/a b\nü.txt";
  await files.upload(strange, "täxt");
  assert.equal((await sandbox.exec({ command: "cat /root/f/*" })).data.stdout, "täxt");
  const bytes = new Uint8Array(3_000_000).map((_, index) => index % 251);
  await files.upload("/root/f/bytes", bytes);
  assert.deepEqual(await files.download("/root/f/bytes"), bytes);
  await files.upload(
    "/root/f/pieces",
    (async function* () {
      yield "one ";
      yield new Uint8Array([50]);
    })(),
  );
  let pieces = "";
  for await (const chunk of files.downloadStream("/root/f/pieces")) pieces += Buffer.from(chunk).toString();
  assert.equal(pieces, "one 2");

  await files.mkdir("/root/f/d/e");
  await files.create("/root/f/d/new.py", "print(1)");
  await assert.rejects(files.create("/root/f/d/new.py"), ConflictError);
  await files.chmod("/root/f/d/new.py", 0o750);
  await files.copy("/root/f/d", "/root/f/copy");
  await files.move("/root/f/d", "/root/f/moved");
  const { name, path, size, mode, isDir, type, modTime } = await files.stat("/root/f/copy/new.py");
  assert.deepEqual([name, path, size, mode], ["new.py", "/root/f/copy/new.py", 8, "0750"]);
  assert.deepEqual([isDir, type, Math.abs(Date.parse(modTime) - Date.now()) < 3_600_000], [false, "file", true]);
  const listed = (await files.list("/root/f")).map((file) => file.name);
  assert.deepEqual(listed, ["a b\nü.txt", "bytes", "copy", "moved", "pieces"]);
  const found = (await files.search("/root/f", "*.py")).map((file) => file.path);
  assert.deepEqual(found, ["/root/f/copy/new.py", "/root/f/moved/new.py"]);
  await files.delete("/root/f/copy");
  await assert.rejects(files.stat("/root/f/copy"), { name: "NotFoundError", detail: /\/root\/f\/copy/ });
  await assert.rejects(files.download("/root/f"), InvalidRequestError);
  await assert.rejects(files.upload("relative", ""), { detail: /relative/ });
});

test("files are watched", async () => {
  await sandbox.files.mkdir("/root/w/d");
  let resolve: (event: FileEvent) => void;
  const told = new Promise<FileEvent>((settle) => (resolve = settle));
  await using watcher = await sandbox.files.watch("/root/w", {
    recursive: true,
    onEvent: (event) => {
      if (event.path.endsWith("/last")) resolve(event);
    },
  });
  await sandbox.files.upload("/root/w/d/last", "123");
  const { type, path, size } = await told;
  assert.deepEqual([type, path, size], ["created", "/root/w/d/last", 3]);
  await sandbox.files.delete("/root/w");
  await watcher.closed;
});

test("paused, resumed, stopped and started, with its files", async () => {
  await sandbox.exec({ command: "echo kept >/root/file" });
  await sandbox.pause();
  assert.equal(sandbox.info.state, "paused");
  await assert.rejects(sandbox.exec({ command: "true" }), ConflictError);
  await sandbox.resume();
  await sandbox.stop();
  assert.equal(sandbox.info.state, "stopped");
  await assert.rejects(sandbox.execStream({ command: "true" }), ConflictError);
  await sandbox.start();
  assert.equal((await sandbox.exec({ command: "cat /root/file" })).data.stdout, "kept\n");
});

test("what is wrong is said of the field", async () => {
  await assert.rejects(vr.createSandbox({ cpu: 0 }), (error) => {
    assert.ok(error instanceof InvalidRequestError);
    assert.match(error.detail, /cpu/);
    return true;
  });
  await assert.rejects(vr.createSandbox({ name: sandbox.name }), ConflictError);
  await assert.rejects(vr.getSandbox("no-such-sandbox"), { name: "NotFoundError", detail: /no-such-sandbox/ });
});

test("a scope's end removes its sandbox", async () => {
  let id: string;
  {
    await using scoped = await vr.createSandbox({ mem: 256 });
    id = scoped.id;
    assert.equal((await scoped.exec({ command: "echo $((6 * 7))" })).data.stdout, "42\n");
  }
  await assert.rejects(vr.getSandbox(id), NotFoundError);
});
