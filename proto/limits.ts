/** Every fixed limit and default in one place, each with its unit in its name. */

const KIB = 1024;
const MIB = 1024 * KIB;

// NBD (NBD protocol, "Size constraints"; what real clients send is in docs/protocol.md)
/** A longer write ends the connection, a longer read is refused. */
export const NBD_MAX_PAYLOAD_BYTES = 64 * MIB;
/** What clients are told: those that ask keep to it. */
export const NBD_ADVERTISED_MAX_PAYLOAD_BYTES = 32 * MIB;
/** Advertised beside a minimum of 1. */
export const NBD_PREFERRED_BLOCK_BYTES = 4096;
/** An export's name. */
export const NBD_MAX_NAME_BYTES = 4096;
/** Option data up to this length is read; up to NBD_MAX_SKIPPED_OPTION_BYTES it is skipped with ERR_TOO_BIG; beyond, the connection ends. */
export const NBD_MAX_OPTION_BYTES = 64 * KIB;
export const NBD_MAX_SKIPPED_OPTION_BYTES = 1 * MIB;
/** A client that negotiates on is disconnected. */
export const NBD_MAX_OPTIONS_PER_CONNECTION = 4096;
/** A client must have opened an export by then. */
export const NBD_HANDSHAKE_TIMEOUT_MS = 10_000;
/** Clients on TCP at a time; further ones are dropped at once. */
export const NBD_TCP_CONNECTIONS_MAX = 256;
/** Replies of one client that are being made or not yet taken, and its writes that wait for the disk. */
export const NBD_MAX_IN_FLIGHT_BYTES_PER_CLIENT = 128 * MIB;
/** The same of all clients together. */
export const NBD_MAX_IN_FLIGHT_BYTES = 256 * MIB;
/** Beyond, nothing more is read from the client. */
export const NBD_MAX_IN_FLIGHT_REQUESTS_PER_CLIENT = 1024;
/** A BLOCK_STATUS that finds more describes the beginning of its range. */
export const NBD_MAX_EXTENTS_PER_REPLY = 4096;
/** A BLOCK_STATUS of what overlays have a part of looks at so many clusters, and describes those. */
export const STATUS_CLUSTERS_MAX = 4096;
/** Reply bytes that a client has not taken yet; beyond, nothing more is read from it. */
export const NBD_MAX_UNSENT_BYTES_PER_CLIENT = 8 * MIB;
/** In-flight bytes that every client gets even when others have used up NBD_MAX_IN_FLIGHT_BYTES. */
export const NBD_GUARANTEED_BYTES_PER_CLIENT = 1 * MIB;
/**
 * A client that takes no replies for this long while others wait for the memory these occupy, or stops for this long in the
 * middle of a write's payload while others wait for its range, is disconnected.
 */
export const NBD_STALLED_CLIENT_MS = 30_000;
/** Replies of one event-loop turn are laid out in buffers of this size; larger replies get their own. */
export const NBD_REPLY_ARENA_BYTES = 256 * KIB;
/** Reads of at least this size have their zero extents sent as holes. */
export const NBD_SPARSE_READ_MIN_BYTES = 64 * KIB;
/** A client that is still negotiating when the server closes has this long to hear ERR_SHUTDOWN. */
export const NBD_HANDSHAKE_GRACE_MS = 500;
/** Requests in flight when the server closes have this long to finish. */
export const NBD_CLOSE_TIMEOUT_MS = 5_000;
/** After the last reply was handed to the kernel a client has this long to close its end; until then, the second. */
export const NBD_LINGER_FLUSHED_MS = 500;
export const NBD_LINGER_MS = 5_000;

