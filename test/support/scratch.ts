/**
 * Places for the tests that use real files: a directory of its own for each test, a tiny file system, and a block
 * device. The last two need root, and a kernel that allows them to be made; where it does not, their tests are left
 * out, loudly.
 */
import { spawnSync } from "node:child_process";
import { closeSync, ftruncateSync, mkdirSync, mkdtempSync, openSync, rmSync, statfsSync, truncateSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { onTestFinished } from "vitest";
import { leaveOut } from "./peers.ts";

/** A new directory that is removed with all its content when the test has finished. */
export function scratchDirectory(): string {
  const path = mkdtempSync(join(tmpdir(), "colobus-test-"));
  onTestFinished(() => rmSync(path, { recursive: true, force: true }));
  return path;
}

/** An empty tmpfs of `sizeBytes` that is unmounted when the test has finished. */
export function scratchFileSystem(sizeBytes: number): string {
  const path = join(scratchDirectory(), "small");
  mkdirSync(path);
  run("mount", "-t", "tmpfs", "-o", `size=${sizeBytes}`, "colobus-test", path);
  // Runs before the removal of the directory: vitest calls the later one first.
  onTestFinished(() => void run("umount", path));
  return path;
}

/** An empty ext2, which has neither `fallocate` nor zero ranges, on a device of `sizeBytes`. */
export function scratchOldFileSystem(sizeBytes: number): string {
  const device = scratchBlockDevice(sizeBytes);
  run("mkfs.ext2", "-q", device);
  const path = join(scratchDirectory(), "old");
  mkdirSync(path);
  run("mount", "-t", "ext2", device, path);
  onTestFinished(() => void run("umount", path));
  return path;
}

/**
 * A loop device of `sizeBytes` over a sparse file, detached when the test has finished. The file lies in `directory`: when
 * that has no room, writes to the device are taken and its next fsync fails, as a thinly provisioned one's does.
 */
export function scratchBlockDevice(sizeBytes: number, directory = scratchDirectory()): string {
  const backing = join(directory, "backing");
  const fd = openSync(backing, "w");
  ftruncateSync(fd, sizeBytes);
  closeSync(fd);
  return blockDeviceOver(backing);
}

/** A loop device over the file `backing`, detached when the test has finished. */
export function blockDeviceOver(backing: string): string {
  const device = run("losetup", "--find", "--show", backing);
  onTestFinished(() => void run("losetup", "--detach", device));
  return device;
}

/** Makes a device over the file `backing` longer, while whoever has it open goes on. */
export function lengthenBlockDevice(device: string, backing: string, sizeBytes: number): void {
  truncateSync(backing, sizeBytes);
  run("losetup", "--set-capacity", device);
}

/** Whether scratch directories lie in a file system without a device. */
export function isInMemory(): boolean {
  const TMPFS_MAGIC = 0x01021994;
  return statfsSync(tmpdir()).type === TMPFS_MAGIC;
}

/** Whether `scratchFileSystem` works here: for `describe.runIf(…)`. */
export function canMount(): boolean {
  const path = mkdtempSync(join(tmpdir(), "colobus-probe-"));
  const tried = spawnSync("mount", ["-t", "tmpfs", "-o", "size=64k", "colobus-probe", path], { encoding: "utf8" });
  if (tried.status === 0) run("umount", path);
  rmSync(path, { recursive: true });
  return tried.status === 0 || leftOut("A file system cannot be mounted", tried.stderr);
}

/** Whether `scratchBlockDevice` and `scratchOldFileSystem` work here: for `describe.runIf(…)`. */
export function canMakeBlockDevices(): boolean {
  const path = mkdtempSync(join(tmpdir(), "colobus-probe-"));
  const backing = join(path, "backing");
  const fd = openSync(backing, "w");
  ftruncateSync(fd, 65_536);
  closeSync(fd);
  const tried = spawnSync("losetup", ["--find", "--show", backing], { encoding: "utf8" });
  if (tried.status === 0) run("losetup", "--detach", tried.stdout.trim());
  rmSync(path, { recursive: true });
  return tried.status === 0 || leftOut("A loop device cannot be made", tried.stderr);
}

function leftOut(what: string, why: string | null): false {
  return leaveOut(`${what} here, run them as root. ${(why ?? "").trim()}`);
}

function run(program: string, ...args: string[]): string {
  const done = spawnSync(program, args, { encoding: "utf8" });
  if (done.status !== 0) throw new Error(`${program} ${args.join(" ")}: ${done.stderr ?? String(done.error)}`);
  return done.stdout.trim();
}
