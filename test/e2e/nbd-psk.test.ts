/** A pair whose exports are open to who holds a pre-shared key. */
import { appendFileSync, chmodSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { EXIT } from "../../proto/errors.ts";
import { AgentPair, freePort, MIB } from "../support/agent-pair.ts";
import { runColobus } from "../support/cli-runner.ts";
import { runTool, tool } from "../support/nbd-tools.ts";
import { requirePeers } from "../support/peers.ts";
import { scratchDirectory } from "../support/scratch.ts";

const KEY = "0f".repeat(32);

/** The flags of qemu-io as the user of a key; the key lies in `directory`. */
function asUser(user: string, directory: string, port: number): string[] {
  const credentials = `tls-creds-psk,id=tls0,endpoint=client,dir=${directory},username=${user}`;
  const image = `driver=nbd,host=127.0.0.1,port=${port},export=vda,tls-creds=tls0`;
  return ["--object", credentials, "--image-opts", image];
}

describe.runIf(requirePeers("qemu-io"))("a pair whose exports are open to who holds a key", () => {
  it("serves them before and after a failover, and new users without a restart", async () => {
    const directory = scratchDirectory();
    const keyFile = join(directory, "keys.psk");
    writeFileSync(keyFile, `backup:${KEY}\n`, { mode: 0o600 });
    const [portA, portB] = [await freePort(), await freePort()];
    const open = (port: number): string[] => ["--nbd-listen", `127.0.0.1:${port}`, "--nbd-psk-file", keyFile];
    const pair = await AgentPair.protected({
      disks: { vda: 4 * MIB },
      primaryFlags: open(portA),
      secondaryFlags: open(portB),
    });
    const { primary, secondary } = pair;
    await tool("qemu-io", "-c", "write -P 7 0 64k", "-c", "flush", ...asUser("backup", directory, portA));
    await pair.checkpoint();
    await tool("qemu-io", "-r", "-c", "read -P 7 0 64k", ...asUser("backup", directory, portB));

    const stranger = scratchDirectory();
    writeFileSync(join(stranger, "keys.psk"), `backup:${"f0".repeat(32)}\n`, { mode: 0o600 });
    for (let count = 0; count < 3; count += 1) {
      const refused = await runTool("qemu-io", ["-c", "read 0 512", ...asUser("backup", stranger, portA)]);
      expect(refused.code).toBe(1);
    }
    const reason = "the client does not hold the key of user";
    await expect.poll(() => primary.log.split("\n").filter((line) => line.includes(reason))).toHaveLength(1);
    expect(primary.log).not.toContain(KEY);

    appendFileSync(keyFile, `restore:${KEY}\n`);
    process.kill(secondary.pid, "SIGHUP");
    await expect.poll(() => secondary.log).toContain("TLS files were read again");
    await primary.crash();
    await secondary.get("failover");
    await tool("qemu-io", "-c", "read -P 7 0 64k", "-c", "write 0 4k", ...asUser("restore", directory, portB));
    await secondary.stop();
  });

  it("does not start with keys that it cannot use, or that others can read", async () => {
    const directory = scratchDirectory();
    const keyFile = join(directory, "keys.psk");
    writeFileSync(keyFile, `backup:${KEY}\nrestore\n`, { mode: 0o600 });
    const places = ["--run", join(directory, "run"), "--state", join(directory, "s"), "--listen", "127.0.0.1:0"];
    const disk = ["--create", "--disk", `vda=${join(directory, "i")}`];
    const keys = ["--nbd-listen", `192.0.2.1:${await freePort()}`, "--nbd-psk-file", keyFile];
    const wrong = await runColobus("secondary", ...places, ...disk, ...keys);
    expect(wrong).toMatchObject({ code: EXIT.usage });
    expect(wrong.stderr).toContain(`line 2 of ${keyFile} is not USER:KEY`);
    chmodSync(keyFile, 0o644);
    const readable = await runColobus("secondary", ...places, ...disk, ...keys);
    expect(readable).toMatchObject({ code: EXIT.usage });
    expect(readable.stderr).toContain(`chmod 600 ${keyFile}`);
  });
});
