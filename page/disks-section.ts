import type { DiskStatus, Status } from "../proto/status.ts";
import { formatBytes } from "../cli/quantities.ts";
import { element, fill, scrollingTable, section } from "./element.ts";

const DISK_COLUMNS = [
  { title: "Disk" },
  { title: "State" },
  { title: "Size", numeric: true },
  { title: "Dirty", numeric: true },
  { title: "Hidden", numeric: true },
  { title: "Active", numeric: true },
  { title: "Buffer", numeric: true },
  { title: "Replicas" },
] as const;

const EXPORT_COLUMNS = [
  { title: "Export" },
  { title: "Access" },
  { title: "Clients", numeric: true },
  { title: "URI" },
] as const;

const TONES = { UpToDate: "good", Consistent: "good", Inconsistent: "warn", Outdated: "warn", Failed: "bad" } as const;

/** The disks and what this side holds of them, and the exports. */
export class DisksSection {
  readonly #disks = scrollingTable("Table of disks", DISK_COLUMNS);
  readonly #exports = scrollingTable("Table of exports", EXPORT_COLUMNS);
  readonly root = section("disks", "Disks", this.#disks.box, this.#exports.box);

  update({ disks, exports }: Status): void {
    fill(this.#disks.body, disks, () => disks.map(diskRow));
    this.#exports.box.hidden = exports.length === 0;
    fill(this.#exports.body, exports, () =>
      exports.map(({ name, readOnly, clients, uri }) =>
        element(
          "tr",
          {},
          element("th", { scope: "row" }, name),
          element("td", {}, readOnly ? "read-only" : "read-write"),
          element("td", { class: "numeric" }, String(clients)),
          element("td", {}, element("code", {}, uri)),
        ),
      ),
    );
  }
}

function diskRow(disk: DiskStatus): HTMLElement {
  const sizes = [disk.sizeBytes, disk.dirtyBytes, disk.hiddenBytes, disk.activeBytes, disk.bufferBytes];
  const replicas = disk.children.flatMap(({ name, state }, index) => [
    index === 0 ? "" : ", ",
    element("span", { class: state === "broken" ? "bad" : "" }, `${name} ${state}`),
  ]);
  return element(
    "tr",
    {},
    element("th", { scope: "row" }, disk.name),
    element("td", {}, element("span", { class: `word ${TONES[disk.state]}` }, disk.state)),
    ...sizes.map((bytes) => element("td", { class: "numeric" }, bytes === null ? "unknown" : formatBytes(bytes))),
    element("td", {}, ...replicas),
  );
}
