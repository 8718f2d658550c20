/** Lives of changing roles in mode `mc`, from the command line, with the options of `many-lives.ts`. */
import { liveFromCommandLine } from "./many-lives.ts";
import { runBufferedRoleLife } from "./role-life.ts";

await liveFromCommandLine(runBufferedRoleLife);
