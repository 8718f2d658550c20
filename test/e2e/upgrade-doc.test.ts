/**
 * docs/upgrade.md from its first command to its last, as it stands there, for a pair as docs/two-hosts.md makes it, while
 * QEMU's block layer writes to its disk.
 */
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import type { JobStatus } from "../../proto/status.ts";
import { AGENT_VERSION } from "../../proto/versions.ts";
import { ROOT } from "../../tools/bundle-program.ts";
import { makeImage, MIB } from "../support/agent-pair.ts";
import { askColobus } from "../support/cli-runner.ts";
import { DocHosts } from "../support/doc-hosts.ts";
import { readDocument } from "../support/doc-sections.ts";
import { expectSame, readDisk } from "../support/nbd-tools.ts";
import { canMakeNamespaces } from "../support/network-namespaces.ts";
import { buildRelease } from "../support/other-release.ts";
import { requirePeers } from "../support/peers.ts";
import { serveByQemu } from "../support/qemu-server.ts";
import { SteadyGuest } from "../support/steady-guest.ts";

const SIZE = 16 * MIB;
const LATER = "0.2.0";
/** So many writes go through between one step and the next. */
const WRITES = 50;

const uriOf = (run: string): string => `nbd+unix:///vda?socket=${join(run, "nbd.sock")}`;

describe.runIf(requirePeers("qemu-storage-daemon", "nbdcopy", "openssl", "ip") && canMakeNamespaces())(
  "docs/upgrade.md",
  () => {
    it("brings a pair to a later release and back, while its guest writes and loses nothing", async () => {
      const hosts = new DocHosts();
      const { db1, db2 } = hosts;
      makeImage(db1.path("/var/lib/images/web.img"), SIZE);
      const [setUp = ""] = readDocument("docs/two-hosts.md").split("## Lose the first host");
      await hosts.follow(setUp);
      const later = await buildRelease({ AGENT_VERSION: LATER, REPLICATION_PROTOCOL_VERSION: 2 });
      for (const host of [db1, db2]) {
        host.archives.set(`colobus-${LATER}.tgz`, later);
        host.archives.set(`colobus-${AGENT_VERSION}.tgz`, ROOT);
      }

      const disk = Buffer.alloc(SIZE);
      const guest = await SteadyGuest.start({ run: await serveByQemu(db1.run) }, disk);
      const met = new Set<string>();
      await hosts.follow(readDocument("docs/upgrade.md"), async () => {
        await guest.writesMore(WRITES);
        const { agentVersion, peers } = await db1.status();
        met.add(`${agentVersion} with ${peers[0]?.agentVersion}`);
      });
      await guest.writesMore(WRITES);
      await guest.stop();
      expect([...met]).toEqual([
        `${AGENT_VERSION} with ${AGENT_VERSION}`,
        `${AGENT_VERSION} with ${LATER}`,
        `${LATER} with ${LATER}`,
        `${LATER} with ${AGENT_VERSION}`,
      ]);

      const { code } = await askColobus("checkpoint", "--run", db1.run);
      expect(code).toBe(0);
      expectSame(await readDisk(uriOf(db1.run)), disk);
      expectSame(await readDisk(uriOf(db2.run)), disk);
      // What a restart costs is what was written meanwhile, if anything; the empty state directory costs everything.
      const { json: jobs } = await askColobus<JobStatus[]>("jobs", "--run", db1.run);
      expect(jobs.filter(({ type }) => type === "full-sync")).toHaveLength(1);
    });
  },
);
