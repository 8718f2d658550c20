/**
 * The link is lost at every message of the replication protocol: before it, right after it, and after it was held back
 * for a while; or the message alone is lost, which the pair has to notice. Each time the two must find together by
 * themselves, with nothing lost that was acknowledged, and the secondary must show a checkpoint that it may have, byte for
 * byte, all the while.
 */
import { describe, expect, it } from "vitest";
import { CONTENT_MAX_BYTES } from "../../proto/limits.ts";
import type { MessageType } from "../../proto/replication-messages.ts";
import { MIB, type AgentUnderTest } from "../support/agent-pair.ts";
import type { ErrorDocument } from "../support/cli-runner.ts";
import { FaultedPair, TIMEOUT_MS, type FaultedOptions, type Side } from "../support/faulted-pair.ts";
import type { FaultAct } from "../support/message-proxy.ts";
import { expectSame } from "../support/nbd-tools.ts";
import { requirePeers } from "../support/peers.ts";

const SIZE = 8 * MIB;
const ACTS = ["cut-before", "cut-after", "hold", "drop"] as const satisfies readonly FaultAct[];
type Act = (typeof ACTS)[number];
/** In CI each message has one of the acts, in turns. */
const ACTS_IN_CI: readonly (readonly Act[])[] = ACTS.map((act) => [act]);

const PLAIN: FaultedOptions = { flags: ["--peer-timeout", "2s"], primaryFlags: ["--assume-in-sync"] };
/** Of a secondary whose overlays are soon full. */
const TIGHT: FaultedOptions = { ...PLAIN, secondaryFlags: ["--overlay-limit", "2MiB"] };

/** Of a primary whose image fails on demand. */
const SERVED: FaultedOptions = { ...PLAIN, servesImage: true };

/** Cases that share a pair. */
const GROUPS = {
  "at the beginning of a session": PLAIN,
  "in the stream": PLAIN,
  "around a checkpoint": PLAIN,
  "as an agent stops, or roles change": PLAIN,
  "when overlays are full": TIGHT,
  "when the primary's image cannot be read": SERVED,
} as const satisfies Record<string, FaultedOptions>;
type Group = keyof typeof GROUPS;

/** What whoever gave the order, or the guest, is told: it was done, or the code of the error. */
type Outcome = "done" | "outcome-unknown" | "no-peer" | "EIO";

interface Case {
  readonly group: Group;
  readonly from: Side;
  /** What the message is about, where its type has several uses. */
  readonly about?: string;
  /** The how many-th message of its type that `provoke` has the side send. */
  readonly nth?: number;
  /** Brings the pair to where `provoke` can do its part. */
  readonly prepare?: (pair: FaultedPair) => Promise<unknown>;
  /** Has the side send the message. */
  readonly provoke: (pair: FaultedPair) => unknown;
  /** Default: done. */
  readonly outcome?: (act: Act) => Outcome;
  /** Nothing follows before it has come: that it is lost is noticed by the time that passes. */
  readonly isAwaited?: true;
  /** The guest cannot write, or must not: the agents take a checkpoint by themselves. */
  readonly isQuiet?: true;
  /** What an operator does now, and what must have become of the order. */
  readonly afterwards?: (pair: FaultedPair, act: Act) => Promise<unknown>;
}

const ofHandshake = (from: Side, about = "", nth = 1): Case => ({
  group: "at the beginning of a session",
  from,
  about,
  nth,
  provoke: (pair) => pair.proxy.cut(),
});

const ofStream = (from: Side, provoke: Case["provoke"]): Case => ({ group: "in the stream", from, provoke });

/** The job goes on by itself in the next session; it is not waited for. */
const ofVerify = (from: Side, about = ""): Case => ({
  group: "in the stream",
  from,
  about,
  provoke: (pair) => pair.primary.control.verify({ repair: false, speed: 0, wait: false, timeoutMs: TIMEOUT_MS }),
  afterwards: async (pair) => {
    const job = (await pair.primary.control.jobs()).findLast(({ type }) => type === "verify");
    expect(job?.verify).toMatchObject({ ranges: 0, differingBytes: 0 });
    if (job !== undefined && job.state !== "concluded") await pair.primary.control.job(job.id, "cancel");
  },
});

const unknown = (): Outcome => "outcome-unknown";
const knownIfArrived = (act: Act): Outcome => (act === "cut-after" ? "done" : "outcome-unknown");

