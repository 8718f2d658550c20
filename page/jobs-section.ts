import type { JobStatus, Status } from "../proto/status.ts";
import { formatBytes, formatDuration, formatRate } from "../cli/quantities.ts";
import { button, element, scrollingTable, section, setClass, setText } from "./element.ts";

const COLUMNS = [
  { title: "Job" },
  { title: "State" },
  { title: "Progress" },
  { title: "Rate" },
  { title: "Order" },
] as const;

/** Concluded jobs that stay in sight, the newest ones. */
const CONCLUDED_SHOWN = 5;

const MAY_PAUSE: readonly JobStatus["state"][] = ["running", "ready"];

export type JobOrder = (id: string, verb: "pause" | "resume") => void;

/** The jobs, those at work first. A row and its button stay the same while the job is there, so that focus does. */
export class JobsSection {
  readonly #table = scrollingTable("Table of jobs", COLUMNS);
  readonly #none = element("p", { class: "quiet" }, "No job has run since the agent was started.");
  readonly #rows = new Map<string, JobRow>();
  readonly #order: JobOrder;
  readonly root = section("jobs", "Jobs", this.#none, this.#table.box);

  constructor(order: JobOrder) {
    this.#order = order;
  }

  update({ jobs }: Status): void {
    const concluded = jobs.filter(({ state }) => state === "concluded").slice(-CONCLUDED_SHOWN);
    const shown = [...jobs.filter(({ state }) => state !== "concluded"), ...concluded.reverse()];
    this.#none.hidden = shown.length > 0;
    this.#table.box.hidden = shown.length === 0;
    const rows = shown.map((job) => {
      const row = this.#rows.get(job.id) ?? new JobRow(job, this.#order);
      row.update(job);
      return row;
    });
    this.#rows.clear();
    for (const row of rows) this.#rows.set(row.id, row);
    const nodes = rows.map(({ root }) => root);
    const present = [...this.#table.body.children];
    if (nodes.length !== present.length || nodes.some((node, index) => node !== present[index])) {
      this.#table.body.replaceChildren(...nodes);
    }
  }
}

class JobRow {
  readonly id: string;
  readonly #state = element("span");
  readonly #bar: HTMLProgressElement;
  readonly #done = element("span", { class: "quiet" });
  readonly #rate = element("td");
  readonly #button: HTMLButtonElement;
  #verb: "pause" | "resume" = "pause";
  readonly root: HTMLTableRowElement;

  constructor({ id, type, disk }: JobStatus, order: JobOrder) {
    this.id = id;
    this.#bar = element("progress", { "max": "1", "aria-label": `Progress of ${id}` });
    this.#button = button("Pause", "plain", () => order(id, this.#verb));
    const name = [element("span", {}, id), element("span", { class: "quiet" }, ` ${type}, ${disk ?? "all disks"}`)];
    this.root = element(
      "tr",
      {},
      element("th", { scope: "row" }, ...name),
      element("td", {}, this.#state),
      element("td", {}, element("div", { class: "progress" }, this.#bar, this.#done)),
      this.#rate,
      element("td", { class: "orders" }, this.#button),
    );
  }

  update(job: JobStatus): void {
    const { doneBytes, totalBytes } = job.progress;
    const isConcluded = job.state === "concluded";
    const word = isConcluded ? (job.outcome ?? job.state) : job.state;
    setText(this.#state, word);
    setClass(this.#state, `word ${toneOf(job)}`);
    this.#bar.value = totalBytes === 0 || isConcluded ? 1 : doneBytes / totalBytes;
    this.#bar.hidden = isConcluded;
    const moved = isConcluded ? formatBytes(doneBytes) : `${formatBytes(doneBytes)} of ${formatBytes(totalBytes)}`;
    setText(this.#done, job.error?.message ?? moved);
    const left = job.etaMs === null ? "" : `, ${formatDuration(job.etaMs)} left`;
    setText(this.#rate, job.state === "running" ? `${formatRate(job.bytesPerSecond)}${left}` : "");
    this.#verb = job.state === "paused" ? "resume" : "pause";
    const label = this.#verb === "pause" ? "Pause" : "Resume";
    setText(this.#button, label);
    this.#button.setAttribute("aria-label", `${label} ${job.id}`);
    this.#button.hidden = job.state !== "paused" && !MAY_PAUSE.includes(job.state);
  }
}

function toneOf({ state, outcome, error }: JobStatus): string {
  if (error !== null || outcome === "failed") return "bad";
  if (state === "paused" || state === "aborting" || outcome === "cancelled") return "warn";
  return state === "concluded" || state === "ready" ? "good" : "";
}
