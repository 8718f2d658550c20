import type { ColobusError } from "../../proto/errors.ts";
import type { PeerIdentity } from "../host/peer-certificate.ts";

/**
 * A connection between two agents that carries whole binary messages in order, or ends. In production it is a
 * WebSocket (`websocket-link.ts`); in the simulator it is a network that delays, drops and partitions.
 */
export interface Link {
  /** What to call the other end in logs and status. */
  readonly peerAddress: string;
  /** This end has dialled; else it was dialled. */
  readonly dialled: boolean;
  /** Who the other end is by its certificate; undefined where it has shown none. */
  readonly peerIdentity?: PeerIdentity | undefined;
  /** Bytes handed to `send` that the network has not taken yet. */
  readonly queuedBytes: number;
  /**
   * Sends the concatenation of `parts` as one message. No-op once closed. Several parts are copied before it returns; a
   * single one is the link's from now on.
   */
  send(parts: readonly Uint8Array[]): void;
  /** Starts delivery. `message` buffers belong to the receiver. `closed` is called exactly once, and nothing after it. */
  start(handlers: LinkHandlers): void;
  /** The other end has proved to be the peer: from now on it may send much. */
  proved?(): void;
  /** Ends the link, telling the other end why. `closed` still follows. */
  close(reason: ColobusError): void;
}

export interface LinkHandlers {
  message(data: Buffer): void;
  /** The link ended: by this side's `close`, by the other side (its reason), or by a fault of the network. */
  closed(reason: ColobusError): void;
}

/** Opens links to one address. Rejects with `connection-lost` and the reason, or when `signal` aborts. */
export interface Dialer {
  readonly url: string;
  dial(signal: AbortSignal): Promise<Link>;
}