/** `isDone` says whether the secondary has done what was asked, which the two agree on afterwards. */
const ofOrder = (
  order: keyof typeof ORDERS,
  isDone: (act: Act) => boolean | undefined,
  fields: Pick<Case, "from" | "about" | "nth" | "outcome">,
): Case => ({
  group: "around a checkpoint",
  ...(ORDERS[order].isOfPrepared ? { prepare: (pair) => pair.checkpoint({ prepare: true }) } : {}),
  provoke: ORDERS[order].give,
  afterwards: async (pair, act) => {
    await pair.untilProtected();
    await ORDERS[order].check(pair, isDone(act));
  },
  ...fields,
});

const ifArrived = (act: Act): boolean => act === "cut-after";
const inAnyCase = (): boolean => true;
const never = (): boolean => false;
/** Either is right, as long as the two agree. */
const perhaps = (): undefined => undefined;

interface Order {
  /** A checkpoint is prepared before. */
  readonly isOfPrepared: boolean;
  readonly give: (pair: FaultedPair) => Promise<unknown>;
  /** What has become of it, and that it can be given again. */
  readonly check: (pair: FaultedPair, isDone: boolean | undefined) => Promise<void>;
}

const ORDERS = {
  prepare: {
    isOfPrepared: false,
    give: (pair) => pair.checkpoint({ prepare: true }),
    check: async (pair, isPrepared) => {
      expect(await preparedOf(pair)).toEqual(isPrepared ? [pair.asked] : []);
      if (isPrepared) await pair.commit(pair.asked);
      else await expectUnknown(pair);
    },
  },
  checkpoint: {
    isOfPrepared: false,
    give: (pair) => pair.checkpoint(),
    check: async (pair, isCommitted) => {
      expect(await preparedOf(pair)).toEqual([]);
      await expectCommitted(pair, isCommitted);
      if (isCommitted) await pair.commit(pair.asked);
      else await expectUnknown(pair);
    },
  },
  vmstate: {
    isOfPrepared: false,
    give: (pair) => pair.prepareWithVmState(),
    check: async (pair, isPrepared) => {
      const prepared = await preparedOf(pair);
      expect((await pair.secondary.status()).epoch.prepared).toEqual(prepared);
      if (isPrepared !== undefined) expect(prepared).toEqual(isPrepared ? [pair.asked] : []);
      if (prepared.length === 0) return expectUnknown(pair);
      await pair.commit(pair.asked);
      expect((await pair.secondary.status()).vmstate).toMatchObject({ epoch: pair.asked });
    },
  },
  commit: {
    isOfPrepared: true,
    give: (pair) => pair.commit(pair.asked),
    check: async (pair, isCommitted) => {
      await expectCommitted(pair, isCommitted);
      await pair.commit(pair.asked); // of a committed one it succeeds again
    },
  },
  discard: {
    isOfPrepared: true,
    give: (pair) => discard(pair),
    check: async (pair, isDiscarded) => {
      expect(await preparedOf(pair)).toEqual(isDiscarded ? [] : [pair.asked]);
      expect(await discard(pair)).toEqual({ discarded: isDiscarded ? [] : [pair.asked] });
    },
  },
} as const satisfies Record<string, Order>;

/** Resizes to as much more than was asked for last; `asked` is the size. */
async function grow(pair: FaultedPair, byBytes: number): Promise<unknown> {
  const [sizeBytes] = await sizesOf(pair);
  pair.asked = byBytes === 0 ? pair.asked : (sizeBytes ?? 0) + byBytes;
  return pair.primary.control.resize({
    disk: "vda",
    sizeBytes: pair.asked,
    closeClients: false,
    timeoutMs: TIMEOUT_MS,
  });
}

const sizesOf = async (pair: FaultedPair): Promise<(number | null | undefined)[]> =>
  Promise.all([pair.primary, pair.secondary].map(async (agent) => (await agent.status()).disks[0]?.sizeBytes));

const expectUnknown = (pair: FaultedPair): Promise<void> =>
  expect(pair.commit(pair.asked)).rejects.toMatchObject({ code: "epoch-unknown" });

async function expectCommitted(pair: FaultedPair, isCommitted: boolean | undefined): Promise<void> {
  for (const side of [pair.primary, pair.secondary]) {
    expect((await side.status()).epoch.committed === pair.asked).toBe(isCommitted);
  }
}

const discard = (pair: FaultedPair): Promise<unknown> => pair.primary.control.discard({ timeoutMs: TIMEOUT_MS });
const preparedOf = async (pair: FaultedPair): Promise<number[]> => (await pair.primary.status()).epoch.prepared;

const ofRoles = (fields: Omit<Case, "group" | "isQuiet">): Case => ({
  group: "as an agent stops, or roles change",
  isQuiet: true,
  ...fields,
});

