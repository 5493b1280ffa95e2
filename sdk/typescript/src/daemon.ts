import { spawn } from "node:child_process";
import { lstat, open } from "node:fs/promises";
import { Agent, type ClientRequestArgs } from "node:http";
import { createConnection, type Socket } from "node:net";
import { basename, dirname } from "node:path";
import type { Duplex } from "node:stream";

import { ConnectionError, DaemonError } from "./errors.js";

/** How long a daemon may take to start: it may have to unpack a kernel and look after many sandboxes. */
const START_TIMEOUT_MS = 60_000;
/** The longest path that the address of a Unix socket holds. */
const LONGEST_PATH = 107;

const INSTALL = `Unpack the release, put the program into PATH or its path into VOIDRUN_BIN:

    tar -xzf voidrun-*-x86_64-linux.tar.gz && install -D -m 755 -t ~/.local/bin voidrun-*-x86_64-linux/voidrun`;

/** Connects each request to the daemon's Unix socket, and starts the daemon where there is none. */
export class DaemonAgent extends Agent {
  readonly #socketPath: () => string;
  /** One start for all requests that wait for it. */
  #starting: Promise<void> | undefined;

  constructor(socketPath: () => string) {
    // A connection a request: cheap on a Unix socket, and none is ever found dead when a daemon was started anew.
    super({ keepAlive: false });
    this.#socketPath = socketPath;
  }

  override createConnection(
    _options: ClientRequestArgs,
    created?: (error: Error | null, socket: Duplex) => void,
  ): undefined {
    this.#connectOrStart().then(
      (socket) => created?.(null, socket),
      (error: Error) => created?.(error, undefined as never),
    );
  }

  async #connectOrStart(): Promise<Socket> {
    try {
      return await connect(this.#socketPath());
    } catch (error) {
      const code = (error as NodeJS.ErrnoException).code;
      if (code !== "ENOENT" && code !== "ECONNREFUSED") throw error;
    }
    this.#starting ??= startDaemon().finally(() => (this.#starting = undefined));
    await this.#starting;
    return connect(this.#socketPath());
  }
}

async function connect(socketPath: string): Promise<Socket> {
  const directory = dirname(socketPath);
  await checkOwner(directory);
  if (Buffer.byteLength(socketPath) <= LONGEST_PATH) return dial(socketPath);
  const handle = await open(directory, "r");
  try {
    return await dial(`/proc/self/fd/${handle.fd}/${basename(socketPath)}`);
  } finally {
    await handle.close();
  }
}

function dial(path: string): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const socket = createConnection({ path });
    socket.once("error", reject);
    socket.once("connect", () => {
      socket.off("error", reject);
      resolve(socket);
    });
  });
}

/** Anyone can make a directory in /tmp: what listens in somebody else's is not our daemon. */
async function checkOwner(directory: string): Promise<void> {
  const found = await lstat(directory);
  if (!found.isDirectory() || found.uid !== process.geteuid?.() || (found.mode & 0o077) !== 0) {
    throw new ConnectionError(`${directory} is not a directory that is yours alone (mode 0700): remove it`);
  }
}

/** `voidrun daemon --detach` starts a daemon unless there is one, and ends when it answers. */
function startDaemon(): Promise<void> {
  const program = process.env["VOIDRUN_BIN"] || "voidrun";
  return new Promise((resolve, reject) => {
    const child = spawn(program, ["daemon", "--detach"], { stdio: ["ignore", "ignore", "pipe"] });
    const overdue = setTimeout(() => child.kill("SIGKILL"), START_TIMEOUT_MS);
    let said = "";
    child.stderr.setEncoding("utf8").on("data", (text: string) => (said = (said + text).slice(-4096)));
    child.once("error", (cause: NodeJS.ErrnoException) => {
      clearTimeout(overdue);
      const origin = process.env["VOIDRUN_BIN"] ? "named by VOIDRUN_BIN" : "looked for in PATH";
      const why = cause.code === "ENOENT" ? `was not found. ${INSTALL}` : `cannot be run: ${cause.message}`;
      reject(new DaemonError(`no daemon is running, and '${program}' (${origin}) ${why}`, { cause }));
    });
    child.once("exit", (code, signal) => {
      clearTimeout(overdue);
      if (code === 0) {
        // A daemon may still hold the other end; what it says from now on is for its log.
        child.stderr.destroy();
        resolve();
        return;
      }
      const how = signal ? `was ended by ${signal}` : `failed with exit code ${code}`;
      // The last of what it said may come after its end; whoever else holds the pipe is not waited for.
      const late = setTimeout(() => child.stderr.destroy(), 1000);
      child.once("close", () => {
        clearTimeout(late);
        reject(new DaemonError(`'${program} daemon --detach' ${how}: ${said.trim() || "it said nothing"}`));
      });
    });
  });
}
