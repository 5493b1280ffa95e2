import { withoutNulls } from "./absent.js";
import type { ExitEvent, StreamHandlers } from "./events.js";
import { followHandled } from "./exec.js";
import type { Api, CallOptions } from "./http.js";

export interface BackgroundRequest {
  /** For the shell: bash where the image has it. */
  command: string;
  cwd?: string | undefined;
  env?: Record<string, string> | undefined;
  /** Seconds until the process is ended; 0, as where it is absent, for never. */
  timeout?: number | undefined;
}

export interface BackgroundResult {
  success: boolean;
  pid: number;
  command: string;
  data: { pid: number };
}

/** A background process. Ended ones stay listed, the last 256. */
export interface ProcessInfo {
  pid: number;
  command: string;
  /** RFC 3339. */
  startTime: string;
  running: boolean;
  /** Absent while it runs. */
  exitCode?: number;
}

export interface ProcessList {
  success: boolean;
  processes: ProcessInfo[];
  /** The same as `processes`. */
  data: ProcessInfo[];
}

export interface WaitResult {
  success: boolean;
  exitCode: number;
  data: ExitEvent;
}

export interface KillResult {
  /** False where the process had ended already. */
  success: boolean;
  message: string;
}

/** Background processes of a sandbox. They go on when the client or the daemon ends. */
export class Commands {
  readonly #api: Api;
  readonly #path: string;

  /** @internal */
  constructor(api: Api, sandboxPath: string) {
    this.#api = api;
    this.#path = `${sandboxPath}/commands`;
  }

  /** Starts a process and does not wait for it. */
  run(request: BackgroundRequest, { signal }: CallOptions = {}): Promise<BackgroundResult> {
    return this.#api.call("POST", `${this.#path}/run`, { json: request, signal });
  }

  async list({ signal }: CallOptions = {}): Promise<ProcessList> {
    const list = await this.#api.call<ProcessList>("GET", `${this.#path}/list`, { signal });
    const processes = list.processes.map(withoutNulls);
    return { ...list, processes, data: processes };
  }

  /** Waits until a process ends, however long that takes; asked again, answers again. */
  wait(pid: number | undefined, { signal }: CallOptions = {}): Promise<WaitResult> {
    return this.#api.call("POST", `${this.#path}/wait`, { json: { pid: known(pid) }, signal, deadline: Infinity });
  }

  /** Ends a process and its children. One that has ended already is no error. */
  kill(pid: number | undefined, { signal }: CallOptions = {}): Promise<KillResult> {
    return this.#api.call("POST", `${this.#path}/kill`, { json: { pid: known(pid) }, signal });
  }

  /** Follows the output of a process up to its exit. An abort ends the following, not the process. */
  attach(
    pid: number | undefined,
    handlers: StreamHandlers = {},
    options: CallOptions = {},
  ): Promise<ExitEvent | undefined> {
    return followHandled(this.#api.events(`${this.#path}/attach`, { pid: known(pid) }, options), handlers, options);
  }
}

function known(pid: number | undefined): number {
  if (!Number.isInteger(pid)) throw new TypeError(`pid is ${pid}; it has to be the number that commands.run gave`);
  return pid as number;
}
