/**
 * Which requests are refused before they reach the disk, and how a failure is told to an NBD client.
 * Only the error numbers that the protocol allows for a command are used (NBD protocol, "Error values").
 */
import { NBD_MAX_PAYLOAD_BYTES } from "../../proto/limits.ts";
import { COMMAND, COMMAND_FLAG } from "../../proto/nbd-protocol.ts";
import type { RequestHeader } from "../../proto/nbd-protocol.ts";
import { NBD_ERRNO } from "../../proto/errors.ts";
import type { ColobusError, NbdErrno } from "../../proto/errors.ts";
import type { NegotiatedExport } from "./handshake.ts";

export interface Refusal {
  readonly errno: NbdErrno;
  readonly message: string;
}

interface CommandRule {
  /** FUA is accepted with every command, since clients set it on reads and flushes too. */
  readonly flags: number;
  readonly writes: boolean;
  /** Offset and length are a range of the disk; what beyond its end means. */
  readonly beyondEnd: "EINVAL" | "ENOSPC" | undefined;
}

const { FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO } = COMMAND_FLAG;

const RULES: readonly (CommandRule | undefined)[] = ruleTable();

function ruleTable(): (CommandRule | undefined)[] {
  const table: (CommandRule | undefined)[] = [];
  table[COMMAND.READ] = { flags: FUA | DF, writes: false, beyondEnd: "EINVAL" };
  table[COMMAND.WRITE] = { flags: FUA, writes: true, beyondEnd: "ENOSPC" };
  table[COMMAND.DISC] = undefined;
  table[COMMAND.FLUSH] = { flags: FUA, writes: false, beyondEnd: undefined };
  table[COMMAND.TRIM] = { flags: FUA, writes: true, beyondEnd: "EINVAL" };
  table[COMMAND.CACHE] = { flags: FUA, writes: false, beyondEnd: "EINVAL" };
  table[COMMAND.WRITE_ZEROES] = { flags: FUA | NO_HOLE | FAST_ZERO, writes: true, beyondEnd: "ENOSPC" };
  table[COMMAND.BLOCK_STATUS] = { flags: FUA | REQ_ONE, writes: false, beyondEnd: "EINVAL" };
  return table;
}

const UNKNOWN_COMMAND: Refusal = { errno: "EINVAL", message: "the command is not known" };
const BAD_FLAGS: Refusal = { errno: "EINVAL", message: "a flag is not allowed with this command" };
const DF_UNNEGOTIATED: Refusal = { errno: "EINVAL", message: "DF needs structured replies" };
const READ_ONLY: Refusal = { errno: "EPERM", message: "the export is read-only" };
const BEYOND_END = {
  EINVAL: { errno: "EINVAL", message: "the request reaches beyond the end of the disk" },
  ENOSPC: { errno: "ENOSPC", message: "the request reaches beyond the end of the disk" },
} as const satisfies Record<string, Refusal>;
const READ_TOO_LONG: Refusal = { errno: "EINVAL", message: "the read is longer than a reply may be" };
const NO_CONTEXT: Refusal = { errno: "EINVAL", message: "no metadata context was selected" };
const EMPTY_STATUS: Refusal = { errno: "EINVAL", message: "a block status request needs a length" };

/** Why the request must not reach the disk, or undefined. Any command but DISC. */
export function refusalOf(request: Readonly<RequestHeader>, negotiated: NegotiatedExport): Refusal | undefined {
  const rule = RULES[request.type];
  if (rule === undefined) return UNKNOWN_COMMAND;
  const { offset, length, type, flags } = request;
  if ((flags & ~rule.flags) !== 0) return BAD_FLAGS;
  if (rule.writes && negotiated.nbdExport.readOnly) return READ_ONLY;
  if (rule.beyondEnd !== undefined) {
    const { sizeBytes } = negotiated.nbdExport;
    // Written so that nothing can wrap or be rounded: an offset beyond 2^53 is larger than any disk.
    if (offset > sizeBytes || length > sizeBytes - offset) return BEYOND_END[rule.beyondEnd];
  }
  if (type === COMMAND.READ) {
    if (length > NBD_MAX_PAYLOAD_BYTES) return READ_TOO_LONG;
    if ((flags & DF) !== 0 && !negotiated.structuredReplies) return DF_UNNEGOTIATED;
  } else if (type === COMMAND.BLOCK_STATUS) {
    if (!negotiated.allocationContext && negotiated.contexts.length === 0) return NO_CONTEXT;
    if (length === 0) return EMPTY_STATUS;
  }
  return undefined;
}

/** What a client is told of a failure of the disk; undefined: nothing. `flags` are those of its command. */
export function refusalFromFailure(error: ColobusError, type: number, flags: number): Refusal | undefined {
  if (error.code === "internal") return { errno: "EIO", message: "internal error" };
  if (error.row.nbd === null) return undefined;
  return { errno: allowedErrno(error.code === "out-of-range", error.row.nbd, type, flags), message: error.message };
}

function allowedErrno(isOutOfRange: boolean, errno: NbdErrno, type: number, flags: number): NbdErrno {
  if (isOutOfRange) return RULES[type]?.beyondEnd ?? "EINVAL";
  // ENOTSUP is an answer to FAST_ZERO only, and EOVERFLOW to limits that the server checks itself.
  if (errno === "ENOTSUP") return type === COMMAND.WRITE_ZEROES && (flags & FAST_ZERO) !== 0 ? "ENOTSUP" : "EINVAL";
  if (errno === "EOVERFLOW") return "EINVAL";
  return errno;
}

export function errnoOf(refusal: Refusal): number {
  return NBD_ERRNO[refusal.errno];
}
