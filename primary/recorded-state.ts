import type { RecordedChild } from "../proto/state-record.ts";

export type StateWords = Pick<RecordedChild, "sound" | "tracked" | "lostSync">;

/** What the state record says of one copy, and what it may say besides: while it is written, and after that has failed. */
export class RecordedState {
  #said: StateWords;
  /** The best that it may say, where a change of it has begun and none has succeeded since. */
  #attempted: StateWords | undefined;

  constructor({ sound, tracked, lostSync }: StateWords) {
    this.#said = { sound, tracked, lostSync };
  }

  /** Whether the record surely says that the copy is sound, unless a change of it has begun since. */
  get isSound(): boolean {
    return this.#said.sound;
  }

  /** Whether the record surely says just that. */
  says({ sound, tracked, lostSync }: StateWords): boolean {
    const said = this.#said;
    return (
      this.#attempted === undefined && said.sound === sound && said.tracked === tracked && said.lostSync === lostSync
    );
  }

  /** Whether a crash might leave a record that is better than the truth. */
  overstates({ sound, tracked, lostSync }: StateWords): boolean {
    const said = betterOf(this.#said, this.#attempted);
    return (said.sound && !sound) || (said.tracked && !tracked) || (!said.lostSync && lostSync);
  }

  /** `words` are about to be written: they count from now on, as what was there does. */
  attempt(words: StateWords): void {
    this.#attempted = betterOf(words, this.#attempted);
  }

  /** They are durable. */
  written(words: StateWords): void {
    this.#said = words;
    this.#attempted = undefined;
  }
}

function betterOf(one: StateWords, other: StateWords = one): StateWords {
  return {
    sound: one.sound || other.sound,
    tracked: one.tracked || other.tracked,
    lostSync: one.lostSync && other.lostSync,
  };
}
