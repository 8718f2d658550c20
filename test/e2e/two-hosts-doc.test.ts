/** docs/two-hosts.md from its first command to its last, as it stands there. */
import { describe, expect, it } from "vitest";
import { makeImage, MIB } from "../support/agent-pair.ts";
import { DocHosts } from "../support/doc-hosts.ts";
import { readDocument } from "../support/doc-sections.ts";
import { canMakeNamespaces } from "../support/network-namespaces.ts";
import { requirePeers } from "../support/peers.ts";

const SIZE = 16 * MIB;
const CUT = "Now cut the power of db1.";

describe.runIf(requirePeers("qemu-io", "openssl", "ip") && canMakeNamespaces())("docs/two-hosts.md", () => {
  it("brings two hosts from nothing to a failover, and back", async () => {
    const hosts = new DocHosts();
    const { db1, db2 } = hosts;
    makeImage(db1.path("/var/lib/images/web.img"), SIZE);
    const text = readDocument("docs/two-hosts.md");
    expect(text).toContain(CUT);

    let isCut = false;
    await hosts.follow(text, async (index) => {
      if (isCut || index < text.indexOf(CUT)) return;
      isCut = true;
      db1.agent?.child.kill("SIGKILL");
      await db1.agent?.ended;
      const connection = async (): Promise<string | undefined> => (await db2.status()).peers[0]?.connection;
      await expect.poll(connection, { timeout: 30_000 }).not.toBe("Connected");
    });
    expect([(await db1.status()).role, (await db2.status()).role]).toEqual(["Primary", "Secondary"]);
  });
});
