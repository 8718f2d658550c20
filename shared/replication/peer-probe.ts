import { ColobusError } from "../../proto/errors.ts";
import type { Hello } from "../../proto/replication-messages.ts";
import type { Clock } from "../host/clock.ts";
import type { Random } from "../host/random.ts";
import type { Dialer } from "./link.ts";
import { Session } from "./session.ts";
import { decideBetween } from "./shared-verdict.ts";
import type { Verdict } from "./verdict.ts";

export interface PeerProbeOptions {
  readonly dialer: Dialer;
  readonly clock: Clock;
  readonly random: Random;
  readonly hello: Hello;
  readonly token: Buffer | undefined;
  readonly peerTimeoutMs: number;
  /** Gives the probe up. */
  readonly signal: AbortSignal;
}

/**
 * Asks the peer what the two would do: both prove themselves over a link of its own, each compares the hellos, and the
 * link is closed. Neither side's state, sessions or events know of it.
 * Errors: `connection-lost` when nobody answers or `signal` aborts; why the two cannot form a pair (`auth-failed`,
 * `vm-mismatch` …); what the peer refuses with.
 */
export async function probePeer(
  options: PeerProbeOptions,
): Promise<{ readonly verdict: Verdict; readonly peer: Hello }> {
  const { dialer, signal, ...rest } = options;
  const { hello } = options;
  const link = await dialer.dial(signal);
  return new Promise((resolve, reject) => {
    const session = new Session({
      ...rest,
      link,
      probe: true,
      handlers: {
        opened: (peer) => {
          resolve({ verdict: decideBetween(hello, peer), peer });
          session.close(new ColobusError("replaced", "the agent only asked what the two would do"));
        },
        message: ({ type }) => {
          throw new ColobusError("protocol-error", `the peer sent "${type}" to who only asks`);
        },
        closed: reject,
      },
    });
    const giveUp = (): void => session.close(new ColobusError("connection-lost", "the question was given up"));
    if (signal.aborted) giveUp();
    else signal.addEventListener("abort", giveUp, { once: true });
  });
}
