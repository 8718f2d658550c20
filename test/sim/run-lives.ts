/** Lives of the pair from the command line: `npx tsx test/sim/run-lives.ts`, with the options of `many-lives.ts`. */
import { runLife } from "./life.ts";
import { liveFromCommandLine } from "./many-lives.ts";

await liveFromCommandLine(runLife);
