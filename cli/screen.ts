/**
 * A terminal's whole screen, taken for a while: the alternate one, so that what was there before is there again afterwards,
 * without a cursor. Each frame replaces the last one line by line, which does not flicker.
 *
 * While the shell has stopped the program (Ctrl-Z) the terminal is as it was, too.
 *
 * Nothing is buffered for a terminal that does not take what is written: a frame that comes meanwhile is left out, and the
 * last one drawn when it has.
 */
import type { CommandHost } from "./command.ts";
import type { Output } from "./output.ts";

const ENTER = "\u001b[?1049h\u001b[?25l";
const LEAVE = "\u001b[?25h\u001b[?1049l";
const HOME = "\u001b[H";
const CLEAR_LINE_END = "\u001b[K";
const CLEAR_BELOW = "\u001b[J";

export class Screen {
  readonly #output: Output;
  readonly #unfollow: () => void;
  #isWriting = false;
  #isTaken = false;
  #next: string | undefined;

  /** Takes the screen until `leave`. `resized` is called when it has another size, `resumed` when it was away meanwhile. */
  constructor(
    { output, followJobControl }: Pick<CommandHost, "output" | "followJobControl">,
    { resized, resumed }: { readonly resized: () => void; readonly resumed: () => void },
  ) {
    this.#output = output;
    output.onResize(() => {
      if (this.#isTaken) resized();
    });
    const enter = (): void => {
      this.#take();
      resumed();
    };
    this.#unfollow = followJobControl(() => this.#giveBack(), enter);
    this.#take();
  }

  /** Shows `lines`: no more than there are rows, none wider than the screen. */
  draw(lines: readonly string[]): void {
    const frame = `${HOME}${lines.map((line) => `${line}${CLEAR_LINE_END}`).join("\r\n")}${CLEAR_BELOW}`;
    if (!this.#isTaken) return;
    if (this.#isWriting) this.#next = frame;
    else this.#write(frame);
  }

  /** Gives the screen back as it was. */
  leave(): void {
    this.#unfollow();
    this.#giveBack();
  }

  #take(): void {
    if (this.#isTaken) return;
    this.#isTaken = true;
    this.#output.control(ENTER);
  }

  #giveBack(): void {
    if (!this.#isTaken) return;
    this.#isTaken = false;
    this.#next = undefined;
    this.#output.control(LEAVE);
  }

  #write(frame: string): void {
    this.#isWriting = true;
    this.#output.control(frame, () => {
      this.#isWriting = false;
      const next = this.#next;
      this.#next = undefined;
      if (next !== undefined) this.#write(next);
    });
  }
}
