/** The command line as operators and hooks use it against a running pair: answers, exit codes, checkpoints, restarts. */
import { existsSync, readdirSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { describe, expect, it, onTestFinished } from "vitest";
import { z } from "zod";
import {
  checkpointAnswerSchema,
  commitAnswerSchema,
  discardAnswerSchema,
  errorAnswerSchema,
  failoverAnswerSchema,
  waitAnswerSchema,
} from "../../proto/control-api.ts";
import { eventSchema, jobSchema, statusSchema, type AgentEvent } from "../../proto/status.ts";
import { AgentPair, freePort, MIB, type AgentUnderTest, type PairOptions } from "../support/agent-pair.ts";
import { askColobus, ColobusProcess, runColobus } from "../support/cli-runner.ts";
import { expectSame, NbdClient, qemuIo, readDisk } from "../support/nbd-tools.ts";
import { requirePeers } from "../support/peers.ts";
import { ReconnectingGuest } from "../support/reconnecting-guest.ts";
import { scratchDirectory } from "../support/scratch.ts";

const SIZE = 4 * MIB;
const PATIENCE_MS = 30_000;
const INITIAL = Buffer.alloc(SIZE, 0x11);
const SMALL: PairOptions = { disks: { vda: INITIAL }, primaryFlags: ["--assume-in-sync"] };

/** Runs a command that is to be refused with this error, and this exit code. */
async function expectRefusal(agent: AgentUnderTest, command: string, exit: number, code: string): Promise<void> {
  const { code: actualExit, json, stderr } = await agent.ask<unknown>(...command.split(" "));
  const { error } = errorAnswerSchema.parse(json);
  expect({ command, exit: actualExit, code: error.code }).toEqual({ command, exit, code });
  expect(error.message).not.toBe("");
  expect(stderr).toContain(error.message);
}

async function expectRefusals(
  agent: AgentUnderTest,
  exit: number,
  code: string,
  commands: readonly string[],
): Promise<void> {
  await Promise.all(commands.map((command) => expectRefusal(agent, command, exit, code)));
}

/** A pair whose guest writes a mark of its own before each checkpoint that is prepared. */
class MarkedPair {
  readonly pair: AgentPair;
  readonly #content = Buffer.from(INITIAL);
  #mark = 0x20;

  private constructor(pair: AgentPair) {
    this.pair = pair;
  }

  static async start(): Promise<MarkedPair> {
    return new MarkedPair(await AgentPair.protected(SMALL));
  }

  /** What the guest has written by now. */
  get content(): Buffer {
    return Buffer.from(this.#content);
  }

  /** Writes where every epoch writes, and where only this one does, neither of them whole clusters. */
  async write(): Promise<Buffer> {
    this.#mark += 1;
    const own = (this.#mark % 16) * 200_000 + 65_536 * 3;
    const ranges = [[40_000, 90_000] as const, [own, 50_001] as const];
    const commands = ranges.map(([offset, length]) => {
      this.#content.fill(this.#mark, offset, offset + length);
      return `write -P ${this.#mark} ${offset} ${length}`;
    });
    await qemuIo(this.pair.primary.uri(), ...commands);
    return this.content;
  }

  async prepare(): Promise<{ epoch: number; content: Buffer }> {
    const content = await this.write();
    const { epoch } = await this.pair.primary.control.checkpoint({ prepare: true, timeoutMs: PATIENCE_MS });
    return { epoch, content };
  }

  async commit(epoch: number): Promise<void> {
    await this.pair.primary.control.commit({ epoch, timeoutMs: PATIENCE_MS });
  }

  async discard(...epoch: string[]): Promise<number[]> {
    return discardAnswerSchema.parse(await this.pair.primary.get("discard", ...epoch)).discarded;
  }
}

/** Both sides name these epochs, and the secondary's export shows exactly this content. */
async function expectView(
  { pair }: MarkedPair,
  content: Buffer,
  committed: number,
  prepared: readonly number[],
): Promise<void> {
  expectSame(await readDisk(pair.secondary.uri()), content);
  for (const agent of [pair.primary, pair.secondary]) {
    expect((await agent.status()).epoch).toMatchObject({ committed, prepared });
  }
}

const PEERS = requirePeers("qemu-io", "nbdcopy", "python3:nbd");

describe.runIf(PEERS)("operator commands", () => {
  it("answer with --json in the documented form, and otherwise in words", async () => {
    const pair = await AgentPair.protected({ disks: { vda: SIZE } });
    const { primary, secondary } = pair;
    for (const [agent, role] of [
      [primary, "Primary"],
      [secondary, "Secondary"],
    ] as const) {
      expect(statusSchema.parse(await agent.get("status"))).toMatchObject({ role, vm: "test", pid: agent.pid });
      const { code, stdout } = await agent.cli("status");
      expect(code).toBe(0);
      expect(stdout).toContain("Protected");
    }
    const committed = checkpointAnswerSchema.parse(await primary.get("checkpoint"));
    expect(committed).toMatchObject({ state: "committed", commitMs: expect.any(Number) });
    const prepared = checkpointAnswerSchema.parse(await primary.get("checkpoint", "--prepare"));
    expect(prepared).toMatchObject({ epoch: committed.epoch + 1, state: "prepared", commitMs: null });
    expect(commitAnswerSchema.parse(await primary.get("commit", String(prepared.epoch)))).toMatchObject({
      epoch: prepared.epoch,
      state: "committed",
    });
    expect(discardAnswerSchema.parse(await primary.get("discard"))).toEqual({ discarded: [] });
    expect(waitAnswerSchema.parse(await primary.get("wait", "synced"))).toEqual({ condition: "synced" });
    const jobs = z.array(jobSchema).parse(await primary.get("jobs"));
    expect(jobs).toMatchObject([{ type: "full-sync", state: "concluded", error: null }]);
    expect(z.array(jobSchema).parse(await secondary.get("jobs"))).toEqual([]);
    const agents = (await askColobus<{ run: string }[]>("list", "--run", dirname(primary.run))).json;
    expect(agents).toMatchObject([
      { run: primary.run, reachable: true, role: "Primary", vm: "test" },
      { run: secondary.run, reachable: true, role: "Secondary", vm: "test" },
    ]);
    const events = parseEvents((await primary.cli("events", "--json")).stdout);
    expect(events.map(({ type }) => type)).toEqual(
      expect.arrayContaining(["agent-started", "peer-connected", "sync-finished", "checkpoint-committed"]),
    );
    const later = parseEvents((await primary.cli("events", "--json", "--after", `${events.at(-2)?.sequence}`)).stdout);
    expect(later).toEqual(events.slice(-1));
    const dry = failoverAnswerSchema.parse(await secondary.get("failover", "--dry-run", "--force"));
    expect(dry).toMatchObject({ already: false, dryRun: true, epoch: prepared.epoch, jobs: [] });
    expect(failoverAnswerSchema.parse(await primary.get("failover"))).toMatchObject({ already: true });
    expect(await secondary.status()).toMatchObject({ role: "Secondary", epoch: { committed: prepared.epoch } });
  });

  it("refuse what cannot be done, with the documented code and exit code", async () => {
    const { primary, secondary, port } = await AgentPair.protected(SMALL);
    await expectRefusals(secondary, 1, "not-primary", [
      "checkpoint",
      "checkpoint --prepare",
      "commit 1",
      "discard 1",
      "discard",
    ]);
    await expectRefusal(secondary, "failover", 1, "peer-connected");
    expect(await secondary.get("wait", "merged")).toEqual({ condition: "merged" });
    await expectRefusals(primary, 1, "epoch-unknown", ["commit 4711", "discard 4711"]);
    await expectRefusal(primary, "job pause nothing-1", 1, "job-unknown");
    for (const agent of [primary, secondary]) {
      // The first full sync is done.
      expect(await agent.get("connect", "--dry-run")).toMatchObject({
        connected: true,
        verdict: { kind: "sync", meaning: expect.stringContaining("nothing is to be sent") },
      });
    }
    await expectRefusals(primary, 1, "not-applicable", [
      `rejoin --peer ws://127.0.0.1:${port}`,
      "connect --discard-my-data",
      "config reload",
    ]);
    await expectRefusals(primary, 2, "usage", [
      "commit",
      "commit none",
      "commit 0",
      "wait",
      "wait long",
      "checkpoint --timeout 5",
      "chekpoint",
    ]);
    await primary.crash();
    // The control socket is still there, and nobody answers.
    expect(existsSync(join(primary.run, "control.sock"))).toBe(true);
    await expectRefusals(primary, 3, "agent-unreachable", [
      "status",
      "checkpoint",
      "commit 1",
      "discard",
      "events",
      "jobs",
      "wait synced",
      "failover",
    ]);
  });

  it("wait until a condition is reached, and give up at --timeout", async () => {
    const pair = await AgentPair.create(SMALL);
    const { primary, secondary } = pair;
    await primary.start();
    const conditions = ["connected", "synced", "committed"];
    const commands = conditions.map((condition) => `wait ${condition} --timeout 100ms`);
    await expectRefusals(primary, 4, "timed-out", commands);
    expect(await primary.get("wait", "merged")).toEqual({ condition: "merged" });
    await expectRefusal(primary, "checkpoint", 1, "no-peer");
    const waiting = conditions.map((condition) => primary.ask("wait", condition));
    await secondary.start();
    for (const [index, condition] of conditions.entries()) {
      expect(await waiting[index]).toMatchObject({ code: 0, json: { condition } });
    }
    expect(await secondary.get("wait", "committed")).toEqual({ condition: "committed" });
  });

  it("follow events as one JSON document a line", async () => {
    const { primary, secondary } = await AgentPair.protected(SMALL);
    const followers = [primary, secondary].map((agent) => {
      const follower = new ColobusProcess(["events", "--follow", "--json", "--run", agent.run]);
      return { agent, follower };
    });
    for (const { follower } of followers) await follower.untilPrinted("checkpoint-committed");
    const { epoch } = checkpointAnswerSchema.parse(await primary.get("checkpoint"));
    for (const { follower } of followers) {
      await follower.untilPrinted(`"type":"checkpoint-committed","data":{"epoch":${epoch}`);
      follower.child.kill("SIGINT");
      const { code, stdout } = await follower.ended;
      expect(code).toBe(0);
      const events = parseEvents(stdout);
      expect(events.filter(({ data }) => data.epoch === epoch).map(({ type }) => type)).toEqual([
        "checkpoint-prepared",
        "checkpoint-committed",
      ]);
      expect(events.map(({ sequence }) => sequence)).toEqual(events.map((_, index) => events[0]!.sequence + index));
    }
  });

  it("print what the files of a state directory hold", async () => {
    const marked = await MarkedPair.start();
    const { root } = marked.pair;
    const { epoch } = await marked.prepare();
    for (const [side, role] of [
      ["a", "Primary"],
      ["b", "Secondary"],
    ] as const) {
      const { code, json } = await askColobus<{ slots: { record?: { role: string } }[] }>(
        "inspect",
        join(root, side, "state", "state"),
      );
      expect(code).toBe(0);
      expect(json).toMatchObject({ kind: "state", slots: { length: 2 } });
      expect(json.slots.map(({ record }) => record?.role)).toContain(role);
    }
    const overlays = join(root, "b", "state", "disks", "vda");
    const journals = readdirSync(overlays).filter((name) => name.endsWith(".journal"));
    const inspected: Record<string, unknown>[] = [];
    for (const name of journals) {
      const { code, json } = await askColobus<Record<string, unknown>>("inspect", join(overlays, name));
      expect(code).toBe(0);
      expect(json).toMatchObject({ kind: "journal", diskSizeBytes: SIZE });
      expect(json.soundBytes).toBeLessThanOrEqual(json.fileBytes as number);
      inspected.push(json);
    }
    const held = inspected.find((journal) => journal.epoch === epoch && Number(journal.heldClusters) > 0);
    expect(held).toMatchObject({ clusterBytes: 16_384 });
    const { code, stdout } = await runColobus("inspect", join(overlays, journals[0]!));
    expect(code).toBe(0);
    expect(stdout).toContain("cluster journal");
    for (const file of [marked.pair.imagePath("a"), join(root, "nowhere")]) {
      const refused = await askColobus("inspect", file);
      expect(refused.code).toBe(1);
      errorAnswerSchema.parse(refused.json);
    }
  });

  function parseEvents(stdout: string): AgentEvent[] {
    return stdout
      .trimEnd()
      .split("\n")
      .map((line) => eventSchema.parse(JSON.parse(line)));
  }
});

describe.runIf(PEERS)("prepared checkpoints", () => {
  it("are committed with every earlier one, and none of them can be withdrawn then", async () => {
    const marked = await MarkedPair.start();
    const { primary } = marked.pair;
    const { committed } = (await primary.status()).epoch;
    const [first, second, third] = [await marked.prepare(), await marked.prepare(), await marked.prepare()];
    await marked.write();
    await primary.untilDrained();
    await expectView(marked, INITIAL, committed, [first.epoch, second.epoch, third.epoch]);
    await marked.commit(second.epoch);
    await expectView(marked, second.content, second.epoch, [third.epoch]);
    for (const { epoch } of [first, second]) {
      // A lost answer can be asked for again.
      expect(commitAnswerSchema.parse(await primary.get("commit", String(epoch))).epoch).toBe(epoch);
      await expectRefusal(primary, `discard ${epoch}`, 1, "epoch-committed");
    }
    await expectRefusal(primary, `commit ${third.epoch + 1}`, 1, "epoch-unknown");
    await expectView(marked, second.content, second.epoch, [third.epoch]);
    await marked.commit(third.epoch);
    await expectView(marked, third.content, third.epoch, []);
    await expectRefusal(primary, `discard ${third.epoch}`, 1, "epoch-committed");
    const last = await marked.pair.checkpoint();
    await expectView(marked, marked.content, last, []);
  });

  it("that are discarded, one or all, cannot be committed, and their data is in the next checkpoint", async () => {
    const marked = await MarkedPair.start();
    const { primary } = marked.pair;
    const { committed } = (await primary.status()).epoch;
    const [first, second, third] = [await marked.prepare(), await marked.prepare(), await marked.prepare()];
    expect(await marked.discard(String(second.epoch))).toEqual([second.epoch]);
    await expectView(marked, INITIAL, committed, [first.epoch, third.epoch]);
    await expectRefusal(primary, `commit ${second.epoch}`, 1, "epoch-unknown");
    expect(await marked.discard(String(second.epoch))).toEqual([]);
    await expectView(marked, INITIAL, committed, [first.epoch, third.epoch]);
    await marked.commit(first.epoch);
    await expectView(marked, first.content, first.epoch, [third.epoch]);
    await marked.commit(third.epoch);
    await expectView(marked, third.content, third.epoch, []);

    const withdrawn = [await marked.prepare(), await marked.prepare()];
    expect(await marked.discard()).toEqual(withdrawn.map(({ epoch }) => epoch));
    await expectView(marked, third.content, third.epoch, []);
    for (const { epoch } of withdrawn) await expectRefusal(primary, `commit ${epoch}`, 1, "epoch-unknown");
    expect(await marked.discard()).toEqual([]);
    await expectView(marked, third.content, third.epoch, []);
    const last = await marked.prepare();
    await marked.write();
    await marked.commit(last.epoch);
    await expectView(marked, last.content, last.epoch, []);
  });

  it.each(["secondary", "primary"] as const)(
    "stay committable when the %s is killed before the commit",
    async (side) => {
      const marked = await MarkedPair.start();
      const { pair } = marked;
      const { committed } = (await pair.primary.status()).epoch;
      const first = await marked.prepare();
      const second = await marked.prepare();
      await marked.write();
      await pair[side].crash();
      if (side === "secondary") {
        // Nobody is there who could commit: this is said, and nothing is decided.
        await pair.primary.until("disconnected", ({ peers }) => peers[0]?.connection === "Connecting");
        await expectRefusal(pair.primary, `commit ${first.epoch}`, 1, "no-peer");
        await marked.write();
      }
      await pair[side].start();
      await pair.untilProtected();
      await expectView(marked, INITIAL, committed, [first.epoch, second.epoch]);
      await marked.commit(first.epoch);
      await expectView(marked, first.content, first.epoch, [second.epoch]);
      await marked.commit(second.epoch);
      await expectView(marked, second.content, second.epoch, []);
      const last = await pair.checkpoint();
      await expectView(marked, marked.content, last, []);
    },
  );

  it("never share a number, whichever agent is restarted or killed", async () => {
    const { primary, secondary } = await AgentPair.protected(SMALL);
    const seen = [(await primary.status()).epoch.committed];
    const take = async (): Promise<void> => {
      await primary.until("in sync", ({ peers }) => peers[0]?.replication === "Established");
      for (const prepare of [false, true]) {
        seen.push((await primary.control.checkpoint({ prepare, timeoutMs: PATIENCE_MS })).epoch);
      }
    };
    await take();
    for (const restart of [
      () => primary.stop(),
      () => secondary.crash(),
      () => Promise.all([primary.crash(), secondary.stop()]),
      () => Promise.all([primary.crash(), secondary.crash()]),
    ]) {
      await restart();
      await Promise.all([primary, secondary].filter((agent) => !agent.isRunning).map((agent) => agent.start()));
      await primary.control.discard({ timeoutMs: PATIENCE_MS }).catch(() => undefined); // not connected yet: it stays prepared
      await take();
    }
    expect(seen).toEqual([...new Set(seen)].sort((a, b) => a - b));
    expect(seen.length).toBe(11);
    expect((await secondary.status()).epoch.committed).toBe(seen.at(-2));
  });

  it("are taken and committed by the agent itself with --checkpoint-every", async () => {
    const pair = await AgentPair.protected({
      ...SMALL,
      primaryFlags: ["--assume-in-sync", "--checkpoint-every", "300ms"],
    });
    const { primary, secondary } = pair;
    await qemuIo(primary.uri(), "write -P 0x22 1M 1M");
    const { open } = (await primary.status()).epoch;
    const committed: unknown[] = [];
    for await (const { type, data } of secondary.control.follow(0)) {
      if (type === "checkpoint-committed") committed.push(data.epoch);
      if (Number(committed.at(-1)) > open + 1) break;
    }
    expect(committed).toEqual(committed.map((_, index) => Number(committed[0]) + index));
    expectSame(await readDisk(secondary.uri()), Buffer.from(INITIAL).fill(0x22, MIB, 2 * MIB));
  });
});

describe.runIf(PEERS)("restarts", () => {
  it.each([
    ["primary", "secondary"],
    ["secondary", "primary"],
  ] as const)("that are clean, the %s stopping first, exit with 0 and need no sync", async (first, second) => {
    const pair = await AgentPair.protected(SMALL);
    await qemuIo(pair.primary.uri(), "write -P 0x22 1M 1M", "flush");
    const epoch = await pair.checkpoint();
    await qemuIo(pair.primary.uri(), "write -P 0x33 2M 1M");
    await pair.primary.untilDrained();
    for (const side of [first, second]) {
      expect(await pair[side].stop()).toMatchObject({ code: 0, signal: null });
      expect(readdirSync(pair[side].run)).toEqual([]);
    }
    const content = Buffer.from(INITIAL)
      .fill(0x22, MIB, 2 * MIB)
      .fill(0x33, 2 * MIB, 3 * MIB);
    expectSame(pair.image("a"), content);
    await pair.start();
    const { jobs } = await pair.primary.status();
    expect(jobs.map(({ progress }) => progress.totalBytes)).toEqual([]);
    expect((await pair.secondary.status()).epoch.committed).toBe(epoch);
    expectSame(await readDisk(pair.secondary.uri()), Buffer.from(content).fill(0x11, 2 * MIB, 3 * MIB));
    expectSame(pair.image("b"), content);
  });

  it("after a kill of the primary compare the whole disk, and both sides are equal after a checkpoint", async () => {
    const pair = await AgentPair.protected(SMALL);
    const { primary, secondary } = pair;
    await secondary.crash();
    await primary.until("disconnected", ({ peers }) => peers[0]?.connection === "Connecting");
    await qemuIo(primary.uri(), "write -P 0x22 1M 1M", "write -z 3M 64k");
    // Only this process knew what the secondary lacks.
    await primary.crash();
    for (const agent of [primary, secondary]) {
      expect(readdirSync(agent.run).sort()).toEqual(["control.sock", "nbd.sock", "vmstate.sock"]);
    }
    await pair.start();
    const { jobs } = await primary.status();
    expect(jobs).toMatchObject([
      { type: "resync", state: "concluded", error: null, progress: { doneBytes: SIZE, totalBytes: SIZE } },
    ]);
    expectSame(await readDisk(secondary.uri()), INITIAL);
    // Equal clusters were compared, and no originals kept of them.
    const { hiddenBytes } = (await secondary.status()).disks[0]!;
    expect(hiddenBytes).toBeGreaterThan(0);
    expect(hiddenBytes).toBeLessThan(2 * MIB);
    await pair.checkpoint();
    const content = Buffer.from(INITIAL)
      .fill(0x22, MIB, 2 * MIB)
      .fill(0, 3 * MIB, 3 * MIB + 65_536);
    for (const agent of [primary, secondary]) expectSame(await readDisk(agent.uri()), content);
    expectSame(pair.image("b"), content);
  });

  it.each(["stopped", "killed"])(
    "of a primary that is %s are no error to a client with reconnect-delay",
    async (how) => {
      const pair = await AgentPair.protected(SMALL);
      const { primary } = pair;
      const guest = await ReconnectingGuest.connect(primary);
      await guest.run("write -P 0x22 0 64k", "wrote 65536/65536");
      await (how === "stopped" ? primary.stop() : primary.crash());
      // Asked for while nobody serves.
      const written = guest.run("write -P 0x33 64k 64k", "wrote 65536/65536");
      await primary.start();
      await written;
      await guest.run("read -P 0x22 0 64k", "read 65536/65536");
      await guest.run("flush");
      expect(await guest.quit()).toBe(0);
      await pair.untilProtected();
      await pair.checkpoint();
      const content = Buffer.from(INITIAL).fill(0x22, 0, 65_536).fill(0x33, 65_536, 131_072);
      expectSame(await readDisk(pair.secondary.uri()), content);
      expectSame(pair.image("b"), content);
    },
  );
});

describe.runIf(PEERS)("an agent", () => {
  it("serves two disks, and checkpoints both at once", async () => {
    const vdb = Buffer.alloc(MIB, 0x44);
    const pair = await AgentPair.protected({ ...SMALL, disks: { vda: INITIAL, vdb } });
    const { primary, secondary } = pair;
    await qemuIo(primary.uri("vda"), "write -P 0x22 0 1M");
    await qemuIo(primary.uri("vdb"), "write -P 0x55 512k 512k");
    await primary.untilDrained();
    expectSame(await readDisk(secondary.uri("vda")), INITIAL);
    expectSame(await readDisk(secondary.uri("vdb")), vdb);
    await pair.checkpoint();
    expectSame(await readDisk(secondary.uri("vda")), Buffer.from(INITIAL).fill(0x22, 0, MIB));
    expectSame(await readDisk(secondary.uri("vdb")), Buffer.from(vdb).fill(0x55, MIB / 2));
    expect((await primary.status()).exports.map(({ name }) => name)).toEqual(["vda", "vdb"]);
    const unnamed = await NbdClient.connect(primary.uri(""));
    expect(unnamed.sizeBytes).toBe(SIZE);
    await expect(NbdClient.connect(primary.uri("vdc"))).rejects.toThrow("ENOENT");
  });

  it("takes its configuration from a YAML file, and flags win", async () => {
    const pair = await AgentPair.create({ disks: { vda: INITIAL } });
    const { primary, secondary, root } = pair;
    const file = join(root, "primary.yaml");
    const lines = [
      "vm: test",
      `run: ${primary.run}`,
      `state: ${join(root, "a", "state")}`,
      "disk:",
      `  - vda=${pair.imagePath("a")}`,
      `peer: ws://127.0.0.1:${pair.port}`,
      "assume-in-sync: true",
      "durability: power",
      "ack: received",
      "peer-timeout: 7s",
    ];
    writeFileSync(file, lines.join("\n"));
    primary.command.splice(1, Infinity, "--config", file, "--durability", "process", "--ack", "applied");
    const nbdPort = await freePort();
    secondary.command.push("--nbd-listen", `127.0.0.1:${nbdPort}`);
    await pair.start();
    expect(await primary.status()).toMatchObject({ vm: "test", durability: "process", ack: "applied", jobs: [] });
    // The exports of the other agent are served over TCP too.
    expectSame(await readDisk(`nbd://127.0.0.1:${nbdPort}/vda`), INITIAL);
    await qemuIo(primary.uri(), "write -P 0x22 0 1M");
    await pair.checkpoint();
    expectSame(await readDisk(`nbd://127.0.0.1:${nbdPort}/vda`), Buffer.from(INITIAL).fill(0x22, 0, MIB));
    for (const [content, complaint] of [
      ["durability: sometimes\n", "durability"],
      ["durabilty: power\n", "durabilty"],
      ["disk: [\n", "cannot be read"],
    ] as const) {
      const wrong = join(scratchDirectory(), "wrong.yaml");
      writeFileSync(wrong, content);
      const { code, stderr } = await runColobus("primary", "--config", wrong);
      expect({ complaint, code }).toEqual({ complaint, code: 2 });
      expect(stderr).toContain(complaint);
    }
  });

  it("goes on without a frozen secondary after --peer-timeout, and with it when it is thawed", async () => {
    const pair = await AgentPair.protected({
      disks: { vda: 24 * MIB },
      flags: ["--peer-timeout", "4s", "--window", "4MiB"],
    });
    const { primary, secondary } = pair;
    await qemuIo(primary.uri(), "write -P 0x22 0 1M");
    const { epoch } = await primary.control.checkpoint({ prepare: true, timeoutMs: PATIENCE_MS });
    secondary.freeze();
    onTestFinished(() => {
      if (secondary.isRunning) secondary.thaw();
    });
    await expectRefusal(primary, "checkpoint --timeout 50ms", 4, "timed-out");
    // Much more than the window: this ends only because the frozen peer is given up.
    await qemuIo(primary.uri(), "write -P 0x33 1M 20M", "flush", "read -P 0x33 1M 20M");
    await primary.until("disconnected", ({ peers }) => peers[0]?.connection === "Connecting");
    await expectRefusal(primary, `commit ${epoch}`, 1, "no-peer");
    expect((await primary.status()).disks[0]?.dirtyBytes).toBeGreaterThanOrEqual(16 * MIB);
    secondary.thaw();
    await pair.untilProtected();
    await primary.get("commit", String(epoch));
    const content = Buffer.alloc(24 * MIB).fill(0x22, 0, MIB);
    expectSame(await readDisk(secondary.uri()), content);
    await pair.checkpoint();
    expectSame(await readDisk(secondary.uri()), content.fill(0x33, MIB, 21 * MIB));
    expectSame(pair.image("b"), pair.image("a"));
    const syncs = (await primary.status()).jobs.map(({ type }) => type);
    expect(syncs.filter((type) => type === "full-sync").length).toBe(1);
    // The secondary itself says that it was held up.
    const { eventLoopDelay } = await secondary.status();
    expect(eventLoopDelay?.stalls).toBeGreaterThanOrEqual(1);
    expect(eventLoopDelay?.maxMs).toBeGreaterThan(1000);
    expect((await secondary.cli("events")).stdout).toMatch(/ stalled .* longestMs=\d/);
    expect((await secondary.cli("status")).stdout).toContain("held up");
  });
});
