import { describe, expect, it } from "vitest";
import { ColobusError } from "../../../proto/errors.ts";
import { CONTENT_MAX_BYTES, CONTENT_REQUESTS_MAX } from "../../../proto/limits.ts";
import { SecondaryReads } from "../../../primary/secondary-reads.ts";
import { clusterGeometry } from "../../../shared/block/cluster-geometry.ts";
import { DirtyMap } from "../../../shared/replication/dirty-map.ts";
import { turn } from "../../support/memory-storage.ts";
import { SilentLog } from "../../support/silent-log.ts";

const SIZE = 64 * CONTENT_MAX_BYTES;
const CLUSTER = 4096;

interface Question {
  readonly offset: number;
  readonly length: number;
  answer(content?: Buffer): void;
  refuse(): void;
}

/** A secondary that answers when it is told to. */
class Secondary {
  readonly dirtyMap = new DirtyMap(clusterGeometry(SIZE, CLUSTER));
  readonly questions: Question[] = [];
  readonly session = {
    peer: { agentId: "" },
    content: (_: number, offset: number, length: number): Promise<Buffer> =>
      new Promise((resolve, reject) => {
        this.questions.push({
          offset,
          length,
          answer: (content = Buffer.alloc(length, offset / CONTENT_MAX_BYTES)) => resolve(content),
          refuse: () => reject(new ColobusError("io-error", "no")),
        });
      }),
  };
  readonly replicator = { isEstablished: true, streamingSession: this.session as never };
  readonly tracking = { dirty: () => this.dirtyMap };

  constructor(agentId: string) {
    this.session.peer.agentId = agentId;
  }
}

describe("what the image fails to give", () => {
  it("is asked for in pieces, so many at a time, whoever reads", async () => {
    const secondary = new Secondary("b");
    const reads = new SecondaryReads(new SilentLog(), [secondary]);
    const targets = [Buffer.alloc(20 * CONTENT_MAX_BYTES + 5), Buffer.alloc(CONTENT_MAX_BYTES)];
    const reading = targets.map((target) => reads.read(0, target, 0));
    await turn();
    const { questions } = secondary;
    expect(questions).toHaveLength(CONTENT_REQUESTS_MAX);
    for (let answered = 0; answered < questions.length; answered += 1) {
      expect(questions.length - answered).toBeLessThanOrEqual(CONTENT_REQUESTS_MAX);
      questions[answered]?.answer();
      await turn();
    }
    expect(await Promise.all(reading)).toEqual(["b", "b"]);
    expect(questions).toHaveLength(22);
    expect(questions[20]).toMatchObject({ offset: 20 * CONTENT_MAX_BYTES, length: 5 });
    expect([...(targets[0] ?? [])].every((byte, at) => byte === Math.floor(at / CONTENT_MAX_BYTES))).toBe(true);
    expect(targets[1]?.equals(Buffer.alloc(CONTENT_MAX_BYTES))).toBe(true);
  });

  it("is asked for again elsewhere when one fails, and fails only when nothing of it is under way any more", async () => {
    const [b, c] = [new Secondary("b"), new Secondary("c")];
    const reads = new SecondaryReads(new SilentLog(), [b, c]);
    let isDone = false;
    const reading = reads.read(0, Buffer.alloc(2 * CONTENT_MAX_BYTES), 0).finally(() => {
      isDone = true;
    });
    await turn();
    for (const question of b.questions) question.refuse();
    await turn();
    c.questions[0]?.refuse();
    await turn();
    expect(isDone).toBe(false);
    c.questions[1]?.answer();
    expect(await reading).toBeUndefined();
    const again = reads.read(0, Buffer.alloc(CLUSTER), 0);
    await turn();
    b.questions[2]?.answer();
    expect(await again).toBe("b");
  });

  it("is asked of nobody who lacks any of it, and first of one who lacks nothing", async () => {
    const [b, c] = [new Secondary("b"), new Secondary("c")];
    const reads = new SecondaryReads(new SilentLog(), [b, c]);
    b.replicator.isEstablished = false;
    b.dirtyMap.addBytes(CLUSTER, 1);
    c.dirtyMap.addBytes(5 * CLUSTER, 1);
    const both = reads.read(0, Buffer.alloc(CLUSTER), 0);
    await turn();
    expect([b, c].map(({ questions }) => questions.length)).toEqual([0, 1]);
    c.questions[0]?.answer();
    expect(await both).toBe("c");
    expect(await reads.read(0, Buffer.alloc(6 * CLUSTER), 0)).toBeUndefined();
    const behind = reads.read(0, Buffer.alloc(CLUSTER + 1), 4 * CLUSTER);
    await turn();
    b.questions[0]?.answer();
    expect(await behind).toBe("b");
  });
});
