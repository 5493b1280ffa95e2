import { withoutNulls } from "./absent.js";
import { VoidRunError } from "./errors.js";
import { follow, type ExitEvent, type StreamEvent, type StreamHandlers } from "./events.js";
import { commandDeadline, type Api, type CallOptions } from "./http.js";

export interface ExecRequest {
  /** For the shell, bash where the image has it; with `args` the program itself, and no shell. */
  command: string;
  args?: string[] | undefined;
  /** The working directory; the image's where it is absent. */
  cwd?: string | undefined;
  /** Environment variables, added to the sandbox's. */
  env?: Record<string, string> | undefined;
  /** A user of the image: name or id, `user:group`. */
  user?: string | undefined;
  /** Seconds until the command is ended, 30 where it is absent, 0 for never. */
  timeout?: number | undefined;
}

export interface ExecData extends ExitEvent {
  stdout: string;
  stderr: string;
  /** More was printed than the daemon keeps; `execStream` gives all. */
  truncated?: boolean;
}

/** A command that fails, or hits its deadline, is a result and no error. */
export interface ExecResult {
  data: ExecData;
}

/** Runs a command to its end. */
export async function exec(api: Api, path: string, request: ExecRequest, { signal }: CallOptions): Promise<ExecResult> {
  const deadline = commandDeadline(request.timeout);
  const answer = await api.call<ExecResult>("POST", path, { json: request, signal, deadline });
  return { data: withoutNulls(answer.data) };
}

/** Follows a stream; what fails in it is told to `onError` where there is one, and then there is no exit. */
export async function followHandled(
  events: AsyncIterable<StreamEvent>,
  handlers: StreamHandlers,
  { signal }: CallOptions,
): Promise<ExitEvent | undefined> {
  let exit: ExitEvent;
  try {
    exit = await follow<ExitEvent>(events, handlers);
  } catch (error) {
    signal?.throwIfAborted();
    if (!handlers.onError || !(error instanceof VoidRunError)) throw error;
    await handlers.onError(error);
    return undefined;
  }
  await handlers.onExit?.(exit);
  return exit;
}
