import { execFile } from "node:child_process";
import { copyFileSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { describe, expect, it } from "vitest";
import { runInProcess } from "../support/control-harness.ts";
import { requirePeers } from "../support/peers.ts";
import { scratchDirectory } from "../support/scratch.ts";

const execute = promisify(execFile);
const NAME = "colobus-protect@.service";
const UNIT = fileURLToPath(new URL(`../../packaging/systemd/${NAME}`, import.meta.url));
const AGENT = "[Unit]\nDescription=An agent\n[Service]\nExecStart=/bin/true\n";

function settingOf(name: string): string {
  const [, value = ""] = new RegExp(`^${name}=(.*)$`, "m").exec(readFileSync(UNIT, "utf8")) ?? [];
  return value.replace(/^"(.*)"$/, "$1");
}

describe("the service unit of colobus protect", () => {
  it.runIf(requirePeers("systemd-analyze"))("is one that systemd takes", async () => {
    const directory = scratchDirectory();
    copyFileSync(UNIT, join(directory, NAME));
    writeFileSync(join(directory, "colobus@.service"), AGENT);
    const env = { ...process.env, SYSTEMD_UNIT_PATH: `${directory}:` };
    const instance = join(directory, NAME.replace("@", "@web"));
    copyFileSync(UNIT, instance);
    const { stdout, stderr } = await execute("systemd-analyze", ["verify", instance], { env });
    expect(stdout + stderr).toBe("");
  });

  it.each(["", "--disks-only --interval 30s"])(
    "has a command line that colobus takes, with PROTECT=%j",
    async (given) => {
      const [variable = "", ...flags] = settingOf("Environment").split("=");
      const run = scratchDirectory();
      const line = settingOf("ExecStart")
        .replace(`$${variable}`, given || flags.join("="))
        .replaceAll("/run/colobus/%i", run);
      const [, program, ...words] = line.split(" ");
      expect(program).toBe("colobus");
      expect(await runInProcess(words)).toMatchObject({ code: 3 }); // there is no agent; a wrong flag would be 2
    },
  );
});
