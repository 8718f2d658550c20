import type { AgentHost, AgentOptions } from "../../cli/agent-host.ts";
import { Agent } from "../../cli/agent.ts";
import type { AgentConfig } from "../../cli/agent-config.ts";
import type { AgentEvent, Status } from "../../proto/status.ts";
import { ColobusError, type ErrorCode } from "../../proto/errors.ts";
import { decodeMessage, type Message } from "../../proto/replication-messages.ts";
import type {
  AckPolicy,
  CongestionPolicy,
  Durability,
  PeerLossPolicy,
  Role,
  SecondaryExport,
} from "../../proto/words.ts";
import type { ImageSource } from "../../shared/block/disk-image.ts";
import type { BlockDevice } from "../../shared/block/block-device.ts";
import { isZero } from "../../shared/block/zeroes.ts";
import type { Log } from "../../shared/host/log.ts";
import type { Dialer, Link } from "../../shared/replication/link.ts";
import type { SimDisk, StorageProfile } from "./sim-disk.ts";
import type { SimHost, SimProcess } from "./sim-host.ts";
import type { SimArbiter } from "./sim-arbiter.ts";
import { SeededRandom } from "./seeded-random.ts";
import { ServedImages } from "./served-images.ts";
import { SimulatedCrash } from "./simulated-crash.ts";
import type { SimWorld } from "./world.ts";

/**
 * A pair of agents in a simulated world: the primary on host `a`, the secondary on host `b`, made of the shipping code
 * and nothing else. Each can die and be started again on what its disk holds.
 */
export interface PairDisk {
  readonly name: string;
  readonly sizeBytes: number;
}

export interface PairOptions {
  /** In mode `mc`; the default where it is not said. */
  readonly bufferMemoryBytes?: number;
  /** `colo` unless it is said. In mode `shared` both hosts reach the images of host `a`. */
  readonly mode?: "colo" | "mc" | "shared" | "mirror";
  /** Mode `shared`: there is a place for the mark. */
  readonly isMarked?: boolean;
  readonly onPeerLoss?: PeerLossPolicy;
  readonly disks: readonly PairDisk[];
  /** Each disk of the primary has a copy beside its image, named `b`, with other content to begin with. */
  readonly hasCopies?: boolean;
  readonly clusterBytes: number;
  readonly durability: Durability;
  readonly ack: AckPolicy;
  readonly access: SecondaryExport;
  readonly windowBytes: number;
  readonly onCongestion?: CongestionPolicy;
  readonly peerTimeoutMs: number;
  /** The secondary makes its images itself; else `prepare` makes them. */
  readonly createImages: boolean;
  /** The operator says that the secondary's images are equal. */
  readonly assumeInSync?: boolean;
  readonly checkpointEveryMs: number | undefined;
  readonly retain: number;
  readonly overlayLimitBytes: number | undefined;
  readonly storage?: Partial<StorageProfile>;
  /** Where the primary's is another one. */
  readonly primaryStorage?: Partial<StorageProfile>;
  readonly settleEveryMs?: number;
  readonly dirtyFileMinBytes?: number;
  /** Images lie behind NBD servers, which die: those that do, within this many ms, where it is said. */
  readonly servesImages?: boolean | { readonly lifeMaxMs: number };
  /** Who decides which side serves; the secondary takes over by itself then. */
  readonly arbiter?: { readonly service: SimArbiter; readonly ttlMs: number };
  /** The hook that fences the peer of `member` before a failover there; rejects when it could not. */
  readonly fence?: (member: PairMember) => Promise<void>;
}

/** What the pair tells about itself, as it happens. */
export interface PairObserver {
  /** A primary puts a request into the stream: called before anything later can be in it. */
  requested(message: Extract<Message, { type: "barrier" | "commit" | "discard" }>, by: PairMember): void;
  /** A primary of mode `mirror` puts writes, or a phase of a sync, into the stream. */
  sent?: ((message: Extract<Message, { type: "data" | "sync" }>, by: PairMember) => void) | undefined;
  happened(member: PairMember, event: AgentEvent): void;
}

