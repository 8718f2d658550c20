import type { AgentOptions } from "../../cli/agent-host.ts";
import { Agent } from "../../cli/agent.ts";
import type { Role, SecondaryExport } from "../../proto/words.ts";
import type { Clock } from "../../shared/host/clock.ts";
import { NodeClock } from "../../shared/host/node-clock.ts";
import { NodeRandom } from "../../shared/host/node-random.ts";
import type { Link } from "../../shared/replication/link.ts";
import { LinkPair, type MemoryLink } from "./link-pair.ts";
import type { MemoryStorage } from "./memory-storage.ts";
import { seededStorage } from "./overlay-bench.ts";
import { SilentLog } from "./silent-log.ts";

export const FUZZ_DISKS = ["vda", "vdb"] as const;
export const FUZZ_DISK_BYTES = 256 * 1024;

/** Storage with the images of these disks, which are all holes. */
export function storageWithImages(seed: number): MemoryStorage {
  const storage = seededStorage(seed);
  for (const name of FUZZ_DISKS) storage.disk.addFile(`/images/${name}.img`, FUZZ_DISK_BYTES);
  return storage;
}

const NO_SIGNAL = new AbortController().signal;
const TIMEOUT_MS = 20_000;

/** Opens one agent of a pair in memory. A primary's links go to `accept`. */
export function openFuzzAgent(
  role: Role,
  storage: MemoryStorage,
  token: Buffer | undefined,
  dial: () => Promise<Link>,
  clock: Clock = new NodeClock(),
  {
    secondaryExport = "read-only",
    ...hooks
  }: Pick<AgentOptions, "fence" | "startVm" | "assertImageAllowed"> & { readonly secondaryExport?: SecondaryExport } = {
    fence: undefined,
    startVm: undefined,
  },
): Promise<Agent> {
  return Agent.open({
    host: {
      storage,
      clock,
      random: new NodeRandom(),
      log: new SilentLog(),
      bootId: "boot",
      hostName: "host",
      pid: 1,
      dialer: (url) => ({ url, dial }),
    },
    token,
    acceptsPeers: true,
    exportUri: (name) => name,
    dropClients: () => undefined,
    ...hooks,
    config: {
      role,
      vm: "fuzz",
      mode: "colo",
      stateDirectory: "/state",
      disks: FUZZ_DISKS.map((name) => ({ name, image: `/images/${name}.img` })),
      peers: role === "Primary" ? ["ws://secondary:1"] : [],
      ack: "async",
      durability: "process",
      peerTimeoutMs: 60_000,
      onPeerLoss: "continue",
      onCongestion: "throttle",
      resyncSpeed: "dynamic",
      windowBytes: 64 * 1024 * 1024,
      clusterBytes: 4096,
      extentBytes: 16_384,
      settleEveryMs: 5_000,
      secondaryExport,
      retain: 0,
      createImages: false,
      assumeInSync: false,
      adoptImages: false,
    },
  });
}

export interface RecordedSession {
  /** What the primary sent, message by message. */
  readonly toSecondary: readonly Buffer[];
  /** What the secondary sent. */
  readonly toPrimary: readonly Buffer[];
}

/** Connects a primary to `secondary`, lets it sync, write, checkpoint and discard, and returns what crossed the link. */
export async function recordSession(
  primaryStorage: MemoryStorage,
  secondary: Agent,
  token: Buffer | undefined,
  fill = 0x40,
): Promise<RecordedSession> {
  const toSecondary: Buffer[] = [];
  const toPrimary: Buffer[] = [];
  const primary = await openFuzzAgent("Primary", primaryStorage, token, () => {
    const pair = new LinkPair();
    forwardSoon(pair.left, toSecondary);
    forwardSoon(pair.right, toPrimary);
    secondary.accept(pair.right);
    return Promise.resolve(pair.left);
  });
  await primary.wait({ condition: "synced", timeoutMs: TIMEOUT_MS }, NO_SIGNAL);
  await primary.wait({ condition: "committed", timeoutMs: TIMEOUT_MS }, NO_SIGNAL);
  for (const [index, name] of FUZZ_DISKS.entries()) {
    const device = primary.exports.find(name)?.device;
    await device?.write(Buffer.alloc(5000, fill + index), 3000, { fua: false });
    await device?.zero(40_000, 30_000, { fua: false, mayUnmap: true });
  }
  await primary.checkpoint({ prepare: true, timeoutMs: TIMEOUT_MS }, NO_SIGNAL);
  await primary.discard({ timeoutMs: TIMEOUT_MS }, NO_SIGNAL);
  await primary.checkpoint({ prepare: false, timeoutMs: TIMEOUT_MS }, NO_SIGNAL);
  const recorded = { toSecondary: [...toSecondary], toPrimary: [...toPrimary] };
  await primary.stop(1000);
  return recorded;
}

/** Records what `end` sends and hands it over in a later turn of the event loop, in order. */
function forwardSoon(end: MemoryLink, record: Buffer[]): void {
  const deliverSoon = (): void => {
    setImmediate(() => {
      const message = end.sent[0];
      if (message !== undefined) record.push(Buffer.from(message));
      end.deliverOne();
    });
  };
  const send = end.send.bind(end);
  const close = end.close.bind(end);
  end.send = (parts) => {
    send(parts);
    deliverSoon();
  };
  end.close = (reason) => {
    close(reason);
    deliverSoon();
  };
}

/** The bytes of every image, as a reader of the host sees them. */
export function imagesOf(storage: MemoryStorage): Buffer {
  return Buffer.concat(FUZZ_DISKS.map((name) => Buffer.from(storage.disk.readFile(`/images/${name}.img`))));
}
