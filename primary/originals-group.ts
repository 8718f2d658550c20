import type { Pending } from "../shared/block/block-device.ts";
import { both } from "../shared/block/both.ts";
import type { OriginalsSession } from "./copy-before-write.ts";
import type { SourceSession } from "./source-session.ts";

/** The sessions whose secondaries take the originals of shared disks now: each gets all of them, and none counts before all have it. */
export class OriginalsGroup implements OriginalsSession {
  readonly members: readonly SourceSession[];

  constructor(members: readonly SourceSession[]) {
    this.members = members;
  }

  get isFull(): boolean {
    return this.members.some((session) => session.isFull);
  }

  room(): Pending {
    return this.members.reduce<Pending>((pending, session) => both(pending, session.room()), undefined);
  }

  send(...original: Parameters<OriginalsSession["send"]>): Pending {
    return this.members.reduce<Pending>((pending, session) => {
      const sequence = session.send(...original);
      return both(pending, session.acknowledged(sequence, "stable"));
    }, undefined);
  }
}
