/**
 * Prints "N passed, N failed" over result files of vitest's JSON reporter.
 * Arguments: the exit status of the whole run, then the files; one that does not exist was never reached.
 */
import { existsSync, readFileSync } from "node:fs";

interface Results {
  readonly numPassedTests: number;
  readonly numFailedTests: number;
  readonly testResults: readonly { readonly status: string; readonly assertionResults: readonly unknown[] }[];
}

const [status, ...files] = process.argv.slice(2);
let passed = 0;
let failed = 0;
for (const file of files.filter((name) => existsSync(name))) {
  const results = JSON.parse(readFileSync(file, "utf8")) as Results;
  passed += results.numPassedTests;
  failed += results.numFailedTests;
  // A test file that could not be loaded has no tests to count, and is a failure all the same.
  failed += results.testResults.filter((t) => t.status === "failed" && t.assertionResults.length === 0).length;
}
// Whatever else went wrong (a check, an installation, an unhandled error) counts as one.
if (status !== "0" && failed === 0) failed = 1;
console.log(`${passed} passed, ${failed} failed`);
