import { lookAtNamedImage } from "./crash-images.ts";

/**
 * Looks again at one crash image that a test has named:
 *
 *     npx tsx test/sim/run-crash-image.ts 'secondary power write,checkpoint 12 1,0,1'
 */
try {
  await lookAtNamedImage(process.argv[2] ?? "");
  process.stdout.write("the image holds what was promised\n");
} catch (error) {
  process.stderr.write(`${error instanceof Error ? (error.stack ?? error.message) : String(error)}\n`);
  process.exitCode = 1;
}
