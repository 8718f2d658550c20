import assert from "node:assert/strict";
import { describe, expect, it } from "vitest";
import type { JobStatus } from "../../proto/control-api.ts";
import type { Mode } from "../../proto/words.ts";
import { imagePath } from "./pair.ts";
import { ScriptedPair } from "./scripted-pair.ts";

const CLUSTER = 4096;
const TIMEOUT_MS = 60_000;

async function verify(scripted: ScriptedPair, repair = false): Promise<JobStatus> {
  const { agent } = scripted.pair.primary;
  assert(agent !== undefined);
  return scripted.do("the verify", () =>
    agent.verify({ repair, speed: 0, wait: true, timeoutMs: TIMEOUT_MS }, new AbortController().signal),
  );
}

/** Bytes of the secondary's image change, and nobody notices. */
function damage(scripted: ScriptedPair, disk: number, offset: number, length: number): void {
  const { host } = scripted.pair.secondary;
  const [pairDisk] = scripted.disks.slice(disk);
  assert(pairDisk !== undefined);
  const file = host.storage.open(imagePath(pairDisk));
  const content = Buffer.alloc(length);
  file.readSync(content, offset);
  for (let at = 0; at < length; at += 1) content[at] = (content[at] ?? 0) ^ 0xff;
  file.writeSync(content, offset);
  file.close();
}

async function startedPair(mode: Mode): Promise<ScriptedPair> {
  const scripted = new ScriptedPair(1, "power", { mode });
  await scripted.start();
  return scripted;
}
