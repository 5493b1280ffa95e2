import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { test } from "node:test";

import { typeCheck } from "./typecheck.js";

/** What the examples take for granted, where they do not declare it themselves. */
const AROUND = `import type { Sandbox as S, VoidRun as V } from "@voidrun/sdk";
declare const vr: V, sandbox: S, bytes: Uint8Array;
declare function take(chunk: Uint8Array): void;
declare function log(...words: string[]): void;
`;

test("every example of the README type-checks", async () => {
  const readme = await readFile(new URL("../README.md", import.meta.url), "utf8");
  const examples = [...readme.matchAll(/^```ts\n(.*?)^```$/gms)].map(([, example]) => example!);
  assert.ok(examples.length > 8);
  const modules = examples.map((example) => {
    const imports = example.match(/^import .* from .*$/gm) ?? [];
    const body = example.replaceAll(/^import .* from .*$/gm, "");
    return `${AROUND}${imports.join("\n")}\nexport async function example() {\n${body}}\n`;
  });
  assert.equal(await typeCheck("readme", modules), "");
});
