/**
 * kill -9 of either side at random moments, under writes of a guest that knows what was acknowledged: after each one the
 * primary shows every acknowledged write, and after the next checkpoint the secondary shows the same, byte for byte.
 * `COLOBUS_KILLS` says how many rounds.
 */
import { describe, expect, it } from "vitest";
import { SeededRandom } from "../sim/seeded-random.ts";
import { AgentPair, MIB } from "../support/agent-pair.ts";
import { expectSame, NbdClient, readDisk } from "../support/nbd-tools.ts";
import { requirePeers } from "../support/peers.ts";
import { StampingGuest } from "../support/stamping-guest.ts";

const ROUNDS = Number(process.env.COLOBUS_KILLS ?? 10);
const ROUND_LIMIT_MS = 20_000;
const SIZE = 16 * MIB;
const MAX_DELAY_MS = 400;

describe.runIf(requirePeers("nbdcopy", "python3:nbd"))("kill -9 of either side", () => {
  it(
    `never loses or mixes what was acknowledged, in ${ROUNDS} rounds`,
    async () => {
      const random = new SeededRandom(1);
      // How often the guest draws is up to the machine: who is killed, and when, is not.
      const deaths = random.fork("deaths");
      const pair = await AgentPair.protected({ disks: { vda: SIZE }, flags: ["--peer-timeout", "2s"] });
      const guest = new StampingGuest(random, SIZE);
      const kills = { primary: 0, secondary: 0 };
      let client = await NbdClient.connect(pair.primary.uri());
      for (let round = 0; round < ROUNDS; round += 1) {
        let isOver = false;
        const writing = guest.write(client, () => isOver);
        await new Promise((resolve) => {
          setTimeout(resolve, deaths.below(MAX_DELAY_MS));
        });
        const victim = deaths.chance(0.5) ? "primary" : "secondary";
        kills[victim] += 1;
        await pair[victim].crash();
        if (victim === "secondary" && deaths.chance(0.5))
          await pair.primary.until("alone", ({ peers }) => peers[0]?.connection !== "Connected");
        isOver = victim === "secondary";
        await writing;
        await pair[victim].start();
        // The primary holds its guests until the two have spoken; then it shows what was acknowledged.
        guest.check(await readDisk(pair.primary.uri()));
        await pair.untilProtected();
        await pair.checkpoint();
        expectSame(await readDisk(pair.secondary.uri()), await readDisk(pair.primary.uri()));
        if (victim === "primary") client = await NbdClient.connect(pair.primary.uri());
      }
      process.stdout.write(`${ROUNDS} rounds: ${JSON.stringify({ ...kills, acknowledged: guest.acknowledged })}\n`);
      expect(guest.acknowledged).toBeGreaterThan(ROUNDS * 10);
      expect(Math.min(kills.primary, kills.secondary)).toBeGreaterThan(0);
    },
    ROUNDS * ROUND_LIMIT_MS,
  );
});
