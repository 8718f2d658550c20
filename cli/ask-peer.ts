import type { Hello } from "../proto/replication-messages.ts";
import { probePeer, type PeerProbeOptions } from "../shared/replication/peer-probe.ts";
import type { Judged } from "./verdict-answer.ts";

/**
 * Asks a peer what the two would do; nothing follows from the answer on either side. What was said of a history that is not
 * this side's any more explains nothing: then it is asked again. Errors: as `probePeer`.
 */
export async function askPeer(options: Omit<PeerProbeOptions, "hello">, hello: () => Hello): Promise<Judged> {
  for (;;) {
    const said = hello();
    const judged = await probePeer({ ...options, hello: said });
    const now = hello();
    if (now.role === said.role && now.lineage === said.lineage) return judged;
  }
}
