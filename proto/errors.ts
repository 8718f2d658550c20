/**
 * Every failure that the world may cause, in one table: what a client of each interface sees, whether trying again
 * can help, and what it means. The union type, `docs/errors.md` and every mapping come from this table.
 * Bugs are not in it: they are assertions.
 */

/** NBD error numbers (NBD protocol, "Error values"). */
export const NBD_ERRNO = {
  EPERM: 1,
  EIO: 5,
  ENOMEM: 12,
  EINVAL: 22,
  ENOSPC: 28,
  EOVERFLOW: 75,
  ENOTSUP: 95,
  ESHUTDOWN: 108,
} as const;

export type NbdErrno = keyof typeof NBD_ERRNO;

/** Exit codes of the command line: done, refused or failed, usage, agent not reachable, timed out or outcome unknown. */
export const EXIT = { done: 0, failed: 1, usage: 2, unreachable: 3, unknown: 4 } as const;

interface ErrorRow {
  /** What an NBD client is told when a request fails for this reason; null: nothing, its connection is closed. */
  readonly nbd: NbdErrno | null;
  /** WebSocket close code (4000–4999 are the application's). */
  readonly close: number;
  readonly http: number;
  readonly exit: (typeof EXIT)[keyof typeof EXIT];
  /** May the same call succeed later without anybody changing anything? */
  readonly retry: boolean;
  readonly meaning: string;
}

const row = (
  nbd: NbdErrno | null,
  close: number,
  http: number,
  exit: ErrorRow["exit"],
  retry: boolean,
  meaning: string,
): ErrorRow => ({ nbd, close, http, exit, retry, meaning });

