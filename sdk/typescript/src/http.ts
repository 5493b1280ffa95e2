import http from "node:http";
import https from "node:https";
import { pipeline, Readable } from "node:stream";

import { DaemonAgent } from "./daemon.js";
import type { Endpoint } from "./endpoint.js";
import { ConnectionError, TimeoutError, VoidRunError } from "./errors.js";
import { parseEvents, type StreamEvent } from "./events.js";
import { failure } from "./failure.js";
import { openWebSocket, type Connection } from "./websocket.js";

/** What can be uploaded: text is sent as UTF-8, pieces as they come. */
export type Content = string | Uint8Array | AsyncIterable<Uint8Array | string>;

/** What every call takes. */
export interface CallOptions {
  /** Ends the call; the promise is rejected with the signal's reason. A command in the foreground ends as well. */
  signal?: AbortSignal | undefined;
}

export type Query = Record<string, string | number | boolean | undefined>;

interface Request extends CallOptions {
  query?: Query;
  /** Sent as JSON. */
  json?: object;
  /** Sent as it is. */
  content?: Content;
  accept?: string;
  /** Milliseconds until the whole answer has to be there; for ever where it is Infinity. */
  deadline?: number;
}

/** For calls that do nothing long in a guest. The daemon has shorter deadlines of its own. */
const DEADLINE_MS = 120_000;
/** The longest that a timer can wait. */
const LONGEST_TIMER_MS = 2 ** 31 - 1;

/** The deadline, in milliseconds, of a call that runs a command for so many seconds at most (0: without end). */
export function commandDeadline(timeout = 30): number {
  return timeout === 0 ? Infinity : timeout * 1000 + DEADLINE_MS;
}

/** The daemon's API: requests and streams, below one base path. */
export class Api {
  readonly #endpoint: Endpoint;
  readonly #agent: DaemonAgent | undefined;

  constructor(endpoint: Endpoint) {
    this.#endpoint = endpoint;
    this.#agent = "socketPath" in endpoint ? new DaemonAgent(endpoint.socketPath) : undefined;
  }

  /** A JSON answer. */
  async call<T>(method: string, path: string, request: Request = {}): Promise<T> {
    const chunks: Buffer[] = [];
    for await (const chunk of this.download(method, path, { accept: "application/json", ...request }))
      chunks.push(chunk);
    const text = Buffer.concat(chunks).toString();
    if (text === "") return {} as T;
    try {
      return JSON.parse(text) as T;
    } catch (cause) {
      throw new VoidRunError(`${method} ${path}: the answer is not JSON: ${text.slice(0, 200)}`, { cause });
    }
  }

  /** A stream of events, without a deadline. It is lossless, unlike server-sent events. */
  async *events(path: string, json: object, options: CallOptions): AsyncGenerator<StreamEvent> {
    const request = { json, ...options, accept: "application/x-ndjson", deadline: Infinity };
    yield* parseEvents(this.download("POST", path, request));
  }

  /** The body of an answer, piece by piece; an answer that is an error is thrown. */
  async *download(method: string, path: string, request: Request): AsyncGenerator<Buffer> {
    request.signal?.throwIfAborted();
    const deadline = new AbortController();
    const milliseconds = request.deadline ?? DEADLINE_MS;
    const timer =
      milliseconds > LONGEST_TIMER_MS
        ? undefined
        : setTimeout(() => {
            deadline.abort(new TimeoutError(`${method} ${path}: no answer within ${milliseconds / 1000} s`));
          }, milliseconds);
    try {
      const response = await this.#send(method, path, request, deadline.signal);
      const status = response.statusCode ?? 0;
      if (status < 200 || status > 299) throw await failure(response);
      for await (const chunk of response) yield chunk as Buffer;
    } catch (error) {
      request.signal?.throwIfAborted();
      deadline.signal.throwIfAborted();
      throw this.#translate(`${method} ${path}`, error);
    } finally {
      clearTimeout(timer);
      // An upload may still go on, though it was answered.
      deadline.abort();
    }
  }

  /** A WebSocket; messages go to `onMessage` one after the other. */
  async webSocket(
    path: string,
    onMessage: (data: Buffer) => unknown,
    { query, signal }: { query?: Query } & CallOptions,
  ): Promise<Connection> {
    signal?.throwIfAborted();
    const target = this.#target();
    const url = `${target.protocol === "https:" ? "wss:" : "ws:"}//${target.host}${this.#path(path, query)}`;
    try {
      return await openWebSocket(
        url,
        { ...(this.#agent && { agent: this.#agent }), headers: this.#headers() },
        onMessage,
        signal,
      );
    } catch (error) {
      signal?.throwIfAborted();
      throw this.#translate(`GET ${path}`, error);
    }
  }

  #send(method: string, path: string, request: Request, deadline: AbortSignal): Promise<http.IncomingMessage> {
    const { json, content, accept, query, signal } = request;
    const headers: http.OutgoingHttpHeaders = this.#headers();
    if (accept) headers["accept"] = accept;
    const body = json === undefined ? content : JSON.stringify(json);
    if (body !== undefined)
      headers["content-type"] = json === undefined ? "application/octet-stream" : "application/json";
    if (typeof body === "string" || body instanceof Uint8Array) headers["content-length"] = Buffer.byteLength(body);

    const target = this.#target();
    return new Promise((resolve, reject) => {
      const send = target.protocol === "https:" ? https.request : http.request;
      const sent = send(target, { method, path: this.#path(path, query), headers, agent: this.#agent ?? false });
      // Without a connection yet, the request itself would say nothing until there is one.
      const end = () => {
        sent.destroy();
        reject(new Error("aborted"));
      };
      signal?.addEventListener("abort", end);
      deadline.addEventListener("abort", end);
      sent.once("close", () => signal?.removeEventListener("abort", end));
      sent.on("error", reject);
      sent.once("response", resolve);
      if (body === undefined || typeof body === "string" || body instanceof Uint8Array) sent.end(body);
      // Where the content fails, the request is ended without an error of its own.
      else pipeline(Readable.from(body), sent, (error) => error && reject(error));
    });
  }

  #target(): URL {
    return "url" in this.#endpoint ? this.#endpoint.url : new URL("http://localhost/v1");
  }

  #headers(): Record<string, string> {
    const key = "url" in this.#endpoint ? this.#endpoint.apiKey : undefined;
    return key ? { "x-api-key": key } : {};
  }

  #path(path: string, query: Query = {}): string {
    const search = new URLSearchParams();
    for (const [name, value] of Object.entries(query)) if (value !== undefined) search.set(name, `${value}`);
    return this.#target().pathname + path + (search.size ? `?${search}` : "");
  }

  #translate(what: string, error: unknown): Error {
    if (error instanceof VoidRunError) return error;
    const where = "url" in this.#endpoint ? this.#endpoint.url.host : this.#endpoint.socketPath();
    const why = (error as Error).message || (error as NodeJS.ErrnoException).code;
    return new ConnectionError(`${what}: the connection to the daemon at ${where} failed: ${why}`, { cause: error });
  }
}
