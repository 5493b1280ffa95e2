import { readFile } from "node:fs/promises";

/** The compiled tests lie at the same depth as their sources. */
const REFERENCE = new URL("../../tests/reference/sdk-reference.txt", import.meta.url);

const IMPORT = "import { VoidRun } from '@voidrun/sdk'";

/** The body of an async function may await, as a module may. Made, it is parsed; it is never called. */
const AsyncFunction = (async () => {}).constructor as new (body: string) => unknown;

export async function readReference(): Promise<string> {
  return readFile(REFERENCE, "utf8");
}

/** The code blocks of the reference: each begins with the import, and goes as far as what follows it is code. */
export function extractBlocks(reference: string): string[] {
  const lines = reference.split("\n");
  const starts = lines.flatMap((line, index) => (line.startsWith(IMPORT) ? [index] : []));
  return starts.map((start, index) => {
    let end = starts[index + 1] ?? lines.length;
    while (!parses(lines.slice(start + 1, end).join("\n"))) end--;
    return `${lines.slice(start, end).join("\n").trimEnd()}\n`;
  });
}

function parses(body: string): boolean {
  try {
    new AsyncFunction(body);
    return true;
  } catch {
    return false;
  }
}

const FLAT = `
def fibonacci(n):
if n <= 1:
return n
return fibonacci(n-1) + fibonacci(n-2)
`;

const INDENTED = `
def fibonacci(n):
    if n <= 1:
        return n
    return fibonacci(n-1) + fibonacci(n-2)
`;

/** A block with the indentation that the copy has lost. */
export function restoreIndentation(block: string): string {
  return block.replace(FLAT, () => INDENTED);
}
