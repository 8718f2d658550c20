/**
 * Memory as a server that runs for months finds it: files stay in the page cache, and what is free belongs to the machine.
 *
 * A kernel that reclaims before memory is short takes the files of those that wait for their turn out of it, and goes on doing
 * so during the turn, where reads and writes of a part leave the rest untouched. And a virtual machine that gives what is free
 * back to its host pays for each page that it touches anew: who writes new files then pays most.
 */
import { closeSync, openSync, statSync } from "node:fs";
import koffi from "koffi";

const PROT_READ = 1;
const PROT_WRITE = 2;
const MAP_SHARED = 1;
const MAP_PRIVATE = 2;
const MAP_ANONYMOUS = 0x20;
const MAP_POPULATE = 0x8000;
const MAP_FAILED = 0xffff_ffff_ffff_ffffn;

const libc = koffi.load(null);
const mmap = libc.func("void *mmap(void *address, size_t length, int prot, int flags, int fd, int64_t offset)");
const mlock = libc.func("int mlock(void *address, size_t length)");
const munmap = libc.func("int munmap(void *address, size_t length)");

/** Reads the files into the page cache where they are not, and holds them there until what it returns is called. */
export function pinFiles(paths: readonly string[]): () => void {
  const held: { readonly address: unknown; readonly length: number }[] = [];
  const release = (): void => {
    for (const { address, length } of held.splice(0)) munmap(address, length);
  };
  for (const path of paths) {
    const length = statSync(path).size;
    const fd = openSync(path, "r");
    const address = map(length, PROT_READ, MAP_SHARED, fd);
    const mapErrno = koffi.errno();
    closeSync(fd);
    if (address === undefined) {
      release();
      throw new Error(`${path} cannot be mapped: error ${mapErrno}`);
    }
    held.push({ address, length });
    if (mlock(address, length) === 0) continue;
    const errno = koffi.errno();
    release();
    throw new Error(`${path} cannot be held in memory: error ${errno}; the bench needs \`ulimit -l unlimited\``);
  }
  return release;
}

/** Has the host of a virtual machine give it that much memory, which is free again when the call returns. */
export function touchMemory(bytes: number): void {
  const address = map(bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1);
  if (address === undefined) throw new Error(`${bytes} bytes of memory cannot be had: error ${koffi.errno()}`);
  munmap(address, bytes);
}

function map(length: number, protection: number, flags: number, fd: number): unknown {
  const address: unknown = mmap(null, length, protection, flags, fd, 0);
  return address === null || koffi.address(address) === MAP_FAILED ? undefined : address;
}
