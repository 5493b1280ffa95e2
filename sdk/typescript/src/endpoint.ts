import { createHash } from "node:crypto";
import { readFileSync, realpathSync, statSync } from "node:fs";
import { basename, dirname, isAbsolute, join, resolve } from "node:path";

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
  const { XDG_RUNTIME_DIR: runtime, HOME: home } = environment;
  const store = storeDirectory(environment);
  return { socketPath: () => recordedSocket(store) ?? join(socketDirectory(runtime, user), socketName(store, home)) };
}

/** Where the daemon keeps images and sandboxes. */
function storeDirectory({ VOIDRUN_HOME: store, XDG_DATA_HOME: data, HOME: home }: Environment): string {
  if (store) return store;
  return join(data && isAbsolute(data) ? data : join(home || "/", ".local/share"), "voidrun");
}

/**
 * What the daemon of the store says of itself: its environment may be another one than ours. What one that was killed has
 * left is as good as nothing, since nobody listens there; the next one writes it anew.
 */
function recordedSocket(store: string): string | undefined {
  try {
    const notice: unknown = JSON.parse(readFileSync(join(store, "daemon.lock"), "utf8"));
    const socket = (notice as { socket?: unknown } | null)?.socket;
    return typeof socket === "string" && isAbsolute(socket) ? socket : undefined;
  } catch {
    // There is no daemon, or it is just coming up.
    return undefined;
  }
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

/** A store that is not the default one has a socket of its own. */
function socketName(store: string, home: string | undefined): string {
  const path = real(store);
  if (home && real(join(home, ".local/share/voidrun")) === path) return "voidrun.sock";
  return `voidrun-${createHash("sha256").update(path).digest("hex").slice(0, 12)}.sock`;
}

/** The path without links and dots; the same before and after the directory is made. */
function real(path: string): string {
  const absolute = resolve(path);
  try {
    return realpathSync(absolute);
  } catch {
    const parent = dirname(absolute);
    return parent === absolute ? absolute : join(real(parent), basename(absolute));
  }
}
