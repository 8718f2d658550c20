/**
 * Owns: the `qemu-nbd` that serves one image of a format, while the agent uses it.
 *
 * How: each `dial` starts a server on a socket of its own, for one client, and connects to it. The server ends with its
 * client: that is how it is told to write what it still holds. It must also end when the agent dies before it has
 * connected, or without a word; so a shell stands beside it that reads from the agent, and sends it SIGTERM when there is
 * nobody left to read from.
 *
 * Invariants: there is one server at a time, since it locks the image; the next one is started when the last has ended.
 * One for an image that another host writes takes no lock, and each reads the format's metadata anew.
 * The server has a session of its own: what interrupts the agent from its terminal does not end the server before it.
 */
import { spawn, type ChildProcess } from "node:child_process";
import { existsSync, rmSync, statSync } from "node:fs";
import { createInterface } from "node:readline";
import { ColobusError } from "../../proto/errors.ts";
import { FORMAT_SERVER_START_MS, FORMAT_SERVER_STOP_MS } from "../../proto/limits.ts";
import type { ByteStream, StreamSource } from "./byte-stream.ts";
import { foreignImageOptions, formatFault, type FormatImage } from "./format-fault.ts";
import { growFormatImage } from "./grow-format-image.ts";
import type { Log } from "./log.ts";
import { dialAddress } from "./node-byte-stream.ts";
import { errnoOf, fsError } from "./os-error.ts";
import { killGroup } from "./process-group.ts";
import { answersAt, assertUnixSocketPath } from "./unix-socket.ts";

export interface FormatServerOptions extends FormatImage {
  /**
   * `own`: this host alone uses the image. `shared`: another one reads it, and this one writes it past the page cache.
   * `foreign`: another one writes it, and this one reads it so, and takes no lock.
   */
  readonly use: "own" | "shared" | "foreign";
  /** Where the server listens; in a directory of the agent's own. */
  readonly socketPath: string;
  readonly log: Log;
}

/** `$@` is the server. It is told to end when the agent's end of our standard input closes, however that comes about. */
const GUARD = `exec 3<&0
"$@" 3<&- </dev/null &
server=$!
(read -r _ <&3; kill -TERM "$server") >/dev/null 2>&1 &
guard=$!
wait "$server"
code=$?
kill "$guard" 2>/dev/null
exit "$code"`;

const POLL_MS = 10;
const RETRY_MS = 50;
const STDERR_LINES_KEPT = 20;
/** What the shell says of a program that it does not find. */
const COMMAND_NOT_FOUND = 127;

interface Running {
  readonly child: ChildProcess;
  readonly ended: Promise<void>;
  readonly lines: string[];
  exit: string | undefined;
  isMissing: boolean;
}

export class FormatServer implements StreamSource {
  readonly name: string;
  readonly #options: FormatServerOptions;
  #running: Running | undefined;
  /** An earlier process of the agent has left a server, which may still have the image. */
  #isInherited = false;
  #earlier: Promise<boolean> | undefined;
  /** The image is being made longer: there is no server meanwhile. */
  #growing: Promise<void> | undefined;

  constructor(options: FormatServerOptions) {
    assertUnixSocketPath(options.socketPath);
    this.#options = options;
    this.name = `${options.format}:${options.path}`;
  }

  async dial(signal: AbortSignal): Promise<ByteStream> {
    await this.#growing?.catch(() => undefined); // who has it grow is told
    await this.stop();
    await this.wasKilled();
    // The server of an earlier process gives its socket up before the image.
    const busyUntilMs = this.#isInherited ? performance.now() + FORMAT_SERVER_STOP_MS : 0;
    for (;;) {
      if (signal.aborted) throw new ColobusError("connection-lost", "it was given up");
      try {
        const stream = await this.#connect(this.#start(), signal);
        this.#isInherited = false;
        return stream;
      } catch (error) {
        await this.stop();
        const isBusy = error instanceof ColobusError && error.code === "image-busy";
        if (!isBusy || performance.now() >= busyUntilMs) throw error;
      }
      await pause(RETRY_MS);
    }
  }

  wasKilled(): Promise<boolean> {
    this.#earlier ??= this.#untilEarlierIsGone();
    return this.#earlier;
  }