// Images that NBD servers export
/** A connection to a server is made, and the handshake done, within this time each. */
export const NBD_CLIENT_DIAL_TIMEOUT_MS = 10_000;
export const NBD_CLIENT_HANDSHAKE_TIMEOUT_MS = 10_000;
/** Data of one option reply, and replies to one option; beyond, the connection ends. */
export const NBD_CLIENT_OPTION_REPLY_BYTES_MAX = 64 * KIB;
export const NBD_CLIENT_OPTION_REPLIES_MAX = 1024;
/** Requests of one connection that are under way; others wait. */
export const NBD_CLIENT_IN_FLIGHT_MAX = 256;
/** A longer read or write is cut, unless the server takes even less. */
export const NBD_CLIENT_PAYLOAD_BYTES_MAX = 8 * MIB;
/** Pieces of long writes to one disk that may be under way before the next one is taken. */
export const WRITE_AHEAD_BYTES = 8 * MIB;
/** A longer write of zeroes is cut, so that no request takes very long. */
export const NBD_CLIENT_ZERO_BYTES_MAX = 64 * MIB;
/** Chunks of one reply; beyond, the connection ends. */
export const NBD_CLIENT_CHUNKS_PER_REPLY_MAX = 65_536;
/** An error chunk with its message. */
export const NBD_CLIENT_ERROR_BYTES_MAX = 8 * KIB;
/** A server that does not answer a request for this long is disconnected, and asked again. */
export const NBD_CLIENT_REQUEST_TIMEOUT_MS = 30_000;
/** Requests wait this long for a server that is gone; then they fail, until it is back. */
export const NBD_CLIENT_GIVE_UP_MS = 30_000;
/** What no flush has covered is kept, to be written again should the server die: at this size a flush begins … */
export const NBD_CLIENT_UNFLUSHED_TARGET_BYTES = 32 * MIB;
/** … and at this one, or that many changes, further ones wait for its end. */
export const NBD_CLIENT_UNFLUSHED_MAX_BYTES = 64 * MIB;
export const NBD_CLIENT_UNFLUSHED_MAX_CHANGES = 65_536;
/** What a change costs that limit beside its bytes. */
export const NBD_CLIENT_CHANGE_COST_BYTES = 256;
/** A format server that was started must listen by then, and end by then when it is stopped. */
export const FORMAT_SERVER_START_MS = 10_000;
export const FORMAT_SERVER_STOP_MS = 10_000;

// Disks
/** The unit of copy-before-write, a power of two. */
export const CLUSTER_MIN_BYTES = 4 * KIB;
export const CLUSTER_MAX_BYTES = 1 * MIB;
export const CLUSTER_DEFAULT_BYTES = 16 * KIB;
/** Cluster indexes are unsigned 32-bit numbers. */
export const DISK_MAX_CLUSTERS = 2 ** 32;
/** Disks of one VM. */
export const DISKS_MAX = 64;
/** One of several copies of a disk that has not done a request by then is broken. */
export const CHILD_TIMEOUT_DEFAULT_MS = 5_000;
/** Copies of one disk, its image included. */
export const CHILDREN_MAX = 8;
/** A broken copy is tried again after this time; each failure doubles it, up to … */
export const CHILD_RETRY_MIN_MS = 1_000;
/** … this. */
export const CHILD_RETRY_MAX_MS = 30_000;
/** Of the same kind of trouble with the copies of a disk one event is told in this time, with how many there were. */
export const QUORUM_EVENT_EVERY_MS = 1_000;

// TLS
/** A TLS handshake is done within this time. */
export const TLS_HANDSHAKE_TIMEOUT_MS = 10_000;
/** How often certificates and keys are looked at, whether they have changed. */
export const TLS_FILES_LOOK_EVERY_MS = 5_000;
/** A certificate that expires within this time is warned of when it is read. */
export const CERTIFICATE_WARN_MS = 14 * 24 * 3600 * 1000;
/** Why connections are refused is logged once; a reason that goes on, again after this time. */
export const REFUSAL_TOLD_EVERY_MS = 600_000;
/** Different reasons that are told apart; and events, in that time, about peers that have not proved themselves. */
export const REFUSAL_REASONS_MAX = 64;

