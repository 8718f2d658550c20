import assert from "node:assert/strict";
import type { ErrorCode } from "../../proto/errors.ts";
import type { PairDisk, PairMember } from "./pair.ts";
import { COMMAND_MS, type RoleScene } from "./role-scene.ts";
import type { SeededRandom } from "./seeded-random.ts";

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
  readonly random: SeededRandom;
  readonly disks: readonly PairDisk[];
  readonly growthMaxBytes: number;
}

/** The operator who has disks of a pair grow, bit by bit, whichever side serves. */
export class RoleResizes {
  readonly #scene: RoleScene<"resizes">;
  readonly #options: RoleResizesOptions;

  constructor(scene: RoleScene<"resizes">, options: RoleResizesOptions) {
    this.#scene = scene;
    this.#options = options;
  }

  isDue(): boolean {
    return this.#options.random.chance(0.06);
  }

  /** Has some disk grow, or asks for the size that it has, which may finish what was begun. */
  async grow(member: PairMember): Promise<void> {
    const { random, disks, growthMaxBytes } = this.#options;
    const disk = random.pick(disks);
    const presentBytes = sizeOf(member, disk);
    if (presentBytes === undefined) return;
    const limit = disk.sizeBytes + growthMaxBytes;
    const sectors = 1 + random.below(random.pick([1, 4, 40]));
    const sizeBytes = Math.min(limit, presentBytes + sectors * SECTOR_BYTES * random.below(2));
    await this.growTo(member, disk, sizeBytes);
  }

  async growTo(member: PairMember, disk: PairDisk, sizeBytes: number): Promise<void> {
    if (member.agent === undefined || (sizeOf(member, disk) ?? 0) > sizeBytes) return;
    this.#scene.world.note(`resize ${disk.name} to ${sizeBytes} on ${member.name}`);
    const request = { disk: disk.name, sizeBytes, closeClients: false, timeoutMs: COMMAND_MS };
    const outcome = await this.#scene.command(member, "resize", (agent, signal) => agent.resize(request, signal), {
      legal: LEGAL_CODES,
    });
    if (outcome.kind !== "done") return;
    this.#scene.counts.resizes += 1;
    assert((sizeOf(member, disk) ?? sizeBytes) >= sizeBytes, `${disk.name} has not grown`);
  }
}

function sizeOf({ status }: PairMember, { name }: PairDisk): number | undefined {
  return status?.disks.find((disk) => disk.name === name)?.sizeBytes ?? undefined;
}
