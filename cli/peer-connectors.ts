import type { ColobusError } from "../proto/errors.ts";
import { Connector, type ConnectorOptions } from "../shared/replication/connector.ts";
import type { Dialer, Link } from "../shared/replication/link.ts";

export interface PeerConnectorsOptions extends Pick<ConnectorOptions, "clock" | "random"> {
  readonly dialer: (url: string) => Dialer;
  /** Whether a link to the peer at `url` is wanted now. */
  readonly isWanted: (url: string) => boolean;
  /** A link is there; `ended` is to be called when it is over. */
  readonly connected: (link: Link, ended: (wasReady: boolean) => void, url: string) => void;
  readonly failed: (reason: ColobusError, url: string) => void;
}

/** Keeps a link to each of the peers that an agent dials. */
export class PeerConnectors {
  readonly #options: PeerConnectorsOptions;
  #connectors: readonly Connector[] = [];

  constructor(options: PeerConnectorsOptions) {
    this.#options = options;
  }

  /** Dials these from now on. */
  dial(urls: readonly string[]): void {
    this.hangUp();
    this.#connectors = urls.map((url) => this.#connector(url));
    for (const connector of this.#connectors) connector.start();
  }

  hangUp(): void {
    for (const connector of this.#connectors) connector.stop();
    this.#connectors = [];
  }

  #connector(url: string): Connector {
    const { clock, random, dialer, isWanted, connected, failed } = this.#options;
    const connector: Connector = new Connector({
      dialer: dialer(url),
      clock,
      random,
      isWanted: () => isWanted(url),
      connected: (link) => connected(link, (wasReady) => connector.lost(wasReady), url),
      failed: (reason) => failed(reason, url),
    });
    return connector;
  }
}
