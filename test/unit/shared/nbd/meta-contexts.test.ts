import { describe, expect, it } from "vitest";
import { ColobusError } from "../../../../proto/errors.ts";
import { CHUNK, COMMAND, COMMAND_FLAG, OPTION, OPTION_REPLY } from "../../../../proto/nbd-protocol.ts";
import { Handshake } from "../../../../shared/nbd/handshake.ts";
import type { MetaContext } from "../../../../shared/nbd/meta-context.ts";
import { MemoryDevice } from "../../../support/memory-device.ts";
import { NbdHarness, TestDirectory, TestExport } from "../../../support/nbd-harness.ts";
import {
  clientFlags,
  infoData,
  metaData,
  option,
  request,
  splitAfterNegotiation,
} from "../../../support/nbd-client.ts";

const SIZE = 1024 * 1024;
const CLUSTER = 65_536;
const ONE = "qemu:dirty-bitmap:one";
const TWO = "qemu:dirty-bitmap:two";
const STRUCTURED = option(OPTION.STRUCTURED_REPLY);

/** Clean, dirty, clean …, a cluster each. */
function stripes(name: string): MetaContext {
  return {
    name,
    extents: (offset, length, maxExtents) => {
      const extents: { length: number; flags: number }[] = [];
      for (let at = offset; at < offset + length && extents.length < maxExtents;) {
        const cluster = Math.floor(at / CLUSTER);
        const to = Math.min(offset + length, (cluster + 1) * CLUSTER);
        extents.push({ length: to - at, flags: cluster % 2 });
        at = to;
      }
      return extents;
    },
  };
}

class BitmapExport extends TestExport {
  contexts: MetaContext[] = [stripes(ONE), stripes(TWO)];
}

function start(): { harness: NbdHarness; exported: BitmapExport } {
  const exported = new BitmapExport("vda", new MemoryDevice(SIZE));
  return {
    harness: new NbdHarness(new TestDirectory(exported, new TestExport("vdb", new MemoryDevice(SIZE)))),
    exported,
  };
}

/** The contexts that a server answers with: `id name`. */
function answered(
  code: typeof OPTION.LIST_META_CONTEXT | typeof OPTION.SET_META_CONTEXT,
  ...queries: string[]
): string[] {
  const { harness } = start();
  harness.send(clientFlags(), STRUCTURED, option(code, metaData("vda", queries)));
  const { answers } = splitAfterNegotiation(harness.takeOutput());
  expect(answers.at(-1)?.type).toBe(OPTION_REPLY.ACK);
  return answers.slice(1, -1).map(({ data }) => `${data.readUInt32BE(0)} ${data.toString("utf8", 4)}`);
}

/** The chunks of the reply to a block status, after a selection: context, whether it is the last, and the extents. */
function status(
  queries: readonly string[],
  fields: { readonly offset: number; readonly length: number; readonly flags?: number },
  before: (exported: BitmapExport) => void = () => undefined,
): { type: number; isLast: boolean; values: number[] }[] {
  const { harness, exported } = start();
  harness.send(
    clientFlags(),
    STRUCTURED,
    option(OPTION.SET_META_CONTEXT, metaData("vda", [...queries])),
    option(OPTION.GO, infoData("vda")),
  );
  harness.takeOutput();
  before(exported);
  harness.send(request({ type: COMMAND.BLOCK_STATUS, cookie: 5, ...fields }));
  const output = harness.takeOutput();
  const chunks: { type: number; isLast: boolean; values: number[] }[] = [];
  for (let at = 0; at < output.length;) {
    const length = output.readUInt32BE(at + 16);
    const values: number[] = [];
    for (let word = 0; word + 4 <= length; word += 4) values.push(output.readUInt32BE(at + 20 + word));
    chunks.push({ type: output.readUInt16BE(at + 6), isLast: output.readUInt16BE(at + 4) === 1, values });
    at += 20 + length;
  }
  return chunks;
}

