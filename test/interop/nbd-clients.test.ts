import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { NbdServer } from "../../shared/nbd/server.ts";
import { NodeClock } from "../../shared/host/node-clock.ts";
import { MemoryDevice } from "../support/memory-device.ts";
import { MemoryLog, TestDirectory, TestExport } from "../support/nbd-harness.ts";
import { requirePeers } from "../support/peers.ts";

const run = promisify(execFile);
const MIB = 1024 * 1024;
const SIZE = 128 * MIB;

let scratch: string;
let socketPath: string;
let device: MemoryDevice;
let tcpPort: number;
const readOnlyDevice = new MemoryDevice(1 * MIB);
const log = new MemoryLog();
const directory = new TestDirectory();
const server = new NbdServer({ directory, clock: new NodeClock(), log: log.asLog() });

const uri = (name: string): string => `nbd+unix:///${name}?socket=${socketPath}`;

beforeAll(async () => {
  scratch = mkdtempSync(join(tmpdir(), "colobus-interop-"));
  socketPath = join(scratch, "nbd.sock");
  device = new MemoryDevice(SIZE);
  const readOnly = new TestExport("snapshot", readOnlyDevice, "read-only");
  readOnly.readOnly = true;
  directory.exports.push(new TestExport("vda", device, "system disk"), readOnly);
  await server.listenUnix(socketPath);
  ({ port: tcpPort } = await server.listenTcp("127.0.0.1", 0));
});

afterAll(async () => {
  await server.close();
  rmSync(scratch, { recursive: true });
});

afterEach(() => {
  device.operations = undefined;
  void device.zero(0, SIZE, { fua: false, mayUnmap: true });
  assert.deepEqual(log.errors, []);
});

/** A disk image with data at a few places and holes between them. */
function sparseImage(): Buffer {
  const image = Buffer.alloc(SIZE);
  for (const [index, start] of [0, 3 * MIB + 4096, 64 * MIB, SIZE - 65536].entries()) {
    for (let at = start; at < start + 65536; at += 1) image[at] = (at * 13 + index) & 0xff;
  }
  return image;
}

async function execute(program: string, ...args: string[]): Promise<string> {
  const { stdout } = await run(program, args, { encoding: "utf8", maxBuffer: 16 * MIB, timeout: 60_000 });
  return stdout;
}

describe.runIf(requirePeers("nbdinfo"))("nbdinfo", () => {
  it("lists the exports with what they can do", async () => {
    const { exports } = JSON.parse(await execute("nbdinfo", "--json", "--list", uri(""))) as {
      exports: Record<string, unknown>[];
    };
    expect(exports.map((entry) => [entry["export-name"], entry["description"], entry["is_read_only"]])).toEqual([
      ["vda", "system disk", false],
      ["snapshot", "read-only", true],
    ]);
    expect(exports[0]).toMatchObject({
      "export-size": SIZE,
      "contexts": ["base:allocation"],
      "can_cache": true,
      "can_df": true,
      "can_fast_zero": true,
      "can_flush": true,
      "can_fua": true,
      "can_multi_conn": true,
      "can_trim": true,
      "can_zero": true,
      "is_rotational": false,
      "block_size_minimum": 1,
      "block_size_preferred": 4096,
      "block_size_maximum": 32 * MIB,
    });
  });

  it("opens the default export, by TCP too", async () => {
    expect((await execute("nbdinfo", "--size", uri(""))).trim()).toBe(String(SIZE));
    expect((await execute("nbdinfo", "--size", `nbd://127.0.0.1:${tcpPort}/snapshot`)).trim()).toBe(String(MIB));
  });

  it("shows the allocation", async () => {
    void device.write(Buffer.alloc(8192, 1), 1 * MIB, { fua: false });
    const map = JSON.parse(await execute("nbdinfo", "--json", "--map", uri("vda"))) as Record<string, unknown>[];
    expect(map.map(({ offset, length, type }) => [offset, length, type])).toEqual([
      [0, MIB, 3],
      [MIB, 8192, 0],
      [MIB + 8192, SIZE - MIB - 8192, 3],
    ]);
  });

  it("is told of a name that does not exist", async () => {
    await expect(execute("nbdinfo", uri("nonesuch"))).rejects.toThrow(/No such file or directory for export: nonesuch/);
  });
});

describe.runIf(requirePeers("nbdcopy"))("nbdcopy", () => {
  it("copies an image in and out, holes as holes", async () => {
    const [source, target] = [join(scratch, "in.raw"), join(scratch, "out.raw")];
    const image = sparseImage();
    writeFileSync(source, image);
    await execute("nbdcopy", source, uri("vda"));
    expect(device.bytes.equals(image)).toBe(true);
    await execute("nbdcopy", "--connections=4", uri("vda"), target);
    expect(readFileSync(target).equals(image)).toBe(true);
  });
});

