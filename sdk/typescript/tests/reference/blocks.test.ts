import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { mkdir, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";

import { extractBlocks, readReference, restoreIndentation } from "./extract.js";

const PACKAGE = fileURLToPath(new URL("../../", import.meta.url));

test("the twelve blocks are found, whole, and nothing else", async () => {
  const reference = await readReference();
  const blocks = extractBlocks(reference);
  assert.equal(blocks.length, 12);
  let rest = reference;
  for (const block of blocks) {
    assert.ok(rest.includes(block));
    rest = rest.replace(block, () => "");
  }
  // What remains is prose: no line of it looks like code.
  assert.deepEqual(rest.match(/^.*([;{}()=`]|await|const) *$/gm), null);
  assert.match(rest, /^Running Python Code\nUse the code interpreter to run Python code:\nRunning JavaScript/m);
  const lastLines = blocks.map((block) => block.trimEnd().split("\n").at(-1));
  assert.deepEqual(lastLines, [
    ...Array(4).fill("await sandbox . remove ();"),
    "}",
    "console . log ( 'Logs:' , result . logs ); // { stdout: [], stderr: [] }",
    "console . log ( 'Command completed' );",
    "` , { language: 'python' , timeout: 60 });",
    "console . log ( result . data ?. stdout ); // /app/src",
    "console . log ( result . data ?. stdout );",
    "await sandbox . commands . kill ( runResult . data ?. pid );",
    "}",
  ]);
});

test("one function's indentation is all that is restored", async () => {
  const blocks = extractBlocks(await readReference());
  const changed = blocks.filter((block) => restoreIndentation(block) !== block);
  assert.equal(changed.length, 1);
  const squeeze = (text: string) => text.replaceAll(/\s+/g, " ");
  assert.equal(squeeze(restoreIndentation(changed[0]!)), squeeze(changed[0]!));
  assert.match(restoreIndentation(changed[0]!), /\n {4}if n <= 1:\n {8}return n\n {4}return/);
});

test("every block type-checks against the SDK's types", async () => {
  const directory = join(PACKAGE, "build/reference/blocks");
  await rm(directory, { recursive: true, force: true });
  await mkdir(directory, { recursive: true });
  const files: string[] = [];
  for (const [index, block] of extractBlocks(await readReference()).entries()) {
    files.push(join(directory, `${index + 1}.ts`));
    await writeFile(files.at(-1)!, restoreIndentation(block));
  }
  const wrong = join(directory, "wrong.ts");
  await writeFile(wrong, `import { VoidRun } from "@voidrun/sdk";\nnew VoidRun().getSandbox(1);\n`);

  const options = "--ignoreConfig --strict --exactOptionalPropertyTypes --noEmit --target es2022 --module nodenext";
  const tsc = (...sources: string[]) =>
    promisify(execFile)(
      process.execPath,
      [join(PACKAGE, "node_modules/typescript/bin/tsc"), ...options.split(" "), "--types", "node", ...sources],
      { cwd: PACKAGE },
    ).catch((error: { stdout: string }) => error);
  assert.equal((await tsc(...files)).stdout, "");
  assert.match((await tsc(wrong)).stdout, /wrong\.ts\(2,26\): error TS2345/);
});
