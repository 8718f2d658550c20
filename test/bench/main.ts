/**
 * `npm run bench`: how long a checkpoint takes in the agent, after a little and after much was written. Both sizes are
 * measured in turns in one run, so that drift of the machine hits both alike; only their ratio means anything.
 *
 * It is measured in memory and on the disk. On the disk with durability `process`, what was written is still on its way
 * to the disk when the checkpoint's record is fsynced, and the two compete: that row is for information only.
 *
 * Options: `--rounds N` (20), `--dir DIR` (a directory on the disk; the system's temporary one), `--json`.
 */
import { existsSync } from "node:fs";
import { tmpdir } from "node:os";
import { parseArgs } from "node:util";
import { DURABILITIES, type Durability } from "../../proto/words.ts";
import { BenchPair } from "./bench-pair.ts";
import { randomWrites } from "./fio.ts";

const MIB = 1024 * 1024;
const DISK_BYTES = 2 * 1024 * MIB;
/** QEMU's own pair takes 3 ms and 180 ms for these two: 60 times longer. Ours must not grow with what was written. */
const RATIO_MAX = 3;

const SIZES = [
  { name: "1 MiB", bytes: MIB, blockBytes: 4096 },
  { name: "1 GiB", bytes: 1024 * MIB, blockBytes: 65_536 },
] as const;

const MEMORY_DIRECTORY = "/dev/shm";

interface Place {
  readonly name: "memory" | "disk";
  readonly directory: string;
}

interface Row {
  readonly place: Place["name"];
  readonly durability: Durability;
  readonly dirty: string;
  readonly prepareMs: number;
  readonly commitMs: number;
  readonly totalMs: number;
  readonly worstMs: number;
}

const { values } = parseArgs({
  options: {
    rounds: { type: "string", default: "20" },
    dir: { type: "string", default: tmpdir() },
    json: { type: "boolean", default: false },
  },
});

const places: Place[] = [{ name: "disk", directory: values.dir }];
if (existsSync(MEMORY_DIRECTORY)) places.unshift({ name: "memory", directory: MEMORY_DIRECTORY });

const rows: Row[] = [];
for (const place of places) {
  for (const durability of DURABILITIES) rows.push(...(await measure(place, durability, Number(values.rounds))));
}
report(rows);

async function measure(place: Place, durability: Durability, rounds: number): Promise<Row[]> {
  const pair = await BenchPair.start(place.directory, DISK_BYTES, durability);
  const samples = new Map<string, { prepareMs: number; commitMs: number }[]>(SIZES.map(({ name }) => [name, []]));
  try {
    for (let round = 1; round <= rounds; round += 1) {
      for (const [index, { name, bytes, blockBytes }] of SIZES.entries()) {
        const seed = round * SIZES.length + index;
        await randomWrites({ uri: pair.uri, directory: pair.directory, bytes, blockBytes, depth: 16, seed });
        await pair.idle();
        const { prepareMs, commitMs } = await pair.checkpoint();
        samples.get(name)?.push({ prepareMs, commitMs: commitMs ?? 0 });
      }
      process.stderr.write(`\r${place.name}, ${durability}: round ${round} of ${rounds}`);
    }
    process.stderr.write("\n");
  } finally {
    await pair.stop();
  }
  return SIZES.map(({ name }) => {
    const taken = samples.get(name) ?? [];
    const totals = taken.map(({ prepareMs, commitMs }) => prepareMs + commitMs);
    return {
      place: place.name,
      durability,
      dirty: name,
      prepareMs: median(taken.map(({ prepareMs }) => prepareMs)),
      commitMs: median(taken.map(({ commitMs }) => commitMs)),
      totalMs: median(totals),
      worstMs: Math.max(...totals),
    };
  });
}

function report(measured: readonly Row[]): void {
  const ratios: { place: Place["name"]; durability: Durability; ratio: number; judged: boolean }[] = [];
  for (const { name: place } of places) {
    for (const durability of DURABILITIES) {
      const [small, large] = measured.filter((row) => row.place === place && row.durability === durability);
      const ratio = (large?.totalMs ?? 0) / (small?.totalMs ?? 1);
      ratios.push({ place, durability, ratio, judged: place === "memory" || durability === "power" });
    }
  }
  if (values.json) process.stdout.write(`${JSON.stringify({ checkpoint: measured, ratios })}\n`);
  else process.stdout.write(`${renderTable(measured, ratios)}\n`);
  if (ratios.some(({ ratio, judged }) => judged && ratio > RATIO_MAX)) process.exitCode = 1;
}

function renderTable(
  measured: readonly Row[],
  ratios: readonly { place: string; durability: Durability; ratio: number; judged: boolean }[],
): string {
  const ms = (value: number): string => value.toFixed(2).padStart(9);
  const lines = ["checkpoint, median ms              prepare   commit    total    worst"];
  for (const row of measured) {
    const label = `${row.place.padEnd(6)} ${row.durability.padEnd(7)} ${row.dirty} written`;
    lines.push(`${label.padEnd(32)}${ms(row.prepareMs)}${ms(row.commitMs)}${ms(row.totalMs)}${ms(row.worstMs)}`);
  }
  for (const { place, durability, ratio, judged } of ratios) {
    const bound = judged ? `at most ${RATIO_MAX}` : "for information";
    lines.push(`${place}, ${durability}: after 1 GiB ${ratio.toFixed(2)} times as long as after 1 MiB (${bound})`);
  }
  return lines.join("\n");
}

function median(numbers: readonly number[]): number {
  const sorted = [...numbers].sort((left, right) => left - right);
  const middle = Math.floor(sorted.length / 2);
  const high = sorted[middle] ?? 0;
  return sorted.length % 2 === 1 ? high : (high + (sorted[middle - 1] ?? 0)) / 2;
}