// Replication
/** One WebSocket message; a longer one ends the session. */
export const MESSAGE_MAX_BYTES = 8 * MIB;
/** A batch is handed to the link when it has reached this size, at the latest at the end of the event-loop turn. */
export const BATCH_TARGET_BYTES = 256 * KIB;
/** Operations in one message at most, so that its header stays small and nobody loops over it for long. */
export const BATCH_MAX_OPERATIONS = 1024;
/** Writes larger than this are cut, so that no message outgrows MESSAGE_MAX_BYTES. */
export const WRITE_PIECE_MAX_BYTES = 1 * MIB;
/** A message other than `data`, and any before the session is open. */
export const HANDSHAKE_MESSAGE_MAX_BYTES = 64 * KIB;
/** A peer is told the name of an image that is no longer than this. */
export const IMAGE_TOLD_MAX_BYTES = 512;
/** For the WebSocket handshake, from the greetings to the seals, and for `begin` after them. */
export const HANDSHAKE_TIMEOUT_MS = 10_000;
/** From `begin` until `ready`: the secondary ends what an older session has under way first. */
export const READY_TIMEOUT_MS = 60_000;
/** A peer that does not answer the end of a link has this long; then the connection is dropped. */
export const LINK_CLOSE_TIMEOUT_MS = 2_000;
/** Links accepted that have not yet proved that they belong to the peer. */
export const UNAUTHENTICATED_LINKS_MAX = 16;
/** Who has dialled with another token is told so, and gives its place up, after this time and not before. */
export const WRONG_TOKEN_PAUSE_MS = 1_000;
/** What such a link may have sent; beyond, it is dropped. */
export const UNAUTHENTICATED_BYTES_MAX = 256 * KIB;
/** What a `ping` that measures the link has with it at most. */
export const LINK_MEASURE_CHUNK_BYTES = 32 * KIB;
/** What one measurement of the link sends at most. */
export const LINK_MEASURE_MAX_BYTES = 8 * MIB;
/** Connections to the replication port, whatever they are up to; further ones are dropped at once. */
export const LINK_CONNECTIONS_MAX = 64;
/** The headers of a WebSocket handshake, or of a request to the control API: all of them, and how many. */
export const HTTP_HEADERS_MAX_BYTES = 8 * KIB;
export const HTTP_HEADERS_MAX = 64;
/** What is read of an answer that refuses a WebSocket handshake. */
export const HANDSHAKE_REFUSAL_MAX_BYTES = 1 * KIB;
/** Bytes sent and not yet received on the secondary, at which a writer waits (`--window`). */
export const WINDOW_DEFAULT_BYTES = 64 * MIB;
/** Bytes handed to the secondary but not yet stable there, as a multiple of the window. */
export const UNSTABLE_WINDOWS = 4;
/** What the secondary holds in memory and has not applied, as a share of the window: beyond, it acknowledges nothing more as received. */
export const QUEUE_WINDOW_SHARE = 1 / 2;
/** An acknowledgement that no guest waits for comes at the latest after this time, or this part of the window. */
export const ACK_DELAY_MS = 2;
export const ACK_WINDOW_SHARE = 1 / 32;
/**
 * What an operation costs the window beside its payload, so that operations without payload are bounded as well: its part of a
 * header is no longer. A chunk of a VM state has no longer header, either.
 */
export const OPERATION_COST_BYTES = 128;
/** Requests of one session that may wait for their answers, and what says how its sync goes for its turn in the stream. */
export const REQUESTS_MAX = 1024;
/** What a primary whose image cannot be read asks a secondary for in one piece, … */
export const CONTENT_MAX_BYTES = 256 * KIB;
/** … and how many of them at a time, so that no side keeps much for the other. */
export const CONTENT_REQUESTS_MAX = 16;
/**
 * What waits for the network while the peer goes on sending, beside what a side may send on its own: two send windows with what
 * guests have in flight, the secondary's `differs`. Beyond, the peer does not read what it is answered, and the session ends.
 */
export const UNREAD_MAX_BYTES = 8 * MIB;
/** Silence, or lack of progress, after which a session is given up (`--peer-timeout`). */
export const PEER_TIMEOUT_DEFAULT_MS = 5_000;
/** The pause before the first new dial; each failure doubles it, and it is drawn from half to one and a half of that. */
export const RECONNECT_MIN_MS = 100;
export const RECONNECT_MAX_MS = 5_000;

/** Secondaries of one primary. */
export const SECONDARIES_MAX = 4;

/** Lineages that a side goes back to, or has heard of, and that it still tells apart from strange ones. */
export const ANCESTORS_MAX = 32;
/** Peers that may know a primary's lineage; one more is refused. Only on shared disks they become many: none can be left behind there. */
export const KNOWN_PEERS_MAX = 64;
/** Peers that were replaced, the latest ones, which a primary still refuses. */
export const REPLACED_PEERS_MAX = 8;
/** Runs of dirty clusters in one `differs` message. */
export const DIFFERS_RUNS_MAX = 4096;

