import { describe, expect, it } from "vitest";
import { decodeMessage } from "../../proto/replication-messages.ts";
import { ScriptedPair } from "./scripted-pair.ts";

/** How long the primary takes for each record: with some of these the secondary has room again during the one that counts. */
const RECORD_MS = [500, 800, 1_100, 1_200, 1_300, 1_400] as const;

/** Returns whether the secondary took originals again while the history that it is to hear of was being recorded. */
async function meetAgain(recordMs: number): Promise<boolean> {
  const scripted = new ScriptedPair(1, "power", {
    mode: "shared",
    isMarked: true,
    onPeerLoss: "continue",
    primaryStorage: { syncMs: [recordMs, recordMs], stallProbability: 0 },
  });
  const { world, pair } = scripted;
  const { primary, secondary } = pair;
  await scripted.start();
  let isWhileOpening = false;
  world.network.intercept = (receiver, data) => {
    const isUnstall = receiver.process.host.name === "a" && decodeMessage(data).type === "unstall";
    if (isUnstall && primary.status?.peers[0]?.connection !== "Connected") isWhileOpening = true;
    return "deliver";
  };
  secondary.host.disk.faults.inject({ op: ["write", "allocate"], kind: "generation-data", error: "io-error" });
  const written = await scripted.do("a write", () => scripted.guestWrite(0, 0, 4096, "bytes"));
  expect(written.kind).toBe("done");
  await scripted.until("the secondary", () => primary.status?.peers[0]?.replication === "Established");
  await scripted.checkRecovery();
  return isWhileOpening;
}

describe("a secondary of shared disks that takes originals again just as it is greeted under a new history", () => {
  it("is in sync, whenever it says so", async () => {
    const found = new Set<boolean>();
    for (const recordMs of RECORD_MS) found.add(await meetAgain(recordMs));
    expect(found).toEqual(new Set([false, true]));
  });
});
