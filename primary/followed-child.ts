import type { Child, Extent, Pending, WriteFlags, ZeroFlags } from "../shared/block/block-device.ts";
import type { DiskCopy, Outcome } from "./disk-copy.ts";
import type { ReplicatedDisk } from "./replicated-disk.ts";

/**
 * A child whose changes others follow, without being asked for anything else: copies that are being made. A change is given
 * to all at the same time, and its range is held until each has taken it, or is known to lack it; so a follower delays
 * guests for its time limit at most, once. What a follower does not take never fails a request, and a change that the child
 * itself has refused is dirty on every follower: nobody knows what the child has there.
 */
export class FollowedChild implements Child {
  readonly #child: Child;
  readonly #followers: readonly DiskCopy[];

  constructor(child: Child, followers: readonly DiskCopy[]) {
    this.#child = child;
    this.#followers = followers;
  }

  /** What is followed. */
  get child(): Child {
    return this.#child;
  }

  get followers(): readonly DiskCopy[] {
    return this.#followers;
  }

  get placementBytes(): number | undefined {
    return this.#child.placementBytes;
  }

  get asksForExtents(): boolean {
    return this.#child.asksForExtents === true;
  }

  get fault(): Child["fault"] {
    return this.#child.fault;
  }

  get sizeBytes(): number {
    return this.#child.sizeBytes;
  }

  read(target: Uint8Array, offset: number): Pending {
    return this.#child.read(target, offset);
  }

  readForCopies(target: Uint8Array, offset: number): Pending {
    const child = this.#child;
    return child.readForCopies === undefined ? child.read(target, offset) : child.readForCopies(target, offset);
  }

  write(source: Uint8Array, offset: number, flags: WriteFlags): Pending {
    const marked = this.#mark(offset, source.length);
    if (marked !== undefined) return marked.then(() => this.#write(source, offset, flags));
    return this.#write(source, offset, flags);
  }

  zero(offset: number, length: number, flags: ZeroFlags): Pending {
    const marked = this.#mark(offset, length);
    if (marked !== undefined) return marked.then(() => this.#zero(offset, length, flags));
    return this.#zero(offset, length, flags);
  }

  flush(): Pending {
    return this.#child.flush();
  }

  prefetch(offset: number, length: number): void {
    this.#child.prefetch(offset, length);
  }

  extents(offset: number, length: number, maxExtents: number): Extent[] | Promise<Extent[]> {
    return this.#child.extents(offset, length, maxExtents);
  }

  #mark(offset: number, length: number): Pending {
    let marked: Pending;
    for (const follower of this.#followers) {
      const pending = follower.mark(offset, length);
      if (pending !== undefined) marked = marked === undefined ? pending : Promise.all([marked, pending]).then(nothing);
    }
    return marked;
  }

  #write(source: Uint8Array, offset: number, flags: WriteFlags): Pending {
    let local: Pending;
    try {
      local = this.#child.write(source, offset, flags);
    } catch (error) {
      this.#missed(offset, source.length);
      throw error;
    }
    let taken: Pending;
    for (const follower of this.#followers) taken = joined(taken, follower.write(source, offset, flags));
    return this.#settled(local, taken, offset, source.length);
  }

  #zero(offset: number, length: number, flags: ZeroFlags): Pending {
    let local: Pending;
    try {
      local = this.#child.zero(offset, length, flags);
    } catch (error) {
      this.#missed(offset, length);
      throw error;
    }
    let taken: Pending;
    for (const follower of this.#followers) taken = joined(taken, follower.zero(offset, length, flags));
    return this.#settled(local, taken, offset, length);
  }

  /** Done when the child and all followers are. */
  #settled(local: Pending, taken: Pending, offset: number, length: number): Pending {
    if (local === undefined) return taken;
    return local.then(
      () => taken,
      async (error: unknown) => {
        await taken;
        this.#missed(offset, length);
        throw error;
      },
    );
  }

  #missed(offset: number, length: number): void {
    for (const follower of this.#followers) follower.miss(offset, length);
  }
}

/** From now on `copy` is told of every change of the disk. */
export function follow(disk: ReplicatedDisk, copy: DiskCopy): Promise<void> {
  return disk.replaceChild((child) =>
    child instanceof FollowedChild
      ? new FollowedChild(child.child, [...child.followers, copy])
      : new FollowedChild(child, [copy]),
  );
}

/** No change reaches `copy` any more. */
export function unfollow(disk: ReplicatedDisk, copy: DiskCopy): Promise<void> {
  return disk.replaceChild((child) =>
    child instanceof FollowedChild ? withoutFollower(child, copy, child.child) : child,
  );
}

/** `image` in the place of what the disk's followers follow, without `copy` among them. */
export function withoutFollower(child: Child, copy: DiskCopy, image: Child): Child {
  const others = child instanceof FollowedChild ? child.followers.filter((follower) => follower !== copy) : [];
  return others.length === 0 ? image : new FollowedChild(image, others);
}

/** Puts what `make` gives in the place of what the disk's followers follow. */
export function replaceFollowed(disk: ReplicatedDisk, make: (child: Child) => Child): Promise<void> {
  return disk.replaceChild((child) =>
    child instanceof FollowedChild ? new FollowedChild(make(child.child), child.followers) : make(child),
  );
}

/** Outcomes are for the copies themselves: here it only matters that nothing is under way any more. */
function joined(taken: Pending, outcome: Outcome | Promise<Outcome>): Pending {
  if (!(outcome instanceof Promise)) return taken;
  return taken === undefined ? outcome.then(nothing) : Promise.all([taken, outcome]).then(nothing);
}

function nothing(): void {
  // What was waited for has no result.
}
