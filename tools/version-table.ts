/** The table of everything that has a version, and what happens where two releases meet. */
import * as declared from "../proto/versions.ts";
import { markdownTable } from "./markdown-table.ts";

const versions = { ...declared };
type Versioned = Exclude<keyof typeof versions, "AGENT_VERSION" | "REPLICATION_PROTOCOL_OLDEST">;

interface Row {
  readonly what: string;
  /** What an agent does that meets a later one than its own. */
  readonly later: string;
}

const COVERED = "the state record of its directory has refused it; where that cannot be, `state-corrupt`";

const ROWS: Record<Versioned, Row> = {
  REPLICATION_PROTOCOL_VERSION: {
    what: "[replication protocol](protocol.md#replication)",
    later:
      "speaks its own newest with a peer that still knows it; else `protocol-mismatch` on both sides, and nothing is sent",
  },
  STATE_RECORD_VERSION: {
    what: "[state record](formats.md#state-record)",
    later: "`state-corrupt`: does not start, and touches nothing in the state directory",
  },
  CLUSTER_JOURNAL_VERSION: { what: "[cluster journal](formats.md#cluster-journal)", later: COVERED },
  BUFFER_LOG_VERSION: { what: "[log of a block buffer](formats.md#log-of-a-block-buffer)", later: COVERED },
  VMSTATE_VERSION: { what: "[VM state](formats.md#vm-states)", later: COVERED },
  SHARED_MARK_VERSION: {
    what: "[mark of a shared disk](formats.md#the-mark-of-a-shared-disk)",
    later: "`unprotected`: no promotion without `--force`",
  },
  ARBITER_RECORD_VERSION: {
    what: "record of an [arbiter](automatic-failover.md)",
    later: "`state-mismatch`: neither serves nor takes over",
  },
};

export function versionTable(): string {
  const rows = Object.entries(ROWS).map(([name, { what, later }]) => [
    what,
    String(versions[name as Versioned]),
    later,
  ]);
  return markdownTable(
    ["what", "version here", "an agent that meets a later one"],
    [
      ...rows,
      ["[control API](control-api.md)", "`/v1`", "a command says what it does not understand: `protocol-error`"],
    ],
  );
}
