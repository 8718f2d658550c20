import assert from "node:assert/strict";
import { describe, expect, it } from "vitest";
import { copyPath, imagePath } from "./pair.ts";
import { ScriptedPair } from "./scripted-pair.ts";

/**
 * Another program changes a copy beside a disk's image while the agent is cleanly stopped, and the next process, which finds
 * that out, dies at each of its storage calls. The one behind it believes nothing of what the copy had.
 */
const DRAIN_MS = 5_000;
const CALLS_MIN = 10;
const CHANGED = Buffer.alloc(4096, 0x99);

/** False when everything was over before the `dyingCall`-th storage call. */
async function dieAt(dyingCall: number): Promise<boolean> {
  const scripted = new ScriptedPair(dyingCall, "power", { hasCopies: true });
  const { primary } = scripted.pair;
  const { disk: files } = primary.host;
  const [disk] = scripted.disks;
  assert(disk !== undefined);
  const areSound = (): boolean =>
    primary.status?.disks.every(({ children }) => children.every(({ state }) => state === "sound")) === true;
  await scripted.start();
  await scripted.until("sound copies", areSound);
  await scripted.do("a write", () => scripted.guestWrite(0, 0, 2 * CHANGED.length, "bytes"));
  await scripted.do("a clean stop", () => primary.stop(DRAIN_MS));
  primary.host.crash("process");
  const copy = files.file(copyPath(disk));
  files.change(copy, () => copy.write(CHANGED, 0));
  copy.makeDurable(copy.position);
  primary.host.restart();
  files.faults.crashAt(dyingCall, "power");
  if (await scripted.do("a start", () => primary.start()))
    await scripted.until("a death, or sound copies", () => !primary.host.alive || areSound());
  const hasDied = !primary.host.alive;
  files.faults.clear();
  if (hasDied) {
    primary.host.restart();
    assert(await scripted.do("the next start", () => primary.start()));
    await scripted.until("sound copies", areSound);
  }
  await scripted.do("a clean stop", () => primary.stop(DRAIN_MS));
  expect(files.readFile(copyPath(disk)).equals(files.readFile(imagePath(disk))), `died at call ${dyingCall}`).toBe(
    true,
  );
  return hasDied;
}

describe("a copy that was changed while the agent was stopped", () => {
  it("is brought everything, wherever the agent dies", async () => {
    let call = 1;
    while (await dieAt(call)) call += 1;
    expect(call).toBeGreaterThan(CALLS_MIN);
  });
});
