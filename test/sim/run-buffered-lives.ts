/** Lives of pairs in mode `mc`, from the command line, with the options of `many-lives.ts`. */
import { runBufferedLife } from "./life.ts";
import { liveFromCommandLine } from "./many-lives.ts";

await liveFromCommandLine(runBufferedLife);
