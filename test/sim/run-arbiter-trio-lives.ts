/** Lives of a primary with two secondaries that an arbiter decides over: `npx tsx test/sim/run-arbiter-trio-lives.ts`, with the options of `many-lives.ts`. */
import { runArbiterTrioLife } from "./arbiter-life.ts";
import { liveFromCommandLine } from "./many-lives.ts";

await liveFromCommandLine(runArbiterTrioLife);
