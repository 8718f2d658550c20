import { ColobusError } from "../proto/errors.ts";
import type { Clock } from "../shared/host/clock.ts";
import { QmpClient } from "../shared/host/qmp-client.ts";

export interface GuestAgentOptions {
  /** Of the guest agent: QEMU's end of its serial port. */
  readonly socket: string;
  readonly clock: Clock;
  readonly timeoutMs: number;
}

/**
 * Has the guest agent freeze the guest's file systems, and returns how they are thawed. They are never left frozen where the
 * guest agent still listens: not after a freeze that failed half way, nor one that was not answered in time. Errors:
 * `vm-unreachable`, `vm-refused`, `timed-out`.
 */
export async function freezeGuest(options: GuestAgentOptions): Promise<() => Promise<void>> {
  const agent = await QmpClient.connectToGuestAgent(options);
  const thaw = async (): Promise<void> => {
    try {
      await agent.execute("guest-fsfreeze-thaw");
    } catch {
      await thawAnew(options);
    } finally {
      agent.close();
    }
  };
  try {
    await agent.execute("guest-fsfreeze-freeze");
  } catch (error) {
    await thaw();
    throw error;
  }
  return thaw;
}

/** By a new connection: the guest agent carries out what it was told before, then hears this. */
async function thawAnew(options: GuestAgentOptions): Promise<void> {
  try {
    const agent = await QmpClient.connectToGuestAgent(options);
    await agent.execute("guest-fsfreeze-thaw").finally(() => agent.close());
  } catch (error) {
    const { code, message } =
      error instanceof ColobusError ? error : { code: "vm-refused" as const, message: String(error) };
    throw new ColobusError(
      code,
      `the guest's file systems may be frozen still: ${message}`,
      "Thaw them inside the guest (fsfreeze -u), or have the guest agent do it (guest-fsfreeze-thaw).",
    );
  }
}
