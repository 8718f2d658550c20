import { ColobusError } from "../proto/errors.ts";
import type { Clock } from "../shared/host/clock.ts";
import type { Log } from "../shared/host/log.ts";
import { RefusalLog } from "../shared/host/refusal-log.ts";
import type { StateFile } from "../shared/journal/state-file.ts";
import type { Dialer, Link } from "../shared/replication/link.ts";
import { mainSlotOf, peerEntryOf, slotsOf } from "../shared/replication/peer-slots.ts";

/**
 * Binds the pair to whom its certificates name: once a session has begun with a peer that has shown one, the record has its
 * subject, and nobody with another certificate of the same authority may take that peer's place. A link is judged before
 * anything is sent over it. Only who is named by the configuration (`--tls-peer`) may follow another one.
 */
export class PeerBinding {
  readonly #state: StateFile;
  readonly #secondaries: number;
  readonly #refusals: RefusalLog;

  /** `secondaries`: how many this agent may have as a primary. */
  constructor(options: {
    readonly state: StateFile;
    readonly secondaries: number;
    readonly clock: Clock;
    readonly log: Log;
  }) {
    this.#state = options.state;
    this.#secondaries = options.secondaries;
    this.#refusals = new RefusalLog({ ...options, port: "replication" });
  }

  /** Why the other end of the link is not the peer; undefined when nothing speaks against it. It is logged once. */
  refusalOf({ peerIdentity, peerAddress }: Link): ColobusError | undefined {
    const { record } = this.#state;
    if (peerIdentity === undefined || peerIdentity.isNamed) return undefined;
    const slots = record.role === "Primary" ? slotsOf(record) : [mainSlotOf(record)];
    const subjects = slots.map((slot) => peerEntryOf(record, slot).peerSubject);
    // Whoever fills a place that is free yet is one that the authority vouches for.
    if (subjects.includes(undefined) || subjects.includes(peerIdentity.subject)) return undefined;
    if (record.role === "Primary" && subjects.length < this.#secondaries) return undefined;
    const reason = new ColobusError(
      "auth-failed",
      "the certificate is valid, but of another host than the peer that this agent is paired with",
      "Connect the right hosts; a host that takes the peer's place is named with --tls-peer NAME on the other side.",
    );
    this.#refusals.refused(reason.message, peerAddress);
    return reason;
  }

  /** Logs, once for each reason, that this side or the other one has not been accepted. */
  told(fault: ColobusError, url: string): void {
    if (fault.code === "auth-failed") this.#refusals.refused(fault.message, url);
  }

  /** A dialer whose links are with the peer. */
  guard(dialer: Dialer): Dialer {
    return {
      url: dialer.url,
      dial: async (signal) => {
        const link = await dialer.dial(signal);
        const refusal = this.refusalOf(link);
        if (refusal === undefined) return link;
        refuse(link, refusal);
        throw refusal;
      },
    };
  }
}

/** Ends a link that was not used yet. `ended` is called when it is over. */
export function refuse(link: Link, reason: ColobusError, ended: () => void = () => undefined): void {
  link.start({ message: () => undefined, closed: ended });
  link.close(reason);
}
