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
 */
export const AGENT_VERSION = "0.1.0";
export const REPLICATION_PROTOCOL_VERSION = 1;
export const STATE_RECORD_VERSION = 1;
export const CLUSTER_JOURNAL_VERSION = 1;
export const SHARED_MARK_VERSION = 1;
export const VMSTATE_VERSION = 1;
export const BUFFER_LOG_VERSION = 1;
