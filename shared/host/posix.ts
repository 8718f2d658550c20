/**
 * The system calls that Node lacks, or makes dear, straight from libc.
 *
 * Results are the kernel's: a count or zero, and `-errno` on failure. Every call with a buffer runs to its end on the
 * calling thread before it returns, so none is ever touched by the kernel afterwards and none has to be kept alive. Calls
 * that a signal interrupted are repeated. Offsets and lengths are 64-bit, exact up to 2^53.
 *
 * What may wait for a device for long (cold reads, fsync) does not belong here: `node-storage.ts` gives it to the pool.
 */
import assert from "node:assert/strict";
import { constants } from "node:os";
import koffi from "koffi";

const { EAGAIN, EINTR, EIO } = constants.errno;
// `null` is the running process: the C library that Node itself is linked to, whichever that is.
const libc = koffi.load(null);

type ReadWrite = (fd: number, buffer: Uint8Array, length: number, offset: number) => number;

const callPwrite = libc.func("int64_t pwrite(int fd, const void *buf, size_t count, int64_t offset)") as ReadWrite;
const callPread = libc.func("int64_t pread(int fd, void *buf, size_t count, int64_t offset)") as ReadWrite;
const callPreadv2 = libc.func("int64_t preadv2(int fd, const void *iov, int iovcnt, int64_t offset, int flags)") as (
  fd: number,
  vector: BigUint64Array,
  count: number,
  offset: number,
  flags: number,
) => number;
const callLseek = libc.func("int64_t lseek(int fd, int64_t offset, int whence)") as (
  fd: number,
  offset: number,
  whence: number,
) => number;
const callFallocate = libc.func("int fallocate(int fd, int mode, int64_t offset, int64_t len)") as {
  (fd: number, mode: number, offset: number, length: number): number;
  async(
    fd: number,
    mode: number,
    offset: number,
    length: number,
    done: (error: Error | null, result: number) => void,
  ): void;
};
const callFadvise = libc.func("int posix_fadvise(int fd, int64_t offset, int64_t len, int advice)") as (
  fd: number,
  offset: number,
  length: number,
  advice: number,
) => number;
const callSocket = libc.func("int socket(int domain, int type, int protocol)") as (
  domain: number,
  type: number,
  protocol: number,
) => number;
const callSendto = libc.func(
  "int64_t sendto(int fd, const void *buf, size_t len, int flags, const void *address, uint32_t address_len)",
) as (
  fd: number,
  buffer: Uint8Array,
  length: number,
  flags: number,
  address: Uint8Array,
  addressLength: number,
) => number;
const callSetsockopt = libc.func("int setsockopt(int fd, int level, int name, const void *value, uint32_t length)") as (
  fd: number,
  level: number,
  name: number,
  value: Int32Array,
  length: number,
) => number;
const callPoll = libc.func("int poll(void *fds, unsigned long count, int timeout)") as (
  fds: Int32Array,
  count: number,
  timeoutMs: number,
) => number;
const callClose = libc.func("int close(int fd)") as (fd: number) => number;
const callFlock = libc.func("int flock(int fd, int operation)") as (fd: number, operation: number) => number;

// <sys/socket.h>, for x86, ARM, POWER, s390 and RISC-V.
const AF_UNIX = 1;
const SOCK_DGRAM_CLOEXEC_NONBLOCK = 2 | 0o2000000 | 0o4000;
const MSG_NOSIGNAL = 0x4000;
const SOL_SOCKET = 1;
const SO_LINGER = 13;
// <poll.h>
const POLLERR = 0x8;
const POLLHUP = 0x10;

// <linux/fs.h>, <linux/falloc.h>, <fcntl.h>, <sys/file.h>: the same on every architecture that Node runs on.
const RWF_NOWAIT = 0x8;
const SEEK_END = 2;
const SEEK_DATA = 3;
const SEEK_HOLE = 4;
const POSIX_FADV_RANDOM = 1;
const POSIX_FADV_WILLNEED = 3;
const POSIX_FADV_DONTNEED = 4;
const LOCK_EX_NB = 2 | 4;
const LOCK_UN = 8;
const FALLOC_FL_KEEP_SIZE = 0x1;
const FALLOC_FL_PUNCH_HOLE = 0x2;
const FALLOC_FL_ZERO_RANGE = 0x10;

