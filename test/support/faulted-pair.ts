/**
 * A pair of real agents behind a MessageProxy, with a guest that knows what was acknowledged, and what the disk held at
 * each barrier. The first agent always dials, through the proxy, whatever the roles are.
 *
 * The guest writes only between checkpoints, so what an epoch's checkpoint has to show is known to the byte.
 */
import { join } from "node:path";
import { Readable } from "node:stream";
import { expect } from "vitest";
import type { Status } from "../../proto/status.ts";
import { SeededRandom } from "../sim/seeded-random.ts";
import { AgentPair, freePort, makeImage, type AgentUnderTest, type PairOptions } from "./agent-pair.ts";
import { FailingServer } from "./failing-server.ts";
import { MessageProxy, type Fault, type FaultPoint } from "./message-proxy.ts";
import { NbdGuest } from "./nbd-guest.ts";
import { expectSame } from "./nbd-tools.ts";
import { scratchDirectory } from "./scratch.ts";

export const TIMEOUT_MS = 20_000;
const BLOCK_BYTES = 4096;
const SOME_WRITES = 6;

export type Side = "primary" | "secondary";

export interface FaultedOptions extends Omit<PairOptions, "disks" | "imageOf"> {
  /** The first agent's image lies behind a server whose reads can be had to fail. */
  readonly servesImage?: boolean;
}

export class FaultedPair {
  readonly pair: AgentPair;
  readonly proxy: MessageProxy;
  /** The agent that is Primary now, and the other one. */
  primary: AgentUnderTest;
  secondary: AgentUnderTest;
  readonly #random = new SeededRandom(1);
  /** What the guest's disk holds: every write was acknowledged. */
  #disk: Buffer;
  /** What the disk held at the barrier of each epoch. */
  readonly #contents = new Map<number, Buffer>();
  /** Epochs that the secondary may have committed, as far as the callers were told. */
  readonly #mayBeCommitted = new Set<number>();
  /** What a primary had that was outdated since. */
  #ownState: Buffer = Buffer.alloc(0);
  readonly #server: FailingServer | undefined;
  #guest: NbdGuest | undefined;
  #writing: Promise<void> = Promise.resolve();
  #stamp = 0;
  /** The epoch of the checkpoint that was asked for last. */
  asked = 0;

  private constructor(pair: AgentPair, proxy: MessageProxy, disk: Buffer, server: FailingServer | undefined) {
    this.pair = pair;
    this.#server = server;
    this.proxy = proxy;
    this.primary = pair.primary;
    this.secondary = pair.secondary;
    this.#disk = disk;
  }

  /** A protected pair, both sides with `disk` as the content of vda. */
  static async start(disk: Buffer, { servesImage = false, ...options }: FaultedOptions = {}): Promise<FaultedPair> {
    const server = servesImage ? await serverOf(disk) : undefined;
    const imageOf = (path: string): string => (path.includes("/a/") ? (server?.uri ?? path) : path);
    const pair = await AgentPair.create({ ...options, disks: { vda: disk }, imageOf });
    const proxy = await MessageProxy.start(await freePort(), pair.port);
    const faulted = new FaultedPair(pair, proxy, Buffer.from(disk), server);
    pair.primary.setFlag("--peer", faulted.url);
    await pair.start();
    await faulted.#takeNoteOfCommitted();
    return faulted;
  }

  /** Where the second agent is reached, through the proxy. */
  get url(): string {
    return `ws://127.0.0.1:${this.proxy.port}`;
  }

  /** Arms a fault at a message of the agent that is in this role now. */
  arm({ from, ...point }: Omit<FaultPoint, "from"> & { readonly from: Side }): Fault {
    return this.proxy.arm({ ...point, from: this[from] === this.pair.primary ? "dialler" : "listener" });
  }

