import type { ChildProcess } from "node:child_process";
import { join } from "node:path";
import { untilServing, writeFilledImage, type Contestant } from "./contestant.ts";
import { endProcess, endsEarly, makeDirectory, removeDirectory, startProcess } from "./leftovers.ts";

/** The servers without replication, and how each is started: with writes into the page cache, as the pairs write. */
const COMMANDS = {
  "qemu-nbd": (socket: string, image: string) => [
    "--format=raw",
    "--cache=writeback",
    "--aio=threads",
    "--discard=unmap",
    "--persistent",
    "--shared=16",
    "--socket",
    socket,
    image,
  ],
  "nbdkit": (socket: string, image: string) => ["--foreground", "--exit-with-parent", "--unix", socket, "file", image],
} as const;

export const PLAIN_SERVERS = Object.keys(COMMANDS) as (keyof typeof COMMANDS)[];

/** One NBD server of another project over one filled image of `sizeBytes`, without a second copy. */
export class PlainServer implements Contestant {
  readonly name: string;
  readonly uris: readonly string[];
  readonly processes: ReadonlyMap<string, number>;
  readonly directory: string;
  readonly #server: ChildProcess;

  private constructor(name: string, directory: string, socket: string, server: ChildProcess) {
    this.name = name;
    this.uris = [`nbd+unix:///?socket=${socket}`];
    this.processes = new Map([["server", server.pid ?? 0]]);
    this.directory = directory;
    this.#server = server;
  }

  static async start(name: keyof typeof COMMANDS, parent: string, sizeBytes: number): Promise<PlainServer> {
    const directory = makeDirectory(parent);
    const socket = join(directory, "nbd.sock");
    const image = join(directory, "disk.img");
    writeFilledImage(image, sizeBytes);
    const child = startProcess(name, COMMANDS[name](socket, image), { stdio: ["ignore", "ignore", "inherit"] });
    const server = new PlainServer(name, directory, socket, child);
    const ended = endsEarly(child, name);
    ended.catch(() => undefined); // once it serves, its end is the caller's doing
    try {
      await Promise.race([untilServing(socket), ended]);
    } catch (error) {
      await server.stop();
      throw error;
    }
    return server;
  }

  /** There is no other copy. */
  idle(): Promise<void> {
    return Promise.resolve();
  }

  async stop(): Promise<void> {
    await endProcess(this.#server, "SIGTERM");
    removeDirectory(this.directory);
  }
}