export const ERRORS = {
  // Usage and reach
  "usage": row(
    "EINVAL",
    4000,
    400,
    EXIT.usage,
    false,
    "A flag, argument or request body is not of the documented form.",
  ),
  "agent-unreachable": row("EIO", 4001, 503, EXIT.unreachable, true, "No agent answers at the control socket."),
  "timed-out": row("EIO", 4002, 504, EXIT.unknown, true, "The condition was not reached in the given time."),
  "outcome-unknown": row(
    "EIO",
    4003,
    504,
    EXIT.unknown,
    true,
    "The connection was lost after the request was sent; ask again.",
  ),
  "shutting-down": row(null, 4004, 503, EXIT.failed, true, "The agent is being stopped."),
  "not-found": row("EINVAL", 4005, 404, EXIT.failed, false, "There is no such object or path."),

  // Role and state
  "not-primary": row("EPERM", 4010, 409, EXIT.failed, false, "The command is for a primary."),
  "not-secondary": row("EPERM", 4011, 409, EXIT.failed, false, "The command is for a secondary."),
  "no-peer": row("EIO", 4012, 409, EXIT.failed, true, "No secondary is connected."),
  "peer-connected": row("EIO", 4013, 409, EXIT.failed, false, "The primary is connected, so nothing has failed."),
  "no-checkpoint": row(
    "EIO",
    4014,
    409,
    EXIT.failed,
    true,
    "No checkpoint has been committed yet: there is no state to return to.",
  ),
  "epoch-unknown": row("EINVAL", 4015, 409, EXIT.failed, false, "That epoch is not a prepared checkpoint."),
  "epoch-committed": row(
    "EINVAL",
    4016,
    409,
    EXIT.failed,
    false,
    "That checkpoint is committed already and cannot be withdrawn.",
  ),
  "too-many-prepared": row(
    "EINVAL",
    4017,
    409,
    EXIT.failed,
    true,
    "As many checkpoints are prepared as are allowed at once.",
  ),
  "merge-unfinished": row(
    "EIO",
    4034,
    409,
    EXIT.failed,
    true,
    "The overlays of an earlier failover are not merged yet.",
  ),
  "fence-failed": row(
    "EIO",
    4036,
    409,
    EXIT.failed,
    true,
    "The fence hook could not make sure that the peer serves no more.",
  ),
  "unprotected": row(
    "EIO",
    4037,
    409,
    EXIT.failed,
    false,
    "The shared disk was overwritten without the secondary, or nothing says that it was not: its checkpoint is void.",
  ),
  "clients-connected": row("EIO", 4035, 409, EXIT.failed, true, "Clients that may write are connected to an export."),
  "not-in-sync": row("EIO", 4039, 409, EXIT.failed, true, "The secondary does not have everything yet."),
  "bitmap-exists": row("EINVAL", 4090, 409, EXIT.failed, false, "The disk has a bitmap of that name already."),
  "bitmap-inconsistent": row(
    "EIO",
    4091,
    409,
    EXIT.failed,
    false,
    "The bitmap may lack changes: it can be removed only.",
  ),
  "job-unknown": row("EINVAL", 4018, 404, EXIT.failed, false, "There is no job of that id."),
  "job-state": row("EINVAL", 4019, 409, EXIT.failed, false, "The job is not in a state that allows this."),

  "not-applicable": row(
    "EINVAL",
    4038,
    409,
    EXIT.failed,
    false,
    "The command is well formed, and the agent is in no state that it is for.",
  ),

  // Handshake refusals
  "protocol-mismatch": row(
    "EIO",
    4020,
    409,
    EXIT.failed,
    false,
    "The two agents speak different versions of the replication protocol.",
  ),
  "vm-mismatch": row("EIO", 4021, 409, EXIT.failed, false, "The two agents belong to different VMs."),
  "no-epochs": row(
    "EINVAL",
    4088,
    409,
    EXIT.failed,
    false,
    "Mode mirror has no epochs: nothing can be prepared, committed, withdrawn or gone back to.",
  ),
  "mode-mismatch": row("EIO", 4022, 409, EXIT.failed, false, "The two agents run different modes."),
  "role-conflict": row("EIO", 4023, 409, EXIT.failed, false, "Both agents have the same role."),
  "disk-mismatch": row("EIO", 4024, 409, EXIT.failed, false, "The two agents do not have disks of the same names."),
  "size-mismatch": row("EIO", 4025, 409, EXIT.failed, false, "A disk has another size on the other side."),
  "cluster-size-mismatch": row("EIO", 4026, 409, EXIT.failed, false, "The two agents use different cluster sizes."),
  "auth-failed": row(
    "EPERM",
    4027,
    401,
    EXIT.failed,
    false,
    "The other side has not proved who it is: another token, or no certificate that is accepted.",
  ),
  "unrelated": row("EIO", 4028, 409, EXIT.failed, false, "The two disk sets have no common history."),
  "peer-replaced": row(
    "EIO",
    4043,
    409,
    EXIT.failed,
    false,
    "An operator had another agent take this secondary's place (`connect --accept-new-peer`).",
  ),
  "rolled-back": row(
    "EIO",
    4092,
    409,
    EXIT.failed,
    false,
    "The secondary was rolled back to an earlier checkpoint, and an operator has to say which side goes on.",
  ),
  "outdated": row(
    "EIO",
    4030,
    409,
    EXIT.failed,
    false,
    "This side's disks are behind the peer's history: it must not serve them.",
  ),
  "split-brain": row(
    "EIO",
    4031,
    409,
    EXIT.failed,
    false,
    "Both sides were written to since they parted: neither contains the other.",
  ),
  "handed-over": row("ESHUTDOWN", 4032, 409, EXIT.failed, true, "The role is being handed to the peer, or was."),
  "replaced": row(
    "EIO",
    4029,
    409,
    EXIT.failed,
    true,
    "A newer session with the same peer took the place of this one.",
  ),

  // Peer behaviour
  "protocol-error": row("EIO", 4040, 400, EXIT.failed, true, "The peer sent what the protocol does not allow."),
  "peer-timeout": row(
    "EIO",
    4041,
    504,
    EXIT.failed,
    true,
    "The peer was silent, or made no progress, for the peer timeout.",
  ),
  "connection-lost": row("EIO", 4042, 503, EXIT.failed, true, "The connection to the peer ended."),

  // Disks, overlays, files
  "image-missing": row("EIO", 4050, 409, EXIT.failed, false, "The image file does not exist."),
  "image-busy": row("EIO", 4051, 409, EXIT.failed, true, "Another process holds the image."),
  "image-format": row(
    "EIO",
    4052,
    409,
    EXIT.failed,
    false,
    "The image is not of the format that it is named as, or of no acceptable size.",
  ),
  "image-changed": row(
    "EIO",
    4053,
    409,
    EXIT.failed,
    false,
    "The image is not the one that the state directory records.",
  ),
  "state-mismatch": row("EIO", 4054, 409, EXIT.failed, false, "The state directory belongs to another configuration."),
  "state-corrupt": row(
    "EIO",
    4055,
    500,
    EXIT.failed,
    false,
    "A file of the state directory fails its checksums beyond repair.",
  ),
  "overlay-full": row("ENOSPC", 4056, 507, EXIT.failed, true, "The overlays have no room for another original."),
  "out-of-space": row("ENOSPC", 4057, 507, EXIT.failed, true, "The file system is full."),
  "io-error": row("EIO", 4058, 500, EXIT.failed, true, "The operating system reported an input/output error."),
  "permission-denied": row("EPERM", 4059, 403, EXIT.failed, false, "The operating system denies access."),
  "read-only": row("EPERM", 4060, 403, EXIT.failed, false, "The export is read-only."),
  "out-of-range": row("EINVAL", 4061, 400, EXIT.failed, false, "The request reaches beyond the end of the disk."),
  "not-supported": row(
    "ENOTSUP",
    4062,
    400,
    EXIT.failed,
    false,
    "The operation cannot be done in the way that was asked for.",
  ),
  "address-in-use": row("EIO", 4063, 409, EXIT.failed, true, "The address or socket is taken by another process."),

  // Copies of a disk beside its image
  "child-timed-out": row("EIO", 4064, 504, EXIT.failed, true, "A copy of a disk has not done a request in its time."),
  "child-syncing": row("EIO", 4065, 409, EXIT.failed, true, "A copy of a disk has not got everything yet."),

  "quorum-failure": row("EIO", 4066, 500, EXIT.failed, true, "Too few copies of a disk have done a request, or agree."),
  "child-unknown": row("EINVAL", 4067, 404, EXIT.failed, false, "The disk has no copy of that name."),
  "child-refused": row("EINVAL", 4068, 409, EXIT.failed, false, "The copies of the disk do not allow that change."),

  // Kept checkpoints
  "checkpoint-dropped": row(
    "EIO",
    4070,
    409,
    EXIT.failed,
    false,
    "The checkpoint that the client reads is not kept any more.",
  ),

  // Arbiter
  "arbiter-unreachable": row("EIO", 4080, 503, EXIT.failed, true, "The arbiter does not answer, or not as it should."),
  "lease-held": row(
    "EIO",
    4081,
    409,
    EXIT.failed,
    true,
    "The peer may serve by the arbiter, or by this side's promise.",
  ),
  "lease-refused": row("EIO", 4082, 409, EXIT.failed, false, "By the arbiter's record this side may not serve."),
  // VM states
  "vmstate-awaited": row("EIO", 4071, 409, EXIT.failed, true, "The checkpoint has not got its VM state yet."),
  "vmstate-busy": row("EIO", 4072, 409, EXIT.failed, true, "Another VM state is being received."),
  "vmstate-interrupted": row("EIO", 4073, 409, EXIT.failed, true, "The VM state ended before it was complete."),
  "vmstate-missing": row("EIO", 4074, 404, EXIT.failed, false, "No VM state is stored with that checkpoint."),
  "vmstate-stale": row(
    "EIO",
    4075,
    409,
    EXIT.failed,
    false,
    "The disks may have been written since they were as the stored VM state knows them.",
  ),

  // The VM that is protected
  "hook-failed": row(
    "EIO",
    4087,
    500,
    EXIT.failed,
    false,
    "The command that was to start the VM after a failover failed.",
  ),
  "vm-unreachable": row("EIO", 4085, 503, EXIT.failed, true, "The hypervisor or the guest agent does not answer."),
  "vm-refused": row("EIO", 4086, 409, EXIT.failed, true, "The hypervisor or the guest agent refused a command."),

  "internal": row("EIO", 4099, 500, EXIT.failed, false, "A bug: the agent's log has the details."),
} as const satisfies Record<string, ErrorRow>;

