import { execFile } from "node:child_process";
import { copyFileSync } from "node:fs";
import { join } from "node:path";
import { promisify } from "node:util";
import { setTimeout as sleep } from "node:timers/promises";
import { z } from "zod";
import {
  writeFilledImage,
  type CheckpointTimes,
  type FailoverContestant,
  type Guest,
  type SecondaryExport,
} from "./contestant.ts";
import { makeDirectory, removeDirectory } from "./leftovers.ts";
import { bytesWritten } from "./process-figures.ts";
import { QemuProcess } from "./qemu-process.ts";

const run = promisify(execFile);

const nodesSchema = z.array(z.object({ drv: z.string() }));
/** The driver of the node that stands in front of the secondary while its overlays are being merged. */
const MERGING = "mirror_top";

/** With QEMU's defaults, `cache=writeback` and `aio=threads`: writes go into the page cache, as those of our agents do. */
const IMAGE = { "driver": "raw", "file.driver": "file", "discard": "unmap" };
/** Milliseconds without a write that pass as quiet; a request takes a tenth of one. */
const QUIET_TURNS = 3;
const EXPORT = "disk0";
export const QEMU_PAIR = "QEMU COLO";
const QUORUM = { "if": "none", "driver": "quorum", "read-pattern": "fifo", "vote-threshold": "1" };

/**
 * QEMU's own pair (docs/block-replication.txt) over one disk, without guests: in the primary a quorum of the image and of
 * a replication node that forwards to the secondary's NBD server; in the secondary an active disk over a hidden disk over
 * the image. What a hypervisor would do at a checkpoint is done by command. The two are joined by a unix socket, which
 * costs less than the TCP connection that our agents use.
 */
export class QemuPair implements FailoverContestant {
  readonly name = QEMU_PAIR;
  readonly uris: readonly string[];
  readonly directory: string;
  #primary: QemuProcess | undefined;
  #secondary: QemuProcess | undefined;

  private constructor(directory: string) {
    this.directory = directory;
    this.uris = [`nbd+unix:///${EXPORT}?socket=${join(directory, "primary.nbd")}`];
  }

  /** Such a pair in a new directory below `parent`, replicating a filled disk of `sizeBytes`. */
  static async start(parent: string, sizeBytes: number): Promise<QemuPair> {
    const pair = new QemuPair(makeDirectory(parent));
    try {
      writeFilledImage(pair.#file("a.img"), sizeBytes);
      copyFileSync(pair.#file("a.img"), pair.#file("b.img"));
      await pair.#startSecondary(sizeBytes);
      await pair.#startPrimary();
    } catch (error) {
      await pair.stop();
      throw error;
    }
    return pair;
  }

  get processes(): ReadonlyMap<string, number> {
    return new Map([
      ["primary", this.#running(this.#primary).pid],
      ["secondary", this.#running(this.#secondary).pid],
    ]);
  }

  get secondaryExport(): SecondaryExport {
    const socket = this.#file("secondary.nbd");
    return { uri: `nbd+unix:///${EXPORT}?socket=${socket}`, socket, name: EXPORT };
  }

  /** A write is acknowledged when both images have it. */
  idle(): Promise<void> {
    return Promise.resolve();
  }

  /**
   * As QEMU's hypervisor does it: the guest is paused, and what it has begun is waited for and flushed. Without that the
   * secondary aborts ("First cluster in emptied image is in use"). The time is that of the checkpoint alone.
   */
  async checkpoint(guest?: Guest): Promise<CheckpointTimes> {
    guest?.pause();
    try {
      if (guest !== undefined) {
        await this.#quiet();
        await this.#running(this.#primary).execute("stop");
      }
      const startedMs = performance.now();
      await this.#running(this.#secondary).execute("xen-colo-do-checkpoint");
      return { prepareMs: 0, commitMs: performance.now() - startedMs };
    } finally {
      guest?.resume();
    }
  }

  /** Resolves when neither side writes any more; a paused client's requests may still be on their way. */
  async #quiet(): Promise<void> {
    const pids = [...this.processes.values()];
    let before = -1;
    for (let unchanged = 0; unchanged < QUIET_TURNS; unchanged += 1) {
      const now = bytesWritten(pids);
      if (now !== before) unchanged = 0;
      before = now;
      await sleep(1);
    }
  }

  /** The secondary need not know. */
  async killPrimary(): Promise<void> {
    await this.#running(this.#primary).kill();
  }

  async failover(): Promise<void> {
    await this.#running(this.#secondary).execute("xen-set-replication", {
      enable: false,
      primary: false,
      failover: true,
    });
  }

  /** QEMU does not tell: its merge is a job without a name, seen only by a node that it adds. */
  async merged(): Promise<void> {
    const secondary = this.#running(this.#secondary);
    for (;;) {
      const nodes = nodesSchema.parse(await secondary.execute("query-named-block-nodes", { flat: true }));
      if (!nodes.some(({ drv }) => drv === MERGING)) return;
      await sleep(5);
    }
  }

  async stop(): Promise<void> {
    await Promise.all([this.#primary?.quit(), this.#secondary?.quit()]);
    removeDirectory(this.directory);
  }

  async #startSecondary(sizeBytes: number): Promise<void> {
    for (const overlay of ["active.qcow2", "hidden.qcow2"]) {
      await run("qemu-img", ["create", "-q", "-f", "qcow2", this.#file(overlay), String(sizeBytes)]);
    }
    const secondary = await QemuProcess.start(this.#file("secondary.qmp"), [
      { "if": "none", "id": "image", ...IMAGE, "file.filename": this.#file("b.img") },
      {
        "if": "none",
        "id": "replication",
        "driver": "replication",
        "mode": "secondary",
        "top-id": "top",
        "file.driver": "qcow2",
        "file.file.filename": this.#file("active.qcow2"),
        "file.backing.driver": "qcow2",
        "file.backing.file.filename": this.#file("hidden.qcow2"),
        "file.backing.backing": "image",
      },
      { ...QUORUM, "id": "top", "node-name": "top-node", "children.0": "replication" },
    ]);
    this.#secondary = secondary;
    await secondary.serve(this.secondaryExport.socket);
    await secondary.execute("nbd-server-add", { device: "image", writable: true });
    await secondary.export("top-node", EXPORT);
    await secondary.execute("xen-set-replication", { enable: true, primary: false });
  }

  async #startPrimary(): Promise<void> {
    const image = { ...IMAGE, "file.filename": this.#file("a.img") };
    const child: Record<string, string> = {};
    for (const [key, value] of Object.entries(image)) child[`children.0.${key}`] = value;
    const primary = await QemuProcess.start(this.#file("primary.qmp"), [
      { ...QUORUM, "id": "disk", "node-name": "disk-node", ...child },
    ]);
    this.#primary = primary;
    const server = { type: "unix", path: this.secondaryExport.socket };
    await primary.execute("blockdev-add", {
      "driver": "replication",
      "mode": "primary",
      "node-name": "forwarding",
      "file": { driver: "nbd", server, export: "image" },
    });
    await primary.execute("x-blockdev-change", { parent: "disk", node: "forwarding" });
    await primary.serve(this.#file("primary.nbd"));
    await primary.export("disk-node", EXPORT);
    await primary.execute("xen-set-replication", { enable: true, primary: true });
  }

  #file(name: string): string {
    return join(this.directory, name);
  }

  #running(qemu: QemuProcess | undefined): QemuProcess {
    if (qemu === undefined) throw new Error("this side of QEMU's pair was not started");
    return qemu;
  }
}
