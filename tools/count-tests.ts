/**
 * Prints what failed, then "N passed, N failed", over result files of vitest's JSON reporter: whoever sees the end of
 * a long log alone sees the reason.
 * Arguments: the exit status of the whole run, then the files; one that does not exist was never reached.
 */
import { existsSync, readFileSync } from "node:fs";

interface Results {
  readonly numPassedTests: number;
  readonly numFailedTests: number;
  readonly testResults: readonly {
    readonly name: string;
    readonly status: string;
    readonly message: string;
    readonly assertionResults: readonly {
      readonly fullName: string;
      readonly status: string;
      readonly failureMessages: readonly string[];
    }[];
  }[];
}

/** Characters shown of one failure's message. */
const MESSAGE_LIMIT = 4000;

const [status, ...files] = process.argv.slice(2);
let passed = 0;
let failed = 0;
for (const file of files.filter((name) => existsSync(name))) {
  const results = JSON.parse(readFileSync(file, "utf8")) as Results;
  passed += results.numPassedTests;
  failed += results.numFailedTests;
  for (const { name, status: outcome, message, assertionResults } of results.testResults) {
    // A test file that could not be loaded has no tests to count, and is a failure all the same.
    if (outcome === "failed" && assertionResults.length === 0) {
      failed += 1;
      show(name, message);
    }
    for (const test of assertionResults) {
      if (test.status === "failed") show(`${name}: ${test.fullName}`, test.failureMessages.join("\n"));
    }
  }
}
// Whatever else went wrong (a check, an installation, an unhandled error) counts as one.
if (status !== "0" && failed === 0) {
  failed = 1;
  console.log("FAILED: a step other than a test; see above");
}
console.log(`${passed} passed, ${failed} failed`);

function show(what: string, message: string): void {
  console.log(`FAILED: ${what}\n${message.slice(0, MESSAGE_LIMIT)}\n`);
}
