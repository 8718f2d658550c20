import type { GuestPolicy } from "./guest-policy.ts";
import { beingHandedOver } from "./no-peer.ts";
import type { PermitKeeper } from "./permit-keeper.ts";
import type { SharedDisks } from "./shared-disks.ts";

export interface StartAlone {
  readonly guests: GuestPolicy;
  readonly keeper: PermitKeeper | undefined;
  readonly shared: SharedDisks | undefined;
  /** Secondaries that have to speak before guests go on by themselves. */
  readonly unheard: Set<string>;
  readonly isHandingOver: () => boolean;
  readonly released: () => void;
}

/**
 * Lets the guests go on that wait for the peer, or that the arbiter's record refuses: that is overwritten first. Returns whether
 * any did. Errors: `outdated`; `arbiter-unreachable`, `lease-held`: they would wait for the arbiter still; `handed-over`, also
 * while that is under way: what they wrote would be lost; `split-brain`, unless an operator says so by `force`.
 */
export async function startAlone(force: boolean, context: StartAlone): Promise<boolean> {
  const { guests, keeper, shared, unheard } = context;
  assertMayStartAlone(force, context);
  const isRefused = keeper?.refusal !== undefined;
  try {
    if (isRefused) await keeper.overrule();
  } finally {
    // The peer may have spoken meanwhile.
    assertMayStartAlone(force, context);
  }
  shared?.goAlone();
  const waited = guests.startAlone();
  unheard.clear();
  context.released();
  return waited || isRefused;
}

function assertMayStartAlone(force: boolean, { guests, keeper, shared, isHandingOver }: StartAlone): void {
  if (isHandingOver()) throw beingHandedOver();
  guests.assertMayStartAlone();
  // Without the mark nobody could tell that the secondary's checkpoint is void.
  shared?.assertMayGoAlone();
  const { refusal, wait } = keeper ?? {};
  const letsGoOn = guests.areWaiting || (refusal ?? wait) !== undefined || shared?.goesAlone === false;
  if (letsGoOn && !force && guests.splitBrain !== undefined) throw guests.splitBrain;
  // Nothing is overwritten for that: who has the lease may serve.
  if (wait !== undefined) throw wait;
}
