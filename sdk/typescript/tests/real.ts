import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { createHash, randomBytes } from "node:crypto";
import { once } from "node:events";
import { mkdtemp, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { setTimeout } from "node:timers/promises";

import {
  AuthenticationError,
  ConflictError,
  InvalidRequestError,
  NotFoundError,
  VoidRun,
  type FileEvent,
  type Sandbox,
} from "@voidrun/sdk";

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

/** What a terminal shows, and a wait until it shows something. */
class Screen {
  shown = "";
  readonly onData = (data: string) => void (this.shown += data);

  async shows(text: string) {
    for (const end = Date.now() + 60_000; !this.shown.includes(text); await setTimeout(20)) {
      assert.ok(Date.now() < end, `${text} is not in ${this.shown}`);
    }
  }
}

test("a terminal ends with its shell, and the shell with its connection", async () => {
  const screen = new Screen();
  await using terminal = await sandbox.pty.connect({ size: { cols: 100, rows: 30 }, onData: screen.onData });
  await terminal.write("stty size; echo $GREETING $((6 * 7)) 👍\n");
  await screen.shows("30 100\r\nhello 42 👍\r\n");
  await terminal.write("exit\n");
  await terminal.closed;

  const other = await sandbox.pty.connect({ onData: screen.onData });
  await other.write("exec sleep 4712\n");
  const running = "while ! pgrep -x sleep >/dev/null; do sleep 0.1; done";
  assert.equal((await sandbox.exec({ command: running, timeout: 60 })).data.exitCode, 0);
  await other.close();
  const gone = "while pgrep -f 'sleep [4]712' >/dev/null; do sleep 0.1; done";
  assert.equal((await sandbox.exec({ command: gone, timeout: 60 })).data.exitCode, 0);
});

test("a session of a terminal goes on without its connection", async () => {
  const sessionId = await sandbox.pty.createSession({ cols: 90, rows: 20 });
  const first = new Screen();
  const terminal = await sandbox.pty.connect({ sessionId, onData: first.onData });
  await terminal.write("NAME=kept; stty size\n");
  await first.shows("20 90\r\n");
  const [listed] = (await sandbox.pty.listSessions()).filter(({ id }) => id === sessionId);
  assert.deepEqual([listed?.alive, listed?.clients], [true, 1]);
  await terminal.close();
  await sandbox.pty.resize(sessionId, { cols: 132, rows: 43 });

  const second = new Screen();
  await using again = await sandbox.pty.connect({ sessionId, onData: second.onData });
  await second.shows("20 90\r\n");
  await again.write('echo "<$NAME>"; stty size\n');
  await second.shows("<kept>\r\n43 132\r\n");
  assert.ok((await sandbox.pty.buffer(sessionId)).includes("<kept>\r\n43 132\r\n"));
  await sandbox.pty.deleteSession(sessionId);
  await again.closed;
  assert.ok(!(await sandbox.pty.listSessions()).some(({ id }) => id === sessionId));
  await assert.rejects(sandbox.pty.connect({ sessionId, onData: second.onData }), NotFoundError);
  await assert.rejects(sandbox.pty.createSession({ cols: 0, rows: 24 }), { name: "InvalidRequestError", detail: /cols/ });
});

test("by TCP, with the key", async () => {
  const directory = await mkdtemp(join(tmpdir(), "voidrun-tcp-"));
  // The same images, and sandboxes of its own.
  for (const shared of ["blobs", "images", "refs", "store.json"]) {
    await symlink(join(process.env["VOIDRUN_HOME"]!, shared), join(directory, shared));
  }
  const apiKey = randomBytes(32).toString("base64");
  await writeFile(join(directory, "key"), apiKey, { mode: 0o600 });
  const environment = { ...process.env, XDG_RUNTIME_DIR: directory, VOIDRUN_HOME: directory };
  const daemon = spawn(
    process.env["VOIDRUN_BIN"] ?? "voidrun",
    ["daemon", "--listen", "127.0.0.1:0", "--key-file", join(directory, "key")],
    { env: environment, stdio: ["ignore", "ignore", "pipe"] },
  );
  try {
    const log = new Screen();
    daemon.stderr.on("data", (data: Buffer) => log.onData(data.toString()));
    await log.shows("serves");
    const apiUrl = /http:\/\/[0-9.:]+/.exec(log.shown)![0];
    for (const wrong of [{ apiUrl }, { apiUrl, apiKey: `${apiKey}x` }]) {
      await assert.rejects(new VoidRun(wrong).listSandboxes(), AuthenticationError);
    }
    await using other = await new VoidRun({ apiUrl, apiKey }).createSandbox({ mem: 256 });
    assert.equal((await other.exec({ command: "echo $((6 * 7))" })).data.stdout, "42\n");
    const screen = new Screen();
    await using terminal = await other.pty.connect({ onData: screen.onData });
    await terminal.write("echo $((6 * 7))\n");
    await screen.shows("42\r\n");
  } finally {
    daemon.kill();
    if (daemon.exitCode === null) await once(daemon, "exit");
    await rm(directory, { recursive: true });
  }
});

test("paused, resumed, stopped and started, with its files", async () => {
  await sandbox.exec({ command: "echo kept >/root/file" });
  await sandbox.pause();
  assert.equal(sandbox.info.state, "paused");
  await assert.rejects(sandbox.exec({ command: "true" }), ConflictError);
  await sandbox.resume();
  const { pid } = await sandbox.commands.run({ command: "sleep 1000" });
  await sandbox.sleep();
  assert.equal(sandbox.info.state, "sleeping");
  await assert.rejects(sandbox.exec({ command: "true" }), ConflictError);
  await sandbox.wake();
  const { processes } = await sandbox.commands.list();
  assert.ok(processes.some((process) => process.pid === pid && process.running));
  await sandbox.stop();
  assert.equal(sandbox.info.state, "stopped");
  await assert.rejects(sandbox.execStream({ command: "true" }), ConflictError);
  await sandbox.start();
  assert.equal((await sandbox.exec({ command: "cat /root/file" })).data.stdout, "kept\n");
});

test("two sandboxes go on from a snapshot of a third, each as itself", async (context) => {
  await using origin = await vr.createSandbox({ mem: 256 });
  await origin.files.upload("/root/file", "kept");
  await origin.commands.run({ command: "while n=$((n + 1)); do echo $n >>/root/count; sleep 0.1; done" });
  const counting = "while [ ! -s /root/count ]; do sleep 0.1; done";
  assert.equal((await origin.exec({ command: counting, timeout: 60 })).data.exitCode, 0);

  const name = `sdk-${randomBytes(4).toString("hex")}`;
  const snapshot = await origin.snapshot(name, { labels: { sdk: "test" } });
  // Where the test has failed before it did so itself.
  context.after(() => vr.removeSnapshot(name).catch(() => {}));
  assert.deepEqual([snapshot.name, snapshot.sandbox, snapshot.mem], [name, origin.name, 256]);
  assert.deepEqual(snapshot.labels, { sdk: "test" });
  assert.equal((await vr.getSnapshot(name)).createdAt, snapshot.createdAt);
  assert.ok((await vr.listSnapshots()).some((listed) => listed.name === name));
  await assert.rejects(origin.snapshot(name), ConflictError);
  await assert.rejects(vr.createSandbox({ fromSnapshot: name, image: "code" }), InvalidRequestError);

  await using first = await vr.createSandbox({ fromSnapshot: name });
  await using second = await vr.createSandbox({ fromSnapshot: name });
  await vr.removeSnapshot(name);
  await assert.rejects(vr.getSnapshot(name), NotFoundError);
  await assert.rejects(vr.createSandbox({ fromSnapshot: name }), NotFoundError);

  const ids: string[] = [];
  for (const made of [origin, first, second]) {
    assert.equal((await made.exec({ command: "cat /root/file" })).data.stdout, "kept");
    const goesOn = "old=$(wc -l </root/count); while [ $(wc -l </root/count) -le $old ]; do sleep 0.1; done";
    assert.equal((await made.exec({ command: goesOn, timeout: 60 })).data.exitCode, 0);
    ids.push((await made.exec({ command: "cat /etc/machine-id" })).data.stdout);
  }
  for (const { info } of [first, second]) {
    assert.deepEqual([info.fromSnapshot, info.start?.from, info.mem], [name, "snapshot", 256]);
  }
  // An image need not have the file.
  const present = ids.filter((id) => id !== "");
  assert.equal(new Set(present).size, present.length);
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
