/** An NBD connection without a socket: what a client sends goes in, what it would receive comes out, a turn at a time. */
import type { BlockDevice } from "../../shared/block/block-device.ts";
import type { Log } from "../../shared/host/log.ts";
import { ByteBudget } from "../../shared/nbd/byte-budget.ts";
import type { ByteBudgetLimits } from "../../shared/nbd/byte-budget.ts";
import { NbdConnection } from "../../shared/nbd/connection.ts";
import type { NbdTransport } from "../../shared/nbd/connection.ts";
import type { NbdExport, NbdExportDirectory } from "../../shared/nbd/export.ts";
import { InputBuffer } from "../../shared/nbd/input-buffers.ts";
import { ReplyArenaPool } from "../../shared/nbd/reply-writer.ts";
import { ManualClock } from "./manual-clock.ts";

const MIB = 1024 * 1024;

export const GENEROUS_BUDGET: ByteBudgetLimits = {
  totalBytes: 256 * MIB,
  perHolderBytes: 128 * MIB,
  guaranteedBytes: 1 * MIB,
  stalledMs: 30_000,
};

export class TestExport implements NbdExport {
  readonly name: string;
  readonly description: string;
  device: BlockDevice;
  readOnly = false;

  constructor(name: string, device: BlockDevice, description = "") {
    this.name = name;
    this.device = device;
    this.description = description;
  }

  get sizeBytes(): number {
    return this.device.sizeBytes;
  }
}

export class TestDirectory implements NbdExportDirectory {
  readonly exports: NbdExport[];
  readonly openNames: string[] = [];
  /** Thrown by the next `opened`. */
  refusal: Error | undefined;

  constructor(...exports: NbdExport[]) {
    this.exports = exports;
  }

  list(): readonly NbdExport[] {
    return this.exports;
  }

  find(name: string): NbdExport | undefined {
    return name === "" ? this.exports[0] : this.exports.find((candidate) => candidate.name === name);
  }

  opened(nbdExport: NbdExport): void {
    if (this.refusal !== undefined) throw this.refusal;
    this.openNames.push(nbdExport.name);
  }

  closed(nbdExport: NbdExport): void {
    this.openNames.splice(this.openNames.indexOf(nbdExport.name), 1);
  }
}

/** Keeps what is logged as a warning or an error. */
export class MemoryLog {
  readonly errors: unknown[] = [];
  readonly warnings: unknown[] = [];

  asLog(): Log {
    const ignore = (): void => undefined;
    const log: Record<keyof Log, (fields: unknown, message?: string) => void> = {
      debug: ignore,
      info: ignore,
      warn: (fields) => this.warnings.push(fields),
      error: (fields) => this.errors.push(fields),
    };
    return log;
  }
}

export interface HarnessOptions {
  readonly clock?: ManualClock;
  readonly budget?: ByteBudget;
  readonly arenas?: ReplyArenaPool;
}

export class NbdHarness implements NbdTransport {
  readonly clock: ManualClock;
  readonly log = new MemoryLog();
  readonly connection: NbdConnection;
  readonly budget: ByteBudget;
  /** Number of writes to the socket so far. */
  transmissions = 0;
  isPaused = false;
  hasEnded = false;
  isDestroyed = false;
  isGone = false;
  /** While false, the client takes no replies. */
  clientDrains = true;
  #received: Buffer[] = [];
  #inSocket: Buffer[] = [];
  #isSending = false;
  /** Input buffers that came back, and may have been filled again. */
  inputBuffersBack = 0;

  constructor(directory: NbdExportDirectory, options: HarnessOptions = {}) {
    this.clock = options.clock ?? new ManualClock();
    this.budget = options.budget ?? new ByteBudget(GENEROUS_BUDGET, this.clock);
    this.connection = new NbdConnection({
      transport: this,
      directory,
      budget: this.budget,
      arenas: options.arenas ?? new ReplyArenaPool(),
      clock: this.clock,
      log: this.log.asLog(),
      clientName: "test",
      onGone: () => {
        this.isGone = true;
      },
    });
  }

  // The client's side

  /** Sends chunks as they are, as far as the server takes them, and ends the turn. */
  send(...chunks: Buffer[]): void {
    this.#inSocket.push(...chunks);
    this.#deliver();
    this.endTurn();
  }

  /** Runs everything that is due, without letting time pass. */
  endTurn(): void {
    do {
      while (this.clock.endTurn()) this.#deliver();
      if (this.clientDrains && this.#isSending) {
        this.#isSending = false;
        this.connection.sent();
      }
      this.#deliver();
    } while (this.clock.endTurn() || (this.clientDrains && this.#isSending));
  }

  /** As `endTurn`, for devices that answer with promises: goes on until nothing moves any more. */
  async settle(): Promise<void> {
    for (let quiet = 0; quiet < 3;) {
      const before = this.transmissions - this.unreadBytes;
      this.endTurn();
      await new Promise<void>((resolve) => {
        setImmediate(resolve);
      });
      quiet = this.transmissions - this.unreadBytes === before ? quiet + 1 : 0;
    }
  }

  /** The client closes its sending side. */
  halfClose(): void {
    this.connection.endOfInput();
    this.endTurn();
  }

  /** The client is gone. */
  disconnect(): void {
    this.connection.closed();
    this.endTurn();
  }

  /** Everything received since the last call. */
  takeOutput(): Buffer {
    const output = Buffer.concat(this.#received);
    this.#received = [];
    return output;
  }

  /** Bytes that the server has not taken from the socket. */
  get unreadBytes(): number {
    return this.#inSocket.reduce((sum, chunk) => sum + chunk.length, 0);
  }

  #deliver(): void {
    while (this.#inSocket.length > 0 && !this.isPaused && !this.isDestroyed) {
      const chunk = this.#inSocket.shift();
      if (chunk === undefined || this.hasEnded) continue;
      this.connection.receive(...this.#lent(chunk));
    }
  }

  /** The chunk in an input buffer of its own: whoever still reads it once it is back finds other bytes. */
  #lent(chunk: Buffer): [Buffer, InputBuffer] {
    const buffer = new InputBuffer(Buffer.from(chunk), ({ bytes }) => {
      this.clock.defer(() => {
        bytes.fill(0xdb);
        this.inputBuffersBack += 1;
      });
    });
    buffer.hold();
    return [buffer.bytes, buffer];
  }

  // NbdTransport

  transmit(parts: readonly Buffer[]): void {
    if (this.isDestroyed) return;
    this.transmissions += 1;
    for (const part of parts) this.#received.push(Buffer.from(part));
    this.#isSending = true;
  }

  pauseInput(): void {
    this.isPaused = true;
  }

  resumeInput(): void {
    this.isPaused = false;
  }

  end(): void {
    this.hasEnded = true;
    this.isPaused = false;
  }

  destroy(): void {
    if (this.isDestroyed) return;
    this.isDestroyed = true;
    this.clock.defer(() => this.connection.closed());
  }
}
