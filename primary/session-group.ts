import { asColobusError, ColobusError } from "../proto/errors.ts";
import type { VmStateMark } from "../proto/state-record.ts";
import type { Pending } from "../shared/block/block-device.ts";
import type { SourceSession } from "./source-session.ts";
import type { VmStateBytes, VmStateStream } from "./vm-state-stream.ts";
import { SharedVmState } from "./shared-vm-state.ts";

/** What a checkpoint asks of whoever takes part in it. */
export interface EpochSession {
  readonly isClosed: boolean;
  /** As `SourceSession.request`. */
  request(make: (id: number) => Question): Promise<number>;
  openVmState(epoch: number): VmStateSink;
  closeVmState(sink: VmStateSink): void;
}

/** Where a VM state goes. */
interface VmStateSink {
  /** As `VmStateStream.pump`. */
  pump(bytes: VmStateBytes): Promise<VmStateMark>;
  fail(reason: ColobusError): void;
}

/** Something that is asked of every member alike. */
type Question = ReturnType<Parameters<SourceSession["request"]>[0]>;

export interface SessionGroupOptions {
  readonly members: ReadonlyMap<string, SourceSession>;
  /** One of them has done what it was asked for. */
  readonly answered: (peer: string, question: Question) => void;
  /** Some have committed that epoch: done when that may be told, whoever of the others has not. */
  readonly mayTell: (epoch: number) => Pending;
}

/**
 * The secondaries that a barrier goes to, asked as one: what one is asked for is done when all have answered. One that is
 * lost meanwhile takes part no more, and one that refuses what another has done is sent away with its reason, to come back
 * by a resync: it keeps its own older checkpoint. Where none is left, the outcome is unknown, or refused.
 */
export class SessionGroup implements EpochSession {
  readonly #options: SessionGroupOptions;
  #streams: ReadonlyMap<SourceSession, VmStateStream> = new Map();

  constructor(options: SessionGroupOptions) {
    this.#options = options;
  }

  get isClosed(): boolean {
    return [...this.#options.members.values()].every((session) => session.isClosed);
  }

  async request(make: (id: number) => Question): Promise<number> {
    const { answered, mayTell } = this.#options;
    let committed: number | undefined;
    let withdraws = false;
    const open = this.#open;
    const asked = open.map(async ([peer, session]) => {
      let question: Question | undefined;
      const tookMs = await session.request((id) => {
        question = make(id);
        withdraws = question.type === "discard";
        return question;
      });
      if (question === undefined) return tookMs;
      if (question.type === "commit" || (question.type === "barrier" && question.commit)) committed = question.epoch;
      answered(peer, question);
      return tookMs;
    });
    const sessions = open.map(([, session]) => session);
    const tookMs = Math.max(...(await settle(sessions, asked, withdraws)));
    if (committed !== undefined) {
      const telling = mayTell(committed);
      if (telling !== undefined) await telling;
    }
    return tookMs;
  }

  openVmState(epoch: number): VmStateSink {
    this.#streams = new Map(this.#open.map(([, session]) => [session, session.openVmState(epoch)]));
    const sessions = [...this.#streams.keys()];
    const streams = [...this.#streams.values()];
    return {
      pump: async (bytes) => {
        const state = new SharedVmState(bytes, streams.length);
        const pumped = streams.map((stream, reader) =>
          stream.pump(state.reader(reader)).finally(() => state.leave(reader)),
        );
        const [mark] = await settle(sessions, pumped, false);
        if (mark === undefined) throw outcomeUnknown();
        return mark;
      },
      fail: (reason) => {
        for (const stream of streams) stream.fail(reason);
      },
    };
  }

  closeVmState(): void {
    for (const [session, stream] of this.#streams) session.closeVmState(stream);
    this.#streams = new Map();
  }

  get #open(): [string, SourceSession][] {
    return [...this.#options.members].filter(([, session]) => !session.isClosed);
  }
}

/**
 * What those have come to who have done it. Who refuses it then is sent away, unless a withdrawal is refused: it is
 * committed there. Errors: why none has done it.
 */
async function settle<T>(
  sessions: readonly SourceSession[],
  doing: readonly Promise<T>[],
  withdraws: boolean,
): Promise<T[]> {
  const done: T[] = [];
  const refused: { readonly reason: ColobusError; readonly session: SourceSession | undefined }[] = [];
  for (const [index, outcome] of (await Promise.allSettled(doing)).entries()) {
    if (outcome.status === "fulfilled") done.push(outcome.value);
    else refused.push({ reason: asColobusError(outcome.reason), session: sessions[index] });
  }
  const told = refused.find(({ reason }) => reason.code !== "outcome-unknown");
  if (done.length === 0 || (withdraws && told !== undefined)) throw told?.reason ?? outcomeUnknown();
  for (const { reason, session } of refused) session?.close(reason);
  return done;
}

function outcomeUnknown(): ColobusError {
  return new ColobusError(
    "outcome-unknown",
    "the sessions with the secondaries were lost before they answered",
    "When one is connected again, see `colobus status`, or ask again: a commit of a committed checkpoint succeeds.",
  );
}