/**
 * The page cache keeps what one call has written in folios as large as that, up to some MiB, and ext4 then looks at every
 * block of the folio at each write into it: 4 KiB take 40 µs where a MiB was written at once, and 4 where 64 KiB were
 * (Linux 6.18). Large writes take a fifth longer in such pieces.
 */
const PWRITE_MAX_BYTES = 64 * 1024;

export const FALLOCATE = {
  /** Allocates, and grows the file if the range ends behind its end. */
  grow: 0,
  /** Allocates; the size stays. */
  keepSize: FALLOC_FL_KEEP_SIZE,
  /** Frees; the range reads as zeroes. */
  punchHole: FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
  /** Allocates; the range reads as zeroes. */
  zeroRange: FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
} as const;
export type FallocateMode = (typeof FALLOCATE)[keyof typeof FALLOCATE];

/** Writes all of `source`: 0, or `-errno`, after which any part may have been written. */
export function pwriteAll(fd: number, source: Uint8Array, offset: number): number {
  let written = 0;
  while (written < source.length) {
    const rest = written === 0 ? source : source.subarray(written);
    const result = callPwrite(fd, rest, Math.min(rest.length, PWRITE_MAX_BYTES), offset + written);
    if (result > 0) written += result;
    else if (result === 0) return -EIO;
    else {
      const errno = koffi.errno();
      if (errno !== EINTR) return -errno;
    }
  }
  return 0;
}

/** Fills `target`, waiting for the device if need be: the bytes read, fewer only at the end of the file, or `-errno`. */
export function preadAll(fd: number, target: Uint8Array, offset: number): number {
  let done = 0;
  while (done < target.length) {
    const rest = done === 0 ? target : target.subarray(done);
    const result = callPread(fd, rest, rest.length, offset + done);
    if (result > 0) done += result;
    else if (result === 0) break;
    else {
      const errno = koffi.errno();
      if (errno !== EINTR) return -errno;
    }
  }
  return done;
}

// struct iovec { void *iov_base; size_t iov_len; } of a 64-bit machine. One serves all calls, since none is pending.
assert.equal(koffi.sizeof("void *"), 8, "Colobus runs on 64-bit machines");
const ioVector = new BigUint64Array(2);

/**
 * Reads what the page cache holds: the bytes read, fewer where the rest is not cached or the file ends, or `-errno`:
 * EAGAIN when nothing is cached, EOPNOTSUPP where the file system cannot tell.
 */
export function preadCached(fd: number, target: Uint8Array, offset: number): number {
  ioVector[0] = koffi.address(target);
  ioVector[1] = BigInt(target.length);
  const result = callPreadv2(fd, ioVector, 1, offset, RWF_NOWAIT);
  if (result >= 0) return result;
  const errno = koffi.errno();
  return errno === EINTR ? -EAGAIN : -errno;
}

function seek(fd: number, offset: number, whence: number): number {
  const result = callLseek(fd, offset, whence);
  return result >= 0 ? result : -koffi.errno();
}

/** Size of a file, or of a block device. */
export function seekEnd(fd: number): number {
  return seek(fd, 0, SEEK_END);
}

/** The first offset at or after `offset` that holds data; -ENXIO when there is none, -EINVAL on a block device. */
export function seekData(fd: number, offset: number): number {
  return seek(fd, offset, SEEK_DATA);
}

/** The first offset at or after `offset` in a hole, or the end; -ENXIO from the end on, -EINVAL on a block device. */
export function seekHole(fd: number, offset: number): number {
  return seek(fd, offset, SEEK_HOLE);
}

export function fallocate(fd: number, mode: FallocateMode, offset: number, length: number): number {
  for (;;) {
    if (callFallocate(fd, mode, offset, length) === 0) return 0;
    const errno = koffi.errno();
    if (errno !== EINTR) return -errno;
  }
}

