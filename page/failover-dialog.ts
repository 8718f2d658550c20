/**
 * The failover's dialog: what it would return to and lose, asked of the agent at this moment, and the VM's name typed as the
 * confirmation. Nothing is ordered before that, and nothing twice.
 */
import type { FailoverAnswer, FailoverRequest } from "../proto/control-api.ts";
import type { Status } from "../proto/status.ts";
import { describeFailover } from "../cli/describe-failover.ts";
import { asAgentFault, type AgentApi } from "./agent-api.ts";
import { button, element, setProse, setText } from "./element.ts";

export class FailoverDialog {
  readonly #api: AgentApi;
  readonly #done: (answer: FailoverAnswer) => void;
  readonly #title = element("h2", { id: "failover-title" });
  readonly #outlook = element("p", { "id": "failover-outlook", "aria-live": "polite" });
  readonly #fault = element("p", { role: "alert", class: "notice fault" });
  readonly #force = checkbox("failover-force");
  readonly #fenced = checkbox("failover-fenced");
  readonly #fencedLine: HTMLElement;
  readonly #label = element("label", { for: "failover-name" });
  readonly #input = element("input", {
    "id": "failover-name",
    "type": "text",
    "autocomplete": "off",
    "autocapitalize": "off",
    "spellcheck": "false",
    "aria-describedby": "failover-outlook",
  });
  readonly #confirm = element("button", { type: "submit", class: "button danger" }, "Fail over");
  readonly root: HTMLDialogElement;
  #vm = "";
  #isUnderWay = false;
  /** Counts the questions: an answer to one that is not the last is of no interest. */
  #asked = 0;

  /** `done`: this side is Primary now. */
  constructor(api: AgentApi, done: (answer: FailoverAnswer) => void) {
    this.#api = api;
    this.#done = done;
    this.#fencedLine = choice(this.#fenced, "The former primary's host is surely off, or cut off from the shared disk");
    const form = element(
      "form",
      { class: "failover-form" },
      choice(this.#force, "Force: also while the primary is connected, or this side outdated"),
      this.#fencedLine,
      this.#label,
      this.#input,
      this.#fault,
      element(
        "div",
        { class: "buttons" },
        button("Cancel", "plain", () => this.root.close()),
        this.#confirm,
      ),
    );
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      void this.#order();
    });
    this.#input.addEventListener("input", () => this.#allow());
    this.#force.addEventListener("change", () => void this.#foresee());
    this.#fenced.addEventListener("change", () => void this.#foresee());
    this.root = element("dialog", { "aria-labelledby": "failover-title" }, this.#title, this.#outlook, form);
  }

  show({ vm, mode }: Status): void {
    this.#vm = vm;
    setText(this.#title, `Fail over ${vm} to this host`);
    this.#label.replaceChildren("Type the VM's name, ", element("code", {}, vm), ", to confirm");
    this.#fencedLine.hidden = mode !== "shared";
    this.#input.value = "";
    this.#force.checked = false;
    this.#fenced.checked = false;
    setProse(this.#fault, "");
    setProse(this.#outlook, "Asking the agent what it would return to…");
    this.#allow();
    this.root.showModal();
    this.#input.focus();
    void this.#foresee();
  }

  #allow(): void {
    this.#confirm.disabled = this.#isUnderWay || this.#input.value !== this.#vm;
  }

  #request(dryRun: boolean): Partial<FailoverRequest> {
    return { dryRun, force: this.#force.checked, ...(this.#fenced.checked ? { fenced: true } : {}) };
  }

  async #foresee(): Promise<void> {
    this.#asked += 1;
    const asked = this.#asked;
    const outlook = await this.#api.failover(this.#request(true)).then(
      (answer) => [`It ${describeFailover(answer).join("; ")}`],
      (error: unknown) => {
        const { message, action } = asAgentFault(error);
        return ["It would be refused:", message, action];
      },
    );
    if (asked === this.#asked) setProse(this.#outlook, ...outlook);
  }

  async #order(): Promise<void> {
    if (this.#isUnderWay || this.#input.value !== this.#vm) return;
    this.#isUnderWay = true;
    this.#allow();
    setProse(this.#fault, "");
    try {
      const answer = await this.#api.failover(this.#request(false));
      this.root.close();
      this.#done(answer);
    } catch (error) {
      const { message, action } = asAgentFault(error);
      setProse(this.#fault, message, action);
    } finally {
      this.#isUnderWay = false;
      this.#allow();
    }
  }
}

function checkbox(id: string): HTMLInputElement {
  return element("input", { id, type: "checkbox" });
}

function choice(box: HTMLInputElement, text: string): HTMLElement {
  return element("p", { class: "choice" }, box, element("label", { for: box.id }, text));
}