  /** A server unlinks its socket as it ends: one that is left, and refuses connections, was killed. */
  async #untilEarlierIsGone(): Promise<boolean> {
    const { socketPath } = this.#options;
    const deadlineMs = performance.now() + FORMAT_SERVER_STOP_MS;
    while (existsSync(socketPath) && performance.now() < deadlineMs) {
      this.#isInherited = true;
      if (!(await answersAt(socketPath))) return existsSync(socketPath);
      await pause(RETRY_MS);
    }
    return false;
  }

  async grow(sizeBytes: number): Promise<void> {
    const growing = this.#grow(sizeBytes);
    this.#growing = growing;
    try {
      await growing;
    } finally {
      this.#growing = undefined;
    }
  }

  async #grow(sizeBytes: number): Promise<void> {
    await this.stop();
    await this.wasKilled();
    await growFormatImage(this.#options, sizeBytes);
  }

  async stop(): Promise<void> {
    const running = this.#running;
    if (running === undefined) return;
    // A client that has gone is what it waits for; without one, the guard tells it.
    running.child.stdin?.destroy();
    const timer = setTimeout(() => {
      this.#options.log.warn({ image: this.name }, "the format server does not end, and is killed");
      killGroup(running.child);
    }, FORMAT_SERVER_STOP_MS);
    await running.ended;
    clearTimeout(timer);
    if (this.#running === running) this.#running = undefined;
  }

  abandon(): void {
    if (this.#running === undefined) return;
    killGroup(this.#running.child);
    rmSync(this.#options.socketPath, { force: true }); // nobody is to take it for one that was killed from outside
  }

  changeMark(): string {
    const { path } = this.#options;
    try {
      const { dev, ino, size, mtimeNs } = statSync(path, { bigint: true });
      return `${dev}.${ino}.${size}.${mtimeNs}`;
    } catch (error) {
      if (errnoOf(error) === undefined) throw error;
      throw fsError(`cannot find the time stamps of ${path}`, path, error);
    }
  }

  #start(): Running {
    const { socketPath, log } = this.#options;
    rmSync(socketPath, { force: true });
    const server = ["qemu-nbd", `--socket=${socketPath}`, "--shared=1", ...imageArguments(this.#options)];
    const child = spawn("/bin/sh", ["-c", GUARD, "sh", ...server], {
      stdio: ["pipe", "ignore", "pipe"],
      detached: true,
    });
    child.stdin.on("error", () => undefined); // it is only ever closed
    const lines: string[] = [];
    createInterface({ input: child.stderr }).on("line", (line) => {
      if (lines.push(line) > STDERR_LINES_KEPT) lines.shift();
      log.warn({ image: this.name, line }, "format server");
    });
    const running: Running = {
      child,
      lines,
      exit: undefined,
      isMissing: false,
      ended: new Promise((resolve) => {
        child.once("error", (error) => {
          running.exit ??= error.message;
          resolve();
        });
        child.once("close", (code, killedBy) => {
          running.exit ??= killedBy === null ? `exit code ${code ?? "unknown"}` : killedBy;
          running.isMissing = code === COMMAND_NOT_FOUND;
          log.info({ image: this.name, exit: running.exit }, "the format server has ended");
          resolve();
        });
      }),
    };
    this.#running = running;
    return running;
  }

  /** Connects as soon as the server listens. */
  async #connect(running: Running, signal: AbortSignal): Promise<ByteStream> {
    const { socketPath } = this.#options;
    const deadlineMs = performance.now() + FORMAT_SERVER_START_MS;
    for (;;) {
      try {
        return await dialAddress({ kind: "unix", path: socketPath }, signal, { untilGreeted: true });
      } catch (error) {
        // It listens before it opens the image, and has ended then if it could not.
        if (running.exit !== undefined) throw this.#explain(running);
        if (signal.aborted || performance.now() > deadlineMs) throw error;
      }
      await pause(POLL_MS);
    }
  }

  /** Why the server did not come up, from what it said. */
  #explain({ isMissing, exit, lines }: Running): ColobusError {
    const { path } = this.#options;
    const said = lines.join(" ").trim();
    if (isMissing) {
      return new ColobusError(
        "not-found",
        `${this.name} needs qemu-nbd, which is not installed`,
        "Install it (Debian: qemu-utils), or serve the image yourself and name it as nbd:// or nbd+unix://.",
      );
    }
    const fault = formatFault(this.#options, said);
    if (fault !== undefined) return fault;
    return new ColobusError(
      "io-error",
      `qemu-nbd did not serve ${path}: ${said === "" ? (exit ?? "no reason given") : said}`,
      `Try it by hand: \`qemu-img info ${path}\`.`,
    );
  }
}

function imageArguments({ use, format, path }: FormatServerOptions): string[] {
  if (use === "foreign") return ["--read-only", "--cache=none", foreignImageOptions({ format, path })];
  const cache = use === "shared" ? ["--cache=none"] : [];
  return [`--format=${format}`, "--discard=unmap", ...cache, path];
}

function pause(ms: number): Promise<void> {
  return new Promise((resolve) => {
    setTimeout(resolve, ms);
  });
}
