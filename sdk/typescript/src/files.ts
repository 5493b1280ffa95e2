import { withoutNulls } from "./absent.js";
import type { Api, CallOptions, Content, Query } from "./http.js";
import type { Connection } from "./websocket.js";

export interface FileInfo {
  name: string;
  path: string;
  /** Bytes. */
  size: number;
  /** The permissions in octal, as "0644". */
  mode: string;
  /** Of a symlink, whether it leads to one. */
  isDir: boolean;
  type: "file" | "directory" | "symlink" | "other";
  /** What a symlink points to. */
  target?: string;
  /** RFC 3339. */
  modTime: string;
  uid: number;
  gid: number;
}

export interface FileEvent {
  /** An overflow: more has happened than is told. */
  type: "created" | "modified" | "deleted" | "renamed" | "chmod" | "overflow";
  path: string;
  /** Where a renamed file was. */
  oldPath?: string;
  size?: number;
  /** RFC 3339. */
  timestamp?: string;
}

export interface WatchOptions extends CallOptions {
  /** Told each event; awaited before the next. */
  onEvent: (event: FileEvent) => unknown;
  /** What is below subdirectories too; false where it is absent. */
  recursive?: boolean | undefined;
  /** Without directories whose name begins with a dot; true where it is absent. */
  ignoreHidden?: boolean | undefined;
}

/** A watch over files, until it is closed. */
export class FileWatcher {
  readonly #connection: Connection;

  /** @internal */
  constructor(connection: Connection) {
    this.#connection = connection;
  }

  /** Settled when the watch is over: rejected when it broke, was aborted or `onEvent` failed. */
  get closed(): Promise<void> {
    return this.#connection.closed;
  }

  close(): Promise<void> {
    return this.#connection.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

/** Files of a sandbox. Paths are absolute. */
export class Files {
  readonly #api: Api;
  readonly #path: string;

  /** @internal */
  constructor(api: Api, sandboxPath: string) {
    this.#api = api;
    this.#path = `${sandboxPath}/files`;
  }

  /** What is in a directory, symlinks as themselves; 10,000 entries at most. */
  async list(path: string, { signal }: CallOptions = {}): Promise<FileInfo[]> {
    type Answer = { data: { files: FileInfo[] | null } };
    const answer = await this.#api.call<Answer>("GET", this.#path, { query: { path }, signal });
    return (answer.data.files ?? []).map(withoutNulls);
  }

  /**
   * Writes a file, whole or in pieces as they come; what is there is replaced when all of it has come. Directories that are
   * missing are made.
   */
  async upload(path: string, content: Content, { signal }: CallOptions = {}): Promise<void> {
    // How long it may take depends on the content.
    await this.#api.call("POST", `${this.#path}/upload`, { query: { path }, content, signal, deadline: Infinity });
  }

  /** The bytes of a file. */
  async download(path: string, options: CallOptions = {}): Promise<Uint8Array> {
    const chunks: Uint8Array[] = [];
    for await (const chunk of this.downloadStream(path, options)) chunks.push(chunk);
    return new Uint8Array(Buffer.concat(chunks));
  }

  /** The bytes of a file as they come, for files of any size. It is asked for when the first are read. */
  downloadStream(path: string, { signal }: CallOptions = {}): AsyncGenerator<Uint8Array> {
    const request = { query: { path }, accept: "application/octet-stream", signal, deadline: Infinity };
    return this.#api.download("GET", `${this.#path}/download`, request);
  }

  /** Makes a file that is not there yet. */
  async create(path: string, content = "", { signal }: CallOptions = {}): Promise<void> {
    await this.#api.call("POST", `${this.#path}/create`, { query: { path }, json: { content }, signal });
  }

  /** What stands at a path; symlinks are followed. */
  async stat(path: string, { signal }: CallOptions = {}): Promise<FileInfo> {
    const answer = await this.#api.call<{ data: FileInfo }>("GET", `${this.#path}/stat`, { query: { path }, signal });
    return withoutNulls(answer.data);
  }

  /** Makes a directory, and those above it. One that is there already stays as it is. */
  mkdir(path: string, options: CallOptions = {}): Promise<void> {
    return this.#change("POST", "/mkdir", { path }, options);
  }

  /** Gives a file or a directory another path, the whole of it; a file that is there is replaced. */
  move(from: string, to: string, options: CallOptions = {}): Promise<void> {
    return this.#change("POST", "/move", { from, to }, options);
  }

  /** Copies a file, or a directory with what is in it; a file that is there is replaced. */
  copy(from: string, to: string, options: CallOptions = {}): Promise<void> {
    return this.#change("POST", "/copy", { from, to }, options);
  }

  /** Sets permissions: 0o755, or "755". */
  chmod(path: string, mode: number | string, options: CallOptions = {}): Promise<void> {
    const octal = typeof mode === "number" ? mode.toString(8) : mode;
    return this.#change("POST", "/chmod", { path, mode: octal }, options);
  }

  /** Removes a file, or a directory with what is in it. */
  delete(path: string, options: CallOptions = {}): Promise<void> {
    return this.#change("DELETE", "", { path }, options);
  }

  /** What is below a directory and has a name like a pattern, `*.py` for example; 10,000 entries at most. */
  async search(path: string, pattern: string, { signal }: CallOptions = {}): Promise<FileInfo[]> {
    type Answer = { data: { files: FileInfo[] | null } };
    const answer = await this.#api.call<Answer>("GET", `${this.#path}/search`, { query: { path, pattern }, signal });
    return (answer.data.files ?? []).map(withoutNulls);
  }

  /** Tells what happens to a file, or below a directory, from now on. */
  async watch(path: string, { onEvent, recursive, ignoreHidden, signal }: WatchOptions): Promise<FileWatcher> {
    type Answer = { data: { sessionId: string } };
    const json = { path, recursive, ignoreHidden };
    const answer = await this.#api.call<Answer>("POST", `${this.#path}/watch`, { json, signal });
    const stream = `${this.#path}/watch/${encodeURIComponent(answer.data.sessionId)}/stream`;
    const handle = (data: Buffer) => onEvent(withoutNulls(JSON.parse(data.toString()) as FileEvent));
    return new FileWatcher(await this.#api.webSocket(stream, handle, { signal }));
  }

  async #change(method: string, what: string, query: Query, { signal }: CallOptions): Promise<void> {
    await this.#api.call(method, this.#path + what, { query, signal });
  }
}
