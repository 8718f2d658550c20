/** Lives of a primary with two secondaries: `npx tsx test/sim/run-trio-lives.ts`, with the options of `many-lives.ts`. */
import { liveFromCommandLine } from "./many-lives.ts";
import { runTrioLife } from "./trio-life.ts";

await liveFromCommandLine(runTrioLife);
