/** Every error that this package throws by itself, but for wrong arguments (TypeError) and an abort (its own reason). */
export class VoidRunError extends Error {
  constructor(message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = new.target.name;
  }
}

/** The daemon cannot be reached, or went away before its answer was complete. */
export class ConnectionError extends VoidRunError {}

/** There was no daemon, and none could be started. */
export class DaemonError extends ConnectionError {}

/** The daemon did not answer in time. */
export class TimeoutError extends VoidRunError {}

/** A stream broke off before the command's exit: how the command ended is not known. */
export class StreamError extends VoidRunError {}

/** The body of an error, as RFC 9457 has it, with the fields of the published clients. All may be absent. */
export interface Problem {
  title?: string | null;
  status?: number | null;
  detail?: string | null;
  code?: number | null;
  message?: string | null;
  error?: string | null;
}

/** The daemon refused a request or failed at it. The subclass says which kind of error it is. */
export class ApiError extends VoidRunError {
  /** The HTTP status. */
  readonly status: number;
  /** The daemon's number for the kind of error; the status where it has none of its own. */
  readonly code: number;
  /** What failed, on which field, file, image or sandbox, and what to do. */
  readonly detail: string;
  /** Names the request in the daemon's log. */
  readonly requestId: string | undefined;

  constructor(status: number, problem: Problem, requestId?: string) {
    const detail =
      problem.detail ||
      problem.message ||
      problem.error ||
      problem.title ||
      `the daemon answered with status ${status}`;
    super(detail);
    this.status = status;
    this.code = problem.code ?? status;
    this.detail = detail;
    this.requestId = requestId;
  }

  /** The error of the class that belongs to the status. */
  static from(status: number, problem: Problem, requestId?: string): ApiError {
    return new (KINDS.get(status) ?? ApiError)(status, problem, requestId);
  }
}

/** A field is wrong: which, what was given, and what is allowed (400, 422). */
export class InvalidRequestError extends ApiError {}
/** The key is missing or wrong (401), or a file of the sandbox may not be changed (403). */
export class AuthenticationError extends ApiError {}
/** There is no such sandbox, snapshot, file, image or process (404). */
export class NotFoundError extends ApiError {}
/** The name is taken, or the sandbox is in the wrong state (409). */
export class ConflictError extends ApiError {}
/** Too much of something: a body too large, too many sandboxes or requests (413, 429, 507). */
export class LimitError extends ApiError {}
/** What was asked for does not exist yet (501). */
export class NotSupportedError extends ApiError {}
/** Machines cannot run now, KVM is missing for example; `voidrun doctor` says why (503). */
export class UnavailableError extends ApiError {}
/** The guest itself does not answer (504). A command that hits its deadline is no error: see `timedOut`. */
export class GuestTimeoutError extends ApiError {}

const KINDS = new Map<number, typeof ApiError>([
  [400, InvalidRequestError],
  [401, AuthenticationError],
  [403, AuthenticationError],
  [404, NotFoundError],
  [409, ConflictError],
  [413, LimitError],
  [422, InvalidRequestError],
  [429, LimitError],
  [501, NotSupportedError],
  [503, UnavailableError],
  [504, GuestTimeoutError],
  [507, LimitError],
]);
