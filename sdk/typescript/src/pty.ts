import { withoutNulls } from "./absent.js";
import type { Api, CallOptions } from "./http.js";
import type { Connection } from "./websocket.js";

/** The size of a terminal in characters. */
export interface PtySize {
  cols: number;
  rows: number;
}

export interface PtySessionInfo {
  id: string;
  /** RFC 3339. */
  createdAt: string;
  /** How many are connected to it. */
  clients: number;
  alive: boolean;
}

export interface ConnectOptions extends CallOptions {
  /** A session of `createSession`, which goes on when the connection ends; else a new shell, which does not. */
  sessionId?: string | undefined;
  /** The size of a new shell's terminal, 80 by 24 where it is absent; that of a session is changed by `resize`. */
  size?: PtySize | undefined;
  /** Told what the terminal shows; awaited before the next. No character is ever cut in two. */
  onData: (data: string) => unknown;
}

/** Terminals of a sandbox. */
export class Pty {
  readonly #api: Api;
  readonly #path: string;

  /** @internal */
  constructor(api: Api, sandboxPath: string) {
    this.#api = api;
    this.#path = `${sandboxPath}/pty`;
  }

  /** Starts a shell in a terminal that outlives its connections, and the daemon; returns the session's id. */
  async createSession(size: PtySize = { cols: 80, rows: 24 }, { signal }: CallOptions = {}): Promise<string> {
    type Answer = { data: { sessionId: string } };
    const answer = await this.#api.call<Answer>("POST", `${this.#path}/sessions`, { json: size, signal });
    return answer.data.sessionId;
  }

  /** The sessions whose shell has not ended. */
  async listSessions({ signal }: CallOptions = {}): Promise<PtySessionInfo[]> {
    type Answer = { data: { sessions: PtySessionInfo[] | null } };
    const answer = await this.#api.call<Answer>("GET", `${this.#path}/sessions`, { signal });
    return (answer.data.sessions ?? []).map(withoutNulls);
  }

  /** Ends a session and what runs in it. */
  async deleteSession(sessionId: string, { signal }: CallOptions = {}): Promise<void> {
    await this.#api.call("DELETE", this.#session(sessionId), { signal });
  }

  /** The last of what a session's terminal has shown, at most 1 MiB: what `connect` tells first. */
  async buffer(sessionId: string, { signal }: CallOptions = {}): Promise<string> {
    type Answer = { data: { output: string | null } };
    const answer = await this.#api.call<Answer>("GET", `${this.#session(sessionId)}/buffer`, { signal });
    return answer.data.output ?? "";
  }

  async resize(sessionId: string, size: PtySize, { signal }: CallOptions = {}): Promise<void> {
    await this.#api.call("POST", `${this.#session(sessionId)}/resize`, { json: size, signal });
  }

  /** Connects to a terminal. */
  async connect({ sessionId, size, onData, signal }: ConnectOptions): Promise<Terminal> {
    const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
    const handle = async (data: Buffer) => {
      const text = decoder.decode(data, { stream: true });
      if (text) await onData(text);
    };
    const options = sessionId === undefined ? { query: { ...size }, signal } : { signal };
    const path = sessionId === undefined ? this.#path : this.#session(sessionId);
    return new Terminal(await this.#api.webSocket(path, handle, options));
  }

  #session(id: string): string {
    return `${this.#path}/sessions/${encodeURIComponent(id)}`;
  }
}

/** A connection to a terminal. */
export class Terminal {
  readonly #connection: Connection;

  /** @internal */
  constructor(connection: Connection) {
    this.#connection = connection;
  }

  /** Settled when the shell or the connection has ended: rejected when it broke, was aborted or `onData` failed. */
  get closed(): Promise<void> {
    return this.#connection.closed;
  }

  /** Types into the terminal; a line ends with "\n". Resolved when the text is on its way. */
  write(data: string | Uint8Array): Promise<void> {
    return this.#connection.send(data);
  }

  close(): Promise<void> {
    return this.#connection.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}
