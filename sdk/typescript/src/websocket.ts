import type { IncomingMessage } from "node:http";
import { createWebSocketStream, WebSocket, type ClientOptions } from "ws";

import { StreamError } from "./errors.js";
import { failure } from "./failure.js";

/** How long the daemon may take to accept, its start included. */
const HANDSHAKE_TIMEOUT_MS = 120_000;
/** Far more than the daemon puts into a message. */
const LONGEST_MESSAGE = 16 << 20;
/** Closing is answered by closing; after this long by nothing. */
const CLOSE_TIMEOUT_MS = 5_000;

/** An open WebSocket. */
export class Connection {
  /** Settled when it is over and the last message was handled: rejected when it broke, was aborted or a handler failed. */
  readonly closed: Promise<void>;
  readonly #socket: WebSocket;
  /** Why it was closed. */
  readonly #code: Promise<number>;

  constructor(socket: WebSocket, onMessage: (data: Buffer) => unknown, signal: AbortSignal | undefined) {
    this.#socket = socket;
    this.#code = new Promise((resolve) => socket.once("close", resolve));
    this.closed = this.#receive(onMessage, signal);
    // Whoever wants to know awaits it; nobody has to.
    this.closed.catch(() => {});
  }

  /** Resolved when the message is on its way. */
  send(data: string | Uint8Array): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#socket.send(typeof data === "string" ? Buffer.from(data) : data, { binary: true }, (error) => {
        if (error) reject(new StreamError(`the terminal takes no input: ${error.message}`, { cause: error }));
        else resolve();
      });
    });
  }

  /** Ends it, and waits for that; not for the handler, which may be what calls this. */
  async close(): Promise<void> {
    const late = setTimeout(() => this.#socket.terminate(), CLOSE_TIMEOUT_MS);
    this.#socket.close(1000);
    await this.#code;
    clearTimeout(late);
  }

  async #receive(onMessage: (data: Buffer) => unknown, signal: AbortSignal | undefined): Promise<void> {
    try {
      // The stream is what pauses the socket while a handler is at work; in object mode it keeps messages whole.
      for await (const message of createWebSocketStream(this.#socket, { readableObjectMode: true })) {
        await onMessage(Buffer.from(message));
      }
      // 1006: the connection is gone without a word; 1011 and its like: the daemon has failed.
      const ended = await this.#code;
      if (ended !== 1000 && ended !== 1001 && ended !== 1005) {
        throw new StreamError(`the WebSocket broke off (code ${ended})`);
      }
    } catch (error) {
      signal?.throwIfAborted();
      throw error;
    } finally {
      this.#socket.terminate();
    }
  }
}

/** Connects; an answer that is no WebSocket is thrown as the error that it stands for. */
export function openWebSocket(
  url: string,
  options: ClientOptions,
  onMessage: (data: Buffer) => unknown,
  signal: AbortSignal | undefined,
): Promise<Connection> {
  return new Promise((resolve, reject) => {
    const socket = new WebSocket(url, {
      ...options,
      perMessageDeflate: false,
      maxPayload: LONGEST_MESSAGE,
      handshakeTimeout: HANDSHAKE_TIMEOUT_MS,
    });
    const abort = () => socket.terminate();
    signal?.addEventListener("abort", abort);
    socket.once("close", () => signal?.removeEventListener("abort", abort));
    socket.once("error", reject);
    socket.once("unexpected-response", (_request, response: IncomingMessage) => {
      failure(response).then(reject, reject);
    });
    socket.once("open", () => {
      socket.off("error", reject);
      resolve(new Connection(socket, onMessage, signal));
    });
  });
}
