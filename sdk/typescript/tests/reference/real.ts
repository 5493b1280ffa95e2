import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { mkdir, writeFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { after, before, test } from "node:test";
import { format } from "node:util";

import { VoidRun, type Sandbox } from "@voidrun/sdk";

import { extractBlocks, readReference, restoreIndentation } from "./extract.js";

/** What a block's program has done. */
interface Run {
  stdout: string;
  stderr: string;
  /** Milliseconds from its beginning, one for each piece of its standard output. */
  times: number[];
}

interface Expectation {
  name: string;
  stdout?: string | RegExp;
  stderr?: string | RegExp;
  /** A line added to a block that would print nothing. */
  probe?: string;
  check?: (run: Run) => void;
}

const FIBONACCI = [0, 1, 1, 2, 3, 5, 8, 13, 21, 34];

const EXPECTED: Expectation[] = [
  {
    name: "Basic Command Execution",
    stdout: /^stdout: Hello, VoidRun!\n\/.*\n\nstderr: \nexit code: 0\n$/,
  },
  {
    name: "Running Python Code",
    stdout: `${format("Success: true\nOutput: [0, 1, 1, 2, 3, 5, 8, 13, 21, 34]\n\nResults:", FIBONACCI)}\n`,
  },
  { name: "Running JavaScript/Node.js Code", stdout: 'Output: {"sum":15,"avg":3,"count":5}\n\n' },
  {
    name: "Running Bash Scripts",
    stdout: /^Output: Hostname: \S+\nDate: .*\d\d:\d\d:\d\d.*\nUptime: up.*\ntotal \d+\ndrwxr-xr-x .* \.\n[^]*\n\n$/,
  },
  {
    name: "Response Structure",
    stdout:
      "Standard Output: ls: cannot access '/nonexistent': No such file or directory\nExit code: 2\n\n" +
      "Standard Error: \nExit Code: 0\nCommand succeeded\n",
  },
  {
    name: "Code Interpreter Response",
    stdout:
      /^Success: true\nStdout: {"name": "VoidRun", "version": 1\.0}\n\nStderr: \nExit Code: 0\nResults: { name: 'VoidRun', version: 1 }\nLogs: { stdout: \[ '.*' \], stderr: \[\] }\n$/,
  },
  {
    name: "Streaming Output",
    stdout: /^(stdout: (Count: \d+\n)+\n)+Exited with code: 0\nCommand completed\n$/,
    check: ({ stdout, times }) => {
      const counts = [...stdout.matchAll(/Count: (\d+)/g)].map(([, count]) => Number(count));
      assert.deepEqual(counts, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
      const spread = times.at(-1)! - times[0]!;
      assert.ok(spread > 8_000, `ten seconds of output came within ${spread} ms`);
    },
  },
  {
    name: "Timeout",
    probe: "console.log(result.data.exitCode, result.data.stdout, codeResult.success, codeResult.stdout);",
    stdout: "0 Done\n true Done sleeping\n\n",
  },
  { name: "Working Directory", stdout: /^\/app\/src\ntotal \d+\ndrwx.* \.\ndrwx.* \.\.\n\n$/ },
  { name: "Environment Variables", stdout: "API Key: secret-key-123\nDebug: true\n\n" },
  {
    name: "Background Processes",
    stdout:
      /^Process PID: (\d+)\nRunning processes: \[\n(?=[^]* command: 'npm run dev')[^]* pid: \1\b[^]*\n\]\nExit code: 0\n$/,
  },
  {
    name: "Error Handling",
    stdout: "",
    stderr: /^Command failed: .*some-command-that-might-fail: command not found\n\n$/,
  },
];

const BLOCKS = new URL("./blocks/", import.meta.url);
/** Seconds for a block; one sleeps a minute, and machines may be emulated. */
const TIMEOUT = 600;

let sandbox: Sandbox;
let others: string[];

before(async () => {
  others = await names();
  sandbox = await new VoidRun().createSandbox({ name: "sandbox-id" });
  // What the reference takes for granted: directories, and a script that ends by itself.
  const manifest = JSON.stringify({ scripts: { dev: "sleep 3" } });
  const prepared = await sandbox.exec({ command: `mkdir -p /app/src && echo '${manifest}' >/app/package.json` });
  assert.equal(prepared.data.exitCode, 0, prepared.data.stderr);
  await mkdir(BLOCKS, { recursive: true });
});

after(() => sandbox?.remove());

const blocks = extractBlocks(await readReference());
assert.equal(blocks.length, EXPECTED.length);
for (const [index, { name, stdout = "", stderr = "", probe = "", check }] of EXPECTED.entries()) {
  test(name, { timeout: TIMEOUT * 1000 }, async () => {
    const file = new URL(`${index + 1}.mjs`, BLOCKS);
    await writeFile(file, restoreIndentation(blocks[index]!) + probe);
    const run = await runProgram(fileURLToPath(file));
    for (const [printed, expected] of [
      [run.stderr, stderr],
      [run.stdout, stdout],
    ] as const) {
      if (typeof expected === "string") assert.equal(printed, expected);
      else assert.match(printed, expected);
    }
    check?.(run);
  });
}

test("the blocks have removed what they made", async () => {
  assert.deepEqual((await names()).sort(), [...others, "sandbox-id"].sort());
});

async function names(): Promise<string[]> {
  const { sandboxes } = await new VoidRun().listSandboxes();
  return sandboxes.map(({ name }) => name);
}

/** Runs a block as a program of its own, which has to end well. */
function runProgram(file: string): Promise<Run> {
  const began = Date.now();
  const run: Run = { stdout: "", stderr: "", times: [] };
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [file], { stdio: ["ignore", "pipe", "pipe"], timeout: TIMEOUT * 1000 });
    child.stdout.setEncoding("utf8").on("data", (text: string) => {
      run.stdout += text;
      run.times.push(Date.now() - began);
    });
    child.stderr.setEncoding("utf8").on("data", (text: string) => (run.stderr += text));
    child.once("error", reject);
    child.once("close", (code, signal) => {
      if (code === 0) resolve(run);
      else reject(new Error(`the program ended with ${signal ?? code}:\n${run.stdout}${run.stderr}`));
    });
  });
}
