import { z } from "zod";
import { asColobusError, ColobusError } from "../proto/errors.ts";
import { VM_DOWNTIME_LIMIT_MS, VM_MIGRATION_BYTES_PER_SECOND, VM_POLL_MS } from "../proto/limits.ts";
import type { Clock, Timer } from "../shared/host/clock.ts";
import { QmpClient, type QmpEvent } from "../shared/host/qmp-client.ts";

const statusSchema = z.object({ status: z.string() });
const migrationSchema = z.object({
  "status": z.string().optional(),
  "error-desc": z.string().optional(),
  /** Pages that have gone into the stream: with their content, and those of one byte repeated. */
  "ram": z.object({ normal: z.number(), duplicate: z.number() }).optional(),
});
const capabilitiesSchema = z.array(z.object({ capability: z.string(), state: z.boolean() }));
const parametersSchema = z.object({ "max-bandwidth": z.number(), "downtime-limit": z.number() });
type Parameters = z.infer<typeof parametersSchema>;

/** QEMU's capability of writing the memory as it was at one moment, while the VM runs on. */
const BACKGROUND = "background-snapshot";
const AS_FAST_AS_IT_CAN: Parameters = {
  "max-bandwidth": VM_MIGRATION_BYTES_PER_SECOND,
  "downtime-limit": VM_DOWNTIME_LIMIT_MS,
};

/** The same while the VM is paused for a checkpoint: so that whoever comes after a protection that was killed knows it. */
const PAUSED_HERE: Parameters = { ...AS_FAST_AS_IT_CAN, "downtime-limit": VM_DOWNTIME_LIMIT_MS - 1 };

const RUNNING = "running";
/** A migration is at its end, or has told of it already. QEMU refuses `cont` meanwhile, and tells nobody when it is over. */
const FINISHING = "finish-migrate";
/** A paused VM's state is written, or it has migrated to another host: QEMU writes none again before it has run. */
const WRITTEN = "postmigrate";
/** The guest sleeps (S3). QEMU wakes it no more once its state is written, whatever comes: it would be `postmigrate`. */
const SUSPENDED = "suspended";
/** In these states somebody has paused it. */
const PAUSED = ["paused", FINISHING, WRITTEN];
/** How a migration ends. */
const OVER = new Set(["completed", "failed", "cancelled"]);

export interface ProtectedVmOptions {
  /** QEMU's machine protocol, on a socket for this program alone. */
  readonly socket: string;
  readonly clock: Clock;
  readonly timeoutMs: number;
}

/**
 * A VM of a stock QEMU: pauses it, has it write its state to a unix socket, or read it from one, and lets it go on.
 *
 * How QEMU migrates is set while this is connected, and as it was before when `release` has been called: an operator's own
 * migration would pause the VM for all of its length, or end in nothing but a snapshot.
 */
export class ProtectedVm {
  #qmp: QmpClient;
  readonly #options: ProtectedVmOptions;
  /** A command was not answered in time: its connection has ended, and it may be carried out yet. */
  #isInDoubt = false;
  /** What `release` sets again. */
  #found: Parameters | undefined;
  /** Undefined: this QEMU knows no such capability. */
  #isBackground: boolean | undefined;
  /** It was paused for a checkpoint, and must run again. Undefined: QEMU's parameters tell. */
  #isPausedHere: boolean | undefined;
  /** It has begun to run since it was found, or made, paused. */
  #hasRun = false;
  #toldOfRun: () => void = () => undefined;
  /** How the migration that was asked for last has ended. */
  #over: Promise<string> = Promise.resolve("none");
  #migrationChanged: (status: string) => void = () => undefined;

  private constructor(qmp: QmpClient, options: ProtectedVmOptions) {
    this.#qmp = qmp;
    this.#options = options;
  }

