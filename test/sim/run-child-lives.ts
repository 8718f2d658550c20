/** Lives of a disk's copies: `npx tsx test/sim/run-child-lives.ts`, with the options of `many-lives.ts`. */
import { runChildLife } from "./child-life.ts";
import { liveFromCommandLine } from "./many-lives.ts";

await liveFromCommandLine(runChildLife);
