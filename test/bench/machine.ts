import { spawnSync } from "node:child_process";
import { cpus, release, totalmem } from "node:os";
import { missingPeers } from "../support/peers.ts";

/** The programs that are measured, or measure, and how each tells its version. */
const PROGRAMS = { "qemu-system-x86_64": "QEMU", "nbdkit": "nbdkit", "fio": "fio" } as const;
const ALL_PROGRAMS = [...Object.keys(PROGRAMS), "qemu-img", "qemu-nbd", "nbdcopy", "gcc"];

/** Where figures were measured: they mean nothing without. */
export interface Machine {
  readonly processor: string;
  readonly cores: number;
  readonly memoryGib: number;
  readonly kernel: string;
  /** By the name of the program. */
  readonly versions: Readonly<Record<string, string>>;
}

/** What the benchmarks need and is not installed. */
export function missingPrograms(): string[] {
  const missing = missingPeers(...ALL_PROGRAMS);
  if (missing.length === 0 && spawnSync("fio", ["--enghelp=nbd"]).status !== 0) missing.push("fio's NBD engine");
  return missing;
}

/** This machine. Nothing must be missing. */
export function thisMachine(): Machine {
  const versions: Record<string, string> = { Node: process.versions.node };
  for (const [program, name] of Object.entries(PROGRAMS)) versions[name] = versionOf(program);
  return {
    processor: cpus()[0]?.model ?? "unknown",
    cores: cpus().length,
    memoryGib: Math.round(totalmem() / 1024 ** 3),
    kernel: release(),
    versions,
  };
}

/** One sentence for a report. */
export function describeMachine({ processor, cores, memoryGib, kernel, versions }: Machine): string {
  const programs = Object.entries(versions).map(([name, version]) => `${name} ${version}`);
  return `${processor}, ${cores} cores, ${memoryGib} GiB of memory, Linux ${kernel}; ${programs.join(", ")}`;
}

function versionOf(program: string): string {
  const output = spawnSync(program, ["--version"], { encoding: "utf8" }).stdout;
  return /\d+(\.\d+)+/.exec(output)?.[0] ?? "of unknown version";
}
