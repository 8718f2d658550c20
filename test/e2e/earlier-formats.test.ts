/**
 * State directories and images as each release has left them in the middle of its work, in test/fixtures: this one opens them,
 * and has what they held. With UPDATE=1 those of this release are put there, unless there are some already: what is there is
 * never changed, since it was released.
 */
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";
import { z } from "zod";
import { renderStatus } from "../../cli/render-status.ts";
import { type BitmapStatus } from "../../proto/control-api.ts";
import { eventSchema, jobSchema, statusSchema, type Status } from "../../proto/status.ts";
import * as versions from "../../proto/versions.ts";
import type { AgentUnderTest } from "../support/agent-pair.ts";
import { MIB } from "../support/agent-pair.ts";
import { askColobus } from "../support/cli-runner.ts";
import { qemuIo, readDisk } from "../support/nbd-tools.ts";
import { canMakeNamespaces } from "../support/network-namespaces.ts";
import { requirePeers } from "../support/peers.ts";
import { pathHere, RecordedPair, type RecordedPairOptions } from "../support/recorded-pair.ts";
import { scratchDirectory } from "../support/scratch.ts";

const FIXTURES = fileURLToPath(new URL("../fixtures", import.meta.url));
const VM_STATE = Buffer.from("memory and devices ".repeat(1000));

/** SHA-256 of what an export shows, by a name. */
type Digests = Readonly<Record<string, string>>;

interface Scene {
  readonly options: RecordedPairOptions;
  /** Leaves a pair as it is to be found; tells what it held. */
  readonly make: (pair: RecordedPair) => Promise<Digests>;
}

const SCENES = {
  /** Generations: one retained, one committed with a VM state and an active disk, one prepared, one open. Bitmaps, copies. */
  colo: {
    options: {
      disks: { vda: 16 * MIB, vdb: 8 * MIB },
      primaryFlags: ["--child", `vda:copy=${pathHere("a/copy.img")}`],
      secondaryFlags: ["--retain", "1", "--secondary-export", "read-write"],
    },
    make: async (pair) => {
      const { primary, secondary } = pair;
      writeFileSync(join(pair.root, "a/copy.img"), Buffer.alloc(16 * MIB));
      await start(pair);
      await qemuIo(primary.uri(), "write -P 1 0 1M", "write -P 2 5M 100k", "flush");
      await qemuIo(primary.uri("vdb"), "write -P 3 1M 1M", "flush");
      await primary.get("bitmap", "add", "vda", "daily");
      const retained = await checkpoint(primary);
      const digests: Record<string, string> = { ...(await exportsOf(primary, "retained")) };
      await qemuIo(primary.uri(), "write -P 4 512k 64k", "write -z 0 64k", "discard 5M 64k", "flush");
      const state = join(scratchDirectory(), "vm.state");
      writeFileSync(state, VM_STATE);
      const committed = await checkpoint(primary, "--vmstate", state);
      Object.assign(digests, await exportsOf(primary, "committed"));
      await qemuIo(secondary.uri(), "write -P 5 3M 5k", "flush");
      digests["view of vda"] = digestOf(await readDisk(secondary.uri()));
      await qemuIo(primary.uri(), "write -P 6 256k 1M", "flush");
      const prepared = await checkpoint(primary, "--prepare");
      await qemuIo(primary.uri("vdb"), "write -P 7 0 2M", "flush");
      await primary.untilDrained();
      Object.assign(digests, await exportsOf(primary, "newest"), { epochs: [retained, committed, prepared].join(" ") });
      return digests;
    },
  },
  /** Logs of a block buffer: of a retained epoch, the committed one, and the open one. */
  mc: {
    options: { disks: { vda: 16 * MIB }, flags: ["--mode", "mc"], secondaryFlags: ["--retain", "1"] },
    make: async (pair) => {
      const { primary } = pair;
      await start(pair);
      await qemuIo(primary.uri(), "write -P 1 0 1M", "flush");
      const retained = await checkpoint(primary);
      const digests: Record<string, string> = { ...(await exportsOf(primary, "retained")) };
      await qemuIo(primary.uri(), "write -P 2 512k 1M", "write -z 64k 64k", "discard 128k 64k", "flush");
      const committed = await checkpoint(primary);
      Object.assign(digests, await exportsOf(primary, "committed"));
      await qemuIo(primary.uri(), "write -P 3 8M 5k", "flush");
      await primary.untilDrained();
      return { ...digests, ...(await exportsOf(primary, "newest")), epochs: `${retained} ${committed}` };
    },
  },
  /** A promoted side in the middle of its merge. */
  merging: {
    options: { disks: { vda: 24 * MIB }, secondaryFlags: ["--resync-speed", "8MiB"] },
    make: async (pair) => {
      const { primary, secondary } = pair;
      await start(pair);
      await qemuIo(primary.uri(), "write -P 1 0 16M", "flush");
      const committed = await checkpoint(primary);
      const digests = await exportsOf(primary, "committed");
      await qemuIo(primary.uri(), "write -P 2 4M 16M", "flush");
      await primary.untilDrained();
      await primary.crash();
      await secondary.until("alone", ({ peers }) => peers[0]?.connection !== "Connected");
      await secondary.get("failover");
      await secondary.until("merging", ({ jobs: [merge] }) => (merge?.progress.doneBytes ?? 0) > 0);
      await secondary.crash();
      // Nothing that is told of the former primary.
      rmSync(join(pair.root, "a"), { recursive: true });
      return { ...digests, epochs: String(committed) };
    },
  },
  /** A mark, and the originals of a shared disk. */
  shared: {
    options: {
      disks: { vda: 16 * MIB },
      flags: ["--mode", "shared", "--shared-mark", pathHere("a/mark")],
      isShared: true,
    },
    make: async (pair) => {
      mkdirSync(join(pair.root, "b"));
      await start(pair);
      const { primary } = pair;
      await qemuIo(primary.uri(), "write -P 1 0 1M", "flush");
      const committed = await checkpoint(primary);
      const digests = await exportsOf(primary, "committed");
      await qemuIo(primary.uri(), "write -P 2 512k 1M", "flush");
      return { ...digests, epochs: String(committed) };
    },
  },
} satisfies Record<string, Scene>;
type SceneName = keyof typeof SCENES;

