/**
 * The parts of the documentation that list what the code declares. Each stands in its file between two markers,
 *
 *     <!-- generated: NAME (npm run docs) -->
 *     <!-- end generated: NAME -->
 *
 * and is written by `generate-docs.ts`. A test fails when a file and the code disagree.
 */
import { ERRORS } from "../proto/errors.ts";
import { configTable } from "./config-tables.ts";
import { requestTable, statusTable } from "./control-tables.ts";
import { diskErrorTable } from "./disk-error-rows.ts";
import { limitTables } from "./limit-tables.ts";
import { manPage } from "./man-page.ts";
import { markdownTable } from "./markdown-table.ts";
import { metricTable } from "./metric-tables.ts";
import { greetingTable, helloTable, messageTable, operationTable } from "./message-tables.ts";
import {
  ACK_POLICY_MEANINGS,
  ARBITER_OUTLOOK_MEANINGS,
  ARBITER_STATE_MEANINGS,
  CONNECTION_STATE_MEANINGS,
  CHILD_STATE_MEANINGS,
  COPY_MODE_MEANINGS,
  COPY_STATE_MEANINGS,
  DISK_STATE_MEANINGS,
  BITMAP_FAULT_MEANINGS,
  DURABILITY_MEANINGS,
  EVENT_TYPE_MEANINGS,
  FAILOVER_KIND_MEANINGS,
  HOST_LOSS_MEANINGS,
  JOB_ERROR_POLICY_MEANINGS,
  JOB_OUTCOME_MEANINGS,
  JOB_STATE_MEANINGS,
  JOB_TYPE_MEANINGS,
  MIRROR_SYNC_MEANINGS,
  MODE_MEANINGS,
  PROTECTION_REASON_MEANINGS,
  READ_PATTERN_MEANINGS,
  REPLICATION_STATE_MEANINGS,
  RESYNC_OUTCOME_MEANINGS,
  ROLE_MEANINGS,
  SECONDARY_EXPORT_MEANINGS,
  VERDICT_KIND_MEANINGS,
  VERDICT_RULE_MEANINGS,
  WAIT_CONDITION_MEANINGS,
} from "./word-meanings.ts";
import { versionTable } from "./version-table.ts";

export interface GeneratedSection {
  readonly name: string;
  /** Path from the repository's root. */
  readonly file: string;
  readonly body: string;
  /** What writes it, where that is not `npm run docs`. */
  readonly command?: string;
}

export const GENERATED_SECTIONS: readonly GeneratedSection[] = [
  { name: "errors", file: "docs/errors.md", body: errorTable() },
  { name: "disk errors", file: "docs/disk-errors.md", body: diskErrorTable() },
  words("roles", ROLE_MEANINGS),
  words("modes", MODE_MEANINGS),
  words("disk states", DISK_STATE_MEANINGS),
  words("child states", CHILD_STATE_MEANINGS),
  words("copy states", COPY_STATE_MEANINGS),
  words("host losses", HOST_LOSS_MEANINGS),
  words("read patterns", READ_PATTERN_MEANINGS),
  words("connection states", CONNECTION_STATE_MEANINGS),
  words("replication states", REPLICATION_STATE_MEANINGS),
  words("protection reasons", PROTECTION_REASON_MEANINGS),
  words("job types", JOB_TYPE_MEANINGS),
  words("bitmap faults", BITMAP_FAULT_MEANINGS),
  words("job states", JOB_STATE_MEANINGS),
  words("job outcomes", JOB_OUTCOME_MEANINGS),
  words("job error policies", JOB_ERROR_POLICY_MEANINGS),
  words("mirror syncs", MIRROR_SYNC_MEANINGS),
  words("copy modes", COPY_MODE_MEANINGS),
  words("acknowledgement policies", ACK_POLICY_MEANINGS),
  words("durabilities", DURABILITY_MEANINGS),
  words("secondary exports", SECONDARY_EXPORT_MEANINGS),
  words("wait conditions", WAIT_CONDITION_MEANINGS),
  words("resync outcomes", RESYNC_OUTCOME_MEANINGS),
  words("failover kinds", FAILOVER_KIND_MEANINGS),
  words("arbiter states", ARBITER_STATE_MEANINGS),
  words("arbiter outlooks", ARBITER_OUTLOOK_MEANINGS),
  words("verdicts", VERDICT_KIND_MEANINGS),
  words("verdict rules", VERDICT_RULE_MEANINGS),
  words("event types", EVENT_TYPE_MEANINGS),
  { name: "messages", file: "docs/protocol.md", body: messageTable() },
  { name: "greeting", file: "docs/protocol.md", body: greetingTable() },
  { name: "hello", file: "docs/protocol.md", body: helloTable() },
  { name: "operations", file: "docs/protocol.md", body: operationTable() },
  { name: "requests", file: "docs/control-api.md", body: requestTable() },
  { name: "status", file: "docs/control-api.md", body: statusTable() },
  { name: "configuration", file: "docs/configuration.md", body: configTable() },
  { name: "versions", file: "docs/upgrade.md", body: versionTable() },
  { name: "metrics", file: "docs/metrics.md", body: metricTable() },
  ...limits(),
];

/** Files that are generated as a whole, by their path from the repository's root. */
export const GENERATED_FILES: ReadonlyMap<string, string> = new Map([["packaging/man/colobus.1", manPage()]]);

/** `text` with `section` between its markers. Throws when the markers are not there exactly once, in order. */
export function withSection(text: string, section: GeneratedSection): string {
  const begin = `<!-- generated: ${section.name} (${section.command ?? "npm run docs"}) -->\n`;
  const end = `<!-- end generated: ${section.name} -->`;
  const [before, rest, ...more] = text.split(begin);
  const [, after, ...again] = rest?.split(end) ?? [];
  if (before === undefined || after === undefined || more.length > 0 || again.length > 0) {
    throw new Error(`${section.file} must have "${begin.trim()}" and then "${end}" once each.`);
  }
  return `${before}${begin}\n${section.body}\n${end}${after}`;
}

function words(name: string, meanings: Record<string, string>): GeneratedSection {
  const rows = Object.entries(meanings).map(([word, meaning]) => [`\`${word}\``, meaning]);
  return { name, file: "docs/states.md", body: markdownTable(["word", "meaning"], rows) };
}

/** Each heading of proto/limits.ts has its place. */
function limits(): GeneratedSection[] {
  const files: Readonly<Record<string, string>> = {
    NBD: "docs/protocol.md",
    Images: "docs/protocol.md",
    Replication: "docs/protocol.md",
    TLS: "docs/security.md",
    Shared: "docs/shared-disk.md",
    Epochs: "docs/protocol.md",
    VM: "docs/formats.md",
    Protection: "docs/qemu.md",
    Disks: "docs/formats.md",
    Secondary: "docs/formats.md",
    State: "docs/formats.md",
    Bitmaps: "docs/protocol.md",
    Jobs: "docs/control-api.md",
    Control: "docs/control-api.md",
  };
  return [...limitTables()].map(([heading, body]) => {
    const file = files[heading];
    if (file === undefined) throw new Error(`No document lists the limits under "${heading}" of proto/limits.ts.`);
    return { name: `limits ${heading}`, file, body };
  });
}

function errorTable(): string {
  return markdownTable(
    ["code", "meaning", "NBD", "WebSocket", "HTTP", "exit", "retry"],
    Object.entries(ERRORS).map(([code, row]) => [
      `\`${code}\``,
      row.meaning,
      row.nbd ?? "connection closed",
      String(row.close),
      String(row.http),
      String(row.exit),
      row.retry ? "yes" : "no",
    ]),
  );
}
