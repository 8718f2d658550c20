/**
 * Faults of a pair that shares its disk, one after another, under writes of a guest that knows what was acknowledged: the
 * secondary's export stays at the last checkpoint through each of them, and the next checkpoint has every acknowledged write.
 * `shared-disk-cases.test.ts` and `shared-formats.test.ts` kill one side at a time.
 */
import { describe, it } from "vitest";
import { SeededRandom } from "../sim/seeded-random.ts";
import { type AgentPair, MIB } from "../support/agent-pair.ts";
import { untilNoFormatServer } from "../support/format-servers.ts";
import { expectSame, NbdClient, readDisk } from "../support/nbd-tools.ts";
import { requirePeers } from "../support/peers.ts";
import { createSharing, type SharedFormat } from "../support/shared-image.ts";
import { StampingGuest } from "../support/stamping-guest.ts";

const SIZE = 4 * MIB;
/** More than so many are acknowledged before each fault. */
const WRITES = 20;

/** Each ends with both agents running, and says whether the guest has lost its disk. */
const FAULTS: Readonly<Record<string, (pair: AgentPair) => Promise<"goes on" | "lost its disk">>> = {
  "the link is silent": async ({ primary, secondary }) => {
    secondary.freeze();
    await primary.until("alone", ({ peers }) => peers[0]?.connection !== "Connected");
    secondary.thaw();
    return "goes on";
  },
  "both are killed": async ({ primary, secondary }) => {
    await Promise.all([primary.crash(), secondary.crash()]);
    for (const { run } of [primary, secondary]) await untilNoFormatServer(run);
    await Promise.all([secondary.start(), primary.start()]);
    return "lost its disk";
  },
};

describe.runIf(requirePeers("nbdcopy", "python3:nbd", "qemu-nbd", "qemu-img"))(
  "faults of a pair that shares its disk",
  () => {
    it.each<SharedFormat>(["raw", "qcow2"])(
      "never lose or mix what was acknowledged, nor a checkpoint (%s)",
      async (format) => {
        const pair = await createSharing(format, { disks: { vda: SIZE }, flags: ["--peer-timeout", "1s"] });
        const { primary, secondary } = pair;
        await pair.start();
        const guest = new StampingGuest(new SeededRandom(1), SIZE);
        let client = await NbdClient.connect(primary.uri());
        for (const strike of Object.values(FAULTS)) {
          const checkpoint = await readDisk(secondary.uri());
          let isOver = false;
          const writing = guest.write(client, () => isOver);
          const before = guest.acknowledged;
          await secondary.until("written to", () => guest.acknowledged > before + WRITES);
          const outcome = await strike(pair);
          isOver = true;
          await writing;
          await pair.untilProtected();
          expectSame(await readDisk(secondary.uri()), checkpoint);
          const content = await readDisk(primary.uri());
          guest.check(content);
          await pair.checkpoint();
          expectSame(await readDisk(secondary.uri()), content);
          if (outcome === "lost its disk") client = await NbdClient.connect(primary.uri());
        }
      },
    );
  },
);
