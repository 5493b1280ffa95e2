import { withoutNulls } from "./absent.js";
import { ApiError, StreamError, type Problem } from "./errors.js";

/** How a command ended. */
export interface ExitEvent {
  /** 128 + N where signal N has ended it, 124 at its deadline. */
  exitCode: number;
  /** It was ended at its deadline. */
  timedOut?: boolean;
  /** The guest had no memory left for it. */
  oomKilled?: boolean;
  /** The signal that has ended it. */
  signal?: number;
  durationMs?: number;
}

/** Told what a command prints, as it prints it. Each is awaited before more is read: a slow one slows the command. */
export interface OutputHandlers {
  /** Text of standard output. No character is ever cut in two; bytes that are not UTF-8 become U+FFFD. */
  onStdout?: ((data: string) => unknown) | undefined;
  /** Text of standard error. */
  onStderr?: ((data: string) => unknown) | undefined;
}

export interface StreamHandlers extends OutputHandlers {
  onExit?: ((exit: ExitEvent) => unknown) | undefined;
  /** Told what has failed, in place of a rejected promise. Not told of an abort, nor of errors of the handlers. */
  onError?: ((error: Error) => unknown) | undefined;
}

/** A line of the wire. */
export type StreamEvent = Record<string, unknown> & { stream: string };

/** No line is longer: output comes in frames of 64 KiB. Only results of code may be larger. */
const LONGEST_LINE = 64 << 20;

/** Events from the bytes of newline-delimited JSON. */
export async function* parseEvents(body: AsyncIterable<Buffer>): AsyncGenerator<StreamEvent> {
  let begun: Buffer[] = [];
  let length = 0;
  for await (const chunk of body) {
    let from = 0;
    for (let end = chunk.indexOf(10); end >= 0; end = chunk.indexOf(10, from)) {
      begun.push(chunk.subarray(from, end));
      yield* parseEvent(Buffer.concat(begun).toString());
      begun = [];
      length = 0;
      from = end + 1;
    }
    begun.push(chunk.subarray(from));
    length += chunk.length - from;
    if (length > LONGEST_LINE) throw new StreamError(`a line of the stream is longer than ${LONGEST_LINE} bytes`);
  }
  // What has no newline was cut off, or else does no harm.
}

function* parseEvent(line: string): Generator<StreamEvent> {
  if (line.trim() === "") return;
  let event: unknown;
  try {
    event = JSON.parse(line);
  } catch (cause) {
    throw new StreamError(`a line of the stream is not JSON: ${line.slice(0, 200)}`, { cause });
  }
  if (typeof event !== "object" || event === null || !("stream" in event) || typeof event.stream !== "string") {
    throw new StreamError(`a line of the stream has no field 'stream': ${line.slice(0, 200)}`);
  }
  yield event as StreamEvent;
}

/** Hands output to the handlers up to the exit, and returns that event. */
export async function follow<E extends ExitEvent>(
  events: AsyncIterable<StreamEvent>,
  { onStdout, onStderr }: OutputHandlers,
): Promise<E> {
  const outputs = new Map([
    ["stdout", { decoder: new TextDecoder("utf-8", { ignoreBOM: true }), handler: onStdout }],
    ["stderr", { decoder: new TextDecoder("utf-8", { ignoreBOM: true }), handler: onStderr }],
  ]);
  for await (const event of events) {
    const output = outputs.get(event.stream);
    if (output) {
      const text = output.decoder.decode(Buffer.from(`${event["data"]}`, "base64"), { stream: true });
      if (text) await output.handler?.(text);
    } else if (event.stream === "exit") {
      for (const { decoder, handler } of outputs.values()) {
        const rest = decoder.decode();
        if (rest) await handler?.(rest);
      }
      const { stream: _, ...exit } = event;
      return withoutNulls(exit as unknown as E);
    } else if (event.stream === "error") {
      const problem = event as Problem;
      throw ApiError.from(problem.status ?? 500, problem);
    }
    // What a newer daemon adds is passed over.
  }
  throw new StreamError("the stream ended before the command: how it ended is not known");
}
