import assert from "node:assert/strict";
import type { Status } from "../../proto/control-api.ts";
import type { ErrorCode } from "../../proto/errors.ts";
import type { Calls } from "./calls.ts";
import type { PairDisk, PairMember } from "./pair.ts";
import type { SeededRandom } from "./seeded-random.ts";

const COMMAND_MS = 20_000;
const SECTOR_BYTES = 512;
/** What a resize may end with beside success, when sessions come and go, and roles change. */
const LEGAL_CODES: readonly ErrorCode[] = [
  "timed-out",
  "outcome-unknown",
  "merge-unfinished",
  "not-primary",
  "outdated",
  "no-peer",
  "shutting-down",
];

export interface RoleResizesOptions {
  readonly calls: Calls;
  readonly random: SeededRandom;
  readonly disks: readonly PairDisk[];
  readonly growthMaxBytes: number;
  readonly statusOf: (member: PairMember) => Status | undefined;
}

/** The operator who has disks of a pair grow, bit by bit, whichever side serves. */
export class RoleResizes {
  readonly #options: RoleResizesOptions;

  constructor(options: RoleResizesOptions) {
    this.#options = options;
  }

  isDue(): boolean {
    return this.#options.random.chance(0.06);
  }

  /** Has some disk grow, or asks for the size that it has, which may finish what was begun. */
  async grow(member: PairMember, note: (line: string) => void, counts: { resizes: number }): Promise<void> {
    const { random, disks, growthMaxBytes } = this.#options;
    const disk = random.pick(disks);
    const presentBytes = this.#sizeOf(member, disk);
    if (presentBytes === undefined) return;
    const limit = disk.sizeBytes + growthMaxBytes;
    const sectors = 1 + random.below(random.pick([1, 4, 40]));
    const sizeBytes = Math.min(limit, presentBytes + sectors * SECTOR_BYTES * random.below(2));
    await this.growTo(member, disk, sizeBytes, note, counts);
  }

  async growTo(
    member: PairMember,
    disk: PairDisk,
    sizeBytes: number,
    note: (line: string) => void,
    counts: { resizes: number },
  ): Promise<void> {
    const { agent } = member;
    if (agent === undefined || (this.#sizeOf(member, disk) ?? 0) > sizeBytes) return;
    note(`resize ${disk.name} to ${sizeBytes} on ${member.name}`);
    const request = { disk: disk.name, sizeBytes, closeClients: false, timeoutMs: COMMAND_MS };
    const outcome = await this.#options.calls.make(member, "resize", COMMAND_MS + 10, () =>
      agent.resize(request, new AbortController().signal),
    );
    if (outcome.kind === "done") {
      counts.resizes += 1;
      assert((this.#sizeOf(member, disk) ?? sizeBytes) >= sizeBytes, `${disk.name} has not grown`);
    }
    if (outcome.kind === "failed") {
      const { code, message } = outcome.error;
      assert(LEGAL_CODES.includes(code), `resize failed with ${code}: ${message}`);
    }
  }

  #sizeOf(member: PairMember, { name }: PairDisk): number | undefined {
    return this.#options.statusOf(member)?.disks.find((disk) => disk.name === name)?.sizeBytes ?? undefined;
  }
}