  /** Writes a few blocks, each of which is acknowledged when the promise resolves. */
  async write(count = SOME_WRITES): Promise<void> {
    for (let done = 0; done < count; done += 1) {
      this.#stamp += 1;
      const pattern = Buffer.alloc(8);
      pattern.writeBigUInt64BE(BigInt(this.#stamp));
      const block = this.#random.below(this.#disk.length / BLOCK_BYTES);
      await this.fill(block * BLOCK_BYTES, BLOCK_BYTES, pattern);
    }
  }

  /** Writes one after the other, whoever calls. */
  fill(offset: number, length: number, pattern: Buffer | number): Promise<void> {
    const written = this.#writing.then(async () => {
      this.#guest ??= await guestOf(this.primary);
      const payload = Buffer.alloc(length, pattern);
      await this.#guest.write(offset, payload);
      payload.copy(this.#disk, offset);
    });
    this.#writing = written.catch(() => undefined); // the caller has the error
    return written;
  }

  /** Another guest reads the beginning of the disk: what was written, or an error. */
  async read(length: number): Promise<void> {
    expectSame(await contentOf(this.primary, length), this.#disk.subarray(0, length));
  }

  /** The first agent's image, behind its server, cannot be read any more, or can again. */
  failReads(isFailing = true): void {
    if (isFailing) this.#server?.fail();
    else this.#server?.mend();
  }

  /** The guest goes away; the next write connects it again. */
  disconnectGuest(): void {
    this.#guest?.close();
    this.#guest = undefined;
  }

  /** Asks for a checkpoint of what the guest has written so far. Returns its epoch. */
  async checkpoint({ prepare = false } = {}): Promise<number> {
    const { open } = (await this.primary.status()).epoch;
    this.asked = open;
    this.#contents.set(open, Buffer.from(this.#disk));
    if (!prepare) this.#mayBeCommitted.add(open);
    const { epoch } = await this.primary.control.checkpoint({ prepare, timeoutMs: TIMEOUT_MS });
    expect(epoch).toBe(open);
    if (!prepare) this.#committed(epoch);
    return epoch;
  }

  /** The same, prepared with a VM state. */
  async prepareWithVmState(): Promise<number> {
    const { open } = (await this.primary.status()).epoch;
    this.asked = open;
    this.#contents.set(open, Buffer.from(this.#disk));
    const content = Readable.from([Buffer.from(`the VM at epoch ${open}`)]);
    const request = { prepare: true, timeoutMs: TIMEOUT_MS };
    const { epoch } = await this.primary.control.checkpointWithVmState(request, content);
    expect(epoch).toBe(open);
    return epoch;
  }

  async commit(epoch: number): Promise<void> {
    this.#mayBeCommitted.add(epoch);
    await this.primary.control.commit({ epoch, timeoutMs: TIMEOUT_MS });
    this.#committed(epoch);
  }

  /**
   * The primary dies with writes that its secondary has not got, the other side takes over, and the dead one is back:
   * outdated, with changes of its own.
   */
  async outdatePrimary(): Promise<void> {
    if (this.primary !== this.pair.primary) {
      await this.switchOver(); // only the one that dials can rejoin
      await this.expectHealed();
    }
    this.arm({ type: "data", from: "primary", act: "hold" });
    await this.write();
    this.#ownState = Buffer.from(this.#disk);
    await this.primary.crash();
    await this.#failOver();
    await this.secondary.start();
    await this.secondary.until("outdated", ({ protection }) => protection.reason === "outdated");
  }

  /** The outdated side becomes secondary. Its checkpoint is what it had itself, until a newer one is committed. */
  async rejoin(): Promise<void> {
    const { epoch } = await this.secondary.control.rejoin({ peer: this.url, timeoutMs: TIMEOUT_MS });
    this.#contents.set(epoch, this.#ownState);
    this.#mayBeCommitted.add(epoch);
  }

  /** Hands the role to the secondary. */
  async switchOver(): Promise<void> {
    this.disconnectGuest();
    const { open } = (await this.primary.status()).epoch;
    this.#contents.set(open, Buffer.from(this.#disk));
    this.#mayBeCommitted.add(open);
    await this.primary.control.switchover({ closeClients: false, timeoutMs: TIMEOUT_MS });
  }

  async #failOver(): Promise<void> {
    const { secondary } = this;
    await secondary.until("alone", ({ peers }) => peers[0]?.connection !== "Connected");
    this.disconnectGuest();
    const request = { force: false, dryRun: false, discardActive: false, timeoutMs: TIMEOUT_MS };
    const { epoch } = await secondary.control.failover(request);
    this.#disk = Buffer.from(this.#contentOf(epoch));
    [this.primary, this.secondary] = [this.secondary, this.primary];
  }

  /** The secondary shows the checkpoint that it says it has, which is one that it may have; nothing, where it has none. */
  async expectLegalView(): Promise<number> {
    const { secondary } = this;
    let status = await secondary.status();
    for (;;) {
      const { committed } = status.epoch;
      if (committed === 0) {
        expect(status.recoverable).toBeNull();
        return 0;
      }
      const view = await contentOf(secondary, this.#disk.length);
      status = await secondary.status();
      if (status.epoch.committed !== committed) continue; // another one was committed meanwhile
      expect(this.#mayBeCommitted, "epochs that may be committed").toContain(committed);
      expectSame(view, this.#contentOf(committed));
      return committed;
    }
  }

  /**
   * Waits until the pair has found together by itself, and checks that exactly one side is Primary, that nothing
   * acknowledged is lost, that both sides say the same of checkpoints, and that the next one shows everything.
   */
  async expectHealed(): Promise<void> {
    await this.untilProtected();
    const [here, there] = await Promise.all([this.primary.status(), this.secondary.status()]);
    expect(here.epoch.prepared).toEqual(there.epoch.prepared);
    expect(here.epoch.committed).toBe(there.epoch.committed);
    expect(here.recoverable?.epoch).toBe(there.epoch.committed);
    expect(here.lineage).toBe(there.lineage);
    if (!this.#contents.has(there.epoch.committed)) await this.#takeNoteOfCommitted();
    await this.expectLegalView();
    expectSame(await contentOf(this.primary, this.#disk.length), this.#disk);
    await this.write(1);
    const epoch = await this.checkpoint();
    expect(await this.expectLegalView()).toBe(epoch);
    expect((await this.primary.status()).epoch.prepared).toEqual([]);
  }

  /** Waits until exactly one side is Primary, and both say that the VM is protected. */
  async untilProtected(): Promise<void> {
    await this.#assignRoles();
    for (const agent of [this.primary, this.secondary]) {
      await agent.until("protected", ({ protection }) => protection.state === "Protected");
    }
  }

  /** Which agent is Primary now; resolves when exactly one is. */
  async #assignRoles(): Promise<void> {
    const agents = [this.pair.primary, this.pair.secondary] as const;
    let roles: Status["role"][] = [];
    await agents[0].until("one of two roles", () => true);
    const deadline = Date.now() + TIMEOUT_MS;
    do {
      if (Date.now() > deadline) throw new Error(`the two stay ${roles.join(" and ")}`);
      roles = await Promise.all(agents.map(async (agent) => (await agent.status()).role));
    } while (roles[0] === roles[1]);
    const [primary, secondary] = roles[0] === "Primary" ? agents : [agents[1], agents[0]];
    if (primary !== this.primary) this.disconnectGuest();
    this.primary = primary;
    this.secondary = secondary;
  }

  /** A checkpoint that the agents have taken by themselves, of a quiet disk. */
  async #takeNoteOfCommitted(): Promise<void> {
    const { committed } = (await this.secondary.status()).epoch;
    this.#contents.set(committed, Buffer.from(this.#disk));
    this.#committed(committed);
  }

  #committed(epoch: number): void {
    this.#mayBeCommitted.clear();
    this.#mayBeCommitted.add(epoch);
    for (const older of this.#contents.keys()) if (older < epoch) this.#contents.delete(older);
  }

  #contentOf(epoch: number): Buffer {
    const content = this.#contents.get(epoch);
    if (content === undefined) throw new Error(`nobody knows what checkpoint ${epoch} holds`);
    return content;
  }
}

function serverOf(disk: Buffer): Promise<FailingServer> {
  const image = join(scratchDirectory(), "served.img");
  makeImage(image, disk);
  return FailingServer.start(image, [], ["error-pwrite-rate=0", "error-zero-rate=0", "error-trim-rate=0"]);
}

function guestOf(agent: AgentUnderTest): Promise<NbdGuest> {
  return NbdGuest.connect(join(agent.run, "nbd.sock"));
}

async function contentOf(agent: AgentUnderTest, length: number): Promise<Buffer> {
  const reader = await guestOf(agent);
  try {
    return await reader.read(0, length);
  } finally {
    reader.close();
  }
}
