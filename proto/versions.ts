/**
 * Versions of everything that another process, or a later release, will read.
 *
 * | what | version | since | change |
 * |---|---|---|---|
 * | replication protocol | 1 | 0.1.0 | first |
 * | state record | 1 | 0.1.0 | first |
 * | cluster journal | 1 | 0.1.0 | first |
 * | mark of a shared disk | 1 | 0.1.0 | first |
 * | VM state | 1 | 0.1.0 | first |
 * | log of a block buffer | 1 | 0.1.0 | first |
 * | record of an arbiter | 1 | 0.1.0 | first |
 *
 * When one is raised:
 *
 * - The protocol: for a new message, operation or limit, for a field or word that must not be passed over, and for any change
 *   of what both sides decide for themselves from the two hellos (`verdict.ts`). Two agents speak the newest version that both
 *   know, so a release keeps the one before it: `REPLICATION_PROTOCOL_OLDEST` follows one behind. A field that the other side may
 *   pass over needs no new version. The form of the greeting, and of a refusal, is that of every version: by these two releases
 *   find out what they have in common, or tell that it is nothing.
 * - The state record: for a field or word that an earlier release must not lose, and whenever one of the other formats in the
 *   state directory is raised. It is the first that a start reads and the first that it writes, so an earlier release, which
 *   refuses it, touches nothing. A field that an earlier release may drop has a default instead.
 *
 * Every version that a release has written is still read: test/fixtures has state directories of each.
 */
export const AGENT_VERSION = "0.1.0";
/** The newest version of the replication protocol that this release speaks, and the oldest. */
export const REPLICATION_PROTOCOL_VERSION = 1;
export const REPLICATION_PROTOCOL_OLDEST = 1;
export const STATE_RECORD_VERSION = 1;
export const CLUSTER_JOURNAL_VERSION = 1;
export const SHARED_MARK_VERSION = 1;
export const VMSTATE_VERSION = 1;
export const BUFFER_LOG_VERSION = 1;
export const ARBITER_RECORD_VERSION = 1;
