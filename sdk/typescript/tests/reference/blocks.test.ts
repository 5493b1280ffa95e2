import assert from "node:assert/strict";
import { test } from "node:test";

import { typeCheck } from "../typecheck.js";
import { extractBlocks, readReference, restoreIndentation } from "./extract.js";

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
  const blocks = extractBlocks(await readReference()).map(restoreIndentation);
  assert.equal(await typeCheck("reference", blocks), "");
  const wrong = 'import { VoidRun } from "@voidrun/sdk";\nnew VoidRun().getSandbox(1);\n';
  assert.match(await typeCheck("wrong", [wrong]), /1\.ts\(2,26\): error TS2345/);
});
