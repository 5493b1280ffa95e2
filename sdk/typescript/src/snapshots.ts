import type { CallOptions } from "./http.js";

/** The machine of a sandbox with its disk, as it was at a moment. `fromSnapshot` makes sandboxes that go on from there. */
export interface Snapshot {
  name: string;
  /** The image under its disk. */
  image: string;
  cpu: number;
  /** MiB. */
  mem: number;
  /** MiB. */
  diskMB: number;
  /** Whether there is a network device: without one a sandbox from it has the network `none`. */
  network: boolean;
  /** The name of the sandbox that it was taken of, at that time. */
  sandbox: string;
  /** What its kernel was booted from. */
  kernel: string;
  /** The release of voidrun that has taken it. */
  release: string;
  labels: Record<string, string>;
  /** RFC 3339. */
  createdAt: string;
  /** What it takes on the disk, in bytes. */
  bytes: number;
}

export interface SnapshotOptions extends CallOptions {
  labels?: Record<string, string> | undefined;
}

/** What an answer with one snapshot is. */
export interface SnapshotAnswer {
  data: Snapshot;
}

/** The path of a snapshot by its name. */
export function snapshotPath(name: string): string {
  // Without it, it would be the path of all of them.
  if (!name) throw new TypeError("the name of the snapshot is empty");
  return `/snapshots/${encodeURIComponent(name)}`;
}
