/** `colobus demo`: what it prints works when it is pasted, and the usual clients work against its two agents. */
import { spawn } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, writeFileSync } from "node:fs";
import { createInterface } from "node:readline";
import { dirname, join } from "node:path";
import { describe, expect, it, onTestFinished } from "vitest";
import type { Status } from "../../proto/status.ts";
import { SeededRandom } from "../sim/seeded-random.ts";
import { MIB } from "../support/agent-pair.ts";
import { askColobus, ColobusProcess, type Ended } from "../support/cli-runner.ts";
import { expectSame, qemuIo, readDisk, runTool, tool } from "../support/nbd-tools.ts";
import { requirePeers } from "../support/peers.ts";
import { scratchDirectory } from "../support/scratch.ts";

interface DemoPlaces {
  readonly directory: string;
  readonly inSync: boolean;
  readonly primary: { readonly run: string; readonly uri: string };
  readonly secondary: { readonly run: string; readonly uri: string };
}

interface RunningDemo {
  readonly process: ColobusProcess;
  /** Where the run directories `a` and `b` are. */
  readonly root: string;
  readonly primary: string;
  readonly secondary: string;
  /** The command lines that it suggests. */
  readonly suggestions: readonly string[];
  /** The command line of a guest. */
  readonly guest: string;
}

async function startDemo(...args: string[]): Promise<RunningDemo> {
  const demo = new ColobusProcess(["demo", ...args]);
  await demo.untilPrinted("Ctrl-C ends both agents");
  const uri = (side: string): string => new RegExp(`^  ${side} +(\\S+)`, "m").exec(demo.stdout)?.[1] ?? "";
  const [, listed = ""] = /Try in another terminal:\n\n((?: {2}.*\n)+)/.exec(demo.stdout) ?? [];
  return {
    process: demo,
    root: /everything in (\S+)\.$/m.exec(demo.stdout)?.[1] ?? "",
    primary: uri("primary"),
    secondary: uri("secondary"),
    suggestions: listed.trim().split(/\n */),
    guest: /^A guest: (.*)$/m.exec(demo.stdout)?.[1] ?? "",
  };
}

/** Ends the demo as Ctrl-C does, or as a service manager. */
async function end(demo: RunningDemo, signal: "SIGINT" | "SIGTERM"): Promise<Ended> {
  demo.process.child.kill(signal);
  return demo.process.ended;
}

