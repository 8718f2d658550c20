import { setImmediate as turn } from "node:timers/promises";
import { describe, expect, it } from "vitest";
import { VmStateStream } from "../../../primary/vm-state-stream.ts";
import { ColobusError } from "../../../proto/errors.ts";
import { VMSTATE_CHUNK_BYTES, VMSTATE_WINDOW_CHUNKS } from "../../../proto/limits.ts";
import { decodeMessage, type VmStateMessage } from "../../../proto/replication-messages.ts";

/** Every stream has the messages that it has sent. */
function streamOf(): { stream: VmStateStream; sent: VmStateMessage[] } {
  const sent: VmStateMessage[] = [];
  const stream = new VmStateStream(7, (parts) => {
    const message = decodeMessage(Buffer.concat(parts));
    if (message.type === "vmstate") sent.push(message);
  });
  return { stream, sent };
}

async function* pieces(...of: readonly Buffer[]): AsyncGenerator<Uint8Array, void, undefined> {
  for (const piece of of) {
    await turn();
    yield piece;
  }
}

async function* endless(asked: { pieces: number }): AsyncGenerator<Uint8Array, void, undefined> {
  for (;;) {
    await turn();
    asked.pieces += 1;
    yield Buffer.alloc(VMSTATE_CHUNK_BYTES, asked.pieces);
  }
}

describe("the stream of a VM state", () => {
  it("gathers pieces of any length into chunks, and says what they were", async () => {
    const { stream, sent } = streamOf();
    const content = [Buffer.from("a"), Buffer.alloc(VMSTATE_CHUNK_BYTES, 1), Buffer.alloc(0), Buffer.from("bc")];
    const mark = await stream.pump(pieces(...content));
    expect(Buffer.concat(sent.map(({ payload }) => payload)).equals(Buffer.concat(content))).toBe(true);
    expect(sent.map(({ epoch, index, payload }) => [epoch, index, payload.length])).toEqual([
      [7, 0, VMSTATE_CHUNK_BYTES],
      [7, 1, 3],
    ]);
    expect(mark).toMatchObject({ chunks: 2, bytes: VMSTATE_CHUNK_BYTES + 3 });
  });

  it("takes no more from the sender than the window and a chunk, until the secondary has taken some", async () => {
    const { stream, sent } = streamOf();
    const asked = { pieces: 0 };
    const pumping = stream.pump(endless(asked));
    await expect.poll(() => sent.length).toBe(VMSTATE_WINDOW_CHUNKS);
    for (let turns = 0; turns < 50; turns += 1) await turn();
    expect(sent.length).toBe(VMSTATE_WINDOW_CHUNKS);
    expect(asked.pieces).toBe(VMSTATE_WINDOW_CHUNKS + 1);
    stream.acknowledge(3, undefined);
    await expect.poll(() => sent.length).toBe(VMSTATE_WINDOW_CHUNKS + 3);
    stream.fail(new ColobusError("connection-lost", "the session is over"));
    await expect(pumping).rejects.toMatchObject({ code: "connection-lost" });
  });

  it("ends with the secondary's reason, even while the sender says nothing", async () => {
    const { stream } = streamOf();
    const silent: AsyncIterator<Uint8Array> = { next: () => new Promise<never>(() => {}) };
    const pumping = stream.pump(silent);
    await turn();
    stream.acknowledge(0, new ColobusError("out-of-space", "no room"));
    await expect(pumping).rejects.toMatchObject({ code: "out-of-space" });
  });

  it("tells a sender that broke off, or had nothing to say", async () => {
    const broken: AsyncIterator<Uint8Array> = { next: () => Promise.reject(new Error("reset")) };
    await expect(streamOf().stream.pump(broken)).rejects.toMatchObject({ code: "vmstate-interrupted" });
    await expect(streamOf().stream.pump(pieces())).rejects.toMatchObject({ code: "vmstate-interrupted" });
  });

  it("refuses an acknowledgement of what was not sent", () => {
    const { stream } = streamOf();
    expect(() => stream.acknowledge(1, undefined)).toThrow(/has taken 1 chunks of 0/);
  });
});
