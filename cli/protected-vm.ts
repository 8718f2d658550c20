import { z } from "zod";
import { ColobusError } from "../proto/errors.ts";
import { VM_DOWNTIME_LIMIT_MS, VM_MIGRATION_BYTES_PER_SECOND } from "../proto/limits.ts";
import type { Clock, Timer } from "../shared/host/clock.ts";
import { QmpClient, type QmpEvent } from "../shared/host/qmp-client.ts";

const statusSchema = z.object({ status: z.string() });
const migrationSchema = z.object({
  "status": z.string().optional(),
  "error-desc": z.string().optional(),
});

/** In these states the VM runs, or would if it were not for an earlier checkpoint. */
const RUNNING = "running";
const AFTER_MIGRATION = "postmigrate";

export interface ProtectedVmOptions {
  /** QEMU's machine protocol, on a socket for this program alone. */
  readonly socket: string;
  readonly clock: Clock;
  readonly timeoutMs: number;
}

/** A VM of a stock QEMU: pauses it, has it write its state to a unix socket, or read it from one, and lets it go on. */
export class ProtectedVm {
  readonly #qmp: QmpClient;
  readonly #timeoutMs: number;
  readonly #clock: Clock;
  /** It is paused for a checkpoint, and must run again. */
  #isPausedHere = false;
  /** Called when the migration that is under way has come to another state. */
  #migrationChanged: (status: string) => void;

  private constructor(qmp: QmpClient, options: ProtectedVmOptions, changed: (status: string) => void) {
    this.#qmp = qmp;
    this.#timeoutMs = options.timeoutMs;
    this.#clock = options.clock;
    this.#migrationChanged = changed;
  }

  /**
   * Connects, and has migrations go as fast as they can. A VM that an earlier checkpoint has left paused goes on.
   * Errors: `vm-unreachable`, `vm-refused`, `timed-out`.
   */
  static async connect(options: ProtectedVmOptions): Promise<ProtectedVm> {
    const running: { vm?: ProtectedVm } = {};
    const qmp = await QmpClient.connect({ ...options, event: (event) => running.vm?.heard(event) });
    const vm = new ProtectedVm(qmp, options, () => undefined);
    running.vm = vm;
    try {
      await qmp.execute("migrate-set-capabilities", { capabilities: [{ capability: "events", state: true }] });
      await qmp.execute("migrate-set-parameters", {
        "max-bandwidth": VM_MIGRATION_BYTES_PER_SECOND,
        "downtime-limit": VM_DOWNTIME_LIMIT_MS,
      });
      if ((await vm.#status()) === AFTER_MIGRATION) await vm.resume();
      return vm;
    } catch (error) {
      qmp.close();
      throw error;
    }
  }

  /** Resolves when the VM cannot be reached any more, with the reason. */
  get ended(): Promise<ColobusError> {
    return this.#qmp.ended;
  }

  /** Pauses the VM. Everything that it has written is with its disks then. False: it was paused already, by another. */
  async pause(): Promise<boolean> {
    if ((await this.#status()) === RUNNING) {
      this.#isPausedHere = true;
      await this.#qmp.execute("stop");
    }
    return this.#isPausedHere;
  }

  async resume(): Promise<void> {
    await this.#qmp.execute("cont");
    this.#isPausedHere = false;
  }

  /** Has the paused VM write its state to the unix socket at `path`. Errors: `vm-refused`, `timed-out`, `vm-unreachable`. */
  async saveState(path: string): Promise<void> {
    const over = this.#migrationOver();
    await this.#qmp.execute("migrate", { uri: `unix:${path}` });
    await this.#untilDone(over, "written");
  }

  /**
   * Has the VM, which waits for its state (`-incoming defer`), read it from the unix socket at `path`, into which `send`
   * writes it, and run. Errors: `vm-refused`, `timed-out`, `vm-unreachable`: QEMU ends over a state that it cannot load.
   */
  async loadState(path: string, send: () => Promise<void>): Promise<void> {
    const over = this.#migrationOver();
    await this.#qmp.execute("migrate-incoming", { uri: `unix:${path}` });
    await send();
    await this.#untilDone(over, "read");
    if ((await this.#status()) !== RUNNING) await this.resume();
  }

  /** Ends a migration that is under way. */
  async cancelSave(): Promise<void> {
    await this.#qmp.execute("migrate_cancel");
  }

  close(): void {
    this.#qmp.close();
  }

  /** How the migration that is asked for next has ended. */
  #migrationOver(): Promise<string> {
    return new Promise((resolve) => {
      this.#migrationChanged = (status) => {
        if (status === "completed" || status === "failed" || status === "cancelled") resolve(status);
      };
    });
  }

  async #untilDone(over: Promise<string>, what: string): Promise<void> {
    let timer: Timer | undefined;
    const late = new Promise<"late">((resolve) => {
      timer = this.#clock.after(this.#timeoutMs, () => resolve("late"));
    });
    const status = await Promise.race([over, late, this.#qmp.ended]);
    timer?.cancel();
    if (status === "completed") return;
    if (status instanceof ColobusError) throw status;
    if (status === "late") {
      throw new ColobusError(
        "timed-out",
        `the VM's state was not ${what} in ${this.#timeoutMs} ms`,
        "Say a longer --timeout, or give the VM less memory.",
      );
    }
    const { "error-desc": why = "no reason is given" } = migrationSchema.parse(
      await this.#qmp.execute("query-migrate"),
    );
    throw new ColobusError("vm-refused", `the VM's state was not ${what} (${status}): ${why}`, "See the VM's own log.");
  }

  async #status(): Promise<string> {
    return statusSchema.parse(await this.#qmp.execute("query-status")).status;
  }

  /** An event of the VM. */
  heard({ event, data }: QmpEvent): void {
    if (event === "MIGRATION" && typeof data.status === "string") this.#migrationChanged(data.status);
  }
}
