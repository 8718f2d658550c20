import type { PeerStatus, Status } from "../../proto/control-api.ts";
import type { ColobusError } from "../../proto/errors.ts";
import { urlOf, type PairDisk, type PairMember } from "./pair.ts";
import { makeTrio, type TrioOptions } from "./trio.ts";
import { SimWorld } from "./world.ts";

const DISK: PairDisk = { name: "vda", sizeBytes: 32 * 4096 };
export const CLUSTER = 4096;
export const COMMAND = { timeoutMs: 60_000 } as const;
const LIMIT_MS = 120_000;

/** Three hosts of which a test says step by step what happens. */
export class ScriptedTrio {
  readonly world = new SimWorld(1);
  readonly a: PairMember;
  readonly b: PairMember;
  readonly c: PairMember;
  /** Bytes that a sync of each secondary began with, in the order in which they began. */
  readonly syncs: { readonly peer: string; readonly bytes: number }[] = [];

  constructor(mode: TrioOptions["mode"] = "colo", options: Partial<TrioOptions> = {}) {
    const [a, b, c] = makeTrio(
      this.world,
      {
        mode,
        disks: [DISK],
        durability: "power",
        ack: mode === "mirror" || mode === "shared" ? "applied" : "async",
        windowBytes: 1 << 20,
        onCongestion: "throttle",
        ...options,
      },
      [Buffer.alloc(DISK.sizeBytes, 0x11)],
      {
        requested: () => undefined,
        happened: (_, { type, data }) => {
          if (type === "sync-started" && typeof data.bytes === "number") {
            this.syncs.push({ peer: String(data.peer).slice(-1), bytes: data.bytes });
          }
        },
      },
    );
    if (a === undefined || b === undefined || c === undefined) throw new Error("there are three");
    this.a = a;
    this.b = b;
    this.c = c;
  }

  do<T>(what: string, work: () => Promise<T>): Promise<T> {
    return this.world.runFor(
      what,
      new Promise<T>((resolve, reject) => {
        this.world.schedule(0, () => void work().then(resolve, reject));
      }),
    );
  }

  until(what: string, condition: () => boolean): Promise<void> {
    return this.world.runUntil(what, condition, LIMIT_MS);
  }

  /** All three run, and the two secondaries have the first checkpoint. */
  async start(mode = "colo"): Promise<void> {
    for (const member of [this.b, this.c, this.a]) await this.do("a start", () => member.start());
    await this.until("both to have everything", () => this.inSync().length === 2);
    if (mode !== "mirror") await this.checkpoint();
    // What is stable there is settled here.
    await this.world.run({ forMs: 2_000 });
  }

  async restart(member: PairMember): Promise<void> {
    member.host.restart();
    await this.do("a start", () => member.start());
  }

  status(member = this.a): Status {
    const status = member.agent?.status();
    if (status === undefined) throw new Error(`${member.name} is down`);
    return status;
  }

  peer(name: "b" | "c"): PeerStatus | undefined {
    return this.status().peers.find(({ url }) => url === urlOf(name));
  }

  inSync(member = this.a): PeerStatus[] {
    return this.status(member).peers.filter(({ replication }) => replication === "Established");
  }

  checkpoint(member = this.a): Promise<number | undefined> {
    return this.do("a checkpoint", async () => {
      const answer = await member.agent?.checkpoint({ prepare: false, ...COMMAND }, new AbortController().signal);
      return answer?.epoch;
    });
  }

  write(cluster: number, byte: number, member = this.a): Promise<void> {
    return this.do("a write", () => this.writeOnce(cluster, byte, member));
  }

  /** To be called in the world. */
  async writeOnce(cluster: number, byte: number, member = this.a): Promise<void> {
    await member.device(DISK)?.write(Buffer.alloc(CLUSTER, byte), cluster * CLUSTER, { fua: false });
  }

  /** To be called in the world: resolves when a promoted side has put its overlays into the base. */
  async merged(member: PairMember): Promise<void> {
    await member.agent?.wait({ condition: "merged", ...COMMAND }, new AbortController().signal);
  }

  /** What the guest of a primary, or the view of a secondary, shows of a cluster: its first byte. */
  read(cluster: number, member: PairMember): Promise<number | undefined> {
    const content = Buffer.alloc(CLUSTER);
    return this.do("a read", async () => {
      await member.device(DISK)?.read(content, cluster * CLUSTER);
      return content[0];
    });
  }

  failover(member: PairMember, { force = false, fenced = false } = {}): Promise<void> {
    return this.do("a failover", async () => {
      const request = { force, fenced, dryRun: false, discardActive: false, ...COMMAND };
      await member.agent?.failover(request, new AbortController().signal);
    });
  }

  /** Resolves when a secondary has noticed that its primary is gone. */
  lost(member: PairMember): Promise<void> {
    return this.until("the loss", () => this.status(member).peers[0]?.connection !== "Connected");
  }

  /** Resolves with what became of it. */
  follow(member: PairMember, primary: PairMember): Promise<string> {
    return this.do("a rejoin", async () => {
      const request = { peer: urlOf(primary.name), ...COMMAND };
      try {
        await member.agent?.rejoin(request, new AbortController().signal);
        return "done";
      } catch (error) {
        return (error as ColobusError).code;
      }
    });
  }

  cutOff(member: PairMember, on = true): void {
    for (const other of [this.a, this.b, this.c]) {
      if (other !== member) this.world.network.partition(member.name, other.name, on);
    }
  }
}