/** An agent says so when it is stopped. What becomes of that does not keep it from stopping. */
const ofStop = (side: Side): Case =>
  ofRoles({
    from: side,
    provoke: async (pair) => {
      if (side === "primary") pair.disconnectGuest();
      expect((await pair[side].stop()).code).toBe(0);
      if (side === "secondary") await pair.write();
    },
    afterwards: (pair) => pair[side].start(),
  });

const ofOverlays = (fields: Omit<Case, "group" | "from">): Case => ({
  group: "when overlays are full",
  from: "secondary",
  ...fields,
});

/** Overlays that a commit makes room in. */
async function fillUp(pair: FaultedPair): Promise<void> {
  await pair.fill(0, MIB, 0x77);
  await pair.primary.untilDrained();
  await pair.checkpoint({ prepare: true });
  await pair.fill(0, 1.25 * MIB, 0x78);
  await pair.primary.until("paused", ({ protection }) => protection.reason === "overlay-full");
}

/** A guest's read has what was written from the secondary, or, where any of that is lost with the link, an error. */
const ofReads = (from: Side, length: number, outcome: (act: Act) => Outcome): Case => ({
  group: "when the primary's image cannot be read",
  from,
  about: `for ${length} bytes`,
  prepare: (pair) => Promise.resolve(pair.failReads()),
  provoke: (pair) => pair.read(length),
  outcome,
  afterwards: (pair) => Promise.resolve(pair.failReads(false)),
});

const giveUp = (pair: FaultedPair): Promise<unknown> =>
  pair.secondary.control.resync({ giveUpCheckpoint: true, timeoutMs: TIMEOUT_MS });

const CASES: Readonly<Record<MessageType, readonly Case[]>> = {
  // Who is dialled says no more than its greeting before the proof of who has dialled, and that one waits for the greeting.
  "greeting": [ofHandshake("primary"), { ...ofHandshake("secondary"), isAwaited: true }],
  "proof": [{ ...ofHandshake("primary"), isAwaited: true }, ofHandshake("secondary")],
  "hello": [ofHandshake("primary"), ofHandshake("secondary")],
  "seal": [ofHandshake("primary"), ofHandshake("secondary")],
  "begin": [ofHandshake("primary")],
  "ready": [ofHandshake("secondary")],
  "united": [ofHandshake("primary")],
  "sync": [ofHandshake("primary", "its begin"), ofHandshake("primary", "its end", 2)],
  "data": [ofStream("primary", (pair) => pair.write())],
  "ack": [ofStream("secondary", (pair) => pair.write())],
  "ping": [ofStream("primary", () => undefined), ofStream("secondary", () => undefined)],
  // Only a primary of several secondaries sends these: the trio's lives in the simulator lose them.
  "lineage": [],
  "told": [],
  "read": [ofReads("primary", CONTENT_MAX_BYTES, () => "EIO")],
  "content": [
    ofReads("secondary", CONTENT_MAX_BYTES, (act) => (act === "cut-after" ? "done" : "EIO")),
    ofReads("secondary", SIZE, () => "EIO"),
  ],
  "barrier": [
    ofOrder("prepare", ifArrived, { from: "primary", about: "that prepares", outcome: unknown }),
    ofOrder("checkpoint", ifArrived, { from: "primary", about: "that commits", outcome: unknown }),
  ],
  "vmstate": [ofOrder("vmstate", never, { from: "primary", outcome: unknown })],
  "vmstate-end": [ofOrder("vmstate", ifArrived, { from: "primary", outcome: unknown })],
  "vmstate-ack": [ofOrder("vmstate", perhaps, { from: "secondary", outcome: unknown })],
  "commit": [ofOrder("commit", ifArrived, { from: "primary", outcome: unknown })],
  "discard": [ofOrder("discard", ifArrived, { from: "primary", outcome: unknown })],
  "answer": [
    ofOrder("prepare", inAnyCase, { from: "secondary", about: "to a barrier", outcome: knownIfArrived }),
    ofOrder("checkpoint", inAnyCase, { from: "secondary", about: "to one that commits", outcome: knownIfArrived }),
    ofOrder("commit", inAnyCase, { from: "secondary", about: "to a commit", outcome: knownIfArrived }),
    ofOrder("discard", inAnyCase, { from: "secondary", about: "to a discard", outcome: knownIfArrived }),
    ofVerify("secondary", "to a checksum"),
  ],
  "resize": [
    {
      ...ofStream("primary", (pair) => grow(pair, 64 * 1024)),
      outcome: unknown,
      // Whether the secondary has grown or not, it is taken; and it grows when it is asked again.
      afterwards: async (pair) => {
        await pair.untilProtected();
        await grow(pair, 0);
        expect(await sizesOf(pair)).toEqual([pair.asked, pair.asked]);
      },
    },
  ],
  "verify": [ofVerify("primary")],
  "checksum": [ofVerify("primary")],
  "takeover": [
    ofRoles({
      from: "primary",
      provoke: (pair) => pair.switchOver(),
      outcome: (act) => (act === "cut-after" ? "done" : "no-peer"),
    }),
  ],
  "differs": [
    ofRoles({ from: "secondary", prepare: (pair) => pair.outdatePrimary(), provoke: (pair) => pair.rejoin() }),
  ],
  "refuse": [
    ofStop("primary"),
    ofStop("secondary"),
    // The promotion ends the session; that is all of an answer that a takeover gets.
    ofRoles({ from: "secondary", about: "as it takes over", provoke: (pair) => pair.switchOver() }),
  ],
  "wanted": [ofOverlays({ provoke: (pair) => pair.fill(0, 1.75 * MIB, 0x76) })],
  "stall": [ofOverlays({ provoke: fillUp, afterwards: (pair) => pair.commit(pair.asked) })],
  "unstall": [ofOverlays({ prepare: fillUp, provoke: (pair) => pair.commit(pair.asked), outcome: unknown })],
  "given-up": [ofOverlays({ prepare: fillUp, provoke: giveUp, isQuiet: true })],
};

