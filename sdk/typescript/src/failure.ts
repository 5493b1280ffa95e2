import type { IncomingMessage } from "node:http";

import { ApiError, type Problem } from "./errors.js";

/** No error is longer; a proxy's page may be. */
const LONGEST_PROBLEM = 1 << 20;

/** The error that an answer stands for. */
export async function failure(response: IncomingMessage): Promise<ApiError> {
  const chunks: Buffer[] = [];
  let length = 0;
  for await (const chunk of response) {
    chunks.push(chunk as Buffer);
    length += (chunk as Buffer).length;
    if (length > LONGEST_PROBLEM) break;
  }
  const requestId = response.headers["x-request-id"];
  return ApiError.from(response.statusCode ?? 0, problem(Buffer.concat(chunks).toString()), requestId?.toString());
}

function problem(text: string): Problem {
  try {
    const parsed: unknown = JSON.parse(text);
    if (typeof parsed === "object" && parsed !== null) return parsed;
  } catch {
    // Not the daemon's own: a proxy's page for example.
  }
  return { detail: text.trim().slice(0, 500) };
}