const VM = "vm";
const STATE_DIRECTORY = "/state";
/** Where each host has the mark beside shared disks. */
export const MARK_PATH = "/images/mark";
/** Where the agent on a host accepts its peer. */
export function urlOf(host: string): string {
  return `ws://${host}`;
}

export function imagePath(disk: PairDisk): string {
  return `/images/${disk.name}.img`;
}

/** The primary's copy of a disk beside its image. */
export function copyPath(disk: Pick<PairDisk, "name">): string {
  return `/images/${disk.name}-copy.img`;
}

/** One of the two hosts, and the agent that runs on it, if one does. */
export class PairMember {
  readonly host: SimHost;
  readonly #world: SimWorld;
  #config: AgentConfig;
  readonly #observer: PairObserver;
  readonly #servers: ((process: SimProcess) => ImageSource) | undefined;
  readonly #arbiter: SimArbiter | undefined;
  #fence: PairOptions["fence"];
  #running: { readonly process: SimProcess; readonly agent: Agent } | undefined;
  #stopping: SimProcess | undefined;

  constructor(
    world: SimWorld,
    host: SimHost,
    config: AgentConfig,
    observer: PairObserver,
    servers?: (process: SimProcess) => ImageSource,
    arbiter?: SimArbiter,
    fence?: PairOptions["fence"],
  ) {
    this.#fence = fence;
    this.#servers = servers;
    this.#arbiter = arbiter;
    this.#world = world;
    this.host = host;
    this.#config = config;
    this.#observer = observer;
  }

  get name(): string {
    return this.host.name;
  }

