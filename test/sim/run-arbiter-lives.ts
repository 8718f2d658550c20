/** Lives of a pair that an arbiter decides over: `npx tsx test/sim/run-arbiter-lives.ts`, with the options of `many-lives.ts`. */
import { runArbiterLife } from "./arbiter-life.ts";
import { liveFromCommandLine } from "./many-lives.ts";

await liveFromCommandLine(runArbiterLife);