describe("contexts beside base:allocation", () => {
  it.each([
    ["LIST without queries has all", [], ["0 base:allocation", `0 ${ONE}`, `0 ${TWO}`]],
    ["LIST of the namespace", ["qemu:"], [`0 ${ONE}`, `0 ${TWO}`]],
    ["LIST of the bitmaps", ["qemu:dirty-bitmap:"], [`0 ${ONE}`, `0 ${TWO}`]],
    ["LIST by name", [TWO, "qemu:dirty-bitmap:three"], [`0 ${TWO}`]],
  ])("%s", (_, queries, expected) => {
    expect(answered(OPTION.LIST_META_CONTEXT, ...queries)).toEqual(expected);
  });

  it("SET takes names only, each once, with ids of their own", () => {
    expect(answered(OPTION.SET_META_CONTEXT, "qemu:", "qemu:dirty-bitmap:")).toEqual([]);
    expect(answered(OPTION.SET_META_CONTEXT, TWO, "base:allocation", ONE, TWO)).toEqual([
      "1 base:allocation",
      `2 ${ONE}`,
      `3 ${TWO}`,
    ]);
  });

  it("a block status has one chunk for each, and the last one ends the reply", () => {
    const range = { offset: CLUSTER / 2, length: 2 * CLUSTER };
    const striped = [CLUSTER / 2, 0, CLUSTER, 1, CLUSTER / 2, 0];
    const chunks = status(["base:allocation", ONE, TWO], range);
    expect(chunks).toMatchObject([
      { type: CHUNK.BLOCK_STATUS, isLast: false },
      { type: CHUNK.BLOCK_STATUS, isLast: false, values: [2, ...striped] },
      { type: CHUNK.BLOCK_STATUS, isLast: true, values: [3, ...striped] },
    ]);
    expect(chunks[0]?.values[0]).toBe(1);
    expect(status([ONE], range)).toEqual([{ type: CHUNK.BLOCK_STATUS, isLast: true, values: [2, ...striped] }]);
    expect(status([ONE], { ...range, flags: COMMAND_FLAG.REQ_ONE })[0]?.values).toEqual([2, CLUSTER / 2, 0]);
  });

  it("a context that is gone fails the request, and nothing of its reply is sent before", () => {
    const chunks = status(["base:allocation", ONE, TWO], { offset: 0, length: SIZE }, ({ contexts }) => {
      const [, gone] = contexts;
      if (gone === undefined) return;
      gone.extents = () => {
        throw new ColobusError("bitmap-inconsistent", "it may lack changes");
      };
    });
    expect(chunks).toMatchObject([{ type: CHUNK.ERROR, isLast: true }]);
  });

  it("a selection for another export does not count", () => {
    const { harness } = start();
    harness.send(
      clientFlags(),
      STRUCTURED,
      option(OPTION.SET_META_CONTEXT, metaData("vda", [ONE])),
      option(OPTION.GO, infoData("vdb")),
    );
    harness.takeOutput();
    harness.send(request({ type: COMMAND.BLOCK_STATUS, cookie: 5, offset: 0, length: CLUSTER }));
    expect(harness.takeOutput().readUInt16BE(6)).toBe(CHUNK.ERROR);
  });
});

describe("contexts that were selected before TLS", () => {
  it("are forgotten: the words may have been somebody else's", () => {
    const exported = new BitmapExport("vda", new MemoryDevice(SIZE));
    const handshake = new Handshake(new TestDirectory(exported), () => undefined, "offered");
    const send = (...parts: Buffer[]): void => {
      for (const part of parts) for (let at = 0; at < part.length;) at = handshake.consume(part, at);
    };
    const select = option(OPTION.SET_META_CONTEXT, metaData("vda", ["base:allocation", ONE]));
    send(clientFlags(), STRUCTURED, select, option(OPTION.STARTTLS));
    handshake.tlsStarted();
    send(STRUCTURED, option(OPTION.GO, infoData("vda")));
    const { outcome } = handshake;
    expect(outcome?.kind === "transmission" && outcome.negotiated).toMatchObject({
      structuredReplies: true,
      allocationContext: false,
      contexts: [],
    });
  });
});
