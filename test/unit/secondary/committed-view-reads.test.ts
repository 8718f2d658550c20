import { expect, it } from "vitest";
import { ColobusError } from "../../../proto/errors.ts";
import { COMMAND } from "../../../proto/nbd-protocol.ts";
import { ActiveDisk } from "../../../secondary/active-disk.ts";
import { CommittedView } from "../../../secondary/committed-view.ts";
import type { EpochOverlay } from "../../../secondary/epoch-overlay.ts";
import { OverlayStack } from "../../../secondary/overlay-stack.ts";
import { ViewGate } from "../../../secondary/view-gate.ts";
import { ClusterBitmap } from "../../../shared/block/cluster-bitmap.ts";
import { MemoryDevice } from "../../support/memory-device.ts";
import { MemoryImage } from "../../support/memory-image.ts";
import { decodeAnswers, negotiation, request } from "../../support/nbd-client.ts";
import { NbdHarness, TestDirectory, TestExport } from "../../support/nbd-harness.ts";
import { turn } from "../../support/memory-storage.ts";
import { CLUSTER_BYTES, overlaysOn, seededStorage } from "../../support/overlay-bench.ts";

const SIZE = 64 * CLUSTER_BYTES;
const EIO = 5;
const failure = (): ColobusError => new ColobusError("io-error", "the base is away");

/** A view of a base with an original of cluster 0 over it, and its client. */
function bench(options: { readonly structured?: boolean } = {}) {
  const context = overlaysOn(seededStorage(1), SIZE);
  const base = new MemoryImage(SIZE);
  const original = new MemoryDevice(SIZE);
  original.bytes.fill(2);
  const clusters = new ClusterBitmap([0]);
  const hidden = {
    version: 0,
    find: (cluster) => (clusters.has(cluster) ? original : undefined),
    intersects: (first, end) => clusters.rangeCardinality(first, end) > 0,
    union: () => clusters.clone(),
  } satisfies Partial<EpochOverlay> as unknown as EpochOverlay;
  const stack = new OverlayStack(context.geometry, base, hidden, new ActiveDisk(context, 1));
  const gate = new ViewGate();
  const view = new CommittedView(stack, gate, () => true, "read-only");
  const harness = new NbdHarness(new TestDirectory(new TestExport("vda", view)));
  harness.send(negotiation("vda", options));
  harness.takeOutput();
  return { base, original, clusters, gate, harness };
}

it.each(["at once", "later"])(
  "nothing is read into the memory of a reply whose other part has failed %s",
  async (when) => {
    const { base, original, harness } = bench();
    base.bytes.fill(1);
    let land: () => void = () => undefined;
    original.gate = () =>
      new Promise((resolve) => {
        land = resolve;
      });
    base.gate = () => {
      if (when === "at once") throw failure();
      return Promise.reject(failure());
    };
    harness.send(request({ type: COMMAND.READ, cookie: 1, offset: 0, length: 2 * CLUSTER_BYTES }));
    await harness.settle();
    original.gate = undefined;
    base.gate = undefined;
    // The reply to the second read waits for the socket, which is busy with one before it.
    harness.clientDrains = false;
    harness.send(request({ type: COMMAND.CACHE, cookie: 3, offset: 0, length: CLUSTER_BYTES }));
    harness.send(request({ type: COMMAND.READ, cookie: 2, offset: 4 * CLUSTER_BYTES, length: 2 * CLUSTER_BYTES }));
    land();
    await harness.settle();
    harness.clientDrains = true;
    await harness.settle();
    const answers = decodeAnswers(harness.takeOutput(), (cookie) => (cookie === 2 ? 2 * CLUSTER_BYTES : 0));
    expect(answers.find(({ cookie }) => cookie === 1)).toMatchObject({ error: EIO });
    const second = answers.find(({ cookie }) => cookie === 2);
    expect(second?.data.equals(Buffer.alloc(2 * CLUSTER_BYTES, 1))).toBe(true);
  },
);

it("a long read that waits for the next view has nothing of the one before it", async () => {
  const { original, clusters, gate, harness } = bench({ structured: true });
  await gate.close();
  harness.send(request({ type: COMMAND.READ, cookie: 1, offset: 0, length: SIZE }));
  original.bytes.fill(3);
  clusters.addRange(32, 48);
  gate.open();
  await harness.settle();
  const expected = Buffer.alloc(SIZE);
  expected.fill(3, 0, CLUSTER_BYTES).fill(3, 32 * CLUSTER_BYTES, 48 * CLUSTER_BYTES);
  expect(decodeAnswers(harness.takeOutput(), () => SIZE)[0]?.data.equals(expected)).toBe(true);
});

it("a write waits for zeroes that are still being written elsewhere in its cluster", async () => {
  const storage = seededStorage(1);
  const context = overlaysOn(storage, SIZE);
  const hidden = { version: 0, find: () => undefined, intersects: () => false } satisfies Partial<EpochOverlay>;
  const stack = new OverlayStack(
    context.geometry,
    new MemoryImage(SIZE),
    hidden as unknown as EpochOverlay,
    new ActiveDisk(context, 1),
  );
  const view = new CommittedView(stack, new ViewGate(), () => true, "read-write");
  let zeroed: () => void = () => undefined;
  storage.hold = (op) =>
    op === "zero"
      ? new Promise((resolve) => {
          zeroed = resolve;
        })
      : undefined;
  const done: string[] = [];
  const zeroing = view.zero(CLUSTER_BYTES / 2, 4 * CLUSTER_BYTES, { fua: false, mayUnmap: true });
  const writing = Promise.resolve(view.write(Buffer.alloc(512, 1), 0, { fua: false })).then(() => done.push("written"));
  await turn();
  done.push("zeroed");
  zeroed();
  await Promise.all([zeroing, writing]);
  expect(done).toEqual(["zeroed", "written"]);
});
