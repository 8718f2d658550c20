/** A pair whose link is TLS: what it does, and whom it takes. */
import { chmodSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import type { RejoinAnswer } from "../../proto/control-api.ts";
import type { Finding } from "../../cli/finding.ts";
import { EXIT } from "../../proto/errors.ts";
import { AgentPair, AgentUnderTest, makeImage, MIB } from "../support/agent-pair.ts";
import { makeExpired, makeHosts, renewHosts, tlsFlags } from "../support/certificates.ts";
import { runColobus } from "../support/cli-runner.ts";
import { qemuIo } from "../support/nbd-tools.ts";
import { requirePeers } from "../support/peers.ts";
import { present } from "../support/present.ts";
import { scratchDirectory } from "../support/scratch.ts";

const SIZE = 4 * MIB;

/** How many lines of the agent's log tell that a connection was refused for that reason. */
function refusalsIn(agent: AgentUnderTest, reason: string): number {
  const lines = agent.log.split("\n");
  return lines.filter((line) => line.includes("a connection was refused") && line.includes(reason)).length;
}

describe.runIf(requirePeers("qemu-io", "openssl"))("a pair over wss with mutual TLS", () => {
  it("fails over and rejoins, goes on with renewed certificates, and takes no third host of the same authority", async () => {
    const ca = join(scratchDirectory(), "ca");
    const [a, b, c] = await makeHosts(ca, "host-a", "host-b", "host-c");
    const pair = await AgentPair.create({
      disks: { vda: SIZE },
      primaryFlags: tlsFlags(present(a)),
      secondaryFlags: tlsFlags(present(b)),
    });
    const { primary, secondary, port } = pair;
    const url = `wss://127.0.0.1:${port}`;
    primary.setFlag("--peer", url);
    await pair.start();
    await qemuIo(primary.uri(), "write -P 7 0 64k", "flush");
    await pair.checkpoint();
    const { findings } = await primary.get<{ findings: Finding[] }>("doctor");
    expect(findings).toContainEqual({ check: "peer's clock", state: "ok", message: expect.anything(), action: "" });

    // Renewed while the session runs: it goes on, and the next one is made with the new ones.
    await renewHosts(ca, "host-a", "host-b");
    for (const agent of [primary, secondary]) process.kill(agent.pid, "SIGHUP");
    await expect.poll(() => secondary.log, { timeout: 20_000 }).toContain("TLS files were read again");
    await qemuIo(primary.uri(), "write -P 8 64k 64k", "flush");
    await pair.checkpoint();
    await primary.stop();
    await primary.start();
    await pair.untilProtected();

    // Another host of the same authority: it may neither follow the primary nor be told anything.
    const image = join(pair.root, "c.img");
    makeImage(image, SIZE);
    const command = ["--vm", "test", "--disk", `vda=${image}`, "--peer", url, ...tlsFlags(present(c))];
    const directories = ["--run", join(pair.root, "run", "c"), "--state", join(pair.root, "c-state")];
    const third = new AgentUnderTest("the third host", join(pair.root, "run", "c"), [
      "primary",
      ...directories,
      ...command,
    ]);
    await primary.crash();
    await third.start();
    const refused = await third.until("refused", ({ peers }) => peers[0]?.lastError?.code === "auth-failed");
    expect(refused.peers[0]?.lastError?.message).toContain("of another host than the peer");
    expect((await secondary.status()).role).toBe("Secondary");
    await expect.poll(() => refusalsIn(secondary, "of another host than the peer")).toBe(1);
    await third.stop();

    await secondary.get("failover");
    await qemuIo(secondary.uri(), "read -P 7 0 64k", "read -P 8 64k 64k", "write -P 9 128k 64k", "flush");
    await primary.start();
    await primary.until("outdated", ({ protection }) => protection.reason === "outdated");
    const rejoined = await primary.get<RejoinAnswer>("rejoin", "--peer", url);
    expect(rejoined.already).toBe(false);
    await pair.untilProtected();
    await primary.stop();
    await secondary.stop();
  });

  it("does not start with a certificate that has expired, or a key that others can read", async () => {
    const ca = join(scratchDirectory(), "ca");
    const [open] = await makeHosts(ca, "host-a");
    const { key } = present(open);
    chmodSync(key, 0o644);
    const scratch = scratchDirectory();
    const listen = [
      "--run",
      join(scratch, "run"),
      "--state",
      join(scratch, "s"),
      "--listen",
      "127.0.0.1:0",
      "--create",
    ];
    const start = ["secondary", ...listen, "--disk", `vda=${join(scratch, "i")}`];
    const readable = await runColobus(...start, ...tlsFlags(present(open)));
    expect(readable).toMatchObject({ code: EXIT.usage });
    expect(readable.stderr).toContain(`chmod 600 ${key}`);
    const expired = await runColobus(...start, ...tlsFlags(makeExpired(ca, "expired")));
    expect(expired).toMatchObject({ code: EXIT.usage });
    expect(expired.stderr).toContain("it has expired on");
  });
});
