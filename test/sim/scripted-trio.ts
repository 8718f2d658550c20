import type { ConnectRequest } from "../../proto/control-api.ts";
import type { PeerStatus, Status } from "../../proto/status.ts";
import type { ColobusError } from "../../proto/errors.ts";
import { urlOf, type PairDisk, type PairMember, type PairObserver } from "./pair.ts";
import { makeTrio, makeTrioMember, type TrioOptions } from "./trio.ts";
import { SimWorld } from "./world.ts";

const DISK: PairDisk = { name: "vda", sizeBytes: 32 * 4096 };
export const CLUSTER = 4096;
export const COMMAND = { timeoutMs: 60_000 } as const;
export const LIMIT_MS = 120_000;

/** Three hosts of which a test says step by step what happens. */
export class ScriptedTrio {
  readonly world = new SimWorld(1);
  readonly a: PairMember;
  readonly b: PairMember;
  readonly c: PairMember;
  /** Bytes that a sync of each secondary began with, in the order in which they began. */
  readonly syncs: { readonly peer: string; readonly bytes: number }[] = [];

  readonly #options: TrioOptions;
  readonly #observer: PairObserver = {
    requested: () => undefined,
    happened: (_, { type, data }) => {
      if (type === "sync-started" && typeof data.bytes === "number") {
        this.syncs.push({ peer: String(data.peer).slice(-1), bytes: data.bytes });
      }
    },
  };

  constructor(
    mode: TrioOptions["mode"] = "colo",
    options: Partial<TrioOptions> | ((world: SimWorld) => Partial<TrioOptions>) = {},
  ) {
    this.#options = {
      mode,
      disks: [DISK],
      durability: "power",
      ack: mode === "mirror" || mode === "shared" ? "applied" : "async",
      windowBytes: 1 << 20,
      onCongestion: "throttle",
      ...(typeof options === "function" ? options(this.world) : options),
    };
    const contents = [Buffer.alloc(DISK.sizeBytes, 0x11)];
    const [a, b, c] = makeTrio(this.world, this.#options, contents, this.#observer);
    if (a === undefined || b === undefined || c === undefined) throw new Error("there are three");
    this.a = a;
    this.b = b;
    this.c = c;
  }

  do<T>(what: string, work: () => Promise<T>): Promise<T> {
    return this.world.do(what, work);
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

  /** The role goes from `a` to a secondary. Resolves with what became of it. */
  switchOver(member: PairMember, timeoutMs: number = COMMAND.timeoutMs): Promise<string> {
    return this.do("a switchover", () => this.switchOverNow(member, timeoutMs));
  }

  /** As `switchOver`, for a test that lets time pass itself. */
  switchOverNow(member: PairMember, timeoutMs: number = COMMAND.timeoutMs): Promise<string> {
    return outcomeOf(async (signal) => {
      const request = { peer: this.status(member).agentId, closeClients: true, timeoutMs };
      await this.a.agent?.switchover(request, signal);
    });
  }

  /** Resolves when a secondary has noticed that its primary is gone. */
  lost(member: PairMember): Promise<void> {
    return this.until("the loss", () => this.status(member).peers[0]?.connection !== "Connected");
  }

  /** Resolves with what became of it. */
  follow(member: PairMember, primary: PairMember): Promise<string> {
    return this.do("a rejoin", () =>
      outcomeOf(async (signal) => {
        await member.agent?.rejoin({ peer: urlOf(primary.name), ...COMMAND }, signal);
      }),
    );
  }

  /** A secondary gives up what it holds for its primary's. Resolves with what became of it. */
  discard(member: PairMember): Promise<string> {
    return this.do("connect --discard-my-data", () =>
      outcomeOf(async (signal) => {
        await member.agent?.connect({ dryRun: false, discardMyData: true, ...COMMAND }, signal);
      }),
    );
  }

  /** A secondary goes back to a checkpoint that it retains. */
  rollBack(member: PairMember, epoch: number): Promise<void> {
    return this.do("a rollback", async () => {
      await member.agent?.rollback({ epoch, ...COMMAND }, new AbortController().signal);
    });
  }

  /** Another agent, with an empty state directory. */
  async newcomer(name: string): Promise<PairMember> {
    const member = makeTrioMember(this.world, name, this.#options, { observer: this.#observer });
    await this.do("the new one", () => member.start());
    return member;
  }

  /** Resolves with what became of it. */
  forget(peer: string): Promise<string> {
    return this.do("a forget", () => this.forgetNow(peer));
  }

  /** As `forget`, for a test that lets time pass itself. */
  forgetNow(peer: string): Promise<string> {
    return outcomeOf(async (signal) => {
      await this.a.agent?.forget({ peer, ...COMMAND }, signal);
    });
  }

  /** Another agent takes the place of one of the two. Resolves with what became of it. */
  accept(request: Pick<ConnectRequest, "peer" | "insteadOf">): Promise<string> {
    return this.do("a new peer", () => this.acceptNow(request));
  }

  /** As `accept`, for a test that lets time pass itself. */
  acceptNow(request: Pick<ConnectRequest, "peer" | "insteadOf">): Promise<string> {
    return outcomeOf(async (signal) => {
      const order = { dryRun: false, discardMyData: false, acceptNewPeer: true, ...COMMAND };
      await this.a.agent?.connect({ ...order, ...request }, signal);
    });
  }

  cutOff(member: PairMember, on = true): void {
    for (const other of [this.a, this.b, this.c]) {
      if (other !== member) this.world.network.partition(member.name, other.name, on);
    }
  }
}

/** `done`, or the code of the error. */
async function outcomeOf(give: (signal: AbortSignal) => Promise<void>): Promise<string> {
  try {
    await give(new AbortController().signal);
    return "done";
  } catch (error) {
    return (error as ColobusError).code;
  }
}
