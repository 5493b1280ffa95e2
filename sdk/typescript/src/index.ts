/** The client of voidrun: untrusted code in microVMs on your own Linux machine. */
export { VoidRun, type ListOptions, type SandboxList } from "./client.js";
export type { CodeResult, Language, RunCodeOptions } from "./code.js";
export {
  Commands,
  type BackgroundRequest,
  type BackgroundResult,
  type KillResult,
  type ProcessInfo,
  type ProcessList,
  type WaitResult,
} from "./commands.js";
export type { VoidRunOptions } from "./endpoint.js";
export * from "./errors.js";
export type { ExitEvent, OutputHandlers, StreamHandlers } from "./events.js";
export type { ExecData, ExecRequest, ExecResult } from "./exec.js";
export { Files, FileWatcher, type FileEvent, type FileInfo, type WatchOptions } from "./files.js";
export type { CallOptions, Content } from "./http.js";
export { Pty, Terminal, type ConnectOptions, type PtySessionInfo, type PtySize } from "./pty.js";
export { Ports, type Port, type PortRequest, type PublicUrl } from "./ports.js";
export {
  Sandbox,
  type CreateOptions,
  type Denial,
  type Network,
  type NetworkLimits,
  type SandboxInfo,
  type Start,
} from "./sandbox.js";
export type { Snapshot, SnapshotOptions } from "./snapshots.js";
