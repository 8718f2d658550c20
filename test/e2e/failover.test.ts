/** Taking over: under running I/O, refused, forced, tried out, and killed in the middle. */
import { describe, expect, it } from "vitest";
import type { FailoverAnswer } from "../../proto/control-api.ts";
import type { JobStatus } from "../../proto/status.ts";
import { AgentPair, MIB, type AgentUnderTest } from "../support/agent-pair.ts";
import type { ErrorDocument } from "../support/cli-runner.ts";
import { expectSame, NbdClient, qemuIo, readDisk, tool } from "../support/nbd-tools.ts";
import { requirePeers } from "../support/peers.ts";

describe.runIf(requirePeers("qemu-io", "nbdcopy", "python3:nbd"))("failover", () => {
  it.each(["process", "power"])(
    "is not noticed by clients of the secondary's export, whatever there is to merge (durability %s)",
    async (durability) => {
      const size = 320 * MIB;
      const pair = await AgentPair.protected({
        disks: { vda: Buffer.alloc(size, 0x11) },
        flags: ["--durability", durability],
        primaryFlags: ["--assume-in-sync"],
        secondaryFlags: ["--secondary-export", "read-write"],
      });
      const { primary, secondary } = pair;
      await qemuIo(primary.uri(), `write -P 0x22 0 ${size - 20 * MIB}`);
      await primary.untilDrained();
      expect((await secondary.status()).disks[0]?.hiddenBytes).toBeGreaterThanOrEqual(size - 20 * MIB);
      const expected = Buffer.alloc(size, 0x11);
      const reader = await NbdClient.connect(secondary.uri());
      const writer = await NbdClient.connect(secondary.uri());
      await writer.write({ offset: 8 * MIB + 100, length: 70_000 }, 0x33);
      expected.fill(0x33, 8 * MIB + 100, 8 * MIB + 70_100);

      let isOver = false;
      let reads = 0;
      let readsDuringMerge = 0;
      const reading = (async () => {
        // No write goes to the upper half of any MiB, so what is read is known at every moment.
        for (let at = MIB / 2; !isOver; at = (at + 7 * MIB) % size) {
          expectSame(await reader.read(at, 65_536), expected.subarray(at, at + 65_536));
          reads += 1;
        }
      })();

      reading.catch(() => undefined); // awaited at the end, also where something else fails first

      await primary.crash();
      await secondary.until("alone", ({ peers }) => peers[0]?.connection === "Connecting");
      const answer = await failOverAndHoldBack(secondary);
      const promotedAtRead = reads;
      expect(answer).toMatchObject({ already: false, dryRun: false, epoch: 1, jobs: ["merge-1"] });
      expect(answer.mergeBytes).toBeGreaterThanOrEqual(size - 20 * MIB);
      for (let step = 0; step < 40; step += 1) {
        const offset = step * 7 * MIB + 12_345;
        await writer.write({ offset, length: 30_000 }, 0x44);
        expected.fill(0x44, offset, offset + 30_000);
        if (step === 20) readsDuringMerge = reads - promotedAtRead;
      }
      await writer.flush();
      const [merge] = await secondary.get<JobStatus[]>("jobs");
      expect(merge).toMatchObject({ id: "merge-1", type: "merge", state: "running", error: null });
      await secondary.get("job", "set-speed", "merge-1", "0");
      await secondary.get("wait", "merged");
      isOver = true;
      await reading;
      expect(readsDuringMerge).toBeGreaterThan(0);
      expectSame(await readDisk(secondary.uri()), expected);
      expectSame(pair.image("b"), expected);
      expect(await secondary.status()).toMatchObject({
        role: "Primary",
        disks: [{ hiddenBytes: 0, activeBytes: 0 }],
        exports: [{ name: "vda", readOnly: false }],
      });
    },
  );

  /** Fails over, and holds the merge back at once: it would be over too soon to see I/O during it. */
  async function failOverAndHoldBack(secondary: AgentUnderTest): Promise<FailoverAnswer> {
    const request = { force: false, dryRun: false, discardActive: false, timeoutMs: 30_000 };
    const answer = await secondary.control.failover(request);
    await secondary.control.setJobSpeed("merge-1", 4 * MIB);
    return answer;
  }

  const INITIAL = Buffer.alloc(8 * MIB, 0x11);
  const LOCK_STEP = {
    disks: { vda: INITIAL },
    primaryFlags: ["--assume-in-sync"],
    secondaryFlags: ["--secondary-export", "read-write"],
  };

  it("is refused while the primary is connected, and done with --force; a second one finds it done", async () => {
    const { primary, secondary } = await AgentPair.protected(LOCK_STEP);
    await qemuIo(primary.uri(), "write -P 0x22 1M 1M");
    await primary.untilDrained();
    const refused = await secondary.ask<ErrorDocument>("failover");
    expect(refused).toMatchObject({ code: 1, json: { error: { code: "peer-connected" } } });
    expect(refused.json.error.message).toContain("is connected");
    expect(refused.json.error.action).toContain("--force");
    expect(await secondary.status()).toMatchObject({ role: "Secondary", protection: { state: "Protected" } });

    const done = await secondary.ask<FailoverAnswer>("failover", "--force");
    expect(done).toMatchObject({ code: 0, json: { already: false, epoch: 1 } });
    // 1 MiB had come beyond the checkpoint; what the guest wrote that did not come is not known here.
    expect(done.json.wouldLose).toMatchObject({ bytes: MIB, atLeast: true });
    const again = await secondary.ask<FailoverAnswer>("failover");
    expect(again).toMatchObject({ code: 0, json: { already: true, epoch: 1 } });
    expectSame(await readDisk(secondary.uri()), INITIAL);
    // The old primary learns of it, and serves nothing any more.
    await primary.until("outdated", ({ protection }) => protection.reason === "outdated");
    await expect(readDisk(primary.uri())).rejects.toThrow("nbdcopy");
    const late = await primary.ask<ErrorDocument>("failover");
    expect(late).toMatchObject({ code: 1, json: { error: { code: "outdated" } } });
  });

  it("--dry-run says what would be returned to and lost, and changes nothing", async () => {
    const pair = await AgentPair.protected(LOCK_STEP);
    const { primary, secondary } = pair;
    const epoch = await pair.checkpoint();
    await qemuIo(primary.uri(), "write -P 0x22 1M 1M");
    await primary.untilDrained();
    await qemuIo(secondary.uri(), "write -P 0x33 4M 64k");
    const before = await secondary.status();
    const { code, json } = await secondary.ask<FailoverAnswer>("failover", "--dry-run", "--force", "--discard-active");
    expect(code).toBe(0);
    expect(json).toMatchObject({ already: false, dryRun: true, epoch, wouldLose: { bytes: MIB }, jobs: [] });
    expect(json.discardedActiveBytes).toBe(before.disks[0]?.activeBytes);
    expect(json.ageMs).toBeGreaterThanOrEqual(0);
    const after = await secondary.status();
    for (const key of ["role", "lineage", "epoch", "disks", "jobs", "exports", "protection"] as const) {
      expect(after[key]).toEqual(before[key]);
    }
    await qemuIo(secondary.uri(), "read -P 0x33 4M 64k");
    expect(await pair.checkpoint()).toBe(epoch + 1);
  });

  it("--discard-active leaves out what the secondary's VM wrote", async () => {
    const pair = await AgentPair.protected(LOCK_STEP);
    await qemuIo(pair.primary.uri(), "write -P 0x22 1M 1M");
    await pair.primary.untilDrained();
    await qemuIo(pair.secondary.uri(), "write -P 0x33 0 4M");
    await pair.primary.crash();
    const { json } = await pair.secondary.ask<FailoverAnswer>("failover", "--force", "--discard-active");
    expect(json.discardedActiveBytes).toBeGreaterThanOrEqual(4 * MIB);
    expectSame(await readDisk(pair.secondary.uri()), INITIAL);
    await pair.secondary.get("wait", "merged");
    expectSame(pair.image("b"), INITIAL);
  });

  it("drops prepared checkpoints that were not committed", async () => {
    const pair = await AgentPair.protected(LOCK_STEP);
    const { primary, secondary } = pair;
    for (const byte of [0x22, 0x33]) {
      await qemuIo(primary.uri(), `write -P ${byte} 1M 2M`);
      await primary.get("checkpoint", "--prepare");
    }
    await primary.crash();
    await secondary.until("alone", ({ peers }) => peers[0]?.connection === "Connecting");
    expect((await secondary.status()).epoch.prepared).toEqual([2, 3]);
    const dryRun = await secondary.get<FailoverAnswer>("failover", "--dry-run");
    expect(dryRun).toMatchObject({ epoch: 1, wouldLose: { bytes: 4 * MIB, atLeast: true } });
    expect(await secondary.get<FailoverAnswer>("failover")).toMatchObject({ epoch: 1 });
    expect((await secondary.status()).epoch).toMatchObject({ prepared: [], committed: 1 });
    expectSame(await readDisk(secondary.uri()), INITIAL);
    await secondary.get("wait", "merged");
    expectSame(pair.image("b"), INITIAL);
  });

  it("is refused before the first checkpoint; --force serves what has arrived", async () => {
    const { secondary } = await AgentPair.create({ disks: { vda: INITIAL } });
    await secondary.start();
    const refused = await secondary.ask<ErrorDocument>("failover");
    expect(refused).toMatchObject({ code: 1, json: { error: { code: "no-checkpoint" } } });
    expect(await secondary.status()).toMatchObject({
      role: "Secondary",
      recoverable: null,
      disks: [{ state: "Inconsistent" }],
    });
    expect(await secondary.ask("failover", "--force")).toMatchObject({ code: 0, json: { epoch: 0 } });
    expectSame(await readDisk(secondary.uri()), INITIAL);
  });

  it("can be asked for again when the agent was killed on the way", async () => {
    for (const delayMs of [0, 1.5, 3, 6]) {
      const pair = await AgentPair.protected(LOCK_STEP);
      const { primary, secondary } = pair;
      await qemuIo(primary.uri(), "write -P 0x22 0 2M");
      await primary.untilDrained();
      await qemuIo(secondary.uri(), "write -P 0x33 1M 2M");
      await primary.crash();
      const asked = secondary.control.failover({ force: true, dryRun: false, discardActive: false, timeoutMs: 30_000 });
      const outcome = asked.then(
        () => "done",
        () => "unknown",
      );
      await new Promise((resolve) => {
        setTimeout(resolve, delayMs);
      });
      await secondary.crash();
      await outcome;
      await secondary.start();
      expect(await secondary.ask("failover", "--force")).toMatchObject({ code: 0 });
      const expected = Buffer.from(INITIAL).fill(0x33, MIB, 3 * MIB);
      expectSame(await readDisk(secondary.uri()), expected);
      await secondary.get("wait", "merged");
      expectSame(pair.image("b"), expected);
    }
  });

  it.each(["process", "power"])(
    "goes on where it was when the promoted agent is killed during the merge (durability %s)",
    async (durability) => {
      const size = 64 * MIB;
      const initial = Buffer.alloc(size, 0x11);
      const pair = await AgentPair.protected({
        disks: { vda: initial, vdb: initial },
        flags: ["--durability", durability],
        primaryFlags: ["--assume-in-sync"],
        secondaryFlags: ["--secondary-export", "read-write"],
      });
      const { primary, secondary } = pair;
      const disks = ["vda", "vdb"] as const;
      for (const disk of disks) await qemuIo(primary.uri(disk), `write -P 0x22 0 ${size}`);
      await primary.untilDrained();
      const expected = { vda: Buffer.from(initial), vdb: Buffer.from(initial) };
      await qemuIo(secondary.uri("vdb"), "write -P 0x33 10M 1M");
      expected.vdb.fill(0x33, 10 * MIB, 11 * MIB);
      await primary.crash();
      await secondary.until("alone", ({ peers }) => peers[0]?.connection === "Connecting");
      await failOverAndHoldBack(secondary);

      let killed = 0;
      for (let life = 1; life <= 4; life += 1) {
        for (const disk of disks) {
          const offset = life * 9 * MIB + 777;
          await qemuIo(secondary.uri(disk), `write -P ${0x40 + life} ${offset} 100000`);
          expected[disk].fill(0x40 + life, offset, offset + 100_000);
        }
        const { jobs } = await secondary.until("further", ({ jobs }) => (jobs[0]?.progress.doneBytes ?? 1) > 0);
        await secondary.crash();
        if (jobs[0]?.state === "running") killed += 1;
        await secondary.start();
        // A merge that had begun goes on by itself; the rest of it may be over before it can be held back.
        if (life < 4 && jobs[0]?.state === "running") await secondary.control.setJobSpeed("merge-1", 4 * MIB);
        const status = await secondary.status();
        expect(status.role).toBe("Primary");
        for (const { type, progress } of status.jobs) {
          expect(type).toBe("merge");
          expect(progress.totalBytes).toBeLessThan(2 * size);
        }
        for (const disk of disks) expectSame(await readDisk(secondary.uri(disk)), expected[disk]);
      }
      expect(secondary.log).toContain("the record wins");
      expect(killed).toBeGreaterThan(0);
      await secondary.get("wait", "merged");
      for (const disk of disks) {
        expectSame(pair.image("b", disk), expected[disk]);
        await tool("qemu-img", "compare", "-f", "raw", "-F", "raw", pair.imagePath("b", disk), secondary.uri(disk));
      }
      await secondary.stop();
      await secondary.start();
      expect(await secondary.status()).toMatchObject({ role: "Primary", jobs: [] });
      await secondary.get("wait", "merged");
    },
  );
});
