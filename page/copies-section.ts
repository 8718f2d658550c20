import type { CopyStatus, HostStatus, Status } from "../proto/status.ts";
import { describeCopy, describeHostLoss } from "../cli/describe-failover.ts";
import { formatBytes } from "../cli/quantities.ts";
import { element, fill, prose, scrollingTable, section } from "./element.ts";

const COPY_COLUMNS = [
  { title: "Disk" },
  { title: "Copy" },
  { title: "Host" },
  { title: "State" },
  { title: "Lacks", numeric: true },
  { title: "Checkpoint", numeric: true },
  { title: "Image" },
] as const;

const HOST_COLUMNS = [
  { title: "If lost" },
  { title: "The VM", prose: true },
  { title: "What to do", prose: true },
] as const;

const TONES = { sound: "good", syncing: "warn", stale: "warn", broken: "bad", unknown: "warn" } as const;

/** Where the copies of each disk are, and what the loss of each host would mean. */
export class CopiesSection {
  readonly #copies = scrollingTable("Table of copies", COPY_COLUMNS);
  readonly #hosts = scrollingTable("Table of hosts", HOST_COLUMNS);
  readonly root = section("copies", "Copies", this.#copies.box, this.#hosts.box);

  update({ copies, hosts, mode }: Status): void {
    fill(this.#copies.body, copies, () => copies.map(copyRow));
    this.#hosts.box.hidden = hosts.length === 0;
    fill(this.#hosts.body, { hosts, mode }, () => hosts.map((host) => hostRow(host, mode)));
  }
}

function copyRow({ disk, role, name, host, state, dirtyBytes, epoch, image }: CopyStatus): HTMLElement {
  return element(
    "tr",
    {},
    element("th", { scope: "row" }, disk),
    element("td", {}, describeCopy({ role, name })),
    element("td", {}, host ?? "unknown"),
    element("td", {}, element("span", { class: `word ${TONES[state]}` }, state)),
    element("td", { class: "numeric" }, dirtyBytes === null ? "unknown" : formatBytes(dirtyBytes)),
    element("td", { class: "numeric" }, epoch === null ? "none" : String(epoch)),
    element("td", {}, image === null ? "unknown" : element("code", {}, image)),
  );
}

function hostRow(host: HostStatus, mode: Status["mode"]): HTMLElement {
  const name = host.isHere ? `${host.name} (this host)` : host.name;
  return element(
    "tr",
    {},
    element("th", { scope: "row" }, name),
    element("td", { class: "prose" }, describeHostLoss(host, mode)),
    element("td", { class: "prose" }, ...prose(host.ifLost.nextAction)),
  );
}
