import type { JobStatus } from "../proto/status.ts";
import { ColobusError, isErrorCode } from "../proto/errors.ts";
import { MIRRORS_CONCLUDED_KEPT } from "../proto/limits.ts";
import type { MirrorMark, StateRecord } from "../proto/state-record.ts";
import type { JobOutcome } from "../proto/words.ts";
import type { JobSettings } from "../shared/jobs/job.ts";
import { withNewLocal } from "./recorded-quorum.ts";

/** What a mirror has come to. */
export interface MirrorEnd {
  readonly outcome: JobOutcome;
  readonly endedAtMs: number;
  readonly doneBytes: number;
  readonly error: ColobusError | undefined;
}

/** What is kept of an error's sentences, so that a record keeps to its limit. */
const SENTENCE_MAX = 300;

/** The mirror has begun: a later process goes on with it. */
export function begun(record: StateRecord, mark: MirrorMark): StateRecord {
  return { ...record, mirrors: kept([...record.mirrors, mark]) };
}

/** A later process begins with the mirror's job so. */
export function setTo(mark: MirrorMark, { speed, isPaused, error }: JobSettings): MirrorMark {
  if (mark.outcome !== null) return mark;
  return { ...mark, speed, isPaused, error: error === undefined ? null : shortened(error) };
}

/** What the job of a mirror that goes on is to begin with. */
export function settingsOf({ speed, isPaused, error }: MirrorMark): JobSettings {
  if (error === null) return { speed, isPaused, error: undefined };
  const code = isErrorCode(error.code) ? error.code : "internal";
  return { speed, isPaused, error: new ColobusError(code, error.message, error.action) };
}

/** The mirror is over. */
export function ended(record: StateRecord, id: string, end: MirrorEnd): StateRecord {
  const { outcome, endedAtMs, doneBytes } = end;
  const error = end.error === undefined ? null : shortened(end.error);
  const mirrors = record.mirrors.map((mark) =>
    mark.id === id && mark.outcome === null ? { ...mark, outcome, endedAtMs, doneBytes, error } : mark,
  );
  return { ...record, mirrors: kept(mirrors) };
}

/** The mirror is over, and its target is the disk's image. What was noted of the image before concerns nobody any more. */
export function pivoted(record: StateRecord, mark: MirrorMark, end: Omit<MirrorEnd, "outcome">): StateRecord {
  const disks = record.disks.map((disk) => {
    if (disk.name !== mark.disk) return disk;
    const changed = { ...disk, image: mark.target, cleanMark: null, formerImage: disk.formerImage ?? disk.image };
    return disk.quorum === undefined ? changed : { ...changed, quorum: withNewLocal(disk.quorum) };
  });
  const lostSyncs = record.lostSyncs.filter(({ disk }) => disk !== mark.disk);
  const replaysOwed = record.replaysOwed.filter((disk) => disk !== mark.disk);
  return ended({ ...record, disks, lostSyncs, replaysOwed }, mark.id, { ...end, outcome: "pivoted" });
}

/** The agent ends in good order. `marks` tell, by the mirror's id, whether its target is changed by somebody else from then on. */
export function leftAs(mirrors: readonly MirrorMark[], marks: ReadonlyMap<string, string>): MirrorMark[] {
  return mirrors.map((mirror) => {
    const { cleanMark: _, ...mark } = mirror;
    const cleanMark = marks.get(mark.id);
    return cleanMark === undefined ? mark : { ...mark, cleanMark };
  });
}

/** None of the mirrors goes on. */
export function allFailed(record: StateRecord, endedAtMs: number, error: ColobusError): StateRecord {
  return openMirrors(record).reduce(
    (changed, { id, doneBytes }) => ended(changed, id, { outcome: "failed", endedAtMs, doneBytes, error }),
    record,
  );
}

export function openMirrors({ mirrors }: Pick<StateRecord, "mirrors">): readonly MirrorMark[] {
  return mirrors.filter(({ outcome }) => outcome === null);
}

/** A recorded mirror as a job that is over. */
export function describeMirror(mark: MirrorMark): JobStatus {
  const { id, disk, target, speed, doneBytes, startedAtMs, endedAtMs, outcome, error } = mark;
  return {
    id,
    type: "mirror",
    state: "concluded",
    disk,
    target,
    progress: { doneBytes, totalBytes: doneBytes },
    bytesPerSecond: 0,
    etaMs: null,
    speedLimit: speed,
    startedAt: new Date(startedAtMs).toISOString(),
    endedAt: endedAtMs === null ? null : new Date(endedAtMs).toISOString(),
    outcome,
    error,
  };
}

/** All that go on, and the latest others. */
function kept(mirrors: readonly MirrorMark[]): MirrorMark[] {
  const over = mirrors.filter(({ outcome }) => outcome !== null);
  const dropped = new Set(over.slice(0, Math.max(0, over.length - MIRRORS_CONCLUDED_KEPT)));
  return mirrors.filter((mark) => !dropped.has(mark));
}

function shortened(error: ColobusError): NonNullable<MirrorMark["error"]> {
  const { code, message, action } = error.toJSON();
  return { code, message: message.slice(0, SENTENCE_MAX), action: action.slice(0, SENTENCE_MAX) };
}