describe.runIf(requirePeers("qemu-io", "nbdinfo", "nbdcopy", "qemu-img", "fio"))("colobus demo", () => {
  it("gives the usual clients what they expect, and prints lines that work when they are pasted", async () => {
    const root = join(scratchDirectory(), "demo");
    const demo = await startDemo("--keep-in", root, "--size", "64MiB");
    const a = join(root, "a");
    expect(demo).toMatchObject({
      root,
      primary: `nbd+unix:///vda?socket=${join(a, "nbd.sock")}`,
      secondary: `nbd+unix:///vda?socket=${join(root, "b", "nbd.sock")}`,
    });
    expect(demo.process.stdout).toMatch(/Ctrl-C ends both agents\.\n$/); // what it was told to keep, it keeps
    const info = JSON.parse((await tool("nbdinfo", "--json", demo.primary)).toString()) as { exports: unknown[] };
    expect(info.exports).toMatchObject([
      { "export-name": "vda", "export-size": 64 * MIB, "can_multi_conn": true, "can_trim": true, "can_zero": true },
    ]);

    // nbdcopy in, and out on both sides after a checkpoint.
    const content = Buffer.alloc(64 * MIB);
    new SeededRandom(64).fill(content.subarray(3 * MIB, 17 * MIB));
    new SeededRandom(65).fill(content.subarray(40 * MIB + 512, 41 * MIB));
    const file = join(scratchDirectory(), "content");
    writeFileSync(file, content);
    await tool("nbdcopy", file, demo.primary);
    expect((await askColobus("checkpoint", "--run", a)).code).toBe(0);
    expectSame(await readDisk(demo.primary), content);
    expectSame(await readDisk(demo.secondary), content);
    await tool("qemu-img", "compare", "-f", "raw", "-F", "raw", demo.primary, demo.secondary);

    const fio = await tool(
      "fio",
      "--ioengine=nbd",
      `--uri=${demo.primary}`,
      "--name=verify",
      "--rw=randrw",
      "--bsrange=512-256k",
      "--blockalign=512",
      "--iodepth=32",
      "--numjobs=2",
      "--size=24m",
      "--offset_increment=24m",
      "--verify=crc32c",
      "--verify_fatal=1",
      "--verify_state_save=0",
      "--end_fsync=1",
      "--output-format=json",
    );
    const { jobs } = JSON.parse(fio.subarray(fio.indexOf("{")).toString()) as { jobs: { error: number }[] };
    expect(jobs.map(({ error }) => error)).toEqual([0, 0]);
    // What fio wrote is not in the checkpoint, until there is another one.
    expectSame(await readDisk(demo.secondary), content);
    const differing = await runTool("qemu-img", ["compare", "-f", "raw", "-F", "raw", demo.primary, demo.secondary]);
    expect(differing.code).toBe(1);
    expect((await askColobus("checkpoint", "--run", a)).code).toBe(0);
    await tool("qemu-img", "compare", "-f", "raw", "-F", "raw", demo.primary, demo.secondary);
    const converted = await runTool("qemu-img", ["convert", "-f", "raw", "-O", "qcow2", demo.secondary, "copy.qcow2"]);
    expect(converted).toMatchObject({ code: 0, stderr: "" });

    expect(demo.suggestions.length).toBeGreaterThan(5);
    for (const line of demo.suggestions) {
      const { code, stdout, stderr } = await runTool("bash", ["-c", line]);
      expect({ line, code, stderr }).toEqual({ line, code: 0, stderr: "" });
      expect(stdout.toString()).not.toBe("");
    }
    // The last ones were a failover and its merge: the raw image has what the guest had at the last checkpoint.
    const status = await askColobus("status", "--run", join(root, "b"));
    expect(status).toMatchObject({ code: 0, json: { role: "Primary", jobs: [{ type: "merge", state: "concluded" }] } });
    await qemuIo(join(root, "b.img"), "read -P 0x42 0 1M");
    const { code, stderr } = await end(demo, "SIGTERM");
    expect(code).toBe(0);
    expect(stderr).not.toContain('"level":"error"');
    expect(readdirSync(root)).toEqual(expect.arrayContaining(["a.img", "b.img", "state-a", "state-b"]));
  });

  it.each(["SIGINT", "SIGTERM"] as const)(
    "leaves nothing behind at %s when it was not told where to keep it",
    async (signal) => {
      const demo = await startDemo("--size", "16MiB");
      expect(demo.process.stdout).toMatch(/and removes the scratch disks\.\n$/);
      await qemuIo(demo.primary, "write -P 0x42 1M 1M");
      expect(existsSync(join(demo.root, "a.img"))).toBe(true);
      expect((await end(demo, signal)).code).toBe(0);
      expect(existsSync(demo.root)).toBe(false);
    },
  );

  it("goes on where it was when it is started again in the same directory", async () => {
    const root = join(scratchDirectory(), "demo");
    mkdirSync(root);
    const first = await startDemo("--keep-in", root, "--size", "16MiB");
    await qemuIo(first.primary, "write -P 0x42 1M 1M");
    expect((await askColobus("checkpoint", "--run", join(root, "a"))).code).toBe(0);
    await qemuIo(first.primary, "write -P 0x43 1M 1M");
    expect((await end(first, "SIGTERM")).code).toBe(0);
    const second = await startDemo("--keep-in", root);
    expect(second.primary).toBe(first.primary);
    expect(second.process.stdout).not.toContain("not in sync");
    await qemuIo(second.primary, "read -P 0x43 1M 1M");
    await qemuIo(second.secondary, "read -P 0x42 1M 1M");
    const { json } = await askColobus<{ jobs: unknown[] }>("status", "--run", join(root, "a"));
    expect(json.jobs).toEqual([]); // nothing had to be sent
    expect((await end(second, "SIGINT")).code).toBe(0);
  });
});

describe("colobus demo --json", () => {
  it("says where its agents are, and nothing else", async () => {
    const demo = new ColobusProcess(["demo", "--size", "1MiB", "--json"]);
    await demo.untilPrinted("}\n");
    const { primary, secondary, ...others } = JSON.parse(demo.stdout) as DemoPlaces;
    expect(others).toEqual({ directory: dirname(primary.run), inSync: true });
    for (const { run, uri } of [primary, secondary]) {
      const { json } = await askColobus<Status>("status", "--run", run);
      expect(json.exports.map((served) => served.uri)).toContain(uri);
    }
    demo.child.kill("SIGTERM");
    expect(await demo.ended).toMatchObject({ code: 0 });
    expect(existsSync(others.directory)).toBe(false);
  });
});

describe.runIf(requirePeers("qemu-system-x86_64"))("colobus demo", () => {
  it("prints a line that starts a guest with the disk", async () => {
    const demo = await startDemo("--size", "16MiB");
    const [program = "", ...args] = demo.guest.split(" ");
    expect(program).toBe("qemu-system-x86_64");
    const guest = spawn(program, [...args, "-S", "-display", "none", "-qmp", "stdio"], {
      stdio: ["pipe", "pipe", "inherit"],
    });
    onTestFinished(() => void guest.kill("SIGKILL"));
    const lines = createInterface({ input: guest.stdout })[Symbol.asyncIterator]();
    const ask = async (execute: string): Promise<unknown> => {
      guest.stdin.write(`${JSON.stringify({ execute })}\n`);
      for (;;) {
        const { value, done } = await lines.next();
        if (done === true) throw new Error("QEMU has ended");
        const answer = JSON.parse(value) as { return?: unknown; error?: unknown };
        if (answer.error !== undefined) throw new Error(JSON.stringify(answer.error));
        if (answer.return !== undefined) return answer.return;
      }
    };
    await ask("qmp_capabilities");
    const blocks = (await ask("query-block")) as { inserted?: { image: { "virtual-size": number } } }[];
    expect(blocks.flatMap(({ inserted }) => (inserted === undefined ? [] : [inserted.image["virtual-size"]]))).toEqual([
      16 * MIB,
    ]);
    await ask("quit");
    expect((await end(demo, "SIGTERM")).code).toBe(0);
  });
});
