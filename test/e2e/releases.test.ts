/** Agents of two releases, as processes: what they do together, and what one refuses that it cannot know. */
import { createHash } from "node:crypto";
import { readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { EXIT } from "../../proto/errors.ts";
import { AGENT_VERSION, REPLICATION_PROTOCOL_VERSION } from "../../proto/versions.ts";
import { AgentPair, freePort, MIB, type AgentUnderTest } from "../support/agent-pair.ts";
import { ColobusProcess, MAIN } from "../support/cli-runner.ts";
import { expectSame, qemuIo, readDisk } from "../support/nbd-tools.ts";
import { buildRelease, mainOf } from "../support/other-release.ts";
import { requirePeers } from "../support/peers.ts";

const SIZE = 8 * MIB;
const LATER = "0.2.0";
const FAR = "0.9.0";

/** A pair whose sides both listen, with these releases; nothing runs yet. */
async function pairOf(primaryMain: string, secondaryMain: string): Promise<{ pair: AgentPair; urlOfB: string }> {
  const port = await freePort();
  const pair = await AgentPair.create({
    disks: { vda: SIZE },
    flags: ["--peer-timeout", "1s"],
    primaryFlags: ["--listen", `127.0.0.1:${port}`],
  });
  pair.primary.main = primaryMain;
  pair.secondary.main = secondaryMain;
  return { pair, urlOfB: `ws://127.0.0.1:${pair.port}` };
}

async function untilAlone(agent: AgentUnderTest): Promise<void> {
  await agent.until("alone", ({ peers }) => peers[0]?.connection !== "Connected");
}

/** A checksum over the names and contents of all files below a directory. */
function digestOf(directory: string): string {
  const hash = createHash("sha256");
  for (const name of (readdirSync(directory, { recursive: true }) as string[]).sort()) {
    hash.update(`${name}\n`);
    if (statSync(join(directory, name)).isFile()) hash.update(readFileSync(join(directory, name)));
  }
  return hash.digest("hex");
}

describe.runIf(requirePeers("qemu-io", "nbdcopy"))("two releases", () => {
  it.each(["primary", "secondary"] as const)(
    "one after the other protect a VM, where the later one is the %s, through a failover and a rejoin",
    async (later) => {
      const other = mainOf(await buildRelease({ AGENT_VERSION: LATER, REPLICATION_PROTOCOL_VERSION: 2 }));
      const { pair, urlOfB } = await pairOf(
        ...(later === "primary" ? ([other, MAIN] as const) : ([MAIN, other] as const)),
      );
      const { primary, secondary } = pair;
      await pair.start();
      const versions = [(await primary.status()).agentVersion, (await primary.status()).peers[0]?.agentVersion];
      expect(versions).toEqual(later === "primary" ? [LATER, AGENT_VERSION] : [AGENT_VERSION, LATER]);

      await qemuIo(primary.uri(), "write -P 1 0 1M", "write -z 2M 64k", "flush");
      await pair.checkpoint();
      const checkpoint = await readDisk(primary.uri());
      await qemuIo(primary.uri(), "write -P 2 512k 1M");
      await primary.crash();
      await untilAlone(secondary);
      await secondary.get("failover");
      expectSame(await readDisk(secondary.uri()), checkpoint);
      await qemuIo(secondary.uri(), "write -P 3 4M 1M", "flush");
      await secondary.get("wait", "merged");

      await primary.start();
      await primary.until("outdated", ({ protection }) => protection.reason === "outdated");
      await primary.get("rejoin", "--peer", urlOfB);
      await pair.untilProtected();
      await secondary.get("checkpoint");
      expectSame(await readDisk(primary.uri()), await readDisk(secondary.uri()));
    },
  );

  it.each(["primary", "secondary"] as const)(
    "that have no protocol in common refuse each other, where the later one is the %s, and meet when both are of it",
    async (later) => {
      const versions = { AGENT_VERSION: FAR, REPLICATION_PROTOCOL_VERSION: 3, REPLICATION_PROTOCOL_OLDEST: 2 };
      const far = mainOf(await buildRelease(versions));
      const { pair } = await pairOf(MAIN, MAIN);
      const { primary, secondary } = pair;
      await pair.start();
      const [upgraded, left] = later === "primary" ? [primary, secondary] : [secondary, primary];
      await upgraded.stop();
      upgraded.main = far;
      await upgraded.start();
      const ours = String(REPLICATION_PROTOCOL_VERSION);
      for (const [agent, message] of [
        [left, `the peer speaks replication protocol 2 to 3, this agent speaks ${ours}`],
        [upgraded, `the peer speaks replication protocol ${ours}, this agent speaks 2 to 3`],
      ] as const) {
        const { peers } = await agent.until(
          "told why",
          (status) => status.peers[0]?.lastError?.code === "protocol-mismatch",
        );
        expect(peers[0]?.lastError).toMatchObject({ code: "protocol-mismatch", message });
      }
      // A primary that has started waits for its secondary's word; one that has lost it goes on.
      const writing = qemuIo(primary.uri(), "write -P 1 0 64k", "flush");
      if (later === "secondary") await writing;

      await left.stop();
      left.main = far;
      await left.start();
      await writing;
      await pair.untilProtected();
      await pair.checkpoint();
      expectSame(await readDisk(secondary.uri()), await readDisk(primary.uri()));
      expect((await primary.status()).jobs.map(({ type }) => type)).not.toContain("full-sync");
    },
  );

  it.each(["primary", "secondary"] as const)("leave alone what the later one has written as a %s", async (role) => {
    const later = mainOf(
      await buildRelease({ AGENT_VERSION: LATER, STATE_RECORD_VERSION: 2, CLUSTER_JOURNAL_VERSION: 2 }),
    );
    const { pair } = await pairOf(later, later);
    await pair.start();
    await qemuIo(pair.primary.uri(), "write -P 1 0 1M");
    await pair.checkpoint();
    await qemuIo(pair.primary.uri(), "write -P 2 0 1M", "flush");
    await pair.primary.untilDrained();
    const agent = pair[role];
    await agent.crash();
    const state = join(pair.root, role === "primary" ? "a" : "b");
    const before = digestOf(state);
    const refused = await new ColobusProcess(agent.command).ended;
    expect(refused.code).toBe(EXIT.failed);
    expect(refused.stderr).toContain("was written by a later version of Colobus (state record version 2)");
    expect(refused.stderr).toContain("Start that version");
    expect(digestOf(state)).toBe(before);

    await agent.start();
    await pair.untilProtected();
    await pair.checkpoint();
    expectSame(await readDisk(pair.secondary.uri()), await readDisk(pair.primary.uri()));
  });
});
