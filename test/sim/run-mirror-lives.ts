/** Lives of pairs in mode `mirror`, from the command line, with the options of `many-lives.ts`. */
import { runMirrorLife } from "./life.ts";
import { liveFromCommandLine } from "./many-lives.ts";

await liveFromCommandLine(runMirrorLife);
