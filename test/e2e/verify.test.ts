/** `colobus verify` of a pair whose secondary's image was damaged behind its back, while a guest writes. */
import { closeSync, openSync, readSync, writeSync } from "node:fs";
import { describe, expect, it } from "vitest";
import type { JobStatus } from "../../proto/status.ts";
import { AgentPair, MIB } from "../support/agent-pair.ts";
import { readDisk, runTool, tool } from "../support/nbd-tools.ts";
import { requirePeers } from "../support/peers.ts";
import { SteadyGuest } from "../support/steady-guest.ts";

const SIZE = 24 * MIB;
/** The guest writes below, the damage is above. */
const QUIET_FROM = 16 * MIB;

function flipByte(path: string, offset: number): void {
  const file = openSync(path, "r+");
  const byte = Buffer.alloc(1);
  readSync(file, byte, 0, 1, offset);
  byte[0] = (byte[0] ?? 0) ^ 0x10;
  writeSync(file, byte, 0, 1, offset);
  closeSync(file);
}

describe.runIf(requirePeers("nbdcopy", "qemu-img")).each(["colo", "mc"] as const)("verify in mode %s", (mode) => {
  it("finds a flipped byte under load, and nothing else, and repairs it", async () => {
    const pair = await AgentPair.create({ disks: { vda: SIZE, vdb: 4 * MIB }, flags: ["--mode", mode] });
    const { primary, secondary } = pair;
    await pair.start();
    await pair.untilProtected();
    const clusterBytes = (await primary.status()).clusterBytes;
    const damaged = QUIET_FROM + 5 * clusterBytes + 77;
    const content = await readDisk(primary.uri());
    const guest = await SteadyGuest.start(primary, content.subarray(0, QUIET_FROM));
    await guest.writesMore(500);

    expect(await primary.get<JobStatus>("verify", "--wait")).toMatchObject({
      type: "verify",
      state: "concluded",
      error: null,
      verify: { ranges: 0, checkedBytes: SIZE + 4 * MIB },
    });
    flipByte(pair.imagePath("b"), damaged);
    const range = { disk: "vda", offset: QUIET_FROM + 5 * clusterBytes, length: clusterBytes };
    const found = await primary.ask<JobStatus>("verify", "vda", "--wait");
    expect(found).toMatchObject({
      code: 1,
      json: { disk: "vda", verify: { differences: [range], ranges: 1, differingBytes: clusterBytes } },
    });
    expect((await primary.cli("events", "--json")).stdout).toContain(
      `"type":"verify-difference","data":${JSON.stringify(range)}`,
    );
    const jobs = await primary.get<JobStatus[]>("jobs");
    expect(jobs.find(({ id }) => id === found.json.id)?.verify).toEqual(found.json.verify);

    const repairing = await primary.ask<JobStatus>("verify", "--repair", "--speed", "0", "--wait");
    expect(repairing).toMatchObject({ code: 1, json: { verify: { ranges: 1, repairs: true } } });
    await primary.get("wait", "synced");
    expect((await primary.get<JobStatus>("verify", "--wait")).verify?.ranges).toBe(0);
    await guest.stop();
    await primary.untilDrained();
    // In mode mc what is committed is in the image once it is applied.
    await pair.checkpoint();
    await secondary.until("applied", ({ disks }) => disks.every(({ bufferBytes }) => bufferBytes === 0));
    const compare = ["compare", "-f", "raw", "-F", "raw", pair.imagePath("a"), pair.imagePath("b")];
    expect((await runTool("qemu-img", compare)).stdout.toString()).toContain("Images are identical");
    await tool("qemu-img", ...compare);
  });
});

describe("verify", () => {
  it("is shown on both sides while it is under way, obeys its job's verbs, and is refused twice", async () => {
    const pair = await AgentPair.protected({ disks: { vda: Buffer.alloc(8 * MIB, 0x11) } });
    const { primary, secondary } = pair;
    const job = await primary.get<JobStatus>("verify", "--speed", "256KiB");
    expect(job).toMatchObject({ type: "verify", speedLimit: 256 * 1024, disk: null });
    await primary.until("comparing", ({ peers }) => peers[0]?.replication === "VerifyS");
    await secondary.until("compared", ({ peers }) => peers[0]?.replication === "VerifyT");
    expect((await primary.status()).protection.state).toBe("Protected");
    expect((await secondary.status()).protection.state).toBe("Protected");
    expect(await primary.ask("verify")).toMatchObject({ code: 1, json: { error: { code: "job-state" } } });
    expect(await secondary.ask("verify")).toMatchObject({ code: 1, json: { error: { code: "not-primary" } } });
    expect(await primary.ask("verify", "vdz")).toMatchObject({ code: 1, json: { error: { code: "not-found" } } });
    expect(await primary.get("job", "pause", job.id)).toMatchObject({ state: "paused" });
    await secondary.until("left alone", ({ peers }) => peers[0]?.replication === "Established");
    await primary.get("job", "set-speed", job.id, "0");
    await primary.get("job", "resume", job.id);
    await primary.until("over", ({ jobs }) => jobs.find(({ id }) => id === job.id)?.state === "concluded");
    await secondary.until("left alone", ({ peers }) => peers[0]?.replication === "Established");
    expect((await primary.get<JobStatus>("verify", "--wait")).verify?.ranges).toBe(0);
  });
});