describe("the link, or one message, is lost", () => {
  const groups = Object.keys(GROUPS) as Group[];
  const found = requirePeers("nbdkit") ? groups : groups.filter((group) => GROUPS[group] !== SERVED);
  it.each(found)("at every message %s, and the pair finds together again", async (group) => {
    const pair = await FaultedPair.start(Buffer.alloc(SIZE, 0x11), GROUPS[group]);
    let turn = 0;
    for (const [type, cases] of Object.entries(CASES) as [MessageType, readonly Case[]][]) {
      for (const one of cases.filter((candidate) => candidate.group === group)) {
        const acts = process.env.CI === "true" ? (ACTS_IN_CI[turn % ACTS_IN_CI.length] ?? ACTS) : ACTS;
        turn += 1;
        for (const act of acts) {
          const name = `${act}: "${type}" of the ${one.from} ${one.about ?? ""}`;
          await loseLink(pair, type, act, one).catch((error: unknown) => {
            throw new Error(`${name}: ${error instanceof Error ? error.message : String(error)}`, { cause: error });
          });
          // Overlays that are full again soon are left alone for longer each time, until the agent is started anew.
          if (group !== "when overlays are full") continue;
          await pair.secondary.stop();
          await pair.secondary.start();
          await pair.pair.untilProtected();
        }
      }
    }
  });
});

describe("a session", () => {
  it("ends where a message is missing in the stream, and nothing behind that is applied", async () => {
    const pair = await FaultedPair.start(Buffer.alloc(SIZE, 0x11), PLAIN);
    const before = pair.pair.image("b");
    const missing = pair.arm({ type: "data", from: "primary", act: "drop" });
    await pair.write(1);
    await soon(missing.reached, "the message");
    const next = pair.arm({ type: "hello", from: "primary", act: "hold" });
    await pair.write();
    await soon(next.reached, "the next session");
    for (const agent of [pair.primary, pair.secondary]) {
      const { peers, protection } = await agent.until(
        "alone",
        (status) => status.peers[0]?.connection === "Connecting",
      );
      expect(peers[0]?.lastError).toMatchObject({ code: "protocol-error" });
      expect(peers[0]?.lastError?.message).toMatch(/message \d+ of the peer came where \d+ was expected/);
      expect(protection).toMatchObject({ state: "NotProtected", reason: "connecting" });
    }
    expectSame(pair.pair.image("b"), before);
    next.release();
    await pair.expectHealed();
  });

  it("is not called healthy by a secondary that has not heard yet what it lacks", async () => {
    const pair = await FaultedPair.start(Buffer.alloc(SIZE, 0x11), PLAIN);
    const begin = pair.arm({ type: "sync", from: "primary", act: "hold" });
    pair.proxy.cut();
    await pair.write();
    await soon(begin.reached, "the message");
    expect(await pair.secondary.status()).toMatchObject({
      protection: { state: "NotProtected", reason: "resync" },
      peers: [{ connection: "Connected", replication: "SyncTarget" }],
      disks: [{ state: "Consistent" }],
    });
    begin.release();
    await pair.expectHealed();
  });

  it("that is lost under an order leaves the command line with exit code 4, and status says what became of it", async () => {
    const pair = await FaultedPair.start(Buffer.alloc(SIZE, 0x11), PLAIN);
    const { primary, secondary } = pair;
    const lose = async (type: MessageType, from: Side, act: Act, ...order: string[]): Promise<number> => {
      const { epoch } = await primary.status();
      const { connections } = pair.proxy;
      pair.arm({ type, from, act });
      const lost = await primary.ask<ErrorDocument>(...order);
      expect(lost).toMatchObject({ code: 4, json: { error: { code: "outcome-unknown" } } });
      await soon(pair.proxy.untilConnected(connections), "a new connection");
      await pair.untilProtected();
      return epoch.open;
    };
    const never = await lose("barrier", "primary", "cut-before", "checkpoint");
    expect(await primary.ask<ErrorDocument>("commit", String(never))).toMatchObject({
      code: 1,
      json: { error: { code: "epoch-unknown" } },
    });
    const prepared = await lose("barrier", "primary", "cut-after", "checkpoint", "--prepare");
    await lose("commit", "primary", "cut-before", "commit", String(prepared));
    for (const side of [primary, secondary]) expect((await side.status()).epoch.prepared).toEqual([prepared]);
    await lose("discard", "primary", "cut-after", "discard");
    for (const side of [primary, secondary]) expect((await side.status()).epoch.prepared).toEqual([]);
    const committed = await lose("barrier", "primary", "cut-after", "checkpoint");
    for (const side of [primary, secondary]) expect((await side.status()).epoch.committed).toBe(committed);
    expect(await primary.get("commit", String(committed))).toMatchObject({ epoch: committed, state: "committed" });
    await pair.expectHealed();
  });
});