interface Manifest {
  readonly versions: Record<string, string | number>;
  readonly scenes: Record<SceneName, Digests>;
  /** What the control API has answered on each side of the scene `colo`. */
  readonly answers: readonly { readonly status: unknown; readonly jobs: unknown; readonly events: unknown }[];
}

async function start({ primary, secondary }: RecordedPair): Promise<void> {
  await Promise.all([primary.start(), secondary.start()]);
  await primary.until("protected", ({ protection }) => protection.state === "Protected");
}

async function checkpoint(agent: AgentUnderTest, ...flags: string[]): Promise<number> {
  return (await agent.get<{ epoch: number }>("checkpoint", ...flags)).epoch;
}

async function exportsOf(agent: AgentUnderTest, name: string, suffix = ""): Promise<Digests> {
  const { disks } = await agent.status();
  const digests = disks.map(async (disk) => [
    `${name} ${disk.name}`,
    digestOf(await readDisk(agent.uri(disk.name + suffix))),
  ]);
  return Object.fromEntries(await Promise.all(digests)) as Digests;
}

function digestOf(content: Buffer): string {
  return createHash("sha256").update(content).digest("hex");
}

function digestsNamed(digests: Digests, name: string): Digests {
  return Object.fromEntries(Object.entries(digests).filter(([key]) => key.startsWith(`${name} `)));
}

async function record(directory: string): Promise<void> {
  mkdirSync(directory, { recursive: true });
  const scenes: Record<string, Digests> = {};
  let answers: Manifest["answers"] = [];
  for (const [name, { options, make }] of Object.entries<Scene>(SCENES)) {
    const pair = RecordedPair.create(options);
    scenes[name] = await make(pair);
    if (name === "colo") {
      const asked = [pair.primary, pair.secondary].map(async (agent) => ({
        status: await agent.get("status"),
        jobs: await agent.get("jobs"),
        events: await agent.control.events(0),
      }));
      answers = await Promise.all(asked);
    }
    await pair.crash();
    await pair.pack(join(directory, `${name}.tar.gz`));
  }
  const manifest = { versions, scenes, answers };
  writeFileSync(join(directory, "manifest.json"), `${JSON.stringify(manifest, null, 1)}\n`);
}

function readManifest(release: string): Manifest {
  return JSON.parse(readFileSync(join(FIXTURES, release, "manifest.json"), "utf8")) as Manifest;
}

const RELEASES = existsSync(FIXTURES) ? readdirSync(FIXTURES) : [];