  /**
   * Connects, and has migrations go as fast as they can. A VM that a protection which was killed has left paused goes on,
   * and the migration that it has begun is ended; one that another has paused, or migrated, is left so.
   * Errors: `vm-unreachable`, `vm-refused`, `timed-out`.
   */
  static async connect(options: ProtectedVmOptions): Promise<ProtectedVm> {
    const running: { vm?: ProtectedVm } = {};
    const qmp = await QmpClient.connect({ ...options, event: (event) => running.vm?.heard(event) });
    const vm = new ProtectedVm(qmp, options);
    running.vm = vm;
    try {
      await vm.#take();
      return vm;
    } catch (error) {
      await vm.release();
      throw error;
    }
  }

  /**
   * Whether `beginSave` is to let the VM run while its memory is written. To allow it is to have QEMU look whether it and
   * the host are capable of it. Errors: `vm-refused`, with QEMU's reason; `timed-out`, `vm-unreachable`.
   */
  async setBackground(isBackground: boolean): Promise<void> {
    if (this.#isBackground === isBackground || (this.#isBackground === undefined && !isBackground)) return;
    await this.#execute("migrate-set-capabilities", {
      capabilities: [{ capability: BACKGROUND, state: isBackground }],
    });
    this.#isBackground = isBackground;
  }

  /**
   * Pauses the VM. Everything that it has written is with its disks then. By another: it was paused already. Written: so it
   * was, and no state is written of it before it has run. Asleep: nothing was done, since it could not wake up any more.
   * Errors: `vm-refused`, `timed-out`, `vm-unreachable`: the VM goes on.
   */
  async pause(): Promise<"here" | "by-another" | "written" | "asleep"> {
    const status = await this.#status();
    if (status === SUSPENDED) return "asleep";
    if (status === RUNNING) {
      await this.#execute("migrate-set-parameters", PAUSED_HERE);
      this.#isPausedHere = true;
      await this.#orRunAgain("stop");
    }
    this.#hasRun = false;
    if (this.#isPausedHere === true) return "here";
    return status === WRITTEN ? "written" : "by-another";
  }

  /** Lets the VM run that was paused here. Errors: `vm-refused`, `timed-out`, `vm-unreachable`. */
  async resume(): Promise<void> {
    if (this.#isPausedHere !== true) return;
    // Only a background snapshot goes on beside a VM that runs already: another migration stops it at its end.
    if (!this.#hasRun || this.#isBackground !== true) await this.#orRunAgain("cont");
    this.#isPausedHere = false;
    await this.#execute("migrate-set-parameters", AS_FAST_AS_IT_CAN);
  }

  /**
   * Has the paused VM begin to write its state to the unix socket at `path`. Resolves when the VM may run: when everything
   * is written, or, in the background, when the VM's changes do not get into what is written any more.
   * Errors: `vm-refused`, `timed-out`, `vm-unreachable`.
   */
  async beginSave(path: string): Promise<void> {
    const hasRun = new Promise<void>((resolve) => {
      this.#toldOfRun = resolve;
    });
    this.#over = this.#nextMigrationOver();
    await this.#execute("migrate", { uri: `unix:${path}` });
    if (this.#isBackground === true) return this.#untilFrozen(hasRun);
    await this.#untilDone("written");
    if (!this.#hasRun) return;
    throw new ColobusError(
      "vm-refused",
      "the VM was let run by another while its state was written",
      "Leave the VM alone while it is paused for a checkpoint.",
    );
  }

  /** Resolves when the state is written to its end. Errors: `vm-refused`, `timed-out`, `vm-unreachable`. */
  finishSave(): Promise<void> {
    return this.#untilDone("written");
  }

  /**
   * Has the VM, which waits for its state (`-incoming defer`), read it from the unix socket at `path`, into which `send`
   * writes it, and run. Errors: `vm-refused`, `timed-out`, `vm-unreachable`: QEMU ends over a state that it cannot load.
   */
  async loadState(path: string, send: () => Promise<void>): Promise<void> {
    this.#over = this.#nextMigrationOver();
    await this.#execute("migrate-incoming", { uri: `unix:${path}` });
    await send();
    await this.#untilDone("read");
    if ((await this.#status()) !== RUNNING) await this.#orRunAgain("cont");
  }

  /**
   * Resolves when no migration is under way any more. One in the background must not be cut short: QEMU 7.2 leaves the
   * guest's memory write-protected then, and the guest hangs. Errors: `timed-out`, `vm-unreachable`.
   */
  async untilIdle(): Promise<void> {
    const { clock, timeoutMs } = this.#options;
    const untilMs = clock.nowMs() + timeoutMs;
    for (;;) {
      const { status = "none" } = migrationSchema.parse(await this.#execute("query-migrate"));
      if (status === "none" || OVER.has(status)) return;
      if (clock.nowMs() > untilMs) throw this.#late("written");
      await this.#untilPoll();
    }
  }

  /** Ends a migration that is under way, and not in the background. */
  async cancelSave(): Promise<void> {
    await this.#execute("migrate_cancel");
  }

  /**
   * After a command that was not answered in time: by a new connection, and as after a protection that was killed, since
   * QEMU alone knows what has become of it. Errors: `vm-refused`, `timed-out`, `vm-unreachable`: it has to be called again.
   */
  async recover(): Promise<void> {
    if (!this.#isInDoubt) return;
    await this.#dial();
    await this.#take();
    this.#isInDoubt = false;
  }

  /** Leaves QEMU as it was found, and the VM running, where it still answers. */
  async release(): Promise<void> {
    try {
      await this.recover();
      await this.resume();
      // QEMU keeps its capabilities while it migrates.
      if (this.#isBackground === true) await this.untilIdle();
      await this.setBackground(false);
      if (this.#found !== undefined) await this.#execute("migrate-set-parameters", this.#found);
    } catch {
      // A QEMU that has ended, or loads no state, has nothing to be restored; what else is wrong was told before.
    } finally {
      this.#qmp.close();
    }
  }

  async #take(): Promise<void> {
    const capabilities = capabilitiesSchema.parse(await this.#execute("query-migrate-capabilities"));
    const isBackground = capabilities.find(({ capability }) => capability === BACKGROUND)?.state;
    const found = parametersSchema.parse(await this.#execute("query-migrate-parameters"));
    const isOurs = [AS_FAST_AS_IT_CAN, PAUSED_HERE].some((ours) => ours["downtime-limit"] === found["downtime-limit"]);
    // Those of a protection that was killed: what was before them is not known, and what it has begun serves nobody.
    if (!isOurs) this.#found = found;
    else if (isBackground === true) await this.untilIdle();
    else {
      await this.cancelSave();
      await this.untilIdle();
    }
    // In one: QEMU would look whether it is capable of what is not to stay.
    const background = isBackground === undefined ? [] : [{ capability: BACKGROUND, state: false }];
    await this.#execute("migrate-set-capabilities", {
      capabilities: [{ capability: "events", state: true }, ...background],
    });
    if (isBackground !== undefined) this.#isBackground = false;
    const status = await this.#status();
    const wasPausedHere = PAUSED.includes(status) && found["downtime-limit"] === PAUSED_HERE["downtime-limit"];
    // Of this protection's own pauses it knows: what else is paused then is so by another.
    if (this.#isPausedHere !== false && wasPausedHere) await this.#orRunAgain("cont");
    this.#isPausedHere = false;
    await this.#execute("migrate-set-parameters", AS_FAST_AS_IT_CAN);
  }

  /**
   * A command after whose failure the VM must run. Where this one, or one before it, was not answered in time, the connection
   * has ended, and what was asked for may be carried out yet: QEMU serves the next connection after it.
   */
  async #orRunAgain(command: "stop" | "cont"): Promise<void> {
    try {
      await (command === "cont" ? this.#cont() : this.#execute(command));
    } catch (error) {
      const isRefused = asColobusError(error).code === "vm-refused";
      if (!isRefused) await this.#runAnew();
      if (command === "stop") this.#isPausedHere = false;
      if (isRefused || command === "stop") throw error;
    }
  }

  async #runAnew(): Promise<void> {
    const { socket } = this.#options;
    try {
      await this.#dial();
      // A `migrate` that came late would stop the VM when it is done.
      if (this.#isBackground !== true) await this.cancelSave();
      await this.#cont();
    } catch (error) {
      const { code, message } = asColobusError(error);
      throw new ColobusError(code, `the VM may be paused still: ${message}`, `Send \`cont\` to ${socket}.`, {
        cause: error,
      });
    }
  }

  /**
   * Until the memory is kept as it is for what is being written. QEMU 7.2 lets the VM run by itself then; later ones leave
   * one paused that was, and send the first page only after it.
   */
  async #untilFrozen(hasRun: Promise<void>): Promise<void> {
    const { clock, timeoutMs } = this.#options;
    const untilMs = clock.nowMs() + timeoutMs;
    while (!this.#hasRun) {
      const { status = "none", ram } = migrationSchema.parse(await this.#execute("query-migrate"));
      if (OVER.has(status)) return this.#untilDone("written");
      if (ram !== undefined && ram.normal + ram.duplicate > 0) return;
      if (clock.nowMs() > untilMs) throw this.#late("written");
      await this.#untilPoll(hasRun, this.#over);
    }
  }

  #nextMigrationOver(): Promise<string> {
    return new Promise((resolve) => {
      this.#migrationChanged = (status) => {
        if (OVER.has(status)) resolve(status);
      };
    });
  }

  async #untilDone(what: string): Promise<void> {
    const { expired, timer } = this.#after(this.#options.timeoutMs);
    const status = await Promise.race([this.#over, expired, this.#qmp.ended]);
    timer.cancel();
    if (status === "completed") return;
    if (status instanceof ColobusError) throw status;
    if (status === undefined) throw this.#late(what);
    const { "error-desc": why = "no reason is given" } = migrationSchema.parse(await this.#execute("query-migrate"));
    throw new ColobusError("vm-refused", `the VM's state was not ${what} (${status}): ${why}`, "See the VM's own log.");
  }

  /** Until QEMU is to be asked again, or one of these, or the connection's end, comes first. */
  async #untilPoll(...sooner: readonly Promise<unknown>[]): Promise<void> {
    const { expired, timer } = this.#after(VM_POLL_MS);
    await Promise.race([...sooner, expired, this.#qmp.ended]);
    timer.cancel();
  }

  #after(ms: number): { readonly expired: Promise<undefined>; readonly timer: Timer } {
    let timer: Timer = { cancel: () => undefined };
    const expired = new Promise<undefined>((resolve) => {
      timer = this.#options.clock.after(ms, () => resolve(undefined));
    });
    return { expired, timer };
  }

  #late(what: string): ColobusError {
    return new ColobusError(
      "timed-out",
      `the VM's state was not ${what} in ${this.#options.timeoutMs} ms`,
      "Say a longer --timeout, or give the VM less memory.",
    );
  }

  /** A new connection takes the place of the one before. */
  async #dial(): Promise<void> {
    this.#qmp.close();
    this.#qmp = await QmpClient.connect({ ...this.#options, event: (event) => this.heard(event) });
  }

  async #execute(command: string, args?: Readonly<Record<string, unknown>>): Promise<unknown> {
    try {
      return await this.#qmp.execute(command, args);
    } catch (error) {
      if (asColobusError(error).code === "timed-out") this.#isInDoubt = true;
      throw error;
    }
  }

  async #cont(): Promise<void> {
    await this.#status();
    await this.#execute("cont");
  }

  /** The VM's run state. That of a migration's end is waited for, as long as one command may take. */
  async #status(): Promise<string> {
    const { clock, timeoutMs } = this.#options;
    const untilMs = clock.nowMs() + timeoutMs;
    for (;;) {
      const { status } = statusSchema.parse(await this.#execute("query-status"));
      if (status !== FINISHING || clock.nowMs() > untilMs) return status;
      await this.#untilPoll();
    }
  }

  /** An event of the VM. */
  heard({ event, data }: QmpEvent): void {
    if (event === "MIGRATION" && typeof data.status === "string") this.#migrationChanged(data.status);
    if (event !== "RESUME") return;
    this.#hasRun = true;
    this.#toldOfRun();
  }
}
