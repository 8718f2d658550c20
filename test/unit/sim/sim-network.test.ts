import { describe, expect, it } from "vitest";
import { ColobusError } from "../../../proto/errors.ts";
import type { Link } from "../../../shared/replication/link.ts";
import { NETWORK_PROFILE, type CutHeardBy, type NetworkProfile } from "../../sim/sim-network.ts";
import { SimWorld } from "../../sim/world.ts";
import type { SimHost } from "../../sim/sim-host.ts";

interface End {
  readonly link: Link;
  readonly messages: string[];
  readonly closed: string[];
}

interface Pair {
  readonly world: SimWorld;
  readonly left: SimHost;
  readonly right: SimHost;
  readonly dialled: End;
  readonly accepted: End;
}

const NEVER = new AbortController().signal;

function startEnd(link: Link): End {
  const end: End = { link, messages: [], closed: [] };
  link.start({
    message: (data) => {
      expect(end.closed).toEqual([]);
      end.messages.push(data.toString());
    },
    closed: (reason) => end.closed.push(reason.code),
  });
  return end;
}

async function connect(seed: number, profile: Partial<NetworkProfile> = {}): Promise<Pair> {
  const world = new SimWorld(seed);
  world.network.profile = { ...NETWORK_PROFILE, ...profile };
  const [left, right] = [world.host("left"), world.host("right")];
  const accepted: End[] = [];
  right.listen((link) => accepted.push(startEnd(link)));
  const dialled = startEnd(await world.runFor("dial", left.dialer("right").dial(NEVER)));
  const [first] = accepted;
  if (first === undefined) throw new Error("nothing was accepted");
  return { world, left, right, dialled, accepted: first };
}

function sendNumbers(link: Link, count: number): void {
  for (let index = 0; index < count; index++) link.send([Buffer.from(String(index))]);
}

const numbers = (count: number): string[] => Array.from({ length: count }, (_, index) => String(index));

