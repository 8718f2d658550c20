import { describe, expect, it } from "vitest";
import type { Durability } from "../../proto/words.ts";
import type { PairMember } from "./pair.ts";
import { ScriptedPair } from "./scripted-pair.ts";

/**
 * The roles of a pair that shares its disks are swapped, and either side dies at storage calls all along the way.
 * Started again, one of the two comes to be the primary and the other its secondary, by themselves, and the disks hold
 * what the guest had written.
 */
const WITHIN_MS = 120_000;
/** What a switchover takes at least, on either side. */
const CALLS_MIN = 24;
/** A pair that dies at each call takes its time: it does at every so many. */
const STRIDE = 8;
const RETRY_MS = 500;
const COMMAND = { closeClients: true, timeoutMs: WITHIN_MS } as const;

/** Whether the agent was protected at its last change of that. To ask for its status would be a storage call, and it may die. */
function isProtected({ agent }: PairMember): boolean {
  const last = agent?.events(0).findLast(({ type }) => type === "protection-changed");
  return last?.data.state === "Protected";
}

function isPair(one: PairMember, other: PairMember): boolean {
  return one.agent?.role === "Primary" && other.agent?.role === "Secondary" && isProtected(one) && isProtected(other);
}

/** What both disks hold for the guests of a side. */
async function contentOf(scripted: ScriptedPair, member: PairMember): Promise<Buffer[]> {
  return scripted.do(`reads on ${member.name}`, async () => {
    const contents: Buffer[] = [];
    for (const disk of scripted.disks) {
      const content = Buffer.alloc(disk.sizeBytes);
      await member.device(disk)?.read(content, 0);
      contents.push(content);
    }
    return contents;
  });
}

/** Starts the agent again and again: the peer may still merge. */
async function startUntilWelcome(scripted: ScriptedPair, member: PairMember): Promise<void> {
  for (;;) {
    member.host.restart();
    if (await scripted.do("a start", () => member.start(["image-busy"]))) return;
    await scripted.world.run({ forMs: RETRY_MS });
  }
}

/** False when the roles were swapped before the side's `dyingCall`-th storage call. */
async function dieAt(side: "primary" | "secondary", dyingCall: number, durability: Durability): Promise<boolean> {
  const scripted = new ScriptedPair(dyingCall, durability, { mode: "shared", isMarked: true });
  const { world, pair } = scripted;
  await scripted.start();
  await scripted.do("writes", async () => {
    for (const index of scripted.disks.keys()) await scripted.guestWrite(index, 4096, 3 * 4096, "bytes", { fua: true });
  });
  const written = await contentOf(scripted, pair.primary);
  const { host } = pair[side];
  host.disk.faults.crashAt(dyingCall, durability);
  world.schedule(0, () => {
    pair.primary.agent?.switchover(COMMAND, new AbortController().signal).catch(() => undefined); // it may die on the way
  });
  const isSettled = (): boolean => isPair(pair.primary, pair.secondary) || isPair(pair.secondary, pair.primary);
  const isSwapped = (): boolean => isPair(pair.secondary, pair.primary);
  await world.run({ until: () => !host.alive || isSwapped(), forMs: WITHIN_MS });
  const hasDied = !host.alive;
  host.disk.faults.clear();
  if (hasDied) await startUntilWelcome(scripted, pair[side]);
  await world.run({ until: isSettled, forMs: WITHIN_MS });
  expect(isSettled()).toBe(true);
  const now = isSwapped() ? pair.secondary : pair.primary;
  expect(await contentOf(scripted, now)).toEqual(written);
  return hasDied;
}

describe.each<"primary" | "secondary">(["primary", "secondary"])(
  "a switchover of shared disks: the %s dies",
  (side) => {
    it.each<Durability>(["process", "power"])("all along the way: %s", async (durability) => {
      let call = durability === "power" ? 1 : 1 + STRIDE / 2;
      while (await dieAt(side, call, durability)) call += STRIDE;
      expect(call).toBeGreaterThan(CALLS_MIN);
    });
  },
);
