import type { Api, CallOptions } from "./http.js";

/** A port that is to be published. */
export interface PortRequest {
  /** `tcp` where it is absent. */
  protocol?: "http" | "tcp" | "udp" | undefined;
  /** In the sandbox, at its loopback. */
  port: number;
  /** An address of this machine; 127.0.0.1 where it is absent. */
  hostAddress?: string | undefined;
  /** A port of this machine; a free one is picked where it is absent or 0. */
  hostPort?: number | undefined;
}

/** A port of a sandbox that this machine reaches. */
export interface Port {
  protocol: "http" | "tcp" | "udp";
  /** In the sandbox, at its loopback. */
  port: number;
  hostAddress: string;
  hostPort: number;
  /** Where it is reached; absent while nobody listens there. */
  url?: string;
}

export interface PublicUrl {
  /** In the sandbox. */
  port: number;
  url: string;
}

/** Published ports of a sandbox. They stay when the client or the daemon ends, and come again with each start. */
export class Ports {
  readonly #api: Api;
  readonly #path: string;

  /** @internal */
  constructor(api: Api, sandboxPath: string) {
    this.#api = api;
    this.#path = `${sandboxPath}/ports`;
  }

  /** Publishes one more; of a sandbox that does not run from its next start on. */
  async add(port: PortRequest | number, { signal }: CallOptions = {}): Promise<Port> {
    const json = typeof port === "number" ? { port } : port;
    const answer = await this.#api.call<{ data: Port }>("POST", this.#path, { json, signal });
    return answer.data;
  }

  /** Publishes a port of this machine no more, of TCP and of UDP. What is connected by TCP stays so. */
  async remove(hostPort: number, { signal }: CallOptions = {}): Promise<void> {
    if (!Number.isInteger(hostPort)) throw new TypeError(`the port of this machine is ${hostPort}`);
    await this.#api.call("DELETE", `${this.#path}/${hostPort}`, { signal });
  }

  async list({ signal }: CallOptions = {}): Promise<Port[]> {
    const answer = await this.#api.call<{ data: Port[] }>("GET", this.#path, { signal });
    return answer.data;
  }
}
