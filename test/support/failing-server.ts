import { closeSync, existsSync, openSync, rmSync } from "node:fs";
import { join } from "node:path";
import { scratchDirectory } from "./scratch.ts";
import { ToolProcess } from "./tool-process.ts";

/** A server of an image that answers with EIO while it is told to. */
export class FailingServer {
  readonly uri: string;
  readonly #trigger: string;

  private constructor(uri: string, trigger: string) {
    this.uri = uri;
    this.#trigger = trigger;
  }

  /** `parameters` are of the filters named in `filters`. */
  static async start(
    image: string,
    filters: readonly string[] = [],
    parameters: readonly string[] = [],
  ): Promise<FailingServer> {
    const directory = scratchDirectory();
    const socket = join(directory, "nbd.sock");
    const trigger = join(directory, "fail");
    const error = ["error=EIO", "error-rate=100%", `error-file=${trigger}`];
    const args = ["-f", "-U", socket, "--filter=error", ...filters, "file", image, ...error, ...parameters];
    await new ToolProcess("nbdkit", args).untilListening(socket);
    return new FailingServer(`nbd+unix:///?socket=${socket}`, trigger);
  }

  fail(): void {
    closeSync(openSync(this.#trigger, "w"));
  }

  mend(): void {
    if (existsSync(this.#trigger)) rmSync(this.#trigger);
  }
}
