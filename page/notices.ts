import { element, setProse, setText } from "./element.ts";
import type { AgentFault } from "./agent-api.ts";

/** That an order was carried out is soon seen elsewhere, or no news any more. */
const DONE_SHOWN_MS = 30_000;

/**
 * What the page says by itself: what came of an order, for a while, or why nothing did, until the next; and what else a reader of the
 * screen has to hear. A fault interrupts, news wait until whoever listens has heard the sentence before.
 */
export class Notices {
  readonly #done = element("p", { role: "status", class: "notice" });
  readonly #fault = element("p", { role: "alert", class: "notice fault" });
  readonly #news = element("p", { "class": "unseen", "aria-live": "polite" });
  #fading: ReturnType<typeof setTimeout> | undefined;
  readonly root = element("div", { class: "notices" }, this.#done, this.#fault, this.#news);

  /** An order was carried out. */
  done(text: string): void {
    setProse(this.#fault, "");
    setProse(this.#done, text);
    clearTimeout(this.#fading);
    this.#fading = setTimeout(() => setProse(this.#done, ""), DONE_SHOWN_MS);
  }

  failed(what: string, { message, action }: AgentFault): void {
    setProse(this.#done, "");
    setProse(this.#fault, `${what}:`, message, action);
  }

  /** Is read out, and not shown: it is on the screen elsewhere. */
  tell(text: string): void {
    setText(this.#news, text);
  }
}
