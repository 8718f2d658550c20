import { parseArbiterAccess } from "./arbiter-options.ts";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { ColobusError } from "../proto/errors.ts";
import {
  CLUSTER_DEFAULT_BYTES,
  EXTENT_BYTES,
  SETTLE_EVERY_MS,
  PEER_TIMEOUT_DEFAULT_MS,
  WINDOW_DEFAULT_BYTES,
} from "../proto/limits.ts";
import type { Role } from "../proto/words.ts";
import { createImage } from "../shared/block/image.ts";
import { createLogger } from "../shared/host/log.ts";
import { makeDirectory } from "../shared/host/make-directory.ts";
import { NodeStorage } from "../shared/host/node-storage.ts";
import { AgentProcess } from "./agent-process.ts";
import type { ProcessConfig } from "./process-config.ts";

/** How long the pair may take until it is in sync before the demo says that it is not. */
const IN_SYNC_TIMEOUT_MS = 10_000;

const NOT_IN_SYNC = `
They are not in sync, as after a failover: \`status\` and \`connect --dry-run\` of the primary say what is to be decided.
`;

/** Both agents of a VM "demo" on this machine, with everything that is theirs below one directory. */
export class Demo {
  readonly #root: string;
  readonly #isScratch: boolean;
  readonly #agents: AgentProcess[] = [];
  #isInSync = false;

  private constructor(root: string, isScratch: boolean) {
    this.#root = root;
    this.#isScratch = isScratch;
  }

  /**
   * Starts the demo below `directory`, or below a scratch directory, with a disk of `sizeBytes` if there is none yet,
   * and resolves when the pair is in sync, or when `signal` aborts, or when it takes too long: it may need its operator.
   * On an error nothing is left running.
   */
  static async start(directory: string | undefined, sizeBytes: number, signal: AbortSignal): Promise<Demo> {
    const root = directory === undefined ? mkdtempSync(join(tmpdir(), "colobus-")) : resolve(directory);
    const demo = new Demo(root, directory === undefined);
    try {
      makeDirectory(root);
      const image = join(root, "a.img");
      const storage = new NodeStorage();
      if (!storage.exists(image)) await createImage(storage, image, sizeBytes);
      const log = createLogger({ level: "warn", name: "demo" });
      // The primary records its peer's address, so a demo that is started again listens where it did before.
      const portFile = join(root, "port");
      const port = existsSync(portFile) ? Number(readFileSync(portFile, "utf8")) : 0;
      const secondary = await AgentProcess.start(demoConfig(root, "Secondary", port), log);
      demo.#agents.push(secondary);
      const listenPort = secondary.listenPort ?? port;
      writeFileSync(portFile, `${listenPort}\n`);
      const primary = await AgentProcess.start(demoConfig(root, "Primary", listenPort), log);
      demo.#agents.push(primary);
      demo.#isInSync = await becomesInSync(primary, signal);
      return demo;
    } catch (error) {
      await demo.stop();
      throw error;
    }
  }

  async stop(): Promise<void> {
    for (const agent of this.#agents.splice(0).reverse()) await agent.stop();
    if (this.#isScratch) rmSync(this.#root, { recursive: true, force: true });
  }

  /** Where its agents are, for a program. */
  get places() {
    const placeOf = (side: "a" | "b") => ({ run: join(this.#root, side), uri: uriOf(this.#root, side) });
    return { directory: this.#root, inSync: this.#isInSync, primary: placeOf("a"), secondary: placeOf("b") };
  }

  /** What to look at and try next; each line works when it is pasted into another terminal. */
  describe(): string {
    return describeDemo(this.#root, this.#isScratch, this.#isInSync);
  }
}

function demoConfig(root: string, role: Role, port: number): ProcessConfig {
  const side = role === "Primary" ? "a" : "b";
  return {
    agent: {
      role,
      vm: "demo",
      mode: "colo",
      stateDirectory: join(root, `state-${side}`),
      disks: [{ name: "vda", image: join(root, `${side}.img`) }],
      peers: role === "Primary" ? [`ws://127.0.0.1:${port}`] : [],
      ack: "async",
      durability: "power",
      onPeerLoss: "continue",
      onCongestion: "throttle",
      resyncSpeed: "dynamic",
      peerTimeoutMs: PEER_TIMEOUT_DEFAULT_MS,
      windowBytes: WINDOW_DEFAULT_BYTES,
      clusterBytes: CLUSTER_DEFAULT_BYTES,
      extentBytes: EXTENT_BYTES,
      settleEveryMs: SETTLE_EVERY_MS,
      secondaryExport: "read-only",
      retain: 0,
      createImages: role === "Secondary",
      assumeInSync: false,
      adoptImages: false,
    },
    runDirectory: join(root, side),
    listen: role === "Secondary" ? { host: "127.0.0.1", port } : undefined,
    nbdListen: undefined,
    tokenFile: undefined,
    tls: undefined,
    nbdTls: "off",
    nbdPskFile: undefined,
    control: undefined,
    arbiters: [],
    arbiterAccess: parseArbiterAccess({}),
    fence: undefined,
    onFailover: undefined,
    insecure: false,
    logLevel: "info",
  };
}

function uriOf(root: string, side: "a" | "b"): string {
  return `nbd+unix:///vda?socket=${join(root, side, "nbd.sock")}`;
}

/** Whether the pair is in sync within `IN_SYNC_TIMEOUT_MS`: it is not where the last demo ended with a failover. */
async function becomesInSync({ agent }: AgentProcess, signal: AbortSignal): Promise<boolean> {
  try {
    await agent.wait({ condition: "synced", timeoutMs: IN_SYNC_TIMEOUT_MS }, signal);
    return true;
  } catch (error) {
    if (error instanceof ColobusError && error.code === "timed-out") return false;
    throw error;
  }
}

function describeDemo(root: string, scratch: boolean, isInSync: boolean): string {
  const colobus = `${process.execPath} ${process.argv[1] ?? "colobus"}`;
  const a = join(root, "a");
  const b = join(root, "b");
  const primary = uriOf(root, "a");
  const secondary = uriOf(root, "b");
  return `Both agents of the VM "demo" run on this machine, with everything in ${root}.
${isInSync ? "" : NOT_IN_SYNC}
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

A guest: qemu-system-x86_64 -drive file.driver=nbd,file.server.type=unix,file.server.path=${a}/nbd.sock,file.export=vda,file.reconnect-delay=60,format=raw

Ctrl-C ends both agents${scratch ? " and removes the scratch disks" : ""}.`;
}
