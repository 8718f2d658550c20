import { execFile, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { copyFileSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { promisify } from "node:util";
import { untilServing, writeFilledImage, type Contestant } from "./contestant.ts";
import { endProcess, endsEarly, makeDirectory, removeDirectory, startProcess } from "./leftovers.ts";

const run = promisify(execFile);
const SOURCE = new URL("bare-pair.c", import.meta.url).pathname;

export const BARE_PAIR = "bare pair in C";

/**
 * The least that a pair with copy-before-write can take of this machine: a program in C that moves what has to be moved,
 * and does nothing else (`bare-pair.c`). It takes a checkpoint when a load has ended.
 */
export class BarePair implements Contestant {
  readonly name = BARE_PAIR;
  readonly directory: string;
  readonly #sides = new Map<"primary" | "secondary", ChildProcess>();

  private constructor(directory: string) {
    this.directory = directory;
  }

  /** Such a pair in a new directory below `parent`, replicating a filled disk of `sizeBytes`. */
  static async start(parent: string, sizeBytes: number): Promise<BarePair> {
    const pair = new BarePair(makeDirectory(parent));
    try {
      const program = pair.#file("bare-pair");
      await run("gcc", ["-O2", "-Wall", "-Wextra", "-o", program, SOURCE]);
      writeFilledImage(pair.#file("a.img"), sizeBytes);
      copyFileSync(pair.#file("a.img"), pair.#file("b.img"));
      const port = await pair.#startSecondary(program);
      const primary = startProcess(program, ["primary", pair.#file("a.img"), pair.#socket, port], { stdio: "inherit" });
      pair.#sides.set("primary", primary);
      await Promise.race([untilServing(pair.#socket), endsEarly(primary, "the bare primary")]);
    } catch (error) {
      await pair.stop();
      throw error;
    }
    return pair;
  }

  get uris(): readonly string[] {
    return [`nbd+unix:///?socket=${this.#socket}`];
  }

  get processes(): ReadonlyMap<string, number> {
    return new Map([...this.#sides].map(([side, { pid = 0 }]) => [side, pid]));
  }

  /** A client is served when the secondary has everything of the one before. */
  idle(): Promise<void> {
    return untilServing(this.#socket);
  }

  async stop(): Promise<void> {
    for (const child of this.#sides.values()) await endProcess(child, "SIGTERM");
    removeDirectory(this.directory);
  }

  /** Resolves with its port. */
  async #startSecondary(program: string): Promise<string> {
    const secondary = startProcess(program, ["secondary", this.#file("b.img"), this.#file("hidden")], {
      stdio: ["ignore", "pipe", "inherit"],
    });
    this.#sides.set("secondary", secondary);
    const { stdout } = secondary;
    if (stdout === null) throw new Error("the bare secondary has no output");
    const [port] = await Promise.race([
      once(createInterface(stdout), "line") as Promise<[string]>,
      endsEarly(secondary, "the bare secondary"),
    ]);
    return port;
  }

  get #socket(): string {
    return this.#file("nbd.sock");
  }

  #file(name: string): string {
    return join(this.directory, name);
  }
}