async function loseLink(pair: FaultedPair, type: MessageType, act: Act, one: Case): Promise<void> {
  await one.prepare?.(pair);
  const { connections } = pair.proxy;
  const told = await Promise.all(agentsOf(pair).map(async ({ control }) => (await control.events(0)).at(-1)?.sequence));
  const fault = pair.arm({ type, from: one.from, act, nth: one.nth ?? 1 });
  const outcome = Promise.resolve(one.provoke(pair)).then(
    () => "done",
    (error: unknown) => (error as { code?: unknown }).code ?? error,
  );
  await soon(reachedBefore(fault.reached, outcome), "the message");
  // The beginning of a session is provoked by one that is lost before.
  const before = one.group === "at the beginning of a session" ? connections + 1 : connections;
  if (act === "hold") {
    if (one.isQuiet !== true) await pair.write();
    fault.cut();
  }
  expect(await soon(outcome, "the outcome")).toEqual(one.outcome?.(act) ?? "done");
  if (one.isQuiet !== true) {
    await pair.expectLegalView();
    await pair.write();
  }
  // The side that dials again has noticed the loss, so what the two say from there on is about a new session.
  const connected = soon(pair.proxy.untilConnected(before), "a new connection");
  if (one.group !== "as an agent stops, or roles change") await connected;
  await one.afterwards?.(pair, act);
  await connected;
  await pair.expectHealed();
  // Where the last word is lost, the end of the connection says the same.
  if (act === "drop" && type !== "refuse")
    await expectNoticed(pair, told, one.isAwaited === true ? NOT_FINISHED : MISSING);
}

function agentsOf({ pair }: FaultedPair): AgentUnderTest[] {
  return [pair.primary, pair.secondary];
}

const MISSING = /^message \d+ of the peer came where \d+ was expected/;
const NOT_FINISHED = /^the peer did not finish the handshake/;

/** A side has told, behind its event of that number, what it has noticed. */
async function expectNoticed(pair: FaultedPair, told: readonly (number | undefined)[], noticed: RegExp): Promise<void> {
  const later = await Promise.all(agentsOf(pair).map(({ control }, index) => control.events(told[index] ?? 0)));
  expect(later.flat().map(({ data }) => data.message)).toContainEqual(expect.stringMatching(noticed));
}

/** Done when the message comes; fails when the order is refused or fails without it. */
async function reachedBefore(reached: Promise<unknown>, outcome: Promise<unknown>): Promise<void> {
  const isReached = reached.then(() => true);
  const first = await Promise.race([isReached, outcome.then((told) => (told === "done" ? isReached : told))]);
  if (first !== true) throw new Error(`the order ended before the message, with ${String(first)}`);
}

function soon<T>(promise: Promise<T>, what: string): Promise<T> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error(`waited in vain for ${what}`)), TIMEOUT_MS);
    promise.then(resolve, reject).finally(() => clearTimeout(timer));
  });
}
