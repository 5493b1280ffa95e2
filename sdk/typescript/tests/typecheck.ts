import { execFile } from "node:child_process";
import { mkdir, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";

/** The package's directory, of which this is the compiled `build/typecheck.js`. */
const PACKAGE = fileURLToPath(new URL("..", import.meta.url));

/** What the compiler says of modules of a strict user of the package; nothing where all are right. */
export async function typeCheck(name: string, modules: string[]): Promise<string> {
  const directory = join(PACKAGE, "build/checked", name);
  await rm(directory, { recursive: true, force: true });
  await mkdir(directory, { recursive: true });
  const files = modules.map((_, index) => join(directory, `${index + 1}.ts`));
  await Promise.all(modules.map((text, index) => writeFile(files[index]!, text)));
  const options = "--ignoreConfig --strict --exactOptionalPropertyTypes --noEmit --target es2022 --module nodenext";
  const compiler = join(PACKAGE, "node_modules/typescript/bin/tsc");
  const libraries = ["--lib", "es2022,esnext.disposable", "--types", "node"];
  const checked = promisify(execFile)(process.execPath, [compiler, ...options.split(" "), ...libraries, ...files], {
    cwd: PACKAGE,
  });
  return checked.then(
    ({ stdout }) => stdout,
    (error: { stdout: string; stderr: string }) => error.stdout + error.stderr || String(error),
  );
}
