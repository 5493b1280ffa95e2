import { withoutNulls } from "./absent.js";
import { follow, type ExitEvent, type OutputHandlers } from "./events.js";
import { commandDeadline, type Api, type CallOptions } from "./http.js";

/** What the image `code` can run. */
export type Language = "python" | "javascript" | "js" | "node" | "typescript" | "ts" | "bash" | "sh";

export interface RunCodeOptions extends CallOptions, OutputHandlers {
  /** `python` where it is absent. */
  language?: Language | undefined;
  /** Seconds until the code is ended, 30 where it is absent, 0 for never. */
  timeout?: number | undefined;
  /** The working directory. */
  cwd?: string | undefined;
  /** Environment variables, added to the sandbox's. */
  env?: Record<string, string> | undefined;
}

/** What a run of code has given. */
export interface CodeResult extends ExitEvent {
  /** The exit code is 0. */
  success: boolean;
  /** The last line of standard output, parsed if it is JSON; null where nothing was printed. */
  results: any;
  stdout: string;
  stderr: string;
  /** Why there was no success. */
  error?: string;
  /** The output in pieces. */
  logs: { stdout: string[]; stderr: string[] };
  /** More was printed than is kept. */
  truncated?: boolean;
}

/** How many characters of each output are kept in the result of a run that streams. */
const KEPT = 16 << 20;

/** Runs code to its end; with a handler its output is streamed. */
export async function runCode(api: Api, path: string, code: string, options: RunCodeOptions): Promise<CodeResult> {
  const { onStdout, onStderr, signal, ...settings } = options;
  const request = { code, ...settings };
  if (!onStdout && !onStderr) {
    const deadline = commandDeadline(settings.timeout);
    const result = await api.call<CodeResult>("POST", path, { json: request, signal, deadline });
    return { ...withoutNulls(result), results: result.results ?? null };
  }
  const stdout = new Kept(onStdout);
  const stderr = new Kept(onStderr);
  const exit = await follow<CodeResult>(api.events(path, request, { signal }), {
    onStdout: (text) => stdout.add(text),
    onStderr: (text) => stderr.add(text),
  });
  return {
    ...exit,
    success: exit.success ?? exit.exitCode === 0,
    results: exit.results ?? null,
    stdout: stdout.pieces.join(""),
    stderr: stderr.pieces.join(""),
    logs: { stdout: stdout.pieces, stderr: stderr.pieces },
    ...(stdout.truncated || stderr.truncated ? { truncated: true } : {}),
  };
}

/** Output that is handed on, and of which the beginning is kept. */
class Kept {
  readonly pieces: string[] = [];
  truncated = false;
  #length = 0;
  readonly #handler: OutputHandlers["onStdout"];

  constructor(handler: OutputHandlers["onStdout"]) {
    this.#handler = handler;
  }

  async add(text: string): Promise<void> {
    const piece = text.slice(0, KEPT - this.#length);
    if (piece) this.pieces.push(piece);
    this.#length += piece.length;
    this.truncated ||= piece.length < text.length;
    await this.#handler?.(text);
  }
}
