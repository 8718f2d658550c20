/**
 * A guest that counts in its memory and on its disk at once: step n has the hash of the step before, and its record lies in
 * block n of the disk. Before each step it looks whether the disk holds the record of the step that its memory knows, and
 * none of a later one; else it halts. So memory and disk of different moments are found out by the guest itself.
 *
 * A second disk has an ext4, where each step is a line of a file, and checked past the page cache likewise.
 *
 * It is a kernel and a busybox, which `npm run setup:peers` puts into GUEST_DIRECTORY, in software emulation.
 */
import { spawn, type ChildProcess } from "node:child_process";
import { createHash } from "node:crypto";
import { closeSync, existsSync, openSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { onTestFinished } from "vitest";
import { requirePeers } from "./peers.ts";
import { accepts } from "./tool-process.ts";

export const GUEST_DIRECTORY = process.env["COLOBUS_TEST_GUEST"] ?? "/var/cache/colobus-test-guest";
/** Each after those that it needs. */
const MODULES = ["virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "virtio_blk"];
const PROGRAM = "qemu-system-x86_64";
const BLOCK_BYTES = 512;
const POLL_MS = 50;
const LAST_CHARS = 1_500;

const INIT = `#!/busybox sh
/busybox mount -t devtmpfs dev /dev
for module in ${MODULES.join(" ")}; do /busybox insmod /$module.ko; done
if [ ! -b /dev/vda ]; then
  echo "MISMATCH: there is no disk"
  /busybox poweroff -f
fi
has_files=
if [ -b /dev/vdb ]; then
  has_files=yes
  /busybox mkdir /disk /proc
  /busybox mount -t proc proc /proc
  /busybox mount -t ext4 /dev/vdb /disk || echo "MISMATCH: there is no file system"
fi
n=0
hash=start
# What the disk has, whatever the memory's cache of it says.
record() { /busybox blockdev --flushbufs /dev/vda; /busybox dd if=/dev/vda bs=${BLOCK_BYTES} count=1 skip=$1 2>/dev/null | /busybox head -n 1 | /busybox tr -d '\\0'; }
last_line() { echo 3 > /proc/sys/vm/drop_caches; /busybox tail -n 1 /disk/chain; }
while :; do
  if [ -n "$has_files" ] && [ $n -gt 0 ] && [ "$(last_line)" != "$n $hash" ]; then
    echo "MISMATCH: memory has $n $hash, the file $(last_line)"
    /busybox poweroff -f
  fi
  if [ $n -gt 0 ] && [ "$(record $n)" != "$n $hash" ]; then
    echo "MISMATCH: memory has $n $hash, the disk $(record $n)"
    /busybox poweroff -f
  fi
  if [ -n "$(record $((n + 1)))" ]; then
    echo "MISMATCH: memory is at $n, and the disk has $(record $((n + 1)))"
    /busybox poweroff -f
  fi
  n=$((n + 1))
  hash=$(echo "$n $hash" | /busybox sha256sum | /busybox cut -c 1-64)
  echo "$n $hash" | /busybox dd of=/dev/vda bs=${BLOCK_BYTES} count=1 seek=$n conv=sync,notrunc,fsync 2>/dev/null
  if [ -n "$has_files" ]; then
    echo "$n $hash" >> /disk/chain
    echo "$n" > /disk/step-$((n % 20))
    /busybox sync
  fi
  echo "STEP $n $hash"
done
`;

/** Steps as the guest has told them on its console, checked: each follows from the one before. */
export interface Step {
  readonly n: number;
  readonly hash: string;
}

export function nextHash({ n, hash }: Step): string {
  return createHash("sha256")
    .update(`${n + 1} ${hash}\n`)
    .digest("hex");
}

/** Whether the guest can be run here, as `requirePeers` says it of programs. */
export function requireCountingGuest(): boolean {
  return requirePeers(PROGRAM, join(GUEST_DIRECTORY, "busybox"));
}

/** Writes the guest's initial file system, which is all that it has beside its disk. */
export function writeInitramfs(path: string): void {
  const files: CpioFile[] = [
    { name: "dev", mode: 0o040755, data: Buffer.alloc(0) },
    { name: "init", mode: 0o100755, data: Buffer.from(INIT) },
    { name: "busybox", mode: 0o100755, data: readFileSync(join(GUEST_DIRECTORY, "busybox")) },
    ...MODULES.map((name) => ({
      name: `${name}.ko`,
      mode: 0o100644,
      data: readFileSync(join(GUEST_DIRECTORY, `${name}.ko`)),
    })),
  ];
  writeFileSync(path, Buffer.concat([...files.flatMap(cpioEntry), ...cpioEntry(TRAILER)]));
}

export interface QemuOptions {
  readonly directory: string;
  readonly name: string;
  /** Of its disks: the raw one, and the one with the file system, if it has one. */
  readonly diskUris: readonly string[];
  /** Instead of a raw disk: an empty node of this size, which gets its file later. */
  readonly emptyBytes?: number;
  /** What its command line begins with: where it runs. */
  readonly launcher?: readonly string[];
  /** It waits for the state of another one; else it boots. */
  readonly waits: boolean;
}

/** One QEMU with the counting guest. */
export class CountingVm {
  readonly qmp: string;
  readonly #console: string;
  readonly #log: string;
  readonly #process: ChildProcess;
  readonly #ended: Promise<void>;
  #hasEnded = false;

  constructor({ directory, name, diskUris, emptyBytes, launcher = [], waits }: QemuOptions) {
    this.qmp = join(directory, `${name}.qmp`);
    this.#console = join(directory, `${name}.console`);
    const log = join(directory, `${name}.errors`);
    this.#log = log;
    const errors = openSync(log, "w");
    const disks = diskUris.map((text) => {
      const uri = new URL(text);
      const name = uri.pathname.slice(1);
      const server = `server.type=unix,server.path=${uri.searchParams.get("socket")}`;
      const image = `driver=nbd,node-name=${name},${server},export=${name},reconnect-delay=30`;
      return ["-blockdev", image, "-device", `virtio-blk-pci,drive=${name}`];
    });
    if (emptyBytes !== undefined) {
      const nothing = `driver=null-co,node-name=vda-none,size=${emptyBytes}`;
      const vda = "driver=raw,node-name=vda,file=vda-none";
      disks.push(["-blockdev", nothing, "-blockdev", vda, "-device", "virtio-blk-pci,drive=vda"]);
    }
    const flags = [
      ["-M", "pc,accel=tcg", "-m", "96M", "-nodefaults", "-display", "none", "-no-reboot"],
      ["-kernel", join(GUEST_DIRECTORY, "vmlinuz"), "-initrd", join(directory, "initramfs")],
      ["-append", "console=ttyS0 quiet panic=-1 tsc=reliable mitigations=off no_timer_check"],
      ["-chardev", `file,id=console,path=${this.#console}`, "-serial", "chardev:console"],
      ...disks,
      ["-qmp", `unix:${this.qmp},server=on,wait=off`],
      waits ? ["-incoming", "defer"] : [],
    ].flat();
    const [program = PROGRAM, ...words] = [...launcher, PROGRAM, ...flags];
    this.#process = spawn(program, words, { stdio: ["ignore", errors, errors] });
    closeSync(errors);
    this.#ended = new Promise((resolve) => {
      this.#process.once("close", () => {
        this.#hasEnded = true;
        resolve();
      });
    });
    onTestFinished(() => this.kill());
  }

  get consoleText(): string {
    return existsSync(this.#console) ? readFileSync(this.#console, "utf8") : "";
  }

  /** For a failure: nothing of it is left when the test is over. */
  get #lastWords(): string {
    return `${readFileSync(this.#log, "utf8")}\n${this.consoleText.slice(-LAST_CHARS)}`;
  }

  /** What has come so far. Throws where the guest has found a mismatch, or its steps do not follow from each other. */
  steps(): Step[] {
    const text = this.consoleText;
    const mismatch = /MISMATCH.*/.exec(text);
    if (mismatch !== null) throw new Error(mismatch[0]);
    const steps = [...text.matchAll(/STEP (\d+) ([0-9a-f]{64})/g)].map(([, n, hash]) => ({
      n: Number(n),
      hash: hash ?? "",
    }));
    for (const [index, step] of steps.entries()) {
      const before = steps[index - 1];
      if (before === undefined) continue;
      if (step.n !== before.n + 1 || step.hash !== nextHash(before))
        throw new Error(`step ${step.n} after ${before.n}`);
    }
    return steps;
  }

  /** Resolves when the guest has told of so many steps. */
  async untilSteps(count: number, withinMs = 120_000): Promise<Step[]> {
    const deadline = Date.now() + withinMs;
    for (;;) {
      const steps = this.steps();
      if (steps.length >= count) return steps;
      if (this.#hasEnded) throw new Error(`the VM has ended after ${steps.length} steps: ${this.#lastWords}`);
      if (Date.now() > deadline) throw new Error(`${steps.length} steps, not ${count}: ${this.#lastWords}`);
      await new Promise((resolve) => {
        setTimeout(resolve, POLL_MS);
      });
    }
  }

  /** Resolves when QEMU takes commands. */
  async untilListening(): Promise<void> {
    while (!(await accepts(this.qmp))) {
      if (this.#hasEnded) throw new Error(`the VM has ended: ${this.#lastWords}`);
      await new Promise((resolve) => {
        setTimeout(resolve, POLL_MS);
      });
    }
  }

  /** Resolves when QEMU has ended by itself, with what it said. */
  async untilEnded(): Promise<string> {
    await this.#ended;
    return readFileSync(this.#log, "utf8");
  }

  /** Until `work` is done QEMU answers nobody, and its guest does nothing. */
  async whileStopped(work: () => Promise<void>): Promise<void> {
    this.#process.kill("SIGSTOP");
    await work().finally(() => this.#process.kill("SIGCONT"));
  }

  /** kill -9. */
  async kill(): Promise<void> {
    if (!this.#hasEnded) this.#process.kill("SIGKILL");
    await this.#ended;
  }
}

interface CpioFile {
  readonly name: string;
  readonly mode: number;
  readonly data: Buffer;
}

const TRAILER: CpioFile = { name: "TRAILER!!!", mode: 0, data: Buffer.alloc(0) };

/** One file of an archive in cpio's "newc" format, which the kernel unpacks. */
function cpioEntry({ name, mode, data }: CpioFile): Buffer[] {
  const fields = [1, mode, 0, 0, 1, 0, data.length, 0, 0, 0, 0, name.length + 1, 0];
  const head = `070701${fields.map((field) => field.toString(16).padStart(8, "0")).join("")}${name}\0`;
  return [padded(Buffer.from(head, "latin1")), padded(data)];
}

function padded(bytes: Buffer): Buffer {
  return Buffer.concat([bytes, Buffer.alloc((4 - (bytes.length % 4)) % 4)]);
}
