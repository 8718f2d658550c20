import type { Arbiter } from "../shared/arbiter/arbiter.ts";
import type { ImageSource } from "../shared/block/disk-image.ts";
import type { Clock } from "../shared/host/clock.ts";
import type { EventLoopDelay } from "../shared/host/event-loop-delay.ts";
import type { Log } from "../shared/host/log.ts";
import type { ProcessFigures } from "../shared/host/process-figures.ts";
import type { Random } from "../shared/host/random.ts";
import type { Storage } from "../shared/host/storage.ts";
import type { Dialer } from "../shared/replication/link.ts";
import type { AgentConfig } from "./agent-config.ts";
import type { PromotedVm } from "./failover-hook.ts";
import type { FencedPeer } from "./fence-peer.ts";
import type { Reloaded } from "./live-config.ts";

/** What an agent is given by the machine that it runs on, or by the simulator. */
export interface AgentHost {
  readonly storage: Storage;
  /** Opens the disks' images; undefined: files of `storage`. */
  readonly images?: ImageSource;
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Log;
  readonly bootId: string;
  /** What the host calls itself. */
  readonly hostName: string;
  readonly pid: number;
  readonly dialer: (url: string) => Dialer;
  /** The agent starts and stops it. The simulator's processes are never late, and have none. */
  readonly eventLoopDelay?: EventLoopDelay;
  /** The simulator's processes have none. */
  readonly processFigures?: () => ProcessFigures;
}

export interface AgentOptions {
  readonly host: AgentHost;
  readonly config: AgentConfig;
  readonly token: Buffer | undefined;
  /** Whether a peer may dial this agent. */
  readonly acceptsPeers: boolean;
  /** The URI under which clients reach an export. */
  readonly exportUri: (name: string) => string;
  /** Errors: `usage` for an image that this agent may not use, wherever it is named after the start. Default: all may be used. */
  readonly assertImageAllowed?: (image: string) => void;
  /** Sends the exports' clients away, once what they have under way is answered. */
  readonly dropClients: () => void;
  /** Who decides which of the two may serve; undefined: nobody, and a failover is an operator's business. */
  readonly arbiter?: ((agentId: string) => Arbiter) | undefined;
  /** Makes sure that the peer serves no more, before a failover; `signal`: not any more. Errors: `fence-failed`. undefined: the operator has. */
  readonly fence: ((peer: FencedPeer, signal: AbortSignal) => Promise<string>) | undefined;
  /** Reads the configuration anew. Errors: `usage`. undefined: there is none to be read. */
  readonly reload?: () => Promise<Reloaded>;
  /** Starts the VM after a failover; `signal`: not any more. Errors: `hook-failed`. undefined: whoever asked for the failover does. */
  readonly startVm: ((vm: Omit<PromotedVm, "run">, signal: AbortSignal) => Promise<void>) | undefined;
}
