/** Lives of pairs that share their disks, from the command line, with the options of `many-lives.ts`. */
import { runSharedLife } from "./life.ts";
import { liveFromCommandLine } from "./many-lives.ts";

await liveFromCommandLine(runSharedLife);
