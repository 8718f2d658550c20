import type { AgentEvent } from "../proto/status.ts";
import { renderEventFields } from "../cli/event-fields.ts";
import { element, section } from "./element.ts";

/** Rows that stay in sight. */
const SHOWN = 100;

const TIME = new Intl.DateTimeFormat(undefined, { timeStyle: "medium", hourCycle: "h23" });
const DATE_TIME = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "long", hourCycle: "h23" });

const BAD: ReadonlySet<string> = new Set([
  "split-brain",
  "outdated",
  "disk-error",
  "state-error",
  "overlay-full",
  "checkpoint-failed",
  "quorum-failure",
  "takeover-failed",
  "vm-start-failed",
  "child-broken",
]);

/** What has happened, the newest first. */
export class EventsSection {
  readonly #list = element("ol", { class: "events" });
  readonly root = section(
    "events",
    "Events",
    element(
      "div",
      { "class": "scrolling", "tabindex": "0", "role": "region", "aria-label": "List of events" },
      this.#list,
    ),
  );

  add(event: AgentEvent): void {
    const at = new Date(event.at);
    const row = element(
      "li",
      {},
      element("time", { datetime: event.at, title: DATE_TIME.format(at) }, TIME.format(at)),
      element("span", { class: BAD.has(event.type) ? "type wrong" : "type" }, event.type),
      element("span", { class: "quiet" }, renderEventFields(event).join("  ")),
    );
    this.#list.prepend(row);
    while (this.#list.children.length > SHOWN) this.#list.lastElementChild?.remove();
  }
}