describe.runIf(requirePeers("qemu-img", "qemu-io"))("qemu-img and qemu-io", () => {
  it("convert, compare and map", async () => {
    const source = join(scratch, "qemu.raw");
    const image = sparseImage();
    writeFileSync(source, image);
    await execute("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", source, uri("vda"));
    expect(device.bytes.equals(image)).toBe(true);
    expect(await execute("qemu-img", "compare", "-f", "raw", "-F", "raw", source, uri("vda"))).toContain("identical");
    const map = JSON.parse(await execute("qemu-img", "map", "--output=json", "-f", "raw", uri("vda"))) as {
      data: boolean;
    }[];
    expect(map.filter(({ data }) => data).length).toBe(4);
    const back = join(scratch, "back.qcow2");
    await execute("qemu-img", "convert", "-f", "raw", "-O", "qcow2", uri("vda"), back);
    expect(await execute("qemu-img", "compare", "-f", "qcow2", "-F", "raw", back, uri("vda"))).toContain("identical");
  });

  it("write, zero, discard, flush and read back, unaligned and large", async () => {
    const commands = [
      "write -P 0x11 0 32M",
      "write -P 0x22 -f 1000 777",
      "write -z 4M 1M",
      "write -z -u 8M 1M",
      "discard 16M 2M",
      "flush",
      "read -P 0x11 0 1000",
      "read -P 0x22 1000 777",
      "read -P 0x11 1777 1000",
      "read -P 0 4M 1M",
      "read -P 0 8M 1M",
      "read -P 0 16M 2M",
      "read -P 0x11 18M 14M",
      "aio_write -P 0x33 40M 1M",
      "aio_write -P 0x44 41M 1M",
      "aio_flush",
      "read -P 0x33 40M 1M",
      "read -P 0x44 41M 1M",
    ];
    device.operations = [];
    const output = await execute("qemu-io", "-f", "raw", ...commands.flatMap((command) => ["-c", command]), uri("vda"));
    expect(output).not.toMatch(/failed|error|verif/i);
    expect(device.operations.some(({ kind, fua }) => kind === "write" && fua === true)).toBe(true);
    expect(device.operations.filter(({ kind }) => kind === "flush").length).toBeGreaterThan(0);
    expect(device.openWrites).toBe(0);
  });

  it("are refused writing to a read-only export", async () => {
    await expect(execute("qemu-io", "-f", "raw", "-c", "write 0 512", uri("snapshot"))).rejects.toThrow(
      /Permission denied/,
    );
    expect(await execute("qemu-io", "-r", "-f", "raw", "-c", "read -P 0 0 1M", uri("snapshot"))).not.toMatch(
      /failed|verif/,
    );
  });
});

describe.runIf(requirePeers("fio"))("fio", () => {
  it("verifies what it wrote at random, with several jobs and deep queues", async () => {
    const output = await execute(
      "fio",
      "--ioengine=nbd",
      `--uri=${uri("vda")}`,
      "--name=verify",
      "--rw=randwrite",
      "--bsrange=512-128k",
      "--blockalign=512",
      "--iodepth=32",
      "--size=16m",
      "--numjobs=3",
      "--offset_increment=16m",
      "--verify=crc32c",
      "--verify_state_save=0",
      "--verify_fatal=1",
      "--end_fsync=1",
      "--output-format=json",
    );
    const { jobs } = JSON.parse(output.slice(output.indexOf("{"))) as { jobs: { error: number }[] };
    expect(jobs.map(({ error }) => error)).toEqual([0, 0, 0]);
  });
});

/** Runs a Python program with libnbd; `uri` and `nbd` are defined, and what it puts into `out` comes back. */
async function python(program: string, name = "vda"): Promise<Record<string, unknown>> {
  const script = `import json, errno, nbd\nuri = ${JSON.stringify(uri(name))}\nout = {}\n${program}\nprint(json.dumps(out))\n`;
  return JSON.parse(await execute("/usr/bin/python3", "-c", script)) as Record<string, unknown>;
}

