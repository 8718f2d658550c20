import assert from "node:assert/strict";
import { describe, expect, it } from "vitest";
import { GREETING_BYTES } from "../../proto/nbd-protocol.ts";
import { ReplyArenaPool } from "../../shared/nbd/reply-writer.ts";
import { MemoryDevice } from "../support/memory-device.ts";
import { below, damageSession, seededRandom, splitAtRandom } from "../support/nbd-damage.ts";
import type { SeededRandom } from "../support/nbd-damage.ts";
import { decodeAnswers, splitAfterNegotiation } from "../support/nbd-client.ts";
import { NbdHarness, TestDirectory, TestExport } from "../support/nbd-harness.ts";
import { recordedSessions } from "../support/nbd-sessions.ts";
import type { RecordedSession } from "../support/nbd-sessions.ts";

const SIZE = 64 * 1024;
const SESSIONS = recordedSessions();

function sessionAt(index: number): RecordedSession {
  const session = SESSIONS[index % SESSIONS.length];
  assert(session !== undefined);
  return session;
}

const PRISTINE = Buffer.from(Array.from({ length: SIZE }, (_, index) => (index * 31 + (index >> 8)) & 0xff));

function pristineDevice(): MemoryDevice {
  const device = new MemoryDevice(SIZE);
  void device.write(PRISTINE.subarray(0, SIZE / 2), 0, { fua: false });
  return device;
}

const UNTOUCHED = Buffer.from(pristineDevice().bytes);

interface Server {
  readonly device: MemoryDevice;
  readonly nbdExport: TestExport;
  readonly directory: TestDirectory;
  readonly arenas: ReplyArenaPool;
}

function server(readOnly: boolean): Server {
  const device = pristineDevice();
  const nbdExport = new TestExport("vda", device, "fuzzed");
  nbdExport.readOnly = readOnly;
  return { device, nbdExport, directory: new TestDirectory(nbdExport), arenas: new ReplyArenaPool() };
}

/** Runs a client's whole life and returns what it received. Fails when anything is left behind. */
function run(
  { device, directory, arenas }: Server,
  chunks: readonly Buffer[],
  leaves: "half-close" | "abruptly",
): Buffer {
  const harness = new NbdHarness(directory, { arenas });
  harness.send(...chunks);
  if (leaves === "half-close") {
    harness.halfClose();
    if (!harness.hasEnded && !harness.isDestroyed) throw new Error("the connection neither ended nor was cut");
  }
  harness.disconnect();
  assertNothingIsLeft(harness, device, directory);
  const output = harness.takeOutput();
  if (output.length < GREETING_BYTES) throw new Error("the client was not greeted");
  return output;
}

function assertNothingIsLeft(harness: NbdHarness, device: MemoryDevice, directory: TestDirectory): void {
  if (harness.log.errors.length > 0) throw new Error(`a bug was logged: ${JSON.stringify(harness.log.errors)}`);
  if (!harness.isGone) throw new Error("the connection is not gone");
  if (harness.budget.usedBytes !== 0) throw new Error("memory was not given back");
  if (device.openWrites !== 0) throw new Error("a write was left open");
  if (directory.openNames.length !== 0) throw new Error("the export was left open");
}

/** Calls `check` with each of `count` damaged sessions; a failure names the seed and the session that replay it. */
function forEachMutation(count: number, seed: number, check: (damaged: Buffer, random: SeededRandom) => void): void {
  for (let index = 0; index < count; index += 1) {
    const mutationSeed = seed * 1_000_003 + index;
    const random = seededRandom(mutationSeed);
    const session = sessionAt(index);
    const damaged = damageSession(session.bytes, random);
    try {
      check(damaged, random);
    } catch (error) {
      throw new Error(`seed ${mutationSeed}, session "${session.name}": ${damaged.toString("hex")}`, { cause: error });
    }
  }
}

/** Every recorded session still works, and is answered in full. */
function assertServesWell(target: Server): void {
  for (const { bytes } of SESSIONS) {
    const output = run(target, [bytes], "half-close");
    const { rest } = splitAfterNegotiation(output);
    if (bytes.includes("25609513", 0, "hex") && rest.length === 0) throw new Error("requests were not answered");
  }
}

describe("recorded sessions", () => {
  it.each(SESSIONS.filter(({ name }) => name.startsWith("structured")))(
    "$name is answered without an error",
    ({ bytes }) => {
      const { rest } = splitAfterNegotiation(run(server(false), [bytes], "half-close"));
      const answers = decodeAnswers(rest, () => 0);
      expect(answers.length).toBeGreaterThan(0);
      expect(answers.map(({ error }) => error)).toEqual(answers.map(() => 0));
    },
  );
});

describe("damaged sessions", () => {
  it("never throw, always end, and never change a read-only disk", { timeout: 120_000 }, () => {
    const target = server(true);
    forEachMutation(100_000, 1, (damaged, random) => {
      run(target, splitAtRandom(damaged, random), below(random, 10) < 7 ? "half-close" : "abruptly");
      if (!target.device.bytes.equals(UNTOUCHED)) throw new Error("the disk was changed");
    });
    assertServesWell(target);
  });

  it("leave a writable disk that serves the next client well", { timeout: 120_000 }, () => {
    const target = server(false);
    forEachMutation(10_000, 2, (damaged, random) => {
      run(target, splitAtRandom(damaged, random), "half-close");
    });
    assertServesWell(target);
  });

  it("mean the same however they are cut into chunks", { timeout: 120_000 }, () => {
    const whole = server(false);
    const cut = server(false);
    forEachMutation(10_000, 3, (damaged, random) => {
      const expected = run(whole, [damaged], "half-close");
      const received = run(cut, splitAtRandom(damaged, random), "half-close");
      if (!received.equals(expected)) throw new Error("other replies");
      if (!cut.device.bytes.equals(whole.device.bytes)) throw new Error("another disk");
    });
  });

  it("are survived by a server whose disk is slow and whose clients do not read", { timeout: 120_000 }, async () => {
    const target = server(true);
    target.device.gate = () => Promise.resolve();
    for (let index = 0; index < 2_000; index += 1) {
      const random = seededRandom(4_000_000 + index);
      const session = sessionAt(index);
      const harness = new NbdHarness(target.directory, { arenas: target.arenas });
      harness.clientDrains = below(random, 2) === 0;
      const chunks = splitAtRandom(damageSession(session.bytes, random), random);
      const leaveAfter = below(random, chunks.length + 1);
      for (const chunk of chunks.slice(0, leaveAfter)) harness.send(chunk);
      if (below(random, 2) === 0) harness.halfClose();
      if (below(random, 2) === 0) await harness.settle();
      harness.disconnect();
      await harness.settle();
      assertNothingIsLeft(harness, target.device, target.directory);
    }
    expect(target.device.bytes.equals(UNTOUCHED)).toBe(true);
  });
});
