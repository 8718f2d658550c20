import { CHILD_TIMEOUT_DEFAULT_MS } from "../proto/limits.ts";
import type { ChildrenContext } from "../primary/children-context.ts";
import type { ImageSource } from "../shared/block/disk-image.ts";
import type { LostSyncs } from "../shared/journal/lost-syncs.ts";
import type { AgentOptions } from "./agent-host.ts";
import { quorumPolicyOf } from "./quorum-options.ts";

export interface ChildrenContextOptions extends Pick<ChildrenContext, "state" | "emit" | "jobs"> {
  readonly agent: AgentOptions;
  readonly childImages: ImageSource;
}

/** What the copies beside the images of an agent's disks are made with. */
export function childrenContext(
  { agent, state, emit, jobs, childImages }: ChildrenContextOptions,
  lostSyncs: Pick<LostSyncs, "mended">,
): ChildrenContext {
  const { host, config } = agent;
  const { stateDirectory, extentBytes, settleEveryMs, dirtyFileMinBytes, resyncSpeed } = config;
  return {
    storage: host.storage,
    clock: host.clock,
    random: host.random,
    log: host.log,
    state,
    jobs,
    emit,
    stateDirectory,
    extentBytes,
    settleEveryMs,
    dirtyFileMinBytes,
    timeoutMs: config.childTimeoutMs ?? CHILD_TIMEOUT_DEFAULT_MS,
    speed: resyncSpeed,
    policy: quorumPolicyOf(config),
    open: (disk, { name, image, cleanMark }) => {
      const sizeBytes = state.record.disks.find((recorded) => recorded.name === disk)?.sizeBytes ?? null;
      return childImages.open({ name: `${disk}.${name}`, image, sizeBytes, cleanMark });
    },
    measure: async (image, diskBytes, { create }) => {
      if (create) await childImages.create(image, diskBytes);
      return childImages.measureFor(image, diskBytes);
    },
    release: (image) => childImages.release(image),
    localMended: (disk) => void lostSyncs.mended({ disk, active: null }),
  };
}
