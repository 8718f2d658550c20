import { join } from "node:path";
import { SeededRandom } from "../sim/seeded-random.ts";
import type { AgentUnderTest } from "./agent-pair.ts";
import { NbdGuest } from "./nbd-guest.ts";

const BLOCK_BYTES = 4096;

/**
 * A guest that writes to random blocks without a pause, and remembers what the disk must hold. Its server must live and
 * take every write: a write that fails fails the guest.
 */
export class SteadyGuest {
  readonly #guest: NbdGuest;
  readonly #disk: Buffer;
  readonly #blocks: number;
  readonly #random = new SeededRandom(1);
  #acknowledged = 0;
  #isStopping = false;
  #waiting: { readonly count: number; readonly resolve: () => void }[] = [];
  readonly #writing: Promise<void>;

  private constructor(guest: NbdGuest, disk: Buffer, withinBytes: number) {
    this.#guest = guest;
    this.#disk = disk;
    this.#blocks = withinBytes / BLOCK_BYTES;
    this.#writing = this.#write();
    this.#writing.catch(() => undefined); // whoever waits for the guest has the error
  }

  /**
   * `disk` is what the export vda of the `nbd.sock` in the run directory holds now; it is kept up to date. Only its first
   * `withinBytes` are written; by default all.
   */
  static async start(
    agent: Pick<AgentUnderTest, "run">,
    disk: Buffer,
    withinBytes = disk.length,
  ): Promise<SteadyGuest> {
    return new SteadyGuest(await NbdGuest.connect(join(agent.run, "nbd.sock")), disk, withinBytes);
  }

  /** Resolves when `count` more writes are acknowledged. */
  async writesMore(count: number): Promise<void> {
    const reached = new Promise<void>((resolve) => {
      this.#waiting.push({ count: this.#acknowledged + count, resolve });
    });
    await Promise.race([reached, this.#writing]);
  }

  /** Ends after the write that is under way: the disk holds exactly what was acknowledged then. */
  async stop(): Promise<void> {
    this.#isStopping = true;
    await this.#writing;
    this.#guest.close();
  }

  async #write(): Promise<void> {
    while (!this.#isStopping) {
      const offset = this.#random.below(this.#blocks) * BLOCK_BYTES;
      const pattern = Buffer.alloc(8);
      pattern.writeBigUInt64BE(BigInt(this.#acknowledged + 1));
      const payload = Buffer.alloc(BLOCK_BYTES, pattern);
      await this.#guest.write(offset, payload);
      payload.copy(this.#disk, offset);
      this.#acknowledged += 1;
      this.#waiting = this.#waiting.filter(({ count, resolve }) => {
        if (count <= this.#acknowledged) resolve();
        return count > this.#acknowledged;
      });
    }
  }
}
