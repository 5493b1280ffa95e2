import { once } from "node:events";
import { mkdir, mkdtemp, rm } from "node:fs/promises";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { VoidRun } from "@voidrun/sdk";

/** A request as it came over the wire. */
export interface Received {
  method: string;
  url: string;
  headers: IncomingMessage["headers"];
  body: string;
}

export type Handler = (received: Received, response: ServerResponse) => void | Promise<void>;

/** The wire's other end: a server at the Unix socket where clients look for the daemon. */
export class Wire {
  readonly received: Received[] = [];
  readonly server: Server;
  readonly #directory: string;

  private constructor(directory: string, handler: Handler) {
    this.#directory = directory;
    this.server = createServer(async (request, response) => {
      let body = "";
      for await (const chunk of request.setEncoding("utf8")) body += chunk;
      const received = { method: request.method!, url: request.url!, headers: request.headers, body };
      this.received.push(received);
      await handler(received, response);
    });
  }

  static async serve(handler: Handler): Promise<Wire> {
    const directory = await runtimeDirectory();
    const wire = new Wire(directory, handler);
    wire.server.listen(join(directory, "voidrun", "voidrun.sock"));
    await once(wire.server, "listening");
    return wire;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.server.closeAllConnections();
    this.server.close();
    await rm(this.#directory, { recursive: true });
  }
}

/** A home without a store, and an XDG_RUNTIME_DIR with a directory for the daemon's socket; the next client looks there. */
export async function runtimeDirectory(): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), "voidrun-sdk-"));
  await mkdir(join(directory, "voidrun"), { mode: 0o700 });
  process.env["XDG_RUNTIME_DIR"] = process.env["HOME"] = directory;
  delete process.env["XDG_DATA_HOME"];
  return directory;
}

export function json(response: ServerResponse, status: number, body: unknown): void {
  response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify(body));
}

/** A line of output as the daemon sends it. */
export function output(stream: "stdout" | "stderr", data: string | Uint8Array): string {
  return `${JSON.stringify({ stream, data: Buffer.from(data as string).toString("base64") })}\n`;
}

export const EXIT = '{"stream":"exit","exitCode":0}\n';

/** A server that knows one sandbox and leaves all else to the handler; and that sandbox. */
export async function serveSandbox(handler: Handler) {
  const wire = await Wire.serve((received, response) => {
    if (received.method === "GET" && received.url === "/v1/sandboxes/box") {
      return json(response, 200, { data: { id: "id1", name: "box", exitReason: null } });
    }
    return handler(received, response);
  });
  const sandbox = await new VoidRun().getSandbox("box");
  wire.received.length = 0;
  return { wire, sandbox };
}
