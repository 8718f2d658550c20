import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import type { SeededRandom } from "./seeded-random.ts";
import { SimDirectory, type SimDisk, type SimNode, type Survival } from "./sim-disk.ts";
import type { Fate, UnsyncedOperation } from "./sim-inode.ts";

/**
 * What a loss of power may leave of a disk at one moment, image by image.
 *
 * Everything unsynced is a list of *units*: each operation on a file, and each directory. An image is one choice for
 * each unit. A directory keeps that many of its changes, which are ordered; an operation is lost, kept, torn, or leaves
 * its file longer and nothing else. What a choice means for operations over or behind a lost one the disk itself knows,
 * so different choices may come to the same content: `fingerprint` tells.
 */
export type CrashImage = readonly number[];

export interface CrashUnit {
  /** Keeping everything is the choice of this number, losing everything is 0. */
  readonly whole: number;
  /** Choices that leave a part. */
  readonly torn: readonly number[];
  /** Units of one file are neighbours, in the order of its operations. */
  readonly file: number;
}

const LOST = 0;
const KEPT = 1;
/** Torn behind its first sector: what counts most lies there, or right behind it. */
const FIRST_SECTOR = 2;
const ALL_BUT_FIRST = 3;
const SIZE_ONLY = 4;

/** Up to this many images of whole operations are all tried. */
const EXHAUSTIVE_MAX = 64;
/** Of more than that, this many are drawn beside those that are always tried. */
const DRAWN = 24;

/** The units of the disk as it is now. */
export function crashUnits(disk: SimDisk): CrashUnit[] {
  const units: CrashUnit[] = [];
  for (const [file, node] of [...disk.nodes()].entries()) {
    if (node instanceof SimDirectory) {
      if (node.unsyncedCount > 0) units.push({ whole: node.unsyncedCount, torn: [], file });
    } else {
      for (const operation of node.unsynced()) units.push({ whole: KEPT, torn: tearsOf(operation), file });
    }
  }
  return units;
}

function tearsOf({ kind, sectorCount, grows }: UnsyncedOperation): number[] {
  const torn: number[] = [];
  if ((kind === "write" || kind === "zero") && sectorCount > 1) torn.push(FIRST_SECTOR, ALL_BUT_FIRST);
  if (grows) torn.push(SIZE_ONLY);
  return torn;
}

/**
 * The images to be tried: all of them, whole operations lost or kept, where they are few; else everything kept,
 * everything lost, each unit lost or kept alone, each file cut at each place while the others are kept or lost, and
 * some that are drawn. And each operation torn, while all others are kept, lost, or kept as far as they came before it.
 */
export function crashImages(units: readonly CrashUnit[], random: SeededRandom): CrashImage[] {
  const images = new Map<string, CrashImage>();
  const add = (image: CrashImage): void => {
    images.set(image.join(), image);
  };
  const kept = units.map(({ whole }) => whole);
  const lost = units.map(() => LOST);
  const combinations = units.reduce((product, { whole }) => product * (whole + 1), 1);
  if (combinations <= EXHAUSTIVE_MAX) {
    for (let number = 0; number < combinations; number += 1) add(combination(units, number));
  } else {
    add(kept);
    add(lost);
    for (const [index, { whole, file }] of units.entries()) {
      for (let choice = 0; choice <= whole; choice += 1) {
        add(kept.with(index, choice));
        add(lost.with(index, choice));
      }
      const isInFile = (at: number): boolean => units[at]?.file === file;
      for (const others of [kept, lost]) {
        add(others.map((choice, at) => (isInFile(at) ? (at <= index ? (kept[at] ?? 0) : LOST) : choice)));
      }
    }
    for (let count = 0; count < DRAWN; count += 1) {
      add(units.map(({ whole, torn }) => random.pick([...torn, ...Array.from({ length: whole + 1 }, (_, at) => at)])));
    }
  }
  for (const [index, { torn }] of units.entries()) {
    for (const choice of torn) {
      add(kept.with(index, choice));
      add(lost.with(index, choice));
      add(kept.map((whole, at) => (at < index ? whole : at === index ? choice : LOST)));
    }
  }
  return [...images.values()];
}

/** The image of whole operations that has this number, counted like an odometer. */
function combination(units: readonly CrashUnit[], number: number): CrashImage {
  let rest = number;
  return units.map(({ whole }) => {
    const choice = rest % (whole + 1);
    rest = Math.floor(rest / (whole + 1));
    return choice;
  });
}

/** Leaves `image` of the disk as it is now, which must have the units that the image was made for. */
export function survivalOf(disk: SimDisk, image: CrashImage): Survival {
  const choices = new Map<SimNode, readonly number[]>();
  let at = 0;
  for (const node of disk.nodes()) {
    const count = node instanceof SimDirectory ? Math.min(1, node.unsyncedCount) : node.unsyncedCount;
    choices.set(node, image.slice(at, at + count));
    at += count;
  }
  assert.equal(at, image.length, "the image was made for another moment");
  const choiceOf = (node: SimNode, index: number): number => choices.get(node)?.[index] ?? LOST;
  return {
    keptNames: (directory) => choiceOf(directory, 0),
    losePower: (inode) => inode.losePowerKeeping((index) => fateOf(choiceOf(inode, index))),
  };
}

function fateOf(choice: number): Fate {
  return {
    keepsWhole: choice === KEPT,
    keepsSector: (sector) => choice === KEPT || choice === (sector === 0 ? FIRST_SECTOR : ALL_BUT_FIRST),
    keepsSize: choice === SIZE_ONLY,
  };
}

/** Equal for disks with equal names, content, and storage. */
export function fingerprint(disk: SimDisk): string {
  const hash = createHash("sha1");
  for (const path of disk.paths()) {
    hash.update(`${path} ${disk.file(path).content.pageCount}\n`);
    hash.update(disk.readFile(path));
  }
  return hash.digest("hex");
}
