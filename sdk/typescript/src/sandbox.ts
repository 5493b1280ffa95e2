import { withoutNulls } from "./absent.js";
import { runCode, type CodeResult, type RunCodeOptions } from "./code.js";
import { Commands } from "./commands.js";
import { NotFoundError } from "./errors.js";
import type { ExitEvent, StreamHandlers } from "./events.js";
import { exec, followHandled, type ExecRequest, type ExecResult } from "./exec.js";
import { Files } from "./files.js";
import type { Api, CallOptions } from "./http.js";
import { Ports, type Port, type PortRequest, type PublicUrl } from "./ports.js";
import { Pty } from "./pty.js";
import type { Snapshot, SnapshotAnswer, SnapshotOptions } from "./snapshots.js";

/** What the guest may reach. */
export interface Network {
  /** `public` where it is absent: what everybody on the Internet reaches; `allow` where there are such rules. */
  mode?: "none" | "public" | "allow";
  /** Rules, as `*.example.org:443`, `udp:10.0.0.0/8:53` or `*`. */
  allow?: string[];
  /** What is not reached, in any mode. */
  deny?: string[];
  /** TCP ports of the host's loopback that the guest reaches, at `host.voidrun.internal`. */
  hostPorts?: number[];
  /** How much of it the guest may use. */
  limits?: NetworkLimits;
}

/** How much of its network a guest may use. What is absent stays as it was, and 0 is no limit. */
export interface NetworkLimits {
  /** Bytes of IP packets a second that it may send, and as many that it may get. Streams go slower; datagrams above that are lost. */
  bytesPerSecond?: number;
  /** TCP connections a second that it may begin. Those above that are begun later. */
  connectionsPerSecond?: number;
}

/** Something that the network policy has denied. */
export interface Denial {
  /** Counted since the machine was started, from 1. */
  number: number;
  /** RFC 3339. */
  time: string;
  protocol: "tcp" | "udp" | "icmp" | "dns";
  /** Address and port, or the name that was asked for. */
  destination: string;
  /** The name that led there, where one is known. */
  name?: string;
  /** Which rule it was. */
  rule: string;
}

/** What can be said of a new sandbox; what is absent is the daemon's default. */
export interface CreateOptions extends CallOptions {
  /** Lower-case letters, digits and `-`; a generated one where it is absent. */
  name?: string | undefined;
  /** `code` where it is absent. */
  image?: string | undefined;
  /** The name of a snapshot to go on from; it decides on `image`, `cpu`, `mem` and `diskMB`, which are absent then. */
  fromSnapshot?: string | undefined;
  /** Whether it may go on from where an earlier one of its image and size had booted, before anything was run in that. */
  warm?: boolean | undefined;
  /** Processors. */
  cpu?: number | undefined;
  /** Memory in MiB. */
  mem?: number | undefined;
  /** Disk in MiB. */
  diskMB?: number | undefined;
  /** Environment of every command. */
  envVars?: Record<string, string> | undefined;
  labels?: Record<string, string> | undefined;
  /** Ports of its loopback that this machine is to reach. */
  ports?: PortRequest[] | undefined;
  network?: Network | undefined;
  /** Names and their addresses, which the guest's name server answers by itself. */
  hosts?: Record<string, string> | undefined;
  /** Certificates of authorities, in PEM, that its programs trust beside the image's. */
  caCertificates?: string | undefined;
  /** Seconds until the sandbox is ended. */
  ttl?: number | undefined;
  /** Seconds without use until it is ended. */
  idleTimeout?: number | undefined;
  autoSleep?: boolean | undefined;
  /** Whether the image is pulled: where it is missing, never, or always. */
  pull?: "missing" | "never" | "always" | undefined;
}

/** How a machine has started. */
export interface Start {
  /** A kernel, which has booted; where an earlier one of its kind had booted; a snapshot; where it had fallen asleep. */
  from: "kernel" | "warm" | "snapshot" | "sleep";
  /** Until commands could be run. */
  ms: number;
  /** Why it has booted, where it was to go on from somewhere. */
  fallback?: string;
}

/** What the daemon says of a sandbox. */
export interface SandboxInfo {
  id: string;
  name: string;
  image: string;
  cpu: number;
  /** MiB. */
  mem: number;
  /** MiB. */
  diskMB: number;
  /** Coarse, for clients of the hosted API; `state` is exact. */
  status: "running" | "snapshotted" | "error" | "killed" | "deleted";
  state: "creating" | "running" | "paused" | "stopped" | "sleeping" | "failed";
  /** Why the machine has ended. */
  exitReason?: string;
  /** Absent where another daemon has started the machine. */
  start?: Start;
  /** The snapshot that it was made from, which need not be there any more. */
  fromSnapshot?: string;
  /** RFC 3339. */
  createdAt: string;
  createdBy?: string;
  orgId?: string;
  envVars?: Record<string, string>;
  labels?: Record<string, string>;
  ports?: Port[];
  network?: Network;
  autoSleep?: boolean;
}

/** What `POST`, `GET` and `PATCH` of a sandbox answer. */
export interface SandboxAnswer {
  data: SandboxInfo;
}

