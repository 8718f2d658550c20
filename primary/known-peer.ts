import type { Hello, Site } from "../proto/replication-messages.ts";
import type { Verdict } from "../shared/replication/verdict.ts";

/** Owns what a primary knows of the secondary of one place: who and where it is, and whether the two have parted. */
export class KnownPeer {
  /** Whom this side dials for it, as far as that is known. */
  #url: string | null;
  /** Where this process has met a secondary of the place. */
  #reachedUrl: string | null = null;
  #met: { readonly agentId: string; readonly agentVersion: string; readonly address: string } | undefined;
  /** Where its images are, as it said last. */
  site: Site | undefined;
  #standsAlone = false;

  constructor(url: string | null) {
    this.#url = url;
  }

  get url(): string | null {
    return this.#url;
  }

  get isReached(): boolean {
    return this.#reachedUrl === this.#url;
  }

  get agentId(): string | undefined {
    return this.#met?.agentId;
  }

  /** Whether the last handshake came to this side being behind, or a split brain. */
  get standsAlone(): boolean {
    return this.#standsAlone;
  }

  /** It has proved itself at `address`, dialled at `url` where this side has. */
  meet({ agentId, agentVersion }: Hello, verdict: Verdict, address: string, url: string | null): void {
    if (this.#met?.agentId !== agentId) this.site = undefined;
    this.#met = { agentId, agentVersion, address };
    this.#url = url ?? this.#url;
    this.#reachedUrl = url ?? this.#reachedUrl;
    this.#standsAlone = verdict.kind === "outdated" || verdict.kind === "split-brain";
  }

  /** All of it was about a secondary that is given up; `url`: whom this side dials from now on. */
  forget(url: string | null): void {
    this.#url = url;
    this.#met = undefined;
    this.site = undefined;
    this.#standsAlone = false;
  }

  /** Whom this side dials at `url` is another secondary. */
  cede(url: string | null): void {
    if (this.#url === url) this.#url = null;
  }

  describe(): { url: string | null; address: string | null; agentId: string | null; agentVersion: string | null } {
    const { address = null, agentId = null, agentVersion = null } = this.#met ?? {};
    return { url: this.#url, address: this.#url ?? address, agentId, agentVersion };
  }

  /** Whom an event is about. `peer`: where this side dials it; the agent that is there may have dialled from elsewhere. */
  get eventFields(): { readonly peer: string | null; readonly agentId: string | null } {
    const { address, agentId } = this.describe();
    return { peer: address, agentId };
  }
}
