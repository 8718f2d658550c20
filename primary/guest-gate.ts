import type { ColobusError } from "../proto/errors.ts";
import type { Pending } from "../shared/block/block-device.ts";

type Gate =
  | { readonly state: "open" }
  /** `held`: every request waits. `frozen`: every change waits. */
  | { readonly state: "held" | "frozen"; readonly opened: Promise<void>; readonly open: () => void }
  | { readonly state: "refusing"; readonly reason: ColobusError };

/**
 * Decides whether guests' requests may go on: they wait while it is not known whether the peer was promoted (*held*),
 * changes wait while the policy forbids them without the peer (*frozen*), and requests fail once this side must not
 * serve any more. One gate for all disks of the VM.
 */
export class GuestGate {
  #gate: Gate = { state: "open" };

  get state(): Gate["state"] {
    return this.#gate.state;
  }

  /** Throws the reason for which guests are refused, if they are. */
  assertServing(): void {
    if (this.#gate.state === "refusing") throw this.#gate.reason;
  }

  /** To be passed by each read. undefined: it may go on at once. Errors: the reason for which guests are refused. */
  admitRead(): Pending {
    if (this.#gate.state === "open" || this.#gate.state === "frozen") return undefined;
    if (this.#gate.state === "refusing") throw this.#gate.reason;
    return this.#gate.opened.then(() => this.admitRead());
  }

  /** To be passed by each change and flush. */
  admitChange(): Pending {
    if (this.#gate.state === "open") return undefined;
    if (this.#gate.state === "refusing") throw this.#gate.reason;
    return this.#gate.opened.then(() => this.admitChange());
  }

  /** Done when changes do not wait at this gate any more, whatever becomes of them then. undefined: they do not. */
  get reopened(): Pending {
    return this.#gate.state === "open" || this.#gate.state === "refusing" ? undefined : this.#gate.opened;
  }

  hold(): void {
    this.#shut("held");
  }

  freeze(): void {
    if (this.#gate.state === "open") this.#shut("frozen");
  }

  /** Everybody may go on. What refuses goes on refusing. */
  open(): void {
    if (this.#gate.state === "refusing" || this.#gate.state === "open") return;
    const { open } = this.#gate;
    this.#gate = { state: "open" };
    open();
  }

  /** Requests that wait, and all later ones, fail with `reason`, or with the one that they were refused for before. */
  refuse(reason: ColobusError): void {
    const before = this.#gate;
    if (before.state === "refusing") return;
    this.#gate = { state: "refusing", reason };
    if (before.state !== "open") before.open();
  }

  #shut(state: "held" | "frozen"): void {
    if (this.#gate.state === "refusing" || this.#gate.state === state) return;
    const before = this.#gate;
    let open = (): void => undefined;
    const opened = new Promise<void>((resolve) => {
      open = resolve;
    });
    this.#gate = { state, opened, open };
    // Who waited at the other gate looks again, and waits here.
    if (before.state !== "open") before.open();
  }
}