describe.runIf(requirePeers("python3:nbd"))("libnbd", () => {
  const attempt = `
def attempt(name, work):
    try:
        work()
        out[name] = "ok"
    except nbd.Error as error:
        out[name] = error.errno
`;

  it.each([true, false])(
    "gets the right error for what a client must not do (structured replies: %s)",
    async (structured) => {
      const result = await python(`${attempt}
h = nbd.NBD()
h.set_strict_mode(0)
h.set_request_structured_replies(${structured ? "True" : "False"})
h.connect_uri(uri)
size = h.get_size()
attempt("read past end", lambda: h.pread(1024, size - 512))
attempt("write past end", lambda: h.pwrite(b"x" * 1024, size - 512))
attempt("zero past end", lambda: h.zero(1024, size - 512))
attempt("trim past end", lambda: h.trim(1024, size - 512))
attempt("cache past end", lambda: h.cache(1024, size - 512))
attempt("wrapping", lambda: h.pread(1024, 2**63 - 512))
attempt("empty read", lambda: h.pread(0, 0))
attempt("empty write", lambda: h.pwrite(b"", 0))
attempt("fua flush", lambda: h.flush(nbd.CMD_FLAG_FUA))
attempt("fua read", lambda: h.pread(512, 0, nbd.CMD_FLAG_FUA))
attempt("df read", lambda: h.pread(1 << 20, 0, nbd.CMD_FLAG_DF))
attempt("no hole trim", lambda: h.trim(512, 0, nbd.CMD_FLAG_NO_HOLE))
attempt("fast zero", lambda: h.zero(size, 0, nbd.CMD_FLAG_FAST_ZERO))
attempt("fast zero without hole", lambda: h.zero(1 << 20, 0, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE))
attempt("still in step", lambda: h.pread(512, 0))
h.shutdown()
`);
      expect(result).toEqual({
        "read past end": "EINVAL",
        "write past end": "ENOSPC",
        "zero past end": "ENOSPC",
        "trim past end": "EINVAL",
        "cache past end": "EINVAL",
        "wrapping": "EINVAL",
        "empty read": "ok",
        "empty write": "ok",
        "fua flush": "ok",
        "fua read": "ok",
        "df read": structured ? "ok" : "EINVAL",
        "no hole trim": "EINVAL",
        "fast zero": "ok",
        "fast zero without hole": "ok",
        "still in step": "ok",
      });
    },
  );

  it("is refused writing to a read-only export with EPERM", async () => {
    const result = await python(
      `${attempt}
h = nbd.NBD()
h.set_strict_mode(0)
h.connect_uri(uri)
attempt("write", lambda: h.pwrite(b"x" * 512, 0))
attempt("trim", lambda: h.trim(512, 0))
attempt("zero", lambda: h.zero(512, 0))
attempt("read", lambda: h.pread(512, 0))
`,
      "snapshot",
    );
    expect(result).toEqual({ write: "EPERM", trim: "EPERM", zero: "EPERM", read: "ok" });
  });

  it("moves the largest payloads", async () => {
    const result = await python(`
h = nbd.NBD()
h.set_strict_mode(0)
h.connect_uri(uri)
data = bytes(range(256)) * (50 * 4000)
h.pwrite(data, 12345)
out["same"] = h.pread(len(data), 12345) == data
`);
    expect(result).toEqual({ same: true });
  });

  it("negotiates step by step", async () => {
    const result = await python(`${attempt}
h = nbd.NBD()
h.set_opt_mode(True)
h.add_meta_context("base:allocation")
h.connect_uri(uri)
names = []
out["exports"] = h.opt_list(lambda name, description: names.append(name) or 0)
out["names"] = names
contexts = []
out["contexts"] = h.opt_list_meta_context(lambda name: contexts.append(name) or 0)
h.set_export_name("nonesuch")
attempt("info of nothing", h.opt_info)
attempt("go to nothing", h.opt_go)
h.set_export_name("snapshot")
h.opt_info()
out["read-only"] = h.is_read_only()
h.set_export_name("vda")
h.opt_go()
out["selected"] = h.can_meta_context("base:allocation")
out["protocol"] = h.get_protocol()
extents = []
h.block_status(1 << 20, 0, lambda context, offset, entries, error: extents.append(entries) or 0)
out["extents"] = extents
h.shutdown()
h = nbd.NBD()
h.set_opt_mode(True)
h.connect_uri(uri)
h.opt_abort()
`);
    expect(result).toEqual({
      "exports": 2,
      "names": ["vda", "snapshot"],
      "contexts": 1,
      "info of nothing": "ENOENT",
      "go to nothing": "ENOENT",
      "read-only": true,
      "selected": true,
      "protocol": "newstyle-fixed",
      "extents": [[MIB, 3]],
    });
  });

  it("sees on one connection what was flushed on another", async () => {
    const result = await python(`
a, b = nbd.NBD(), nbd.NBD()
a.connect_uri(uri)
b.connect_uri(uri)
for round in range(200):
    a.pwrite(bytes([round % 256]) * 4096, 4096 * round)
    if round % 3 == 0:
        b.flush()
    if b.pread(4096, 4096 * round) != bytes([round % 256]) * 4096:
        out["stale"] = round
out["multi"] = a.can_multi_conn()
`);
    expect(result).toEqual({ multi: true });
  });

  it("gets every reply to deep queues when it asks to end at once", async () => {
    const result = await python(`
out["missing"] = 0
for round in range(20):
    h = nbd.NBD()
    h.connect_uri(uri)
    done = []
    buffers = [nbd.Buffer(65536) for _ in range(64)]
    for index, buffer in enumerate(buffers):
        h.aio_pread(buffer, index * 65536, lambda error: done.append(error.value) or 1)
    h.aio_disconnect()
    while not h.aio_is_dead() and not h.aio_is_closed():
        h.poll(-1)
    out["missing"] += 64 - len(done) + sum(1 for error in done if error != 0)
`);
    expect(result).toEqual({ missing: 0 });
  });
});