/** A virtual machine with commands, code, files and terminals. `await using` removes it at the end of the scope. */
export class Sandbox {
  readonly id: string;
  readonly commands: Commands;
  readonly files: Files;
  readonly ports: Ports;
  readonly pty: Pty;
  #info: SandboxInfo;
  readonly #api: Api;
  readonly #path: string;

  /** @internal */
  constructor(api: Api, info: SandboxInfo) {
    this.id = info.id;
    this.#info = withoutNulls(info);
    this.#api = api;
    this.#path = sandboxPath(info.id);
    this.commands = new Commands(api, this.#path);
    this.files = new Files(api, this.#path);
    this.ports = new Ports(api, this.#path);
    this.pty = new Pty(api, this.#path);
  }

  get name(): string {
    return this.#info.name;
  }

  /** What the daemon has said last; `refresh` asks anew. */
  get info(): SandboxInfo {
    return this.#info;
  }

  async refresh({ signal }: CallOptions = {}): Promise<SandboxInfo> {
    const answer = await this.#api.call<SandboxAnswer>("GET", this.#path, { signal });
    this.#info = withoutNulls(answer.data);
    return this.#info;
  }

  /** Runs a command to its end and returns what it printed. One that fails is a result, not an error. */
  exec(request: ExecRequest, options: CallOptions = {}): Promise<ExecResult> {
    return exec(this.#api, `${this.#path}/exec`, request, options);
  }

  /**
   * Runs a command and hands on what it prints, as it prints it. The promise is settled when the command has ended,
   * with its exit. What fails is told to `onError`, where there is one; then the promise is resolved without an exit.
   */
  execStream(
    request: ExecRequest,
    handlers: StreamHandlers = {},
    options: CallOptions = {},
  ): Promise<ExitEvent | undefined> {
    return followHandled(this.#api.events(`${this.#path}/exec-stream`, request, options), handlers, options);
  }

  /** Runs code of any size. Code that fails is a result, not an error. */
  runCode(code: string, options: RunCodeOptions = {}): Promise<CodeResult> {
    return runCode(this.#api, `${this.#path}/code`, code, options);
  }

  /** Where its published ports are reached now; none while it does not run. */
  async publicUrls({ signal }: CallOptions = {}): Promise<PublicUrl[]> {
    const answer = await this.#api.call<{ data: PublicUrl[] }>("GET", `${this.#path}/public-urls`, { signal });
    return answer.data;
  }

  /** Boots a stopped sandbox; its disk is as it was. */
  start(options: CallOptions = {}): Promise<void> {
    return this.#turn("start", options);
  }

  /** Powers off and keeps the disk. */
  stop(options: CallOptions = {}): Promise<void> {
    return this.#turn("stop", options);
  }

  /** Halts the processors; memory stays. */
  pause(options: CallOptions = {}): Promise<void> {
    return this.#turn("pause", options);
  }

  resume(options: CallOptions = {}): Promise<void> {
    return this.#turn("resume", options);
  }

  /** Writes the memory to the disk and ends the machine; streams to it end. */
  sleep(options: CallOptions = {}): Promise<void> {
    return this.#turn("sleep", options);
  }

  /** Goes on where it fell asleep. */
  wake(options: CallOptions = {}): Promise<void> {
    return this.#turn("wake", options);
  }

  /**
   * Keeps memory and disk as they are now as a snapshot, from which `createSandbox({ fromSnapshot: name })` makes others.
   * The sandbox has to run or be paused, and goes on as it was.
   */
  async snapshot(name: string, { labels, signal }: SnapshotOptions = {}): Promise<Snapshot> {
    // All of its memory is written, which takes as long as it takes.
    const call = { json: { name, labels }, signal, deadline: Infinity };
    return (await this.#api.call<SnapshotAnswer>("POST", `${this.#path}/snapshots`, call)).data;
  }

  /** Changes what it may reach, at once; a list that is given replaces the one before. */
  async setNetwork(network: Network, { signal }: CallOptions = {}): Promise<void> {
    const answer = await this.#api.call<SandboxAnswer>("PATCH", this.#path, { json: { network }, signal });
    this.#info = withoutNulls(answer.data);
  }

  /** What it was denied, behind the denial with the number `after`; the last 512 are kept. */
  async denials({ after, signal }: CallOptions & { after?: number | undefined } = {}): Promise<Denial[]> {
    const call = { query: { after }, signal };
    return (await this.#api.call<{ data: Denial[] }>("GET", `${this.#path}/network/denials`, call)).data;
  }

  /** Ends it and removes its disk. */
  async remove({ signal }: CallOptions = {}): Promise<void> {
    await this.#api.call("DELETE", this.#path, { signal });
  }

  /** As `remove`, but it may be gone already. */
  async [Symbol.asyncDispose](): Promise<void> {
    try {
      await this.remove();
    } catch (error) {
      if (!(error instanceof NotFoundError)) throw error;
    }
  }

  async #turn(verb: string, options: CallOptions): Promise<void> {
    await this.#api.call("POST", `${this.#path}/${verb}`, options);
    await this.refresh(options);
  }
}

/** The path of a sandbox by its id, an id's prefix or its name. */
export function sandboxPath(id: string): string {
  if (!id) throw new TypeError("the id or name of the sandbox is empty");
  return `/sandboxes/${encodeURIComponent(id)}`;
}