export type ErrorCode = keyof typeof ERRORS;

/** A fault of the world. `message` says what happened, `action` what the operator can do about it. */
export class ColobusError extends Error {
  readonly code: ErrorCode;
  readonly action: string;

  constructor(code: ErrorCode, message: string, action = "", options?: ErrorOptions) {
    super(message, options);
    this.name = "ColobusError";
    this.code = code;
    this.action = action;
  }

  /** The row of the table for this error's code. */
  get row(): ErrorRow {
    return ERRORS[this.code];
  }

  /** `{code, message, action}`: the form in which errors cross the control API and `--json`. */
  toJSON(): { code: ErrorCode; message: string; action: string } {
    return { code: this.code, message: this.message, action: this.action };
  }
}

export function isErrorCode(value: unknown): value is ErrorCode {
  return typeof value === "string" && Object.hasOwn(ERRORS, value);
}

/** Words from outside as one line: they end on an operator's terminal. */
export function oneLine(words: string): string {
  return words.replaceAll(/\p{Cc}+/gu, " ");
}

/** Whether the overlays, or a file system, have no room: the disk itself is sound then. */
export function isForWantOfSpace({ code }: ColobusError): boolean {
  return code === "overlay-full" || code === "out-of-space";
}

/** Any thrown value as a ColobusError; what is not one already is a bug, hence `internal`. */
export function asColobusError(thrown: unknown): ColobusError {
  if (thrown instanceof ColobusError) return thrown;
  const message = thrown instanceof Error ? thrown.message : String(thrown);
  return new ColobusError("internal", message, "Report this with the agent's log.", { cause: thrown });
}