/** The unit in which the dirty bitmap is made durable before a write: once for each extent, then never while it stays in use. */
export const EXTENT_BYTES = 4 * MIB;
/** A dirty bitmap's file is written anew when it is longer than this, and than four times what it has to say. */
export const DIRTY_FILE_MIN_BYTES = 1 * MIB;
/** How often the dirty bitmap is told what has become equal. */
export const SETTLE_EVERY_MS = 5_000;
/** The same after a sync. */
export const SETTLE_SOON_MS = 500;

// Shared disks
/** Originals travel in operations of at most this length … */
export const ORIGINAL_MAX_BYTES = 1 * MIB;
/** … and so much of them is read from one disk at a time, beside what the send window holds. */
export const ORIGINALS_READ_MAX_BYTES = 16 * MIB;

// Epochs
/** Checkpoints that may be prepared and neither committed nor discarded. */
export const PREPARED_EPOCHS_MAX = 64;
/** Generations of one disk that withdrawn checkpoints may leave before they are joined; prepared ones come on top. */
export const GENERATIONS_MAX = 16;
/** Epoch numbers are reserved on disk in blocks, so that opening an epoch seldom costs a write. */
export const EPOCH_RESERVATION = 64;
/** The highest epoch that a message can name: behind it there is room for all that an agent counts on by itself, in exact numbers. */
export const EPOCH_MAX = 2 ** 48;
/** A peer's epochs may be so far ahead of one's own: with a thousand checkpoints a second that takes 34 years. */
export const EPOCH_LEAD_MAX = 2 ** 40;

// VM state
/** A VM state travels, and is stored, in chunks of this length; the last one may be shorter. */
export const VMSTATE_CHUNK_BYTES = 256 * KIB;
/** Chunks sent and not yet written by the secondary, at which the sender waits: guests' writes queue behind them. */
export const VMSTATE_WINDOW_CHUNKS = 16;
/** Bytes of a state written since the last fsync that start the next one behind the stream. */
export const VMSTATE_SYNC_BEHIND_BYTES = 32 * MIB;

// Protection of a running VM
/** How fast a paused VM writes its state at most: as fast as it can. */
export const VM_MIGRATION_BYTES_PER_SECOND = 1024 ** 4;
/** How often QEMU is asked whether a paused VM may run. */
export const VM_POLL_MS = 10;
/** So often in a row a background snapshot fails to begin before the VM is paused for its state instead. */
export const BACKGROUND_TRIES = 2;
/** The VM is paused already, so its state is written in one go, however long that takes. */
export const VM_DOWNTIME_LIMIT_MS = 2_000_000;
/** How often a checkpoint with a VM state is taken (`colobus protect --interval`). */
export const PROTECT_INTERVAL_DEFAULT_MS = 5_000;

