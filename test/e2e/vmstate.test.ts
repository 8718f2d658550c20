/** The state of a VM as part of a checkpoint: the ways in, the way out, and what an interruption leaves. */
import { spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { createReadStream, existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { connect } from "node:net";
import { join } from "node:path";
import { PassThrough, Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { describe, expect, it, onTestFinished } from "vitest";
import type { CheckpointAnswer } from "../../proto/control-api.ts";
import { AgentPair, MIB, type AgentUnderTest } from "../support/agent-pair.ts";
import { MAIN, runColobus, type ErrorDocument } from "../support/cli-runner.ts";
import { NbdGuest } from "../support/nbd-guest.ts";

const FAST = ["--peer-timeout", "1s"];
const TIMEOUT_MS = 30_000;

async function storedAt(agent: AgentUnderTest, root: string, ...args: string[]): Promise<Buffer> {
  const output = join(root, "read-back");
  await agent.get("vmstate", "--output", output, ...args);
  return readFileSync(output);
}

const stateFiles = (pair: AgentPair): string[] => {
  const directory = join(pair.root, "b", "state", "vmstate");
  return existsSync(directory) ? readdirSync(directory) : [];
};

/** Runs `colobus` with `content` on its stdin. */
async function pipeInto(content: Buffer, ...args: string[]): Promise<string> {
  const child = spawn(process.execPath, [MAIN, ...args], { stdio: ["pipe", "pipe", "inherit"] });
  const pieces: Buffer[] = [];
  child.stdout.on("data", (piece: Buffer) => pieces.push(piece));
  const ended = new Promise<number | null>((resolve) => {
    child.once("close", (code) => resolve(code));
  });
  child.stdin.end(content);
  expect(await ended).toBe(0);
  return Buffer.concat(pieces).toString();
}

describe("a checkpoint with a VM state", () => {
  it("is committed with it, and a failover finds both", async () => {
    const pair = await AgentPair.protected({ flags: FAST });
    const { primary, secondary, root } = pair;
    const state = randomBytes(20 * MIB + 12_345);
    writeFileSync(join(root, "vm.state"), state);
    expect(await secondary.ask<ErrorDocument>("vmstate", "--output", join(root, "none"))).toMatchObject({
      code: 1,
      json: { error: { code: "vmstate-missing" } },
    });
    const taken = await primary.get<CheckpointAnswer>("checkpoint", "--vmstate", join(root, "vm.state"));
    expect(taken).toMatchObject({ state: "committed", vmstateBytes: state.length });
    const { epoch } = taken;
    expect((await secondary.status()).vmstate).toEqual({ epoch, bytes: state.length });
    expect((await storedAt(secondary, root)).equals(state)).toBe(true);
    const elsewhere = await primary.ask<ErrorDocument>("vmstate", "--output", join(root, "none"));
    expect(elsewhere).toMatchObject({ code: 1, json: { error: { code: "vmstate-missing" } } });
    expect(elsewhere.json.error.message).toContain("stored on the secondary");

    await primary.crash();
    await secondary.until("alone", ({ peers }) => peers[0]?.connection === "Connecting");
    const told = join(root, "told");
    const script = `echo "$COLOBUS_VM $COLOBUS_EPOCH $COLOBUS_VMSTATE_BYTES $COLOBUS_NBD_URIS" > ${told}`;
    await secondary.get("failover", "--exec", script);
    expect(readFileSync(told, "utf8")).toBe(`test ${epoch} ${state.length} ${secondary.uri()}\n`);
    expect((await secondary.status()).vmstate).toEqual({ epoch, bytes: state.length });
    expect((await storedAt(secondary, root)).equals(state)).toBe(true);
    const guest = await NbdGuest.connect(join(secondary.run, "nbd.sock"));
    await guest.write(0, Buffer.alloc(4096, 1));
    const refused = await secondary.ask<ErrorDocument>("vmstate", "--output", join(root, "stale"));
    expect(refused).toMatchObject({ code: 1, json: { error: { code: "vmstate-stale" } } });
    expect(existsSync(join(root, "stale"))).toBe(false);
    expect((await secondary.status()).vmstate).toBe(null);
    expect((await storedAt(secondary, root, "--force", "--epoch", String(epoch))).equals(state)).toBe(true);
  });

  it("takes it from stdin, and from the hypervisor's socket", async () => {
    const pair = await AgentPair.protected({ secondaryFlags: ["--retain", "1"] });
    const { primary, secondary, root } = pair;
    const first = randomBytes(3 * MIB);
    const taken = JSON.parse(
      await pipeInto(first, "checkpoint", "--vmstate", "-", "--json", "--run", primary.run),
    ) as CheckpointAnswer;
    expect((await storedAt(secondary, root)).equals(first)).toBe(true);

    const { epoch } = await primary.get<CheckpointAnswer>("checkpoint", "--prepare", "--await-vmstate");
    expect(await primary.ask<ErrorDocument>("commit", String(epoch))).toMatchObject({
      code: 1,
      json: { error: { code: "vmstate-awaited" } },
    });
    const second = randomBytes(2 * MIB + 1);
    await pipeline(Readable.from([second]), connect(join(primary.run, "vmstate.sock")));
    await primary.until("prepared", (status) => status.epoch.prepared.includes(epoch));
    await primary.get("commit", String(epoch));
    expect((await storedAt(secondary, root)).equals(second)).toBe(true);
    expect((await storedAt(secondary, root, "--epoch", String(taken.epoch))).equals(first)).toBe(true);
    expect(stateFiles(pair).length).toBe(2);
    const text = await secondary.cli("vmstate", "--epoch", String(taken.epoch));
    expect(text.code).toBe(0);
    // A checkpoint of the disks alone has none, and there is room for one older one only.
    await pair.checkpoint();
    expect((await secondary.status()).vmstate).toBe(null);
    await expect.poll(() => stateFiles(pair)).toEqual([`${epoch}.state`]);
  });

  it("leaves the one before in force when its state breaks off, and holds up no guest meanwhile", async () => {
    const pair = await AgentPair.protected({ flags: FAST });
    const { primary, secondary, root } = pair;
    const state = randomBytes(MIB);
    writeFileSync(join(root, "vm.state"), state);
    const { epoch } = await primary.get<CheckpointAnswer>("checkpoint", "--vmstate", join(root, "vm.state"));
    const guest = await NbdGuest.connect(join(primary.run, "nbd.sock"));

    const content = new PassThrough();
    const request = { prepare: false, timeoutMs: TIMEOUT_MS };
    const interrupted = new AbortController();
    const broken = primary.control.checkpointWithVmState(request, content, interrupted.signal);
    broken.catch(() => undefined);
    content.write(randomBytes(8 * MIB));
    await expect.poll(() => stateFiles(pair).length, { timeout: TIMEOUT_MS }).toBe(2);
    await guest.write(0, Buffer.alloc(4096, 7));
    const busy = await primary.ask<ErrorDocument>("checkpoint", "--vmstate", join(root, "vm.state"));
    expect(busy).toMatchObject({ code: 1, json: { error: { code: "vmstate-busy" } } });
    interrupted.abort();
    await expect(broken).rejects.toMatchObject({ code: "outcome-unknown" });
    await expect.poll(() => stateFiles(pair), { timeout: TIMEOUT_MS }).toEqual([`${epoch}.state`]);
    expect((await primary.status()).epoch).toMatchObject({ committed: epoch, prepared: [] });

    // The primary dies in the middle of the next one.
    const unfinished = new PassThrough();
    const lost = primary.control.checkpointWithVmState(request, unfinished);
    lost.catch(() => undefined);
    unfinished.write(randomBytes(8 * MIB));
    await expect.poll(() => stateFiles(pair).length, { timeout: TIMEOUT_MS }).toBe(2);
    await primary.crash();
    await expect(lost).rejects.toMatchObject({ code: "outcome-unknown" });
    await secondary.until("alone", ({ peers }) => peers[0]?.connection === "Connecting");
    const failed = await secondary.ask<ErrorDocument>("failover", "--exec", "exit 7");
    expect(failed).toMatchObject({ code: 1, json: { error: { code: "hook-failed" } } });
    expect((await secondary.status()).role).toBe("Primary");
    expect((await secondary.status()).vmstate).toEqual({ epoch, bytes: state.length });
    expect((await storedAt(secondary, root)).equals(state)).toBe(true);
    await expect.poll(() => stateFiles(pair)).toEqual([`${epoch}.state`]);
  });

  it("takes the next one as soon as the checkpoint of one that is under way is withdrawn", async () => {
    const pair = await AgentPair.protected();
    const { primary, secondary, root } = pair;
    const path = join(primary.run, "vmstate.sock");
    await primary.get("checkpoint", "--prepare", "--await-vmstate");
    const unfinished = connect(path);
    onTestFinished(() => void unfinished.destroy());
    unfinished.write(randomBytes(MIB));
    await expect.poll(() => stateFiles(pair).length, { timeout: TIMEOUT_MS }).toBe(1);
    await primary.get("discard");

    const { epoch } = await primary.get<CheckpointAnswer>("checkpoint", "--prepare", "--await-vmstate");
    const state = randomBytes(MIB);
    await pipeline(Readable.from([state]), connect(path));
    await primary.until("prepared", (status) => status.epoch.prepared.includes(epoch));
    await primary.get("commit", String(epoch));
    expect((await storedAt(secondary, root)).equals(state)).toBe(true);
  });

  it("tells of a state whose file was damaged, and leaves nothing of it", async () => {
    const pair = await AgentPair.protected();
    const { primary, secondary, root } = pair;
    const request = { prepare: false, timeoutMs: TIMEOUT_MS };
    writeFileSync(join(root, "vm.state"), randomBytes(MIB));
    const content = createReadStream(join(root, "vm.state"));
    const { epoch } = await primary.control.checkpointWithVmState(request, content);
    const file = join(root, "b", "state", "vmstate", `${epoch}.state`);
    expect((await runColobus("inspect", file)).stdout).toMatch(/checkpoint \d+: 1 MiB in 4 chunks, sound/);
    const bytes = readFileSync(file);
    bytes.writeUInt8(bytes.readUInt8(700_000) ^ 1, 700_000);
    writeFileSync(file, bytes);
    expect((await runColobus("inspect", file)).stdout).toMatch(/in 2 chunks, \d+ bytes at its end are not sound/);
    const output = join(root, "damaged");
    expect(await secondary.ask<ErrorDocument>("vmstate", "--output", output)).toMatchObject({
      code: 1,
      json: { error: { code: "state-corrupt" } },
    });
    expect(existsSync(output)).toBe(false);
  });
});
