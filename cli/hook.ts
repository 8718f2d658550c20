/** A command of the operator's that an agent runs. */
export interface Hook {
  /** Run by `/bin/sh -c`. */
  readonly command: string;
  readonly timeoutMs: number;
}
