/** Lives of pairs that share their disks and change their roles, with the options of `many-lives.ts`. */
import { liveFromCommandLine } from "./many-lives.ts";
import { runSharedRoleLife } from "./shared-role-life.ts";

await liveFromCommandLine(runSharedRoleLife);
