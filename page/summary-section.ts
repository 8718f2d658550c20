import type { Status } from "../proto/status.ts";
import { describeRecoverable } from "../cli/describe-failover.ts";
import { button, definitions, element, fill, setClass, setProse, setText } from "./element.ts";

export interface SummaryOrders {
  readonly checkpoint: () => Promise<void>;
  readonly failover: () => void;
}

/** First of all: whether the VM is protected, what to do, what a failover would cost now; and the orders. */
export class SummarySection {
  readonly #verdict = element("p", { class: "verdict" });
  readonly #reason = element("p", { class: "reason" });
  readonly #next = element("p", { class: "next" });
  readonly #failover = element("p", { id: "failover-now" });
  readonly #epochs = element("dl", { class: "figures" });
  readonly #checkpointButton: HTMLButtonElement;
  readonly #failoverButton: HTMLButtonElement;
  readonly #elsewhere = element(
    "p",
    { class: "quiet" },
    "It is ordered on the other host: on that agent's page, or by ",
    element("code", {}, "colobus failover"),
    " there.",
  );
  readonly root: HTMLElement;

  constructor(orders: SummaryOrders) {
    this.#checkpointButton = button("Take a checkpoint", "main", () => void this.#take(orders.checkpoint));
    this.#failoverButton = button("Fail over to this host…", "danger", orders.failover);
    this.root = element(
      "section",
      { "id": "summary", "class": "card summary", "aria-labelledby": "summary-title" },
      element("h2", { id: "summary-title", class: "unseen" }, "Protection"),
      element("div", { class: "state" }, this.#verdict, this.#reason, this.#next),
      element(
        "div",
        { class: "recovery" },
        element("h3", {}, "A failover now"),
        this.#failover,
        this.#elsewhere,
        element("div", { class: "buttons" }, this.#checkpointButton, this.#failoverButton),
      ),
      element("div", {}, element("h3", {}, "Epochs"), this.#epochs),
    );
  }

  update(status: Status): void {
    const { protection, epoch, role } = status;
    const isProtected = protection.state === "Protected";
    setText(this.#verdict, isProtected ? "Protected" : "Not protected");
    setClass(this.#verdict, isProtected ? "verdict good" : "verdict bad");
    setText(this.#reason, protection.reason ?? "");
    setProse(this.#next, protection.nextAction);
    setText(this.#failover, sentence(describeRecoverable(status)));
    this.#failover.classList.toggle("warn", status.recoverable === null);
    const fields = [
      ["open", String(epoch.open)],
      ["prepared", listOf(epoch.prepared)],
      ["committed", epoch.committed === 0 ? "none" : String(epoch.committed)],
      ["retained", listOf(epoch.retained)],
    ] as const;
    fill(this.#epochs, fields, () => definitions(fields));
    const isPrimary = role === "Primary";
    this.#checkpointButton.hidden = !isPrimary || status.mode === "mirror";
    this.#failoverButton.hidden = isPrimary;
    this.#elsewhere.hidden = !isPrimary || status.recoverable === null;
  }

  /** One at a time; a second click does nothing. */
  async #take(checkpoint: () => Promise<void>): Promise<void> {
    if (this.#checkpointButton.getAttribute("aria-disabled") === "true") return;
    this.#checkpointButton.setAttribute("aria-disabled", "true");
    await checkpoint();
    this.#checkpointButton.removeAttribute("aria-disabled");
  }
}

function listOf(epochs: readonly number[]): string {
  return epochs.length === 0 ? "none" : epochs.join(", ");
}

function sentence(text: string): string {
  return `${text.charAt(0).toUpperCase()}${text.slice(1)}.`;
}