describe("SimNetwork", () => {
  it("delivers whole messages in order, both ways, with random delays", async () => {
    for (let seed = 0; seed < 20; seed++) {
      const { world, dialled, accepted } = await connect(seed);
      sendNumbers(dialled.link, 50);
      sendNumbers(accepted.link, 50);
      dialled.link.send([Buffer.from("two "), Buffer.from("parts")]);
      await world.run({ forMs: 1_000 });
      expect(accepted.messages).toEqual([...numbers(50), "two parts"]);
      expect(dialled.messages).toEqual(numbers(50));
    }
  });

  it("keeps messages that come before the link is started", async () => {
    const world = new SimWorld(3);
    const [left, right] = [world.host("left"), world.host("right")];
    const links: Link[] = [];
    right.listen((link) => links.push(link));
    const dialled = await world.runFor("dial", left.dialer("right").dial(NEVER));
    sendNumbers(dialled, 5);
    await world.run({ forMs: 100 });
    const end = startEnd(links[0]!);
    expect(end.messages).toEqual([]);
    sendNumbers(dialled, 3);
    await world.run({ forMs: 100 });
    expect(end.messages).toEqual([...numbers(5), ...numbers(3)]);
  });

  it("gives the receiver a buffer of its own, and catches a sender that changes one it has sent", async () => {
    const { world, dialled } = await connect(1);
    const part = Buffer.from("hello");
    dialled.link.send([part]);
    part.fill(0);
    await expect(world.run({ forMs: 100 })).rejects.toThrow(/changed a buffer that it had sent/);
  });

  it("counts as queued what the network has no room for", async () => {
    const { world, dialled, accepted } = await connect(1, { bufferBytes: 1_000 });
    world.network.partition("left", "right", true);
    for (let index = 0; index < 10; index++) dialled.link.send([Buffer.alloc(500)]);
    await world.run({ forMs: 1_000 });
    expect(dialled.link.queuedBytes).toBe(4_000);
    world.network.partition("left", "right", false);
    await world.run({ forMs: 1_000 });
    expect([dialled.link.queuedBytes, accepted.messages.length]).toEqual([0, 10]);
  });

  it("holds messages during a partition and delivers them in order behind it", async () => {
    for (let seed = 0; seed < 20; seed++) {
      const { world, dialled, accepted } = await connect(seed);
      world.network.block("left", "right", true);
      sendNumbers(dialled.link, 10);
      sendNumbers(accepted.link, 10);
      await world.run({ forMs: 10_000 });
      expect([accepted.messages.length, dialled.messages.length]).toEqual([0, 10]);
      world.network.block("left", "right", false);
      await world.run({ forMs: 100 });
      expect(accepted.messages).toEqual(numbers(10));
    }
  });

  it("ends a link that is closed on both sides, with the reason or with the loss of the connection", async () => {
    const outcomes = new Set<string>();
    for (let seed = 0; seed < 60; seed++) {
      const { world, dialled, accepted } = await connect(seed, { closeLostProbability: 0.3, bufferBytes: 4 });
      sendNumbers(dialled.link, 10);
      dialled.link.close(new ColobusError("mode-mismatch", "other mode"));
      dialled.link.send([Buffer.from("too late")]);
      expect(dialled.closed).toEqual([]);
      await world.run({ forMs: 1_000 });
      expect(dialled.closed).toEqual(["mode-mismatch"]);
      expect(accepted.closed.length).toBe(1);
      expect(accepted.messages).toEqual(numbers(accepted.messages.length));
      outcomes.add(`${accepted.closed[0]} ${accepted.messages.length === 10 ? "all" : "some"}`);
    }
    expect([...outcomes].sort()).toEqual(["connection-lost all", "connection-lost some", "mode-mismatch all"]);
  });

  it("ends the side that closes even when nobody answers", async () => {
    const { world, dialled, accepted } = await connect(1);
    world.network.partition("left", "right", true);
    dialled.link.close(new ColobusError("peer-timeout", "silent"));
    await world.run({ forMs: 29_000 });
    expect(dialled.closed).toEqual([]);
    await world.run({ forMs: 2_000 });
    expect(dialled.closed).toEqual(["peer-timeout"]);
    world.network.partition("left", "right", false);
    await world.run({ forMs: 2_000 });
    expect(accepted.closed.length).toBe(1);
  });

  it("delivers a prefix of what was sent before a cut, and tells those that are to hear of it", async () => {
    const counts = new Set<number>();
    const heard: Record<CutHeardBy, [number, number]> = {
      both: [1, 1],
      dialler: [1, 0],
      acceptor: [0, 1],
      nobody: [0, 0],
    };
    for (const [heardBy, [byDialler, byAcceptor]] of Object.entries(heard) as [CutHeardBy, [number, number]][]) {
      for (let seed = 0; seed < 20; seed++) {
        const { world, dialled, accepted } = await connect(seed);
        sendNumbers(dialled.link, 8);
        world.network.cut("left", "right", heardBy);
        dialled.link.send([Buffer.from("into the void")]);
        await world.run({ forMs: 100_000 });
        expect(accepted.messages).toEqual(numbers(accepted.messages.length));
        counts.add(accepted.messages.length);
        expect([dialled.closed.length, accepted.closed.length]).toEqual([byDialler, byAcceptor]);
        expect(dialled.closed.every((code) => code === "connection-lost")).toBe(true);
      }
    }
    expect(counts.size).toBeGreaterThan(5);
  });

  it("piles up what is sent into a connection that is half dead", async () => {
    const { world, dialled } = await connect(1, { bufferBytes: 1_000 });
    world.network.cut("left", "right", "nobody");
    for (let index = 0; index < 10; index++) dialled.link.send([Buffer.alloc(500)]);
    await world.run({ forMs: 1_000 });
    expect(dialled.link.queuedBytes).toBe(4_000);
  });

  it("tells the peer of a process that dies, and nothing to the dead one", async () => {
    for (let seed = 0; seed < 20; seed++) {
      const { world, right, dialled, accepted } = await connect(seed);
      sendNumbers(accepted.link, 5);
      sendNumbers(dialled.link, 5);
      right.crash("process");
      await world.run({ forMs: 1_000 });
      expect(dialled.messages).toEqual(numbers(dialled.messages.length));
      expect(dialled.closed).toEqual(["connection-lost"]);
      expect([accepted.messages, accepted.closed]).toEqual([[], []]);
    }
  });

  it("tells nobody of a loss of power, until the host is back and is spoken to", async () => {
    const { world, right, dialled } = await connect(1);
    right.crash("power");
    dialled.link.send([Buffer.from("lost")]);
    await world.run({ forMs: 100_000 });
    expect(dialled.closed).toEqual([]);
    right.restart();
    dialled.link.send([Buffer.from("are you there?")]);
    await world.run({ forMs: 1_000 });
    expect(dialled.closed).toEqual(["connection-lost"]);
  });

  it("delivers nothing to a frozen process until it thaws", async () => {
    const { world, right, dialled, accepted } = await connect(1);
    right.freeze(true);
    sendNumbers(dialled.link, 5);
    await world.run({ forMs: 1_000 });
    expect(accepted.messages).toEqual([]);
    right.freeze(false);
    await world.run({ forMs: 1_000 });
    expect(accepted.messages).toEqual(numbers(5));
  });

  it("refuses a dial to a host where nobody listens, and leaves one without an answer to its timeout", async () => {
    const world = new SimWorld(1);
    const [left, right] = [world.host("left"), world.host("right")];
    await expect(world.runFor("dial", left.dialer("right").dial(NEVER))).rejects.toThrow(/refused/);
    expect(world.nowMs).toBeLessThan(10);
    right.listen(startEnd);
    right.crash("power");
    await expect(world.runFor("dial", left.dialer("right").dial(NEVER))).rejects.toThrow(/no answer/);
    right.restart();
    right.listen(startEnd);
    world.network.partition("left", "right", true);
    const controller = new AbortController();
    const dial = left.dialer("right").dial(controller.signal);
    world.schedule(5, () => controller.abort());
    await expect(world.runFor("dial", dial)).rejects.toThrow(/given up/);
    await expect(world.runFor("dial", left.dialer("right").dial(AbortSignal.abort()))).rejects.toThrow(/given up/);
  });

  it("ends the accepted link of a dial that is given up too late", async () => {
    const ends: End[] = [];
    for (let seed = 0; seed < 30; seed++) {
      const world = new SimWorld(seed);
      const [left, right] = [world.host("left"), world.host("right")];
      right.listen((link) => ends.push(startEnd(link)));
      const controller = new AbortController();
      const dial = left.dialer("right").dial(controller.signal);
      world.schedule(1.5, () => controller.abort());
      await world.runFor("dial", dial).catch(() => undefined);
      const gaveUp = await dial.then(
        () => false,
        () => true,
      );
      await world.run({ forMs: 1_000 });
      for (const end of ends.splice(0)) expect(end.closed.length).toBe(gaveUp ? 1 : 0);
    }
  });

  it("lets two links live side by side and cuts one alone", async () => {
    const { world, left, dialled } = await connect(1);
    const second = startEnd(await world.runFor("dial", left.dialer("right").dial(NEVER)));
    expect(world.network.links("left", "right").length).toBe(4);
    world.network.cutLink(world.network.links("left", "right")[0]!);
    await world.run({ forMs: 1_000 });
    expect([dialled.closed, second.closed]).toEqual([["connection-lost"], []]);
  });

  it("loses or repeats the very message that a test names, and goes on", async () => {
    const { world, dialled, accepted } = await connect(1);
    world.network.intercept = (_, data) =>
      data.toString() === "3" ? "lose" : data.toString() === "5" ? "repeat" : "deliver";
    sendNumbers(dialled.link, 7);
    await world.run({ forMs: 1_000 });
    expect(accepted.messages).toEqual(["0", "1", "2", "4", "5", "5", "6"]);
    expect(accepted.closed).toEqual([]);
  });

  it("cuts a link at the very message that a test names", async () => {
    const { world, dialled, accepted } = await connect(1);
    world.network.intercept = (_, data) => (data.toString() === "3" ? "cut" : "deliver");
    sendNumbers(dialled.link, 10);
    await world.run({ forMs: 1_000 });
    expect(accepted.messages.slice(0, 3)).toEqual(numbers(3));
    expect(accepted.messages).not.toContain("3");
    expect(accepted.closed).toEqual(["connection-lost"]);
  });
});
