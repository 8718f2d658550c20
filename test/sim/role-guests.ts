import assert from "node:assert/strict";
import type { ColobusError, ErrorCode } from "../../proto/errors.ts";
import { ModelWrite, type DiskModel } from "./disk-model.ts";
import type { PairDisk, PairMember } from "./pair.ts";
import { CALL_MS, type RoleScene } from "./role-scene.ts";

/** What a guest's request may end with while roles change. */
const GUEST_CODES: readonly ErrorCode[] = ["outdated", "handed-over", "shutting-down", "read-only"];

/** A guest's request to a disk of a side, and what the model knows of the disk. */
export interface GuestRequest {
  readonly member: PairMember;
  readonly disk: PairDisk;
  readonly model: DiskModel;
  readonly offset: number;
  readonly length: number;
}

export interface RoleGuestsOptions {
  /** Whether that is still what the side's guest sees. */
  readonly isCurrent: (member: PairMember, model: DiskModel) => boolean;
  /** What else a request may end with. */
  readonly alsoLegal: readonly ErrorCode[];
}

/** The guests of sides whose roles change: they write on whichever side serves, and check what they read. */
export class RoleGuests {
  readonly #scene: RoleScene;
  readonly #options: RoleGuestsOptions;

  constructor(scene: RoleScene, options: RoleGuestsOptions) {
    this.#scene = scene;
    this.#options = options;
  }

  read({ member, disk, model, offset, length }: GuestRequest): void {
    const target = Buffer.alloc(length);
    const reading = model.beginRead();
    void this.#scene.calls.make(
      member,
      "read",
      CALL_MS,
      () => member.device(disk)?.read(target, offset),
      (outcome) => {
        model.endRead(reading);
        if (outcome.kind === "failed") this.#assertLegal(outcome.error);
        if (outcome.kind !== "done" || !this.#options.isCurrent(member, model)) return;
        model.check(target, offset, `${disk.name} on ${member.name}`, reading);
      },
    );
  }

  flush({ member, disk, model }: GuestRequest): void {
    const covered = model.beginFlush();
    void this.#scene.calls.make(
      member,
      "flush",
      CALL_MS,
      () => member.device(disk)?.flush(),
      (outcome) => {
        if (outcome.kind === "done") model.flushed(covered);
        else if (outcome.kind === "failed") this.#assertLegal(outcome.error);
      },
    );
  }

  /** Writes `data`; zeroes where it is undefined. `told` is called at the moment at which the guest hears that it is done. */
  write(
    { member, disk, model, offset, length }: GuestRequest,
    data: Buffer | undefined,
    told: (write: ModelWrite) => void,
  ): void {
    const write = new ModelWrite(offset, length, data);
    const what = data === undefined ? "zeroes" : "writes";
    this.#scene.world.note(`guest on ${member.name} ${what} ${disk.name} [${offset}, +${length})`);
    model.begin(write);
    const call = (): void | Promise<void> => {
      const device = member.device(disk);
      return data === undefined
        ? device?.zero(offset, length, { fua: false, mayUnmap: true })
        : device?.write(data, offset, { fua: false });
    };
    void this.#scene.calls.make(member, "write", CALL_MS, call, (outcome) => {
      if (outcome.kind === "failed") this.#assertLegal(outcome.error);
      if (outcome.kind !== "done") return;
      this.#scene.counts.writes += 1;
      write.settled = true;
      told(write);
    });
  }

  #assertLegal({ code, message }: ColobusError): void {
    const legal = [...GUEST_CODES, ...this.#options.alsoLegal];
    assert(legal.includes(code), `a guest's request failed with ${code}: ${message}`);
  }
}
