import { mkdtempSync, mkdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { PEER_TIMEOUT_DEFAULT_MS, WINDOW_DEFAULT_BYTES, CLUSTER_DEFAULT_BYTES } from "../../proto/limits.ts";
import type { Role } from "../../proto/words.ts";
import { createImage } from "../../shared/block/image.ts";
import { createLogger } from "../../shared/host/log.ts";
import { NodeStorage } from "../../shared/host/node-storage.ts";
import { AgentProcess, type ProcessConfig } from "../agent-process.ts";
import { defineCommand } from "../command.ts";
import { parseSize } from "../quantities.ts";

const SIZE_DEFAULT = "256MiB";

export const demoCommand = defineCommand({
  command: "demo",
  describe: "Run both agents on this machine, on scratch disks",
  builder: (yargs) =>
    yargs
      // Not "--dir": the loader of the roaring addon reads the command line, and takes that for its own.
      .option("keep-in", { type: "string", requiresArg: true, describe: "Keep everything in this directory (default: a scratch one)" })
      .option("size", { type: "string", requiresArg: true, default: SIZE_DEFAULT, describe: "Size of the disk" }),
  run: async ({ keepIn, size }, host) => {
    const scratch = keepIn === undefined ? mkdtempSync(join(tmpdir(), "colobus-")) : undefined;
    const root = resolve(scratch ?? keepIn ?? ".");
    const started: AgentProcess[] = [];
    try {
      mkdirSync(root, { recursive: true });
      const storage = new NodeStorage();
      const image = join(root, "a.img");
      if (!storage.exists(image)) await createImage(storage, image, parseSize(size, "--size"));
      const log = createLogger({ level: "warn", name: "demo" });
      const secondary = await AgentProcess.start(demoConfig(root, "Secondary", []), log);
      started.push(secondary);
      const peer = `ws://127.0.0.1:${secondary.listenPort ?? 0}`;
      started.push(await AgentProcess.start(demoConfig(root, "Primary", [peer]), log));
      host.output.text(describeDemo(root));
      await new Promise<void>((done) => {
        if (host.terminated.aborted) done();
        else host.terminated.addEventListener("abort", () => done(), { once: true });
      });
    } finally {
      for (const agentProcess of started.reverse()) await agentProcess.stop();
      if (scratch !== undefined) rmSync(scratch, { recursive: true, force: true });
    }
  },
});

function demoConfig(root: string, role: Role, peers: readonly string[]): ProcessConfig {
  const side = role === "Primary" ? "a" : "b";
  return {
    agent: {
      role,
      vm: "demo",
      mode: "colo",
      stateDirectory: join(root, `state-${side}`),
      disks: [{ name: "vda", image: join(root, `${side}.img`) }],
      peers: [...peers],
      ack: "async",
      durability: "power",
      peerTimeoutMs: PEER_TIMEOUT_DEFAULT_MS,
      windowBytes: WINDOW_DEFAULT_BYTES,
      clusterBytes: CLUSTER_DEFAULT_BYTES,
      secondaryExport: "read-only",
      createImages: role === "Secondary",
      assumeInSync: false,
      adoptImages: false,
    },
    runDirectory: join(root, side),
    listen: role === "Secondary" ? { host: "127.0.0.1", port: 0 } : undefined,
    nbdListen: undefined,
    tokenFile: undefined,
    insecure: false,
  };
}

function uriOf(root: string, side: "a" | "b"): string {
  return `nbd+unix:///vda?socket=${join(root, side, "nbd.sock")}`;
}

/** What to look at and try next; each line works when it is pasted into another terminal. */
function describeDemo(root: string): string {
  const colobus = `${process.execPath} ${process.argv[1] ?? "colobus"}`;
  const a = join(root, "a");
  const b = join(root, "b");
  const primary = uriOf(root, "a");
  const secondary = uriOf(root, "b");
  return `Both agents of the VM "demo" run on this machine, on scratch disks in ${root}.

  primary    ${primary}
  secondary  ${secondary}   (the last committed checkpoint)

Try in another terminal:

  ${colobus} status --run ${a}
  nbdinfo "${primary}"
  qemu-io -f raw -c "write -P 0x42 0 1M" "${primary}"
  ${colobus} checkpoint --run ${a}
  qemu-io -r -f raw -c "read -P 0x42 0 1M" "${secondary}"
  ${colobus} status --run ${b}
  ${colobus} failover --run ${b} --force
  qemu-io -f raw -c "read -P 0x42 0 1M" "${secondary}"
  ${colobus} wait merged --run ${b}

A guest: qemu-system-x86_64 -drive file.driver=nbd,file.server.type=unix,file.server.path=${a}/nbd.sock,file.export=vda,file.reconnect-delay=30,format=raw

Ctrl-C ends both agents and removes the scratch disks.`;
}
