import { newest } from "../shared/replication/lineage.ts";
import type { HistoryOfSource, ReplicaHistory, SourceHistory } from "./replica-history.ts";

/** What one session has brought of its source's history: of which everything has arrived, and what was only heard since. */
export class SessionHistory {
  readonly #history: Pick<ReplicaHistory, "hear" | "adopt">;
  #source: SourceHistory | undefined;

  constructor(history: Pick<ReplicaHistory, "hear" | "adopt">) {
    this.#history = history;
  }

  /** The primary's history, once everything of it has arrived. */
  get source(): SourceHistory | undefined {
    return this.#source;
  }

  /** As `ReplicaHistory.hear`. A commit of what was prepared before may come at any time, and must not forget this. */
  hear(lineage: string, told?: number): Promise<void> {
    const source = this.#source;
    if (source !== undefined && lineage !== source.lineage)
      this.#source = { ...source, later: newest([lineage, ...source.later]) };
    return this.#history.hear(lineage, told);
  }

  /** Everything of the source has arrived: as `ReplicaHistory.adopt`. */
  adopt({ lineage, ancestors }: HistoryOfSource): Promise<void> {
    this.#source = { lineage, ancestors, later: [] };
    return this.#history.adopt(this.#source);
  }
}
