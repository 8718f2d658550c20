import { describe, expect, it } from "vitest";
import { RECONNECT_MAX_MS } from "../../../../proto/limits.ts";
import { COMMAND } from "../../../../proto/nbd-protocol.ts";
import { NbdImage } from "../../../../shared/nbd/nbd-image.ts";
import { SeededRandom } from "../../../sim/seeded-random.ts";
import { SimRandom } from "../../../sim/sim-random.ts";
import { FakeNbdServer } from "../../../support/fake-nbd-server.ts";
import { ManualClock } from "../../../support/manual-clock.ts";
import { SilentLog } from "../../../support/silent-log.ts";

const SIZE = 256 * 1024;
const PLAIN = { fua: false } as const;
const EIO = 5;

interface Bench {
  readonly server: FakeNbdServer;
  readonly clock: ManualClock;
  readonly image: NbdImage;
  /** What was noted, and what the server was asked for, in their order. */
  readonly happened: string[];
}

/** An image whose notes take a turn of the event loop each. */
async function noted(): Promise<Bench> {
  const server = new FakeNbdServer(SIZE);
  const clock = new ManualClock();
  const random = new SimRandom(new SeededRandom(1));
  const image = await NbdImage.connect({
    source: server,
    exportName: "vda",
    sizeBytes: undefined,
    clock,
    random,
    log: new SilentLog(),
  });
  const happened: string[] = [];
  const note = (what: string) => async () => {
    await new Promise((resolve) => {
      setImmediate(resolve);
    });
    happened.push(what);
  };
  image.noteWith({
    lost: note("lost"),
    mended: note("mended"),
    replayOwed: note("replay owed"),
    replayed: note("replayed"),
  });
  return { server, clock, image, happened };
}

async function settle(): Promise<void> {
  for (let turns = 0; turns < 40; turns += 1) {
    await new Promise((resolve) => {
      setImmediate(resolve);
    });
  }
}

async function redial({ clock }: Bench): Promise<void> {
  await settle();
  clock.advance(2 * RECONNECT_MAX_MS);
  await settle();
}

function failFlushes(server: FakeNbdServer): void {
  server.mishap = ({ type }) => (type === COMMAND.FLUSH ? EIO : undefined);
}

describe("what an image behind a server has written down", () => {
  it("is a flush that failed, before anybody is told, until one has covered what was written again", async () => {
    const bench = await noted();
    const { image, server, happened } = bench;
    await image.flush();
    await image.write(Buffer.alloc(4096, 1), 0, PLAIN);
    failFlushes(server);
    await image.flush().catch(() => happened.push("told"));
    expect(happened.filter((what) => what !== "replay owed" && what !== "replayed")).toEqual(["lost", "told"]);
    server.mishap = undefined;
    await redial(bench);
    expect(happened).not.toContain("mended");
    await image.flush();
    await settle();
    expect(happened.at(-1)).toBe("mended");
    expect(image.hasLostWrites).toBe(false);
    expect(server.durable[0]).toBe(1);
  });

  it("is a first flush that failed for good: an earlier process may have been answered what it was to cover", async () => {
    const bench = await noted();
    const { image, server, happened } = bench;
    failFlushes(server);
    await expect(image.flush()).rejects.toMatchObject({ code: "io-error" });
    server.mishap = undefined;
    await redial(bench);
    await expect(image.flush()).rejects.toMatchObject({ code: "io-error" });
    await image.syncOwn();
    await settle();
    expect(happened).toEqual(["lost"]);
    expect(image.hasLostWrites).toBe(true);
    image.rewritten();
    await image.flush();
  });

  it("is that a server has died with what no flush had covered, before the next is dialled, until that has it", async () => {
    const bench = await noted();
    const { image, server, happened } = bench;
    await image.write(Buffer.alloc(4096, 1), 0, PLAIN);
    let before: readonly string[] = [];
    server.dialled = () => {
      before = [...happened];
    };
    server.mishap = ({ type }) => (type === COMMAND.WRITE ? "silence" : undefined);
    server.crash();
    await redial(bench);
    expect(before).toEqual(["replay owed"]);
    expect(happened).not.toContain("replayed");
    server.mishap = undefined;
    server.hangUp();
    await redial(bench);
    expect(happened.at(-1)).toBe("replayed");
    expect(server.content[0]).toBe(1);
  });

  it("is nothing when a server dies that had flushed everything", async () => {
    const bench = await noted();
    const { image, server, happened } = bench;
    await image.write(Buffer.alloc(4096, 1), 0, PLAIN);
    await image.flush();
    server.crash();
    await redial(bench);
    await image.flush();
    expect(happened).toEqual([]);
    expect(server.content[0]).toBe(1);
  });
});