// Secondary
/** Committed checkpoints kept beside the last one, at most (`--retain`). */
export const RETAINED_MAX = 64;
/** `--overlay-limit` at least: below it a few writes would fill the overlays. */
export const OVERLAY_LIMIT_MIN_BYTES = 1 * MIB;
/** A checkpoint is asked for when one would free this part of the overlay limit. */
export const OVERLAY_HIGH_WATER = 3 / 4;
/** The replica writer saves originals for, and then applies, at most this many bytes at a time. */
export const APPLY_BATCH_BYTES = 8 * MIB;
/** … of zeroes this many: those of a long range take a slow disk long, and all that follows waits behind them … */
export const APPLY_BATCH_ZERO_BYTES = 64 * MIB;
/** … and at most about this many operations: some have no payload. The more there are, the more an fsync carries … */
export const APPLY_BATCH_OPERATIONS = 4096;
/** … and where nothing is fsynced, few are enough: all that the event loop does meanwhile waits for them. */
export const APPLY_UNSYNCED_BATCH_OPERATIONS = 512;
/** Bytes written to the base since the last fsync that start the next one behind the stream. */
export const SYNC_BEHIND_BYTES = 16 * MIB;
/** … or this long after the first of them. */
export const SYNC_BEHIND_MS = 100;
/** The overlays' file system must have this much free before a full overlay is tried again. */
export const OVERLAY_RESERVE_BYTES = 16 * MIB;
/** How often that is looked at, beside each commit. */
export const OVERLAY_RETRY_MS = 1_000;
/** Overlays that are full again so soon after they were freed are left alone for a while: twice as long each time … */
export const OVERLAY_SETTLED_MS = 60_000;
/** … and so long at most. */
export const OVERLAY_BACKOFF_MAX_MS = 30_000;
/** How long a side leaves a disk alone that could not be read or written, before it tries again. */
export const DISK_RETRY_MS = 5_000;
/** What the block buffers of all disks hold in memory of what is in their logs (`--buffer-memory`) … */
export const BUFFER_MEMORY_DEFAULT_BYTES = 64 * MIB;
/** … in pieces of this size, or of the smaller one where that is little. Each log has one more that is being filled. */
export const BUFFER_CHUNK_MAX_BYTES = 256 * KIB;
export const BUFFER_CHUNK_MIN_BYTES = 64 * KIB;
/** What applied logs of one disk may keep of storage, for the next ones. */
export const BUFFER_SPARE_BYTES = 32 * MIB;
/**
 * Parts of clusters that the block buffers of all disks index; beyond, writes wait until something is applied. A 4 KiB
 * write is one, a longer one has one for each cluster; whole clusters of zeroes are not counted.
 */
export const BUFFER_FRAGMENTS_MAX = 2_000_000;
/** A checkpoint is asked for when it would free this part of them. */
export const BUFFER_FRAGMENTS_HIGH_WATER = 3 / 4;
/** What is committed is written to the base in stretches of at most this length, or a cluster's … */
export const BUFFER_APPLY_BYTES = 256 * KIB;
/** … and at most so many at a time, before others get their turn. */
export const BUFFER_APPLY_STRETCHES = 64;
/** How often a state record that could not be written is tried again. */
export const STATE_RETRY_MS = 2_000;
/** Set aside for each disk, so that a merge can note what it has done while the overlays' file system is full … */
export const MERGE_RESERVE_BYTES = 256 * KIB;
/** … and taken a block at a time, so that nothing else gets it. */
export const MERGE_RESERVE_STEP_BYTES = 4 * KIB;

// Bitmaps for backup tools
/** Named bitmaps of all disks of one VM. */
export const BITMAPS_MAX = 64;

// Jobs
/** What a sync reads, and sends, in one piece … */
export const JOB_CHUNK_BYTES = 1 * MIB;
/** … and how much it reads side by side while guests are idle, … */
export const SYNC_STEP_BYTES = 4 * MIB;
/** … in at most so many pieces. */
export const SYNC_STEP_PIECES = 64;
/** Holes are sent in pieces of at most this length, so that a sync can be paused within one. */
export const SYNC_HOLE_BYTES = 64 * MIB;
/** What a hole counts of its length where a sync bounds what is under way: whoever takes it may have to write zeroes … */
export const SYNC_HOLE_SHARE = 1 / 8;
/**
 * … down to this, the longer each is stable in the first of these times, which is more than SYNC_BEHIND_MS; where one takes
 * the second, up again.
 */
export const SYNC_HOLE_SHARE_MIN = 1 / 512;
export const SYNC_HOLE_FAST_MS = 250;
export const SYNC_HOLE_SLOW_MS = 500;
/** The share of the send window that a sync takes: the rest is left to guests' writes … */
export const SYNC_WINDOW_SHARE = 1 / 2;
/** … which wait for what was sent before them, so it takes less while there are any. */
export const SYNC_WINDOW_SHARE_BESIDE_GUESTS = 1 / 8;
/** The share of the time that a job with speed `dynamic` is at work while guests are not idle. */
export const JOB_YIELDING_SHARE = 1 / 4;
/** How often a job that follows looks for what is to be copied anew: what is written often is copied once. */
export const JOB_FOLLOW_EVERY_MS = 100;
/** A verify compares at most this much of a hole at once: the secondary may have to read it. */
export const VERIFY_HOLE_BYTES = 16 * MIB;
/** Pieces that it has under way at most: what guests write waits behind them on the secondary. */
export const VERIFY_STEP_PIECES = 8;
/** Differing ranges that it lists, and reports as events, each; all of them are counted. */
export const VERIFY_DIFFERENCES_MAX = 100;
/** Concluded jobs that stay listed. */
export const JOBS_CONCLUDED_KEPT = 64;
/** What qemu-img may say of the layers of an image. */
export const FORMAT_MAP_MAX_BYTES = 256 * MIB;
/** Of mirrors, the concluded ones that a restart still lists. */
export const MIRRORS_CONCLUDED_KEPT = 8;
/** Mirrors of one agent that are not concluded. */
export const MIRRORS_MAX = 16;
/** The granularity of a mirror that does not say one, at most. */
export const MIRROR_GRANULARITY_DEFAULT_MAX_BYTES = 64 * KIB;

