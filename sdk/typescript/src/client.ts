import { resolveEndpoint, type VoidRunOptions } from "./endpoint.js";
import { Api, type CallOptions } from "./http.js";
import { Sandbox, sandboxPath, type CreateOptions, type SandboxAnswer, type SandboxInfo } from "./sandbox.js";
import { snapshotPath, type Snapshot, type SnapshotAnswer } from "./snapshots.js";

export interface ListOptions extends CallOptions {
  /** From 1. */
  page?: number | undefined;
  /** Sandboxes a page. */
  limit?: number | undefined;
  /** Only those that have all of these. */
  labels?: Record<string, string> | undefined;
}

export interface SandboxList {
  sandboxes: Sandbox[];
  meta: { page: number; limit: number; total: number; totalPages: number };
}

/** The client. It connects when it is used, and starts the daemon where none runs. */
export class VoidRun {
  readonly #api: Api;

  constructor(options: VoidRunOptions = {}) {
    this.#api = new Api(resolveEndpoint(options, process.env));
  }

  /** Makes a sandbox and boots it, or lets it go on from a snapshot. It stays until it is removed, or its `ttl` or `idleTimeout` is over. */
  async createSandbox({ signal, ...request }: CreateOptions = {}): Promise<Sandbox> {
    // A pull of the image may be in it, which takes as long as it takes.
    const call = { json: request, signal, deadline: Infinity };
    const answer = await this.#api.call<SandboxAnswer>("POST", "/sandboxes", call);
    return new Sandbox(this.#api, answer.data);
  }

  /** The sandbox with this id, prefix of an id, or name. */
  async getSandbox(idOrName: string, { signal }: CallOptions = {}): Promise<Sandbox> {
    const answer = await this.#api.call<SandboxAnswer>("GET", sandboxPath(idOrName), { signal });
    return new Sandbox(this.#api, answer.data);
  }

  async listSandboxes({ page, limit, labels, signal }: ListOptions = {}): Promise<SandboxList> {
    type Answer = { data: SandboxInfo[]; meta: SandboxList["meta"] };
    const pairs = labels && Object.entries(labels).map(([key, value]) => `${key}=${value}`);
    const query = { page, limit, labels: pairs?.join(",") };
    const answer = await this.#api.call<Answer>("GET", "/sandboxes", { query, signal });
    return { sandboxes: answer.data.map((info) => new Sandbox(this.#api, info)), meta: answer.meta };
  }

  async getSnapshot(name: string, { signal }: CallOptions = {}): Promise<Snapshot> {
    return (await this.#api.call<SnapshotAnswer>("GET", snapshotPath(name), { signal })).data;
  }

  /** All of them, by name. */
  async listSnapshots({ signal }: CallOptions = {}): Promise<Snapshot[]> {
    return (await this.#api.call<{ data: Snapshot[] }>("GET", "/snapshots", { signal })).data;
  }

  /** Removes a snapshot. Sandboxes that were made from it stay as they are. */
  async removeSnapshot(name: string, { signal }: CallOptions = {}): Promise<void> {
    await this.#api.call("DELETE", snapshotPath(name), { signal });
  }
}
