/**
 * What docs/qemu.md tells the reader to type, run as it stands there with a real QEMU, by "hosts" that are directories of this
 * machine. The guest checks its memory against its disk itself, and halts where they do not fit.
 */
import { execFile, spawn } from "node:child_process";
import { chmodSync, existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { delimiter, join } from "node:path";
import { promisify } from "node:util";
import { describe, expect, it, onTestFailed, onTestFinished } from "vitest";
import { AgentPair, AgentUnderTest, freePort, makeImage, MIB } from "../support/agent-pair.ts";
import { ColobusProcess, MAIN } from "../support/cli-runner.ts";
import { GUEST_DIRECTORY, requireCountingGuest, writeInitramfs } from "../support/counting-guest.ts";
import { blocksOf, readSections, sectionOf, withNames, type DocSection } from "../support/doc-sections.ts";
import { requirePeers } from "../support/peers.ts";
import { scratchDirectory } from "../support/scratch.ts";

const execute = promisify(execFile);
const LIMIT_MS = 60_000;
const POLL_MS = 50;
const STEPS = 3;

const sections = readSections("docs/qemu.md");

/** A machine of the document, and what its names are called here. */
interface Host {
  readonly root: string;
  readonly names: Readonly<Record<string, string>>;
}

interface Shell {
  readonly path: string;
  readonly env: NodeJS.ProcessEnv;
}

/** A shell that has `colobus`, and programs of these contents. */
function shellWith(directory: string, programs: Readonly<Record<string, string>> = {}): Shell {
  const path = join(directory, "bin");
  mkdirSync(path, { recursive: true });
  const all = { ...programs, colobus: `#!/bin/sh\nexec "${process.execPath}" "${MAIN}" "$@"\n` };
  for (const [name, content] of Object.entries(all)) {
    writeFileSync(join(path, name), content);
    chmodSync(join(path, name), 0o755);
  }
  return { path, env: { ...process.env, PATH: `${path}${delimiter}${process.env["PATH"] ?? ""}` } };
}

/** Both hosts, with the image of the VM on the first. */
async function makeHosts(format: "raw" | "qcow2"): Promise<{ readonly a: Host; readonly b: Host }> {
  const root = scratchDirectory();
  const [portOfA, portOfB] = [await freePort(), await freePort()];
  writeInitramfs(join(root, "initramfs"));
  const hostIn = (side: "a" | "b"): Host => {
    const here = join(root, side);
    for (const name of ["run", "etc", "images"]) mkdirSync(join(here, name), { recursive: true });
    const guest = [
      "-nodefaults -display none -no-reboot",
      `-kernel ${join(GUEST_DIRECTORY, "vmlinuz")} -initrd ${join(root, "initramfs")}`,
      `-append "console=ttyS0 quiet panic=-1 tsc=reliable mitigations=off"`,
      `-chardev file,id=console,path=${join(here, "console")} -serial chardev:console`,
    ];
    return {
      root: here,
      names: {
        "scp -p": "cp -p",
        "192.0.2.1:/etc/": join(root, "a", "etc/"),
        "/etc/colobus-token": join(here, "etc", "colobus-token"),
        "/run/colobus/web": join(here, "run"),
        "/var/lib/colobus/web": join(here, "state"),
        "/var/lib/images": join(here, "images"),
        "192.0.2.1:7000": `127.0.0.1:${portOfA}`,
        "192.0.2.2:7000": `127.0.0.1:${portOfB}`,
        "-m 4G": "-m 96M",
        "…": guest.join(" "),
        "--interval 5s": "--interval 1s",
        ...(format === "raw" ? { "qcow2:": "", "web.qcow2": "web.img" } : {}),
      },
    };
  };
  const hosts = { a: hostIn("a"), b: hostIn("b") };
  const image = join(root, "a", "images", format === "raw" ? "web.img" : "web.qcow2");
  if (format === "raw") makeImage(image, 4 * MIB);
  else await execute("qemu-img", ["create", "-q", "-f", "qcow2", image, String(4 * MIB)]);
  return hosts;
}

/** The commands of one code block of a section, as they are on this host. */
function commandsAt({ names }: Host, section: DocSection, from: number, to?: number): string[] {
  return section.commands.slice(from, to).map((line) => withNames(line, names));
}

async function runHere({ root }: Host, line: string, { env } = shellWith(root)): Promise<string> {
  const { stdout } = await execute("/bin/sh", ["-c", line], { env, timeout: LIMIT_MS });
  return stdout;
}

async function startAgent(name: string, { root }: Host, line: string): Promise<AgentUnderTest> {
  const agent = new AgentUnderTest(name, join(root, "run"), wordsOf(line, "colobus"));
  await agent.start();
  return agent;
}

/** What follows the name of the program, without what puts it into the background. */
function wordsOf(line: string, program: string): string[] {
  const [first, ...words] = line.replace(/ &$/, "").split(/\s+/);
  expect(first).toBe(program);
  return words;
}

interface Vm {
  readonly kill: () => Promise<void>;
  /** Resolves with the numbers of the steps that the guest has told of, when there are `count`. */
  readonly untilSteps: (count: number) => Promise<number[]>;
}

function startVm({ root }: Host, line: string): Vm {
  const shell = line.replace(/ &$/, "");
  const child = spawn("/bin/sh", ["-c", `exec ${shell}`], { stdio: ["ignore", "ignore", "pipe"] });
  let errors = "";
  let hasEnded = false;
  child.stderr.setEncoding("utf8").on("data", (text: string) => (errors += text));
  const ended = new Promise<void>((resolve) => {
    child.once("close", () => {
      hasEnded = true;
      resolve();
    });
  });
  const kill = async (): Promise<void> => {
    if (!hasEnded) child.kill("SIGKILL");
    await ended;
  };
  const consoleText = (): string => {
    const path = join(root, "console");
    return existsSync(path) ? readFileSync(path, "utf8") : "";
  };
  onTestFinished(kill);
  onTestFailed(() => void process.stderr.write(`\n--- the VM: ${errors}\n${consoleText().slice(-1500)}\n`));
  const untilSteps = async (count: number): Promise<number[]> => {
    const deadlineMs = Date.now() + 2 * LIMIT_MS;
    for (;;) {
      const text = consoleText();
      const steps = [...text.matchAll(/STEP (\d+) [0-9a-f]{64}\s/g)].map(([, n]) => Number(n));
      if (text.includes("MISMATCH")) throw new Error("the guest's memory and disk do not fit");
      if (steps.length >= count) return steps;
      if (hasEnded || Date.now() > deadlineMs) throw new Error(`the guest has made ${steps.length} steps: ${errors}`);
      await pause();
    }
  };
  return { kill, untilSteps };
}

async function pause(): Promise<void> {
  await new Promise((resolve) => {
    setTimeout(resolve, POLL_MS);
  });
}

async function untilExists(path: string): Promise<void> {
  const deadlineMs = Date.now() + LIMIT_MS;
  while (!existsSync(path)) {
    if (Date.now() > deadlineMs) throw new Error(`${path} has not come`);
    await pause();
  }
}

interface Typed {
  readonly primary: AgentUnderTest;
  /** The commands of host A that are still to be typed. */
  readonly qemu: string;
  readonly protect: string;
}

/** Types what stands under the first heading, until both agents run. */
async function startAgents(a: Host, b: Host): Promise<Typed> {
  const section = sectionOf(sections, "Protect an existing VM");
  const [makeToken = "", copyToken = "", secondary = ""] = commandsAt(b, section, 0, 3);
  for (const line of [makeToken, copyToken]) await runHere(b, line);
  await startAgent("the secondary", b, secondary);
  const [primary = "", qemu = "", protect = "", ...more] = commandsAt(a, section, 3);
  expect(more).toEqual([]);
  return { primary: await startAgent("the primary", a, primary), qemu, protect };
}

/** Protects a VM until a checkpoint of it is committed. */
async function protectOnce(line: string): Promise<void> {
  const protection = new ColobusProcess(wordsOf(line, "colobus"));
  await protection.untilPrinted("committed");
  protection.child.kill("SIGTERM");
  expect((await protection.ended).code).toBe(0);
}

describe.runIf(requireCountingGuest() && requirePeers("qemu-img", "openssl", "jq", "curl"))("docs/qemu.md", () => {
  it.each(["raw", "qcow2"] as const)(
    "protects a VM with a %s image in three commands on each host, and starts it on the other one",
    async (format) => {
      const { a, b } = await makeHosts(format);
      const { primary, qemu: start, protect } = await startAgents(a, b);
      const vm = startVm(a, start);
      await vm.untilSteps(STEPS);
      await protectOnce(protect);
      const before = await vm.untilSteps(STEPS);
      await Promise.all([vm.kill(), primary.crash()]);
      const section = sectionOf(sections, "Failover");
      const [failover = "", qemu = "", vmstate = ""] = commandsAt(b, section, 0);
      const promoted = new AgentUnderTest("the promoted side", join(b.root, "run"), []);
      await promoted.until("alone", ({ peers }) => peers.every(({ connection }) => connection !== "Connected"));
      await runHere(b, failover);
      const after = startVm(b, qemu);
      await untilExists(join(b.root, "run", "qmp.sock"));
      await runHere(b, vmstate);
      const [first = 0] = await after.untilSteps(STEPS);
      expect(first).toBeGreaterThan(1);
      expect(before).toContain(first - 1);
    },
    240_000,
  );

  it("gives libvirt arguments with which QEMU runs the VM, and a hook that lets it start on the Primary alone", async () => {
    const { a, b } = await makeHosts("raw");
    const section = sectionOf(sections, "libvirt");
    const names = { "/run/colobus/web": join(a.root, "run") };
    const [, domain = ""] = blocksOf(section.text, "xml");
    const passed = [...withNames(domain, names).matchAll(/<qemu:arg value='(.*)'\/>/g)].map(([, value]) => value);
    const [hook = ""] = blocksOf(section.text, "bash");
    const systemctl = `#!/bin/sh\necho "$@" >> ${join(a.root, "systemctl")}\n`;
    const called = (): string => readFileSync(join(a.root, "systemctl"), "utf8");
    const shell = shellWith(a.root, { systemctl });
    const runHook = async (host: Host, operation: string, xml: string): Promise<void> => {
      const file = join(host.root, "hook");
      writeFileSync(file, withNames(hook, { "/run/colobus/web": join(host.root, "run") }), { mode: 0o755 });
      const run = execute(file, ["web", ...operation.split("/"), "-"], { env: shell.env, timeout: LIMIT_MS });
      run.child.stdin?.end(xml);
      await run;
    };
    const { primary, qemu, protect } = await startAgents(a, b);

    await expect(runHook(b, "prepare/begin", domain)).rejects.toThrow("not Primary");
    await runHook(a, "prepare/begin", domain);
    const others = qemu.slice(0, qemu.indexOf(" -blockdev"));
    const vm = startVm(a, `${others} ${passed.join(" ")}`);
    await vm.untilSteps(STEPS);
    await protectOnce(protect);
    await runHook(a, "started/begin", "<qemu:arg value='-incoming'/>");
    expect(called()).not.toContain("start");
    await runHook(a, "started/begin", domain);
    expect(called()).toContain("start --no-block colobus-protect@web.service\n");
    await vm.kill();
    const committed = (await primary.status()).epoch.committed;
    await runHook(a, "release/end", domain);
    expect((await primary.status()).epoch.committed).toBeGreaterThan(committed);
  }, 240_000);

  it("takes a checkpoint of another hypervisor's VM, with its state, in two requests", async () => {
    const { primary, secondary, root } = await AgentPair.protected();
    const state = join(root, "web.state");
    const xl = `#!/bin/sh\nif [ "$1" = save ]; then echo "state of $3" > "$4"; fi\necho "$1" >> ${join(root, "xl")}\n`;
    const names = { "/run/colobus/web": primary.run, "/var/tmp/web.state": state };
    const lines = sectionOf(sections, "Other hypervisors").commands.map((line) => withNames(line, names));
    await execute("/bin/sh", ["-ec", lines.join("\n")], { env: shellWith(root, { xl }).env, timeout: LIMIT_MS });
    expect(readFileSync(join(root, "xl"), "utf8")).toBe("save\nunpause\n");
    const { stdout } = await execute(process.execPath, [MAIN, "vmstate", "--run", secondary.run]);
    expect(stdout).toBe("state of web\n");
  });

  it("takes checkpoints of the disks alone", async () => {
    const pair = await AgentPair.protected();
    const names = { "/run/colobus/web": pair.primary.run };
    const [plain = "", freezing = ""] = sectionOf(sections, "Disks only").commands.map((line) =>
      withNames(line, names),
    );
    await protectOnce(plain);
    // There is no guest agent here.
    const { code, stdout } = await new ColobusProcess(wordsOf(freezing, "colobus")).ended;
    expect(stdout).toContain("qga.sock");
    expect(code).toBe(1);
  });
});
