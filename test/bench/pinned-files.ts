/**
 * Keeps files in the page cache. A kernel that reclaims before memory is short takes the files of those that wait for their
 * turn out of it, and goes on doing so during the turn, where reads and writes of a part leave the rest untouched.
 */
import { closeSync, openSync, statSync } from "node:fs";
import koffi from "koffi";

const PROT_READ = 1;
const MAP_SHARED = 1;
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
    const address: unknown = mmap(null, length, PROT_READ, MAP_SHARED, fd, 0);
    closeSync(fd);
    if (address === null || koffi.address(address) === MAP_FAILED) {
      release();
      throw new Error(`${path} cannot be mapped: error ${koffi.errno()}`);
    }
    held.push({ address, length });
    if (mlock(address, length) === 0) continue;
    const errno = koffi.errno();
    release();
    throw new Error(`${path} cannot be held in memory: error ${errno}; the bench needs \`ulimit -l unlimited\``);
  }
  return release;
}
