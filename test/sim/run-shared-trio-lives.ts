/** Lives of a primary with two secondaries on shared disks, with the options of `many-lives.ts`. */
import { liveFromCommandLine } from "./many-lives.ts";
import { runSharedTrioLife } from "./shared-role-life.ts";

await liveFromCommandLine(runSharedTrioLife);