// Control
/** Events that can still be asked for. */
export const EVENTS_KEPT = 1024;
/** A request's body. */
export const CONTROL_BODY_MAX_BYTES = 64 * KIB;
/** The largest answer, or event, that a client of the control API takes. */
export const CONTROL_ANSWER_MAX_BYTES = 16 * MIB;
/** Clients at a time. */
export const CONTROL_CONNECTIONS_MAX = 256;
/** A job's id in a path of the control API. */
export const NAME_MAX_BYTES = 128;
/** Requests that one connection may have outstanding (pipelined) before it is closed. */
export const CONTROL_REQUESTS_PER_CONNECTION_MAX = 8;
/** A request must have arrived completely within this time. */
export const CONTROL_REQUEST_TIMEOUT_MS = 30_000;
/** What the answers still being sent get when the agent stops. */
export const CONTROL_CLOSE_GRACE_MS = 1_000;
/** How much longer than the agent its client waits, so that the agent's own answer wins. */
export const COMMAND_TIMEOUT_GRACE_MS = 1_000;
/** `timeoutMs` where a request says nothing, and `--timeout`. */
export const COMMAND_TIMEOUT_DEFAULT_MS = 60_000;
/** `timeoutMs`, and `--timeout`, at most. */
export const COMMAND_TIMEOUT_MAX_MS = 24 * 3600 * 1000;
/** What the fence hook may take (`--fence-timeout`). */
export const FENCE_TIMEOUT_DEFAULT_MS = 30_000;
/** How long a lease lasts that is not renewed, and the promise of a secondary not to take over (`--arbiter-ttl`). */
export const LEASE_TTL_DEFAULT_MS = 10_000;
/** … and at least: etcd's own lower bound is near. */
export const LEASE_TTL_MIN_MS = 3_000;
/** The part of a lease, or promise, that its holder does not rely on: for clocks that differ, and for being late. */
export const LEASE_MARGIN_SHARE = 1 / 10;
/** … and at least. */
export const LEASE_MARGIN_MIN_MS = 250;
/** A lease is renewed, and the arbiter asked, so often in its time … */
export const LEASE_RENEWALS = 4;
/** A secondary looks so often in that time whether it is to take over … */
export const TAKEOVER_LOOKS = 8;
/** … and a call to the arbiter, or to one of its endpoints, is given up after this part of that time. */
export const ARBITER_CALL_SHARE = 1 / 5;
/** An answer of the arbiter is no longer than this. */
export const ARBITER_ANSWER_MAX_BYTES = 256 * KIB;
/** How often the event loop is asked whether it comes late. */
export const EVENT_LOOP_SAMPLE_MS = 20;
/** The figures of its delay go back for so many slices … */
export const EVENT_LOOP_SLICES = 6;
/** … of this length. */
export const EVENT_LOOP_SLICE_MS = 10_000;
/** A delay from which on `colobus status` names it. */
export const DELAY_SHOWN_MIN_MS = 250;
/** A delay that is a stall: it is counted, and told. */
export const STALL_MIN_MS = 1_000;
/** Stalls that follow one are told together, this long after it was. */
export const STALL_TELL_EVERY_MS = 10_000;
/** SIGTERM ends the agent within this time, unless an image takes longer for a flush. */
export const SHUTDOWN_TIMEOUT_MS = 15_000;
/** A stop that takes longer says what it waits for, again and again. */
export const STOP_TELL_EVERY_MS = 5_000;

// State
/** Each of the two slots of the state record. */
export const STATE_SLOT_BYTES = 64 * KIB;