describe.runIf(requirePeers("qemu-io", "nbdcopy", "ip", "tar") && canMakeNamespaces())(
  "what a release has left",
  () => {
    it("is put by for later ones, of every version of a format", async () => {
      const directory = join(FIXTURES, versions.AGENT_VERSION);
      if (process.env["UPDATE"] === "1" && !existsSync(directory)) await record(directory);
      // Another one has to be put by under another AGENT_VERSION, with UPDATE=1.
      expect(readManifest(versions.AGENT_VERSION).versions).toEqual({ ...versions });
    });

    describe.each(RELEASES)("%s", (release) => {
      const { scenes, answers } = readManifest(release);
      const unpack = (name: SceneName): Promise<RecordedPair> =>
        RecordedPair.unpack(SCENES[name].options, join(FIXTURES, release, `${name}.tar.gz`));

      it.each(Object.keys(SCENES) as SceneName[])("is shown by inspect, file for file: %s", async (name) => {
        const { root } = await unpack(name);
        const files = (readdirSync(root, { recursive: true }) as string[]).filter((path) =>
          /\/state$|\.(?:journal|log|state)$|\/mark$/.test(path),
        );
        const kinds = new Set<string>();
        for (const path of files) {
          if (/^[ab]\/state$/.test(path)) continue; // the directory of that name
          const { code, json } = await askColobus<{ kind: string; journal?: string }>("inspect", join(root, path));
          expect({ path, code }).toEqual({ path, code: 0 });
          kinds.add(json.journal ?? json.kind);
        }
        expect([...kinds].sort()).toEqual(
          {
            colo: ["active", "dirty", "generation", "state", "vmstate"],
            mc: ["buffer-log", "dirty", "state"],
            merging: ["dirty", "generation", "merge", "state"],
            shared: ["generation", "mark", "state"],
          }[name],
        );
      });

      it.each(["colo", "mc"] as const)(
        "is taken over from, and its checkpoints are what they were: %s",
        async (name) => {
          const digests = scenes[name];
          const [retained = 0, committed, ...prepared] = (digests["epochs"] ?? "").split(" ").map(Number);
          const { secondary } = await unpack(name);
          await secondary.start();
          const status = await secondary.status();
          expect(status.epoch).toMatchObject({ committed, prepared, retained: [retained] });
          expect(await exportsOf(secondary, "retained", `@${retained}`)).toEqual(digestsNamed(digests, "retained"));
          if (name === "colo") {
            expect(digestOf(await readDisk(secondary.uri()))).toBe(digests["view of vda"]);
            const state = join(scratchDirectory(), "vm.state");
            await secondary.get("vmstate", "--output", state);
            expect(readFileSync(state).equals(VM_STATE)).toBe(true);
          }
          await secondary.get("failover");
          expect(await exportsOf(secondary, "committed")).toEqual(digestsNamed(digests, "committed"));
          await secondary.get("wait", "merged");
          expect(await exportsOf(secondary, "committed")).toEqual(digestsNamed(digests, "committed"));
        },
      );

      it.each(["colo", "mc"] as const)("goes on as a pair, which sends what it lacks: %s", async (name) => {
        const pair = await unpack(name);
        await start(pair);
        await pair.untilProtected();
        const newest = digestsNamed(scenes[name], "newest");
        expect(await exportsOf(pair.primary, "newest")).toEqual(newest);
        await checkpoint(pair.primary);
        expect(await exportsOf(pair.secondary, "newest")).toEqual(newest);
        const { jobs, disks } = await pair.primary.status();
        expect(jobs.map(({ type }) => type)).not.toContain("full-sync");
        if (name !== "colo") return;
        expect(disks[0]?.children.map(({ name: child, state }) => [child, state])).toEqual([
          ["local", "sound"],
          ["copy", "sound"],
        ]);
        const [daily] = await pair.primary.get<BitmapStatus[]>("bitmap", "list");
        expect(daily).toMatchObject({ name: "daily", fault: null });
        expect(daily?.dirtyBytes).toBeGreaterThanOrEqual(64 * 1024);
      });

      it("is promoted already, and its merge is brought to an end", async () => {
        const { secondary } = await unpack("merging");
        await secondary.start();
        expect((await secondary.status()).role).toBe("Primary");
        const committed = digestsNamed(scenes.merging, "committed");
        expect(await exportsOf(secondary, "committed")).toEqual(committed);
        await secondary.get("wait", "merged");
        expect(await exportsOf(secondary, "committed")).toEqual(committed);
      });

      it("is taken over from, where the disk is shared", async () => {
        const { secondary } = await unpack("shared");
        await secondary.start();
        await secondary.get("failover", "--fenced");
        const committed = digestsNamed(scenes.shared, "committed");
        expect(await exportsOf(secondary, "committed")).toEqual(committed);
        await secondary.get("wait", "merged");
        expect(await exportsOf(secondary, "committed")).toEqual(committed);
      });

      it("has answered what a command of this release understands", () => {
        for (const { status, jobs, events } of answers) {
          statusSchema.parse(status);
          z.array(jobSchema).parse(jobs);
          expect(z.array(eventSchema).parse(events)).not.toEqual([]);
          expect(renderStatus(status as Status, (_style, text) => text)).toContain("test");
        }
      });
    });
  },
);
