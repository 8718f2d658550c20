/** What a stranger at the replication port hears of the pair, where a token says who belongs to it: nothing. */
import { createHash, createHmac } from "node:crypto";
import { describe, expect, it } from "vitest";
import { REFUSAL_REASONS_MAX } from "../../proto/limits.ts";
import { AgentPair, MIB, tokenFile } from "../support/agent-pair.ts";
import { FakePeer, fakeGreeting, fakeHello } from "../support/fake-peer.ts";
import { present } from "../support/present.ts";

const SIZE = 4 * MIB;
const TOKEN = "d43f2f8cc0fc1e9477ea6c799100e2d1";

/** A pair that does not run yet. */
async function pairWithToken(): Promise<AgentPair> {
  const pair = await AgentPair.create({ disks: { vda: SIZE } });
  for (const agent of [pair.secondary, pair.primary]) agent.setFlag("--token-file", tokenFile(pair, "token", TOKEN));
  return pair;
}

describe("somebody who holds no token, and has much to say", () => {
  it("is told of as a stranger, and a few times at most", async () => {
    const pair = await pairWithToken();
    const { secondary, primary, port } = pair;
    await secondary.start();
    for (let count = 0; count < REFUSAL_REASONS_MAX + 20; count += 1) {
      const stranger = await FakePeer.dial(port);
      const error = { code: count % 2 === 0 ? "split-brain" : "outdated", message: `lie ${count}`, action: "rm -rf /" };
      stranger.send({ type: "refuse", error });
      await stranger.closed;
    }
    const { peers, protection } = await secondary.status();
    expect(peers[0]).toMatchObject({ connection: "Connecting", lastError: { code: "outdated" } });
    expect(peers[0]?.lastError?.message).toMatch(/^the other side has not proved who it is, .* "lie \d+"$/);
    expect(JSON.stringify(peers) + protection.nextAction).not.toContain("rm -rf");
    expect(protection.nextAction).toBe(peers[0]?.lastError?.action);
    const told = (await secondary.control.events(0)).filter(({ type }) => type === "peer-refused");
    expect(told).toHaveLength(REFUSAL_REASONS_MAX);
    await primary.start();
    await pair.untilProtected();
  });

  it("says nothing of a peer that is connected", async () => {
    const pair = await pairWithToken();
    const { secondary, primary, port } = pair;
    await pair.start();
    const stranger = await FakePeer.dial(port);
    stranger.send({ type: "refuse", error: { code: "outdated", message: "a lie", action: "" } });
    await stranger.closed;
    expect((await secondary.control.events(0)).filter(({ type }) => type === "peer-refused")).toHaveLength(1);
    for (const agent of [primary, secondary]) {
      expect((await agent.status()).peers).toMatchObject([{ connection: "Connected", lastError: null }]);
    }
  });
});

describe("somebody who holds no token, and listens", () => {
  const GREETING = {
    type: "greeting",
    protocol: 1,
    nonce: expect.any(Uint8Array) as unknown,
    hasToken: true,
    probe: false,
  };

  it("who dials hears a nonce, and nothing that a token could be tried against", async () => {
    const pair = await pairWithToken();
    const { secondary, primary, port } = pair;
    await secondary.start();
    const stranger = await FakePeer.dial(port);
    stranger.send(fakeGreeting({ hasToken: true }));
    stranger.send({ type: "proof", mac: Buffer.alloc(32, 9) });
    await stranger.closed;
    expect(stranger.take()).toEqual([
      GREETING,
      { type: "refuse", error: expect.objectContaining({ code: "auth-failed" }) as unknown },
    ]);
    const { agentId } = await secondary.status();
    expect(Buffer.concat(stranger.heard).includes(agentId)).toBe(false);
    await primary.start();
    await pair.untilProtected();
  });

  it("who is dialled hears a nonce and a proof, and no more before its own", async () => {
    const pair = await pairWithToken();
    const { primary, port } = pair;
    const heard: unknown[] = [];
    const stop = await FakePeer.listen(port, async (peer) => {
      peer.send(fakeGreeting({ hasToken: true }));
      await peer.receive("proof");
      peer.send({ type: "proof", mac: Buffer.alloc(32, 9) });
      await peer.closed;
      heard.push(...peer.take());
    });
    await primary.start();
    await primary.until("told why", ({ peers }) => peers[0]?.lastError?.code === "auth-failed");
    await stop();
    await expect.poll(() => heard[0]).toMatchObject({ type: "refuse", error: { code: "auth-failed" } });
    await pair.secondary.start();
    await pair.untilProtected();
  });

  it("is no obstacle for who holds it, and proves that as the protocol's document says", async () => {
    const { secondary, port } = await pairWithToken();
    await secondary.start();
    const peer = await FakePeer.dial(port);
    peer.send(fakeGreeting({ hasToken: true }));
    expect(await peer.receive("greeting")).toEqual(GREETING);
    const digest = (bytes: Buffer | undefined): Buffer => createHash("sha256").update(present(bytes)).digest();
    const greetings = Buffer.concat([digest(peer.said[0]), digest(peer.heard[0])]);
    const mac = (...parts: (string | Buffer)[]): Buffer =>
      parts.reduce((hmac, part) => hmac.update(part), createHmac("sha256", TOKEN)).digest();
    peer.send({ type: "proof", mac: mac("colobus proof 1 dialler", greetings) });
    expect(await peer.receive("proof")).toEqual({ type: "proof", mac: mac("colobus proof 1 listener", greetings) });
    expect(await peer.receive("hello")).toMatchObject({ agentId: (await secondary.status()).agentId });
    expect(await peer.receive("seal")).toEqual({
      type: "seal",
      mac: mac("colobus seal 1 listener", greetings, digest(peer.heard[2])),
    });
    peer.send(fakeHello("Primary", SIZE));
    peer.send({ type: "seal", mac: mac("colobus seal 1 dialler", greetings, digest(peer.said[2])) });
    const begin = { session: "s", extent: "full", lineage: "fake-lineage", openEpoch: 1, diskSizes: [SIZE] };
    peer.send({ type: "begin", ...begin });
    await peer.receive("ready");
  });
});
