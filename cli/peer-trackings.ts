import { overlayDirectory } from "../secondary/overlay-files.ts";
import { clusterGeometry } from "../shared/block/cluster-geometry.ts";
import type { StateFile } from "../shared/journal/state-file.ts";
import { mainSlotOf, slotsOf } from "../shared/replication/peer-slots.ts";
import { PeerTracking, type PeerTrackingOptions } from "../shared/replication/peer-tracking.ts";
import type { AgentOptions } from "./agent-host.ts";

export interface PeerTrackingsOptions extends Pick<PeerTrackingOptions, "emit"> {
  readonly agent: AgentOptions;
  readonly state: StateFile;
}

/** Knows where the dirty bitmaps about each of an agent's peers lie, and opens them. */
export class PeerTrackings {
  readonly #options: PeerTrackingsOptions;

  constructor(options: PeerTrackingsOptions) {
    this.#options = options;
  }

  /** The bitmaps about the record's own peer. */
  open(): PeerTracking {
    return PeerTracking.open(this.options());
  }

  /**
   * For a primary: a place for each secondary that there may be, first that of the record's own peer, then those of which it
   * says something, and free ones. `own`: the bitmaps about its own peer, where they are open already.
   */
  openAll(own?: PeerTracking): { readonly slot: number; readonly tracking: PeerTracking }[] {
    const { agent, state } = this.#options;
    const main = mainSlotOf(state.record);
    const slots = [...slotsOf(state.record)];
    for (let slot = 0; slots.length < (agent.config.secondaries ?? 1); slot += 1) {
      if (!slots.includes(slot)) slots.push(slot);
    }
    return slots.map((slot) => ({
      slot,
      tracking: own !== undefined && slot === main ? own : PeerTracking.open(this.options(slot)),
    }));
  }

  /** The disks are those whose sizes are known: a secondary's may still be to be made. */
  options(slot = mainSlotOf(this.#options.state.record)): PeerTrackingOptions {
    const { agent, state, emit } = this.#options;
    const { storage, clock, random, log } = agent.host;
    const disks = state.record.disks.flatMap(({ name, sizeBytes }) =>
      sizeBytes === null
        ? []
        : {
            geometry: clusterGeometry(sizeBytes, state.record.clusterBytes),
            directory: this.#directory(name, slot),
          },
    );
    const { extentBytes, settleEveryMs, dirtyFileMinBytes } = agent.config;
    return { storage, clock, random, log, state, slot, disks, extentBytes, settleEveryMs, dirtyFileMinBytes, emit };
  }

  /** Where the dirty bitmap of a disk lies. A directory that is lost with its bitmap costs a full sync. */
  #directory(disk: string, slot: number): string {
    const { config, host } = this.#options.agent;
    const directory = overlayDirectory(config.stateDirectory, disk);
    if (slot === 0) return directory;
    host.storage.makeDirectory(`${directory}/peer-${slot}`);
    return `${directory}/peer-${slot}`;
  }
}
