import { element, setText } from "./element.ts";

/** Asks for the control token, which the network's door wants. `entered` gets what was typed. */
export class SignIn {
  readonly #reason = element("p", { role: "alert", class: "notice fault" });
  readonly #input = element("input", {
    "id": "token",
    "type": "password",
    "autocomplete": "off",
    "spellcheck": "false",
    "required": "",
    "aria-describedby": "token-help",
  });
  readonly root: HTMLElement;

  constructor(entered: (token: string) => void) {
    const form = element(
      "form",
      { class: "token-form" },
      element("label", { for: "token" }, "Control token"),
      this.#input,
      element("button", { type: "submit", class: "button main" }, "Show the agent"),
    );
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      entered(this.#input.value.trim());
      this.#input.value = "";
    });
    this.root = element(
      "section",
      { "class": "card sign-in", "aria-labelledby": "sign-in-title" },
      element("h2", { id: "sign-in-title" }, "This address wants the control token"),
      element(
        "p",
        { id: "token-help" },
        "It is the content of the file that the agent was given as ",
        element("code", {}, "--control-token-file"),
        ". This tab keeps it until it is closed, and sends it to this agent only.",
      ),
      form,
      this.#reason,
    );
  }

  /** `reason`: why what was entered before is not taken. */
  show(reason: string): void {
    setText(this.#reason, reason);
    this.#input.focus();
  }
}
