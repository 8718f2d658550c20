/**
 * A machine that systemd has booted, with colobus in the places where `npm install --global` puts it: namespaces and a
 * control group of its own on this one (boot-systemd.sh), with a loopback for its network. What lies in its /etc, /var and /run is
 * seen from here, sockets too, so guests and operators of the test reach its agents.
 */
import { spawn, spawnSync, type ChildProcess } from "node:child_process";
import {
  chmodSync,
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { onTestFinished } from "vitest";
import { ROOT } from "../../tools/bundle-program.ts";
import { leaveOut, requirePeers } from "./peers.ts";
import { scratchDirectory } from "./scratch.ts";

const BOOT = fileURLToPath(new URL("boot-systemd.sh", import.meta.url));
const UNITS = "/usr/lib/systemd/system";
/** Of what this machine's packages have started at a boot, all that a machine needs. */
const STARTED = [
  "systemd-journald.service",
  "systemd-journald.socket",
  "systemd-journald-dev-log.socket",
  "systemd-tmpfiles-setup.service",
];
const DIRECTORIES = [
  "dev",
  "empty",
  "etc/systemd/system",
  "etc/tmpfiles.d",
  "local/bin",
  "old",
  "proc",
  "root",
  "run",
  "sys",
  "usr",
  "var/lib",
];
const MERGED = ["bin", "lib", "lib64", "sbin"];
const FILES = {
  "etc/machine-id": "c0105c0105c0105c0105c0105c0105c0\n",
  "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n",
  "etc/group": "root:x:0:\nnogroup:x:65534:\n",
  "etc/hosts": "127.0.0.1 localhost\n",
  "local/bin/node": "",
};
const JOURNAL_LINES = 60;
const POLL_MS = 20;

/** Whether a machine can be booted here: for `describe.runIf(…)`. */
export function requireSystemd(): boolean {
  if (process.getuid?.() !== 0) return leaveOut("systemd is not booted but by root.");
  if (controlGroups() === undefined) return leaveOut("No cgroup2 is mounted, and systemd needs one.");
  return requirePeers("/usr/lib/systemd/systemd", "unshare", "nsenter", "pivot_root", "setpriv", "ip");
}

export class SystemdMachine {
  readonly #root = scratchDirectory();
  readonly #group = join(controlGroups() ?? "/", `colobus-test-${process.pid}`);
  #booted: ChildProcess | undefined;

  private constructor() {
    chmodSync(this.#root, 0o755); // it is everybody's
    for (const directory of DIRECTORIES) mkdirSync(this.path(directory), { recursive: true });
    for (const directory of ["tmp", "var/tmp"]) {
      mkdirSync(this.path(directory));
      chmodSync(this.path(directory), 0o1777);
    }
    symlinkSync("/run", this.path("var/run"));
    for (const name of MERGED) symlinkSync(`usr/${name}`, this.path(name));
    for (const [file, content] of Object.entries(FILES)) writeFileSync(this.path(file), content);
    this.#startLittle();
    this.#installColobus();
    onTestFinished(async ({ task }) => {
      if (task.result?.state === "fail" && this.#tryFirstPid() !== undefined)
        process.stderr.write(`${await this.journal("--lines", String(JOURNAL_LINES))}\n`);
      await this.#end();
    });
  }

  /** A new machine, which has reached multi-user.target. It ends with the test. */
  static async boot(): Promise<SystemdMachine> {
    const machine = new SystemdMachine();
    await machine.#boot();
    return machine;
  }

  /** Where a file of the machine is seen from here. */
  path(path: string): string {
    return join(this.#root, path);
  }

  /** Shuts the machine down and boots it again. */
  async reboot(): Promise<void> {
    if (this.#booted === undefined) throw new Error("the machine does not run");
    const ended = endOf(this.#booted);
    await this.run("systemctl poweroff"); // it may be gone before it has answered
    await ended;
    this.#removeGroup();
    rmSync(this.path("run"), { recursive: true });
    mkdirSync(this.path("run"));
    await this.#boot();
  }

  /** Runs lines of a shell as root, up to the first that fails. */
  async run(script: string): Promise<{ readonly code: number | null; readonly output: string }> {
    const env = { PATH: "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin", HOME: "/root", TERM: "dumb" };
    const words = ["--target", String(this.#firstPid()), "--mount", "--pid", "--net", "--ipc", "--uts", "--cgroup"];
    const child = spawn("nsenter", [...words, "/bin/sh", "-ec", `cd /root\n${script}`], {
      stdio: ["ignore", "pipe", "pipe"],
      env,
    });
    let output = "";
    for (const stream of [child.stdout, child.stderr]) {
      stream.setEncoding("utf8").on("data", (text: string) => (output += text));
    }
    const code = await endOf(child);
    return { code, output };
  }

  /** Runs lines that must succeed, and returns what they printed. */
  async must(script: string): Promise<string> {
    const { code, output } = await this.run(script);
    if (code !== 0) throw new Error(`${script}\nexit code ${code}\n${output}`);
    return output;
  }

  /** Properties of a unit, by their names. */
  async show(unit: string, ...properties: string[]): Promise<Record<string, string>> {
    const lines = (await this.must(`systemctl show --property=${properties.join()} ${unit}`)).trim().split("\n");
    return Object.fromEntries(
      lines.map((line): [string, string] => [line.slice(0, line.indexOf("=")), line.slice(line.indexOf("=") + 1)]),
    );
  }

  /** Messages of the journal, a line each. */
  async journal(...flags: string[]): Promise<string> {
    return (await this.run(`journalctl --no-pager --output=cat ${flags.join(" ")}`)).output;
  }

  async #boot(): Promise<void> {
    const args = [BOOT, this.#root, this.#group, process.execPath, join(ROOT, "node_modules")];
    const booted = spawn("bash", args, { stdio: ["ignore", "ignore", "pipe"] });
    let said = "";
    booted.stderr.setEncoding("utf8").on("data", (text: string) => (said += text));
    this.#booted = booted;
    // Not before: who enters an unfinished machine is still in this one.
    while (!existsSync(this.path("run/systemd/private"))) {
      if (booted.exitCode !== null) throw new Error(`the machine does not boot: ${said}`);
      await new Promise((resolve) => {
        setTimeout(resolve, POLL_MS);
      });
    }
    await this.must("systemctl start multi-user.target");
  }

  /** Everything in the machine ends with its first process. */
  async #end(): Promise<void> {
    const booted = this.#booted;
    if (booted !== undefined && booted.exitCode === null && booted.signalCode === null) {
      const ended = endOf(booted);
      const first = this.#tryFirstPid();
      if (first === undefined) booted.kill("SIGKILL");
      else process.kill(first, "SIGKILL");
      await ended;
    }
    if (existsSync(this.#group)) this.#removeGroup();
  }

  #removeGroup(): void {
    const removed = spawnSync("find", [this.#group, "-depth", "-type", "d", "-exec", "rmdir", "{}", "+"], {
      encoding: "utf8",
    });
    if (removed.status !== 0) throw new Error(`the control group is not removed: ${removed.stderr}`);
  }

  /** What is started besides would be the business of other packages, and of a real machine. */
  #startLittle(): void {
    const wants = readdirSync(UNITS).filter((name) => name.endsWith(".wants"));
    const names = new Set(wants.flatMap((name) => readdirSync(join(UNITS, name))));
    for (const name of names) {
      if (!STARTED.includes(name)) symlinkSync("/dev/null", this.path(`etc/systemd/system/${name}`));
    }
  }

  #installColobus(): void {
    const installed = this.path("local/lib/node_modules/colobus");
    mkdirSync(join(installed, "node_modules"), { recursive: true });
    cpSync(join(ROOT, "dist"), join(installed, "dist"), { recursive: true });
    cpSync(join(ROOT, "package.json"), join(installed, "package.json"));
    chmodSync(join(installed, "dist/cli/main.js"), 0o755);
    symlinkSync("../lib/node_modules/colobus/dist/cli/main.js", this.path("local/bin/colobus"));
    // What the commands of docs/services.md find in a clone.
    cpSync(join(ROOT, "packaging"), this.path("root/packaging"), { recursive: true });
  }

  #firstPid(): number {
    const pid = this.#tryFirstPid();
    if (pid === undefined) throw new Error("the machine does not run");
    return pid;
  }

  /** The only child of what has made the namespaces. */
  #tryFirstPid(): number | undefined {
    const pid = this.#booted?.pid;
    if (pid === undefined || this.#booted?.exitCode !== null) return undefined;
    const [child = ""] = readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8").split(" ");
    return child === "" ? undefined : Number(child);
  }
}

/** Where the control groups of version 2 are mounted. */
function controlGroups(): string | undefined {
  const lines = readFileSync("/proc/self/mounts", "utf8").split("\n");
  return lines.map((line) => line.split(" ")).find(([, , type]) => type === "cgroup2")?.[1];
}

function endOf(child: ChildProcess): Promise<number | null> {
  return new Promise((resolve, reject) => {
    child.once("error", reject);
    child.once("close", (code) => resolve(code));
  });
}
