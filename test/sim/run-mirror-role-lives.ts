/** Lives of changing roles in mode `mirror`, from the command line, with the options of `many-lives.ts`. */
import { liveFromCommandLine } from "./many-lives.ts";
import { runMirrorRoleLife } from "./role-life.ts";

await liveFromCommandLine(runMirrorRoleLife);
