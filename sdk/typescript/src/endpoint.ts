import { VoidRunError } from "./errors.js";

/** How a client finds the daemon. Nothing has to be given. */
export interface VoidRunOptions {
  /** The key for a TCP address; else VR_API_KEY or VOIDRUN_API_KEY. The Unix socket needs none. */
  apiKey?: string | undefined;
  /** A TCP address, `http://127.0.0.1:PORT`; else VR_API_URL or VOIDRUN_API_URL; else the Unix socket. */
  apiUrl?: string | undefined;
}

/** Where the daemon is. */
export type Endpoint = { socketPath: string } | { url: URL; apiKey: string | undefined };

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
  return { socketPath: socketPath(environment) };
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

function socketPath(environment: Environment): string {
  const runtime = environment["XDG_RUNTIME_DIR"];
  // A relative one is to be ignored, says the specification.
  if (runtime?.startsWith("/")) return `${runtime}/voidrun/voidrun.sock`;
  if (!process.getuid) throw new VoidRunError("voidrun runs on Linux; elsewhere apiUrl has to name its address");
  return `/tmp/voidrun-${process.getuid()}/voidrun.sock`;
}
