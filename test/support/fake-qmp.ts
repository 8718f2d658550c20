/**
 * QEMU's machine protocol without a QEMU: a VM that runs or is paused, and whose state is a few bytes, on a unix socket. A
 * test says which command is refused, held up or ends the VM.
 */
import { once } from "node:events";
import { connect, createServer, type Socket } from "node:net";
import { createInterface } from "node:readline";
import { onTestFinished } from "vitest";

type Arguments = Readonly<Record<string, unknown>>;

/**
 * What a command does instead of what it is for: an error's text, "silence", or "end", which ends the VM. "late": it is
 * carried out, and its answer comes to nobody any more.
 */
export type Mishap = { readonly error: string } | "silence" | "late" | "end";

export class FakeQmp {
  readonly socket: string;
  /** What was asked for, in order, but the questions. */
  readonly commands: string[] = [];
  runState = "running";
  /** Undefined: this QEMU knows no such capability. */
  background: boolean | undefined = false;
  /** Whether it lets a paused VM run by itself, as 7.2 does. */
  resumesItself = true;
  parameters: Arguments = { "max-bandwidth": 134_217_728, "downtime-limit": 300 };
  /** What becomes of a command: asked for each. */
  mishap: (command: string, args: Arguments) => Mishap | undefined = () => undefined;
  /** Goes on when the memory is to be kept as it is, for a background snapshot. */
  beforeFrozen: () => Promise<void> = () => Promise.resolve();
  /** What becomes of a migration when the state is to be written: nothing while it waits. */
  beforeState: () => Promise<void> = () => Promise.resolve();
  /** Goes on when the run state leaves `finish-migrate`. The migration's end is told before, and this to nobody. */
  beforePostmigrate: () => Promise<void> = () => Promise.resolve();
  /** Hears of each change between running and paused. */
  hasRunState: (state: string) => void = () => undefined;
  migration: { status: string; pages: number; why?: string } = { status: "none", pages: 0 };
  readonly #server = createServer((socket) => this.#serve(socket));
  readonly #clients = new Set<Socket>();

  constructor(socket: string) {
    this.socket = socket;
  }

  async listen(): Promise<this> {
    this.#server.listen({ path: this.socket });
    await once(this.#server, "listening");
    onTestFinished(() => this.end());
    return this;
  }

  /** The VM is gone. */
  end(): void {
    this.#server.close();
    for (const client of this.#clients) client.destroy();
  }

  emit(event: string, data: Arguments = {}): void {
    for (const client of this.#clients) client.write(`${JSON.stringify({ event, data })}\n`);
  }

  setRunState(state: "running" | "paused" | "postmigrate"): void {
    this.runState = state;
    this.emit(state === "running" ? "RESUME" : "STOP");
    this.hasRunState(state);
  }

  #serve(socket: Socket): void {
    this.#clients.add(socket);
    socket.on("close", () => this.#clients.delete(socket));
    socket.on("error", () => undefined); // a client that is gone is one of the cases
    socket.write(`${JSON.stringify({ QMP: { version: {}, capabilities: [] } })}\n`);
    const lines = createInterface({ input: socket });
    lines.on("error", () => undefined);
    lines.on("line", (line) => {
      const { execute, arguments: args = {} } = JSON.parse(line) as { execute: string; arguments?: Arguments };
      const answer = this.#answer(execute, args);
      if (answer !== undefined) socket.write(`${JSON.stringify(answer)}\n`);
    });
  }

  #answer(command: string, args: Arguments): Arguments | undefined {
    if (!command.startsWith("query-") && command !== "qmp_capabilities") this.commands.push(command);
    const mishap = this.mishap(command, args);
    if (mishap === "end") this.end();
    if (mishap === "late") this.#execute(command, args);
    if (mishap === "end" || mishap === "silence" || mishap === "late") return undefined;
    const refusal = mishap?.error ?? this.#refusal(command);
    if (refusal !== undefined) return { error: { class: "GenericError", desc: refusal } };
    return { return: this.#execute(command, args) };
  }

  #refusal(command: string): string | undefined {
    if (command === "cont" && this.runState === "finish-migrate") return "Migration is not finalized yet";
    if (command === "migrate" && this.runState === "postmigrate")
      return "Can't migrate the vm that was paused due to previous migration";
    const isMigrating = this.migration.status === "active";
    return isMigrating && command === "migrate-set-capabilities"
      ? "There's a migration process in progress"
      : undefined;
  }

  #execute(command: string, args: Arguments): unknown {
    switch (command) {
      case "query-status":
        return { status: this.runState };
      case "query-migrate-capabilities":
        return this.background === undefined ? [] : [{ capability: "background-snapshot", state: this.background }];
      case "migrate-set-capabilities":
        for (const { capability, state } of args["capabilities"] as { capability: string; state: boolean }[])
          if (capability === "background-snapshot") this.background = state;
        return {};
      case "query-migrate-parameters":
        return this.parameters;
      case "migrate-set-parameters":
        this.parameters = args;
        return {};
      case "query-migrate": {
        const { status, pages, why } = this.migration;
        const ram = { normal: pages, duplicate: 0 };
        return { status, ram, ...(why === undefined ? {} : { "error-desc": why }) };
      }
      case "stop":
        this.setRunState("paused");
        return {};
      case "cont":
        this.setRunState("running");
        return {};
      case "migrate":
        void this.#migrate(String(args["uri"]).slice("unix:".length), this.background === true);
        return {};
      case "migrate_cancel":
        if (this.migration.status === "active") this.#migrated("cancelled");
        return {};
      default:
        return {};
    }
  }

  async #migrate(path: string, isBackground: boolean): Promise<void> {
    this.migration = { status: "active", pages: 0 };
    await Promise.resolve();
    if (isBackground) await this.beforeFrozen();
    if (isBackground && this.resumesItself) this.setRunState("running");
    if (isBackground) this.migration.pages = 1;
    try {
      await this.beforeState();
    } catch (error) {
      this.migration.why = error instanceof Error ? error.message : String(error);
      this.#migrated("failed");
      return;
    }
    if (this.migration.status !== "active") return;
    const out = connect({ path });
    out.on("error", () => undefined); // nobody takes the state: the checkpoint's affair
    out.end("the state of the VM");
    if (!isBackground) this.runState = "finish-migrate";
    this.#migrated("completed");
    if (isBackground) return;
    await this.beforePostmigrate();
    this.runState = "postmigrate";
  }

  #migrated(status: string): void {
    this.migration.status = status;
    this.emit("MIGRATION", { status });
  }
}
