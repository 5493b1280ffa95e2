import { createHash } from "node:crypto";
import { realpathSync, statSync } from "node:fs";
import { isAbsolute, join, resolve } from "node:path";

import { VoidRunError } from "./errors.js";

/** How a client finds the daemon. Nothing has to be given. */
export interface VoidRunOptions {
  /** The key for a TCP address; else VR_API_KEY or VOIDRUN_API_KEY. The Unix socket needs none. */
  apiKey?: string | undefined;
  /** A TCP address, `http://127.0.0.1:PORT`; else VR_API_URL or VOIDRUN_API_URL; else the Unix socket. */
  apiUrl?: string | undefined;
}

/** Where the daemon is. A socket's path is asked for anew at each use: it may depend on what is there. */
export type Endpoint = { socketPath: () => string } | { url: URL; apiKey: string | undefined };

type Environment = Record<string, string | undefined>;

/** The endpoint that options and environment name. An empty variable counts as absent. */
export function resolveEndpoint(options: VoidRunOptions, environment: Environment): Endpoint {
  const sources = { apiUrl: options.apiUrl, VR_API_URL: environment["VR_API_URL"] };
  for (const [source, address] of Object.entries({ ...sources, VOIDRUN_API_URL: environment["VOIDRUN_API_URL"] })) {
    if (address) {
      const apiKey = options.apiKey || environment["VR_API_KEY"] || environment["VOIDRUN_API_KEY"] || undefined;
      return { url: parseUrl(source, address), apiKey };
    }
  }
  const user = process.geteuid?.();
  if (user === undefined) throw new VoidRunError("voidrun runs on Linux; elsewhere apiUrl has to name its address");
  const { XDG_RUNTIME_DIR: runtime, VOIDRUN_HOME: store } = environment;
  return { socketPath: () => join(socketDirectory(runtime, user), socketName(store)) };
}

/** An address without a path means this client's own API, `/v1`. */
function parseUrl(source: string, address: string): URL {
  const url = URL.canParse(address) ? new URL(address) : undefined;
  if (url?.protocol !== "http:" && url?.protocol !== "https:") {
    throw new VoidRunError(`${source} is '${address}', which is no address like http://127.0.0.1:7070`);
  }
  url.pathname = url.pathname.replace(/\/+$/, "") || "/v1";
  return url;
}

/** In the session's directory where that is the user's, else in one in /tmp. */
function socketDirectory(runtime: string | undefined, user: number): string {
  const other = `/tmp/voidrun-${user}`;
  if (!runtime || !isAbsolute(runtime)) return other;
  try {
    return statSync(runtime).uid === user ? join(runtime, "voidrun") : other;
  } catch {
    return other;
  }
}

/** A store that is not the default one has a daemon, and a socket, of its own. */
function socketName(store: string | undefined): string {
  if (!store) return "voidrun.sock";
  let path = resolve(store);
  try {
    path = realpathSync(path);
  } catch {
    // It is not there yet; the daemon makes it.
  }
  return `voidrun-${createHash("sha256").update(path).digest("hex").slice(0, 12)}.sock`;
}
