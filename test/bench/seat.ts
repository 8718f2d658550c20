import type { Contestant } from "./contestant.ts";

/** What `measure` gives; undefined where it failed, which is said aloud: that round is lost, and the others are not. */
export async function attempt<R>(what: string, measure: () => Promise<R>): Promise<R | undefined> {
  try {
    return await measure();
  } catch (error) {
    process.stderr.write(
      `bench: ${what}: this round is lost: ${error instanceof Error ? error.message : String(error)}\n`,
    );
    return undefined;
  }
}

/** The name, and how much of what was planned could not be measured. */
export function namedWithLoss(name: string, taken: number, planned: number, unit = "rounds"): string {
  return taken === planned ? name : `${name} (${taken} of ${planned} ${unit})`;
}

/** A place in a comparison. A contestant that has failed is stopped, and another one takes its place in the next round. */
export class Seat<T extends Contestant> {
  readonly name: string;
  readonly #start: () => Promise<T>;
  #contestant: T | undefined;

  /** `start` gives a contestant that is warm. */
  constructor(name: string, start: () => Promise<T>) {
    this.name = name;
    this.#start = start;
  }

  /** Who sits here now. */
  get contestant(): T | undefined {
    return this.#contestant;
  }

  /** As `attempt`, with who sits here. */
  async measure<R>(what: string, measure: (contestant: T) => Promise<R>): Promise<R | undefined> {
    let hasFailed = true;
    const result = await attempt(`${this.name}: ${what}`, async () => {
      this.#contestant ??= await this.#start();
      const contestant = this.#contestant;
      try {
        const measured = await measure(contestant);
        hasFailed = false;
        return measured;
      } catch (error) {
        throw await explained(error, contestant);
      }
    });
    if (hasFailed) await attempt(`${this.name}: end`, () => this.stop());
    return result;
  }

  async stop(): Promise<void> {
    const contestant = this.#contestant;
    this.#contestant = undefined;
    await contestant?.stop();
  }
}

/** The error, with what the contestant says of itself. */
export async function explained(error: unknown, contestant: Contestant): Promise<unknown> {
  if (contestant.explain === undefined) return error;
  const state = await stateOf(contestant.explain());
  return new Error(`${error instanceof Error ? error.message : String(error)}. ${state}`, { cause: error });
}

async function stateOf(explaining: Promise<string>): Promise<string> {
  try {
    return await explaining;
  } catch (error) {
    return `It cannot be asked why: ${String(error)}`;
  }
}

/** Stops them all, also when one of them fails to; then throws what that one threw. */
export async function stopAll(seats: readonly Seat<Contestant>[]): Promise<void> {
  const stopped = await Promise.allSettled(seats.map((seat) => seat.stop()));
  for (const outcome of stopped) if (outcome.status === "rejected") throw outcome.reason;
}