  /** The agent, from when its process has opened it until that dies, or begins to stop. */
  get agent(): Agent | undefined {
    const running = this.#running;
    if (running === undefined || !running.process.alive || running.process === this.#stopping) return undefined;
    return running.agent;
  }

  /** The agent's role; undefined as `status` is, and much cheaper. */
  get role(): Role | undefined {
    return this.host.process.frozen ? undefined : this.agent?.role;
  }

  /** What the agent says of itself; undefined when it does not run, or dies over the question. */
  get status(): Status | undefined {
    const { agent } = this;
    if (agent === undefined || this.host.process.frozen) return undefined;
    try {
      return agent.status();
    } catch (error) {
      if (error instanceof SimulatedCrash) return undefined;
      throw error;
    }
  }

  /** What its next processes are started with. */
  reconfigure(changes: Partial<AgentConfig>): void {
    this.#config = { ...this.#config, ...changes };
  }

  /** Stops the agent in good order. No client may use its exports, nor begin to. The process is to end then. */
  async stop(drainMs: number): Promise<void> {
    const { agent } = this;
    this.#stopping = this.host.process;
    await agent?.stop(drainMs);
  }

  /** Its configuration, read anew, names no hook that fences the peer. */
  loseFence(): void {
    this.#fence = undefined;
  }

  /** What the agent exports under a disk's name; undefined as well while it lays the role down: clients are sent away then. */
  device(disk: PairDisk): BlockDevice | undefined {
    const found = this.agent?.exports.find(disk.name);
    try {
      return found?.device;
    } catch (error) {
      if (error instanceof ColobusError) return undefined;
      throw error;
    }
  }

  /**
   * Opens the agent in the host's present process; false when that died meanwhile. A refusal fails the world, unless it
   * is `tolerated`: then the process ends.
   */
  async start(tolerated: readonly ErrorCode[] = []): Promise<boolean> {
    const { process } = this.host;
    const died = new Promise<false>((resolve) => {
      this.host.onDeath(() => resolve(false));
    });
    const arbiter = this.#arbiter;
    const fenceOf = (): AgentOptions["fence"] => {
      const fence = this.#fence;
      return fence === undefined ? undefined : () => fence(this).then(() => "the peer was powered off");
    };
    const opened = Agent.open({
      host: this.#agentHost(process),
      config: this.#config,
      token: undefined,
      acceptsPeers: true,
      exportUri: (name) => `sim://${this.name}/${name}`,
      dropClients: () => undefined,
      get fence() {
        return fenceOf();
      },
      startVm: undefined,
      arbiter: arbiter === undefined ? undefined : (agentId) => arbiter.clientOf(process, agentId),
    }).then(
      (agent) => {
        if (!process.alive) return false;
        this.#running = { process, agent };
        agent.follow((event) => {
          if (process.alive) this.#observer.happened(this, event);
        });
        process.listen((link) => agent.accept(new ObservedLink(link, this, this.#observer)));
        return true;
      },
      (error: unknown) => {
        if (!process.alive) return false;
        if (error instanceof ColobusError && tolerated.includes(error.code)) this.host.crash("process");
        else this.#world.fail(`the agent on ${this.name} does not start`, error);
        return false;
      },
    );
    return Promise.race([opened, died]);
  }

  #agentHost(process: SimProcess): AgentHost {
    return {
      storage: process.storage,
      clock: process.clock,
      random: process.random,
      log: this.#log(process),
      bootId: this.host.bootId,
      hostName: this.name,
      pid: 1,
      dialer: (url) => this.#observedDialer(process.dialer(new URL(url).host)),
      ...(this.#servers === undefined ? {} : { images: this.#servers(process) }),
    };
  }

  /** Warnings and errors go to the trace; the rest is silent. */
  #log(process: SimProcess): Log {
    const note = (fields: unknown, phrase?: string): void => {
      const { reason, error } = (typeof fields === "object" ? fields : {}) as { reason?: unknown; error?: unknown };
      const why = reason ?? error;
      const told = why instanceof ColobusError ? `: ${why.code}, ${why.message}` : "";
      this.#world.trace(`${process.label} warns: ${phrase ?? String(fields)}${told}`);
    };
    const silent = (): void => undefined;
    return { info: silent, debug: silent, warn: note, error: note };
  }

  #observedDialer(dialer: Dialer): Dialer {
    return {
      url: dialer.url,
      dial: async (signal) => new ObservedLink(await dialer.dial(signal), this, this.#observer),
    };
  }
}

/** Shows a primary's requests at the moment at which they take their place in the stream. */
class ObservedLink implements Link {
  readonly peerAddress: string;
  readonly dialled: boolean;
  readonly #link: Link;
  readonly #owner: PairMember;
  readonly #observer: PairObserver;

  constructor(link: Link, owner: PairMember, observer: PairObserver) {
    this.peerAddress = link.peerAddress;
    this.dialled = link.dialled;
    this.#link = link;
    this.#owner = owner;
    this.#observer = observer;
  }

  get queuedBytes(): number {
    return this.#link.queuedBytes;
  }

  send(parts: readonly Uint8Array[]): void {
    const [only] = parts;
    if (parts.length === 1 && Buffer.isBuffer(only)) {
      const message = decodeMessage(only);
      if (message.type === "barrier" || message.type === "commit" || message.type === "discard") {
        this.#observer.requested(message, this.#owner);
      }
    }
    if (this.#observer.sent !== undefined) this.#observeStream(this.#observer, parts);
    this.#link.send(parts);
  }

  #observeStream(observer: PairObserver, parts: readonly Uint8Array[]): void {
    const message = decodeMessage(Buffer.concat(parts));
    if (message.type === "data" || (message.type === "sync" && message.phase === "begin")) {
      observer.sent?.(message, this.#owner);
    }
  }

  start(handlers: Parameters<Link["start"]>[0]): void {
    this.#link.start(handlers);
  }

  close(reason: ColobusError): void {
    this.#link.close(reason);
  }
}

export interface Pair {
  readonly primary: PairMember;
  readonly secondary: PairMember;
}

/** Two hosts with their images in place and no agent running yet. `contents` are those of the primary's disks. */
export function makePair(
  world: SimWorld,
  options: PairOptions,
  contents: { readonly primary: readonly Buffer[]; readonly secondary: readonly Buffer[] },
  observer: PairObserver,
): Pair {
  const isShared = options.mode === "shared";
  let shared: SimDisk | undefined;
  const member = (name: "a" | "b"): PairMember => {
    const isPrimary = name === "a";
    const storage = isPrimary ? options.primaryStorage : undefined;
    const host = world.host(name, { storage: storage ?? options.storage ?? {} });
    shared ??= host.disk;
    host.disk.addDirectory("/images");
    if (options.isMarked === true) {
      if (isPrimary) host.disk.addFile(MARK_PATH, 0);
      else host.disk.addShared(MARK_PATH, shared);
    }
    for (const [index, disk] of options.disks.entries()) {
      if (!isPrimary && isShared) {
        host.disk.addShared(imagePath(disk), shared);
        continue;
      }
      if (!isPrimary && options.createImages) continue;
      host.disk.addFile(imagePath(disk), disk.sizeBytes);
      const content = (isPrimary ? contents.primary : contents.secondary)[index];
      if (content !== undefined) putSparse(host, imagePath(disk), content);
      if (!isPrimary || options.hasCopies !== true) continue;
      host.disk.addFile(copyPath(disk), disk.sizeBytes);
      putSparse(host, copyPath(disk), Buffer.alloc(disk.sizeBytes, 0xee));
    }
    const config: AgentConfig = {
      role: isPrimary ? "Primary" : "Secondary",
      vm: VM,
      mode: options.mode ?? "colo",
      stateDirectory: STATE_DIRECTORY,
      disks: options.disks.map((disk) => ({ name: disk.name, image: imagePath(disk) })),
      ...(isPrimary && options.hasCopies === true
        ? { children: options.disks.map((disk) => ({ disk: disk.name, name: "b", image: copyPath(disk) })) }
        : {}),
      peers: isPrimary ? [urlOf("b")] : [],
      ack: options.ack,
      durability: options.durability,
      peerTimeoutMs: options.peerTimeoutMs,
      onPeerLoss: options.onPeerLoss ?? (isShared ? "freeze" : "continue"),
      ...(options.isMarked === true ? { sharedMark: MARK_PATH } : {}),
      onCongestion: options.onCongestion ?? "throttle",
      resyncSpeed: "dynamic",
      windowBytes: options.windowBytes,
      clusterBytes: options.clusterBytes,
      extentBytes: 2 * options.clusterBytes,
      settleEveryMs: options.settleEveryMs ?? 300,
      dirtyFileMinBytes: options.dirtyFileMinBytes,
      secondaryExport: options.access,
      retain: options.retain,
      overlayLimitBytes: options.overlayLimitBytes,
      bufferMemoryBytes: options.bufferMemoryBytes,
      createImages: !isPrimary && options.createImages,
      assumeInSync: isPrimary && options.assumeInSync === true,
      adoptImages: false,
      ...(options.arbiter === undefined ? {} : { failover: "automatic", arbiterTtlMs: options.arbiter.ttlMs }),
      ...(isPrimary && options.checkpointEveryMs !== undefined ? { checkpointEveryMs: options.checkpointEveryMs } : {}),
    };
    const arbiter = options.arbiter?.service;
    const { fence, servesImages = false } = options;
    if (servesImages === false) return new PairMember(world, host, config, observer, undefined, arbiter, fence);
    const random = new SeededRandom(world.seed).fork(`servers of ${name}`);
    const killed = new Set<string>();
    const lifeMaxMs = servesImages === true ? undefined : servesImages.lifeMaxMs;
    return new PairMember(
      world,
      host,
      config,
      observer,
      (process) => new ServedImages({ world, process, random, killed, lifeMaxMs }),
      arbiter,
      fence,
    );
  };
  return { primary: member("a"), secondary: member("b") };
}

const PAGE_BYTES = 4096;

/** Durable content, with holes where whole pages are zero. */
function putSparse(host: SimHost, path: string, content: Buffer): void {
  const inode = host.disk.file(path);
  host.disk.change(inode, () => {
    for (let at = 0; at < content.length; at += PAGE_BYTES) {
      const page = content.subarray(at, at + PAGE_BYTES);
      if (!isZero(page)) inode.write(page, at);
    }
  });
  inode.makeDurable(inode.position);
}
