import assert from "node:assert/strict";
import { describe, expect, it } from "vitest";
import type { ColobusError } from "../../proto/errors.ts";
import type { Agent } from "../../cli/agent.ts";
import { mirrorTo } from "./mirror-request.ts";
import { ScriptedPair } from "./scripted-pair.ts";

/**
 * A disk is resized while another image of it is being taken, one of the two a little earlier than the other, by more and more.
 * Either is refused, or done; and where both are, the other image is as long as the disk.
 */
const LONGER = 15 * 4096 + 512;
const IMAGE = "/images/other.img";
const STEP_MS = 0.25;
const APART_MS = 8;
const TIMEOUT_MS = 60_000;

type Taking = (agent: Agent) => Promise<unknown>;

const signal = new AbortController().signal;
const MIRROR: Taking = (agent) => agent.mirror(mirrorTo(IMAGE), signal);
const ADD: Taking = (agent) =>
  agent.changeChild({ verb: "add", disk: "vda", name: "b", image: IMAGE, create: true, timeoutMs: TIMEOUT_MS }, signal);

describe("a resize beside a command that takes another image of the disk", () => {
  it.each<[string, Taking]>([
    ["mirror", MIRROR],
    ["child add", ADD],
  ])("leaves none that is shorter: %s", async (_, take) => {
    const outcomes = new Set<string>();
    for (let apartMs = -APART_MS; apartMs <= APART_MS; apartMs += STEP_MS) {
      const scripted = new ScriptedPair(1, "power");
      await scripted.start();
      const { world, pair } = scripted;
      const { agent } = pair.primary;
      assert(agent !== undefined);
      const later = (afterMs: number, work: () => Promise<unknown>): Promise<string> =>
        world
          .sleep(Math.max(0, afterMs))
          .then(work)
          .then(
            () => "done",
            ({ code }: ColobusError) => code,
          );
      const found = await scripted.do("the two", () =>
        Promise.all([
          later(apartMs, () => take(agent)),
          later(-apartMs, () =>
            agent.resize({ disk: "vda", sizeBytes: LONGER, closeClients: false, timeoutMs: TIMEOUT_MS }, signal),
          ),
        ]),
      );
      outcomes.add(found.join());
      if (found.join() !== "done,done") continue;
      expect(pair.primary.host.disk.file(IMAGE).content.sizeBytes, `${apartMs} ms apart`).toBe(LONGER);
    }
    expect(outcomes.size).toBeGreaterThan(1);
  });
});