/** As `fallocate`, on the thread pool. */
export function fallocateBehind(fd: number, mode: FallocateMode, offset: number, length: number): Promise<number> {
  return new Promise((resolve, reject) => {
    const call = (): void => {
      callFallocate.async(fd, mode, offset, length, (error, result) => {
        // What the call has left in its thread's errno is this thread's here, and nowhere else.
        const errno = result === 0 ? 0 : koffi.errno();
        if (error !== null) reject(error);
        else if (errno === EINTR) call();
        else resolve(-errno);
      });
    };
    call();
  });
}

/** Has reads of a file read what they ask for, and nothing ahead. */
export function adviseRandom(fd: number): number {
  return -callFadvise(fd, 0, 0, POSIX_FADV_RANDOM);
}

/** Starts reading the range into the page cache. */
export function adviseWillNeed(fd: number, offset: number, length: number): number {
  // Unlike the others it returns the error number itself.
  return -callFadvise(fd, offset, length, POSIX_FADV_WILLNEED);
}

/** Drops what the page cache holds of a file, apart from what is not written back yet. */
export function dropCache(fd: number): number {
  return -callFadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
}

/** A buffer whose memory begins at a multiple of `alignment`, as O_DIRECT asks for. */
export function alignedBuffer(length: number, alignment: number): Buffer {
  const memory = Buffer.allocUnsafeSlow(length + alignment);
  const start = (alignment - Number(koffi.address(memory) % BigInt(alignment))) % alignment;
  return memory.subarray(start, start + length);
}

/** Takes the exclusive lock of the open file, or -EAGAIN (EWOULDBLOCK) at once if another open file holds it. */
export function lockExclusive(fd: number): number {
  return callFlock(fd, LOCK_EX_NB) === 0 ? 0 : -koffi.errno();
}

export function unlock(fd: number): number {
  return callFlock(fd, LOCK_UN) === 0 ? 0 : -koffi.errno();
}

/**
 * Sends one datagram to the unix socket at `path`, whose leading `@` stands for Linux' abstract addresses: its bytes, or
 * `-errno`. It does not wait: EAGAIN when the receiver's queue is full.
 */
export function sendToUnixSocket(path: string, text: string): number {
  const fd = callSocket(AF_UNIX, SOCK_DGRAM_CLOEXEC_NONBLOCK, 0);
  if (fd < 0) return -koffi.errno();
  // struct sockaddr_un: the family as the machine has its numbers, and the path.
  const name = Buffer.from(path);
  if (path.startsWith("@")) name[0] = 0;
  const address = Buffer.concat([new Uint8Array(Uint16Array.of(AF_UNIX).buffer), name]);
  const payload = Buffer.from(text);
  const sent = callSendto(fd, payload, payload.length, MSG_NOSIGNAL, address, address.length);
  const result = sent >= 0 ? sent : -koffi.errno();
  callClose(fd);
  return result;
}

/**
 * From now on a TCP socket that is closed, also by the end of its process, is reset, unless both ends had shut it down:
 * the kernel forgets what it has not sent, or not been told the arrival of, and sends it no more. Otherwise it would go on
 * trying to for minutes. Zero, or `-errno`.
 */
export function resetOnClose(fd: number): number {
  const linger = Int32Array.of(1, 0); // struct linger: on, for no time
  return callSetsockopt(fd, SOL_SOCKET, SO_LINGER, linger, linger.byteLength) === 0 ? 0 : -koffi.errno();
}

/** Whether nobody can read any more what is written to a pipe, a socket or a terminal. It does not wait. */
export function isReaderGone(fd: number): boolean {
  const poll = Int32Array.of(fd, 0); // struct pollfd: two short numbers behind the descriptor, the second is the answer
  const [, , , events = 0] = callPoll(poll, 1, 0) > 0 ? new Int16Array(poll.buffer) : [];
  return (events & (POLLERR | POLLHUP)) !== 0;
}
