/** The files in packaging/: systemd takes them, and their command lines are what colobus takes. */
import { execFile } from "node:child_process";
import { cpSync, mkdirSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { describe, expect, it } from "vitest";
import { runInProcess } from "../support/control-harness.ts";
import { requirePeers } from "../support/peers.ts";
import { scratchDirectory } from "../support/scratch.ts";

const execute = promisify(execFile);
const PACKAGING = fileURLToPath(new URL("../../packaging", import.meta.url));
const UNITS = readdirSync(join(PACKAGING, "systemd"));
const AGENTS = ["colobus-primary@.service", "colobus-secondary@.service"];
/** Of 100, as `systemd-analyze security` counts them. */
const EXPOSURE_MAX = 15;

function unit(name: string): string {
  return readFileSync(join(PACKAGING, "systemd", name), "utf8");
}

function settingOf(name: string, setting: string): string {
  const [, value = ""] = new RegExp(`^${setting}=(.*)$`, "m").exec(unit(name)) ?? [];
  return value.replace(/^"(.*)"$/, "$1");
}

function ofVm(name: string): string {
  return name.replace("@", "@web");
}

/** All units with an instance of each beside them, where systemd looks for them and its own. */
function installed(): { directory: string; env: NodeJS.ProcessEnv } {
  const directory = scratchDirectory();
  for (const name of UNITS) {
    for (const as of [name, ofVm(name)]) cpSync(join(PACKAGING, "systemd", name), join(directory, as));
  }
  return { directory, env: { ...process.env, SYSTEMD_UNIT_PATH: `${directory}:` } };
}

describe.runIf(requirePeers("systemd-analyze"))("the units", () => {
  it("are what systemd takes", async () => {
    const { directory, env } = installed();
    const paths = UNITS.map((name) => join(directory, ofVm(name)));
    const { stdout, stderr } = await execute("systemd-analyze", ["verify", ...paths], { env });
    expect(stdout + stderr).toBe("");
  });

  it("leave a service little that it could do to its host", async () => {
    const { directory, env } = installed();
    const paths = UNITS.filter((name) => name.endsWith(".service")).map((name) => join(directory, ofVm(name)));
    const limit = ["security", "--offline=true", `--threshold=${EXPOSURE_MAX}`];
    await execute("systemd-analyze", [...limit, ...paths], { env });
  });
});

describe.runIf(requirePeers("systemd-sysusers", "systemd-tmpfiles"))("the user and the directories", () => {
  it("are made as they are declared", async () => {
    const root = scratchDirectory();
    mkdirSync(join(root, "etc"));
    const file = (kind: string): string => join(PACKAGING, kind, "colobus.conf");
    await execute("systemd-sysusers", [`--root=${root}`, file("sysusers.d")]);
    expect(readFileSync(join(root, "etc/passwd"), "utf8")).toMatch(/^colobus:/m);
    await execute("systemd-tmpfiles", [`--root=${root}`, "--create", file("tmpfiles.d")]);
    for (const path of ["etc", "run", "var/lib"]) expect(readdirSync(join(root, path))).toContain("colobus");
  });
});

describe("the command lines", () => {
  it.each(["", "--disks-only --interval 30s"])("of colobus protect, with PROTECT=%j", async (given) => {
    const name = "colobus-protect@.service";
    const [variable = "", ...flags] = settingOf(name, "Environment").split("=");
    const run = scratchDirectory();
    const line = settingOf(name, "ExecStart")
      .replace(`$${variable}`, given || flags.join("="))
      .replaceAll("/run/colobus/%i", run);
    const [, program, ...words] = line.split(" ");
    expect(program).toBe("colobus");
    expect(await runInProcess(words)).toMatchObject({ code: 3 }); // there is no agent; a wrong flag would be 2
  });

  it.each(AGENTS)("of %s, with the sockets of its unit", (name) => {
    const role = /colobus-(\w+)@/.exec(name)?.[1];
    expect(settingOf(name, "ExecStart")).toBe(
      `/usr/bin/env colobus ${role} --config /etc/colobus/%i.yaml --run /run/colobus/%i --state /var/lib/colobus/%i`,
    );
    const sockets = unit(name.replace(".service", ".socket")).match(/^ListenStream=.*$/gm);
    const expected = ["nbd", "vmstate", "control"].map((one) => `ListenStream=/run/colobus/%i/${one}.sock`);
    expect(sockets).toEqual(expected);
  });
});

describe("an agent that cannot start yet", () => {
  it.each(AGENTS)("is tried again for ever by %s", (name) => {
    const seconds = (setting: string): number => Number(/^(\d+)s$/.exec(settingOf(name, setting))?.[1]);
    // The limit counts starts within an interval: so many that are RestartSec apart do not fit into it.
    const lastsS = Number(settingOf(name, "StartLimitBurst")) * seconds("RestartSec");
    expect(lastsS).toBeGreaterThan(seconds("StartLimitIntervalSec"));
  });
});
