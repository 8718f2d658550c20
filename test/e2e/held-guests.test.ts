/** Guests whose requests wait for the peer, or for an operator, while their agent is stopped and started again. */
import { describe, expect, it } from "vitest";
import { AgentPair } from "../support/agent-pair.ts";
import { qemuIo } from "../support/nbd-tools.ts";
import { requirePeers } from "../support/peers.ts";
import { ReconnectingGuest } from "../support/reconnecting-guest.ts";

describe.runIf(requirePeers("qemu-io"))("a write that waits", () => {
  it.each(["frozen", "held from a start"])("and is %s is done by the agent that is started next", async (how) => {
    const pair = await AgentPair.create({
      primaryFlags: ["--on-peer-loss", "freeze"],
      flags: ["--peer-timeout", "1s"],
    });
    const { primary, secondary } = pair;
    await pair.start();
    await secondary.crash();
    await primary.until("alone", ({ peers }) => peers[0]?.connection !== "Connected");
    if (how !== "frozen") {
      await primary.crash();
      await primary.start();
    }
    const guest = await ReconnectingGuest.connect(primary);
    await guest.begin("aio_write -P 7 0 64k");
    expect((await primary.stop()).code).toBe(0);
    await primary.start();
    await secondary.start();
    await guest.run("aio_flush", "wrote 65536/65536");
    await guest.run("read -P 7 0 64k", "read 65536/65536");
    expect(await guest.quit()).toBe(0);
    await pair.untilProtected();
    await qemuIo(primary.uri(), "read -P 7 0 64k");
  });
});
