import { defineConfig } from "vitest/config";

/**
 * One project for each kind of test, so that each can be run alone (`vitest run --project unit`). Projects of one
 * `groupOrder` run side by side, the groups one after the other: what starts real processes shares the machine with its like
 * alone. No test of them depends on how fast anything is. Where a file's tests leave nothing behind in their process, a
 * worker loads the modules once for all its files.
 */
const project = (
  name: string,
  groupOrder: number,
  testTimeoutMs: number,
  parallel: boolean,
  forks: { readonly maxWorkers?: number; readonly isolate?: boolean } = {},
) => ({
  test: {
    name,
    include: [`test/${name}/**/*.test.ts`],
    environment: "node",
    pool: "forks" as const,
    testTimeout: testTimeoutMs,
    hookTimeout: testTimeoutMs,
    fileParallelism: parallel,
    sequence: { groupOrder },
    ...forks,
  },
});

export default defineConfig({
  test: {
    maxWorkers: "100%",
    projects: [
      project("unit", 0, 30_000, true, { isolate: false }),
      project("model", 0, 60_000, true, { isolate: false }),
      project("scenarios", 0, 20_000, true, { isolate: false }),
      project("sim", 1, 300_000, true),
      project("interop", 2, 120_000, false, { isolate: false }),
      project("e2e", 3, 180_000, true, { maxWorkers: 3, isolate: false }),
    ],
    coverage: {
      provider: "v8",
      include: ["proto/**", "shared/**", "primary/**", "secondary/**", "cli/**"],
      reporter: ["text-summary", "html"],
    },
  },
});
