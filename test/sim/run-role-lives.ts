/** Lives of a pair whose roles change: `npx tsx test/sim/run-role-lives.ts`, with the options of `many-lives.ts`. */
import { liveFromCommandLine } from "./many-lives.ts";
import { runRoleLife } from "./role-life.ts";

await liveFromCommandLine(runRoleLife);
