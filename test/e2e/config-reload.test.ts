/** A running agent that takes up its changed configuration file, without a restart and without anything for its guests. */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, it } from "vitest";
import { AgentPair, MIB } from "../support/agent-pair.ts";

it("takes up what can change by config reload and by SIGHUP, and nothing of a file that is wrong", async () => {
  const pair = await AgentPair.create({
    disks: { vda: Buffer.alloc(4 * MIB, 0x11) },
    primaryFlags: ["--assume-in-sync"],
  });
  const { primary } = pair;
  const file = join(pair.root, "primary.yaml");
  writeFileSync(file, "log-level: error\n");
  primary.command.push("--config", file);
  await pair.start();
  await pair.untilProtected();
  const { epoch } = await primary.status();

  writeFileSync(file, "log-level: debug\ncheckpoint-every: 50ms\nwindow: 8MiB\n");
  const { code, json } = await primary.ask("config", "reload");
  expect({ code, json }).toEqual({
    code: 0,
    json: { applied: ["checkpoint-every", "log-level"], needsRestart: ["window"] },
  });
  await primary.until("automatic checkpoints", ({ epoch: now }) => now.committed > epoch.committed + 2);

  writeFileSync(file, "checkpoint-every: sometimes\n");
  expect((await primary.ask("config", "reload")).code).toBe(2);
  writeFileSync(file, "log-level: info\nmax-checkpoint-age: 1ms\nwindow: 8MiB\n");
  process.kill(primary.pid, "SIGHUP");
  await primary.until("the age counts", ({ protection }) => protection.reason === "checkpoint-too-old");
  const stopped = (await primary.status()).epoch.committed;
  const events = await primary.control.events(0);
  expect(events.filter(({ type }) => type === "config-reloaded").map(({ data }) => data)).toEqual([
    { applied: ["checkpoint-every", "log-level"], needsRestart: ["window"] },
    { applied: ["checkpoint-every", "max-checkpoint-age", "log-level"], needsRestart: ["window"] },
  ]);
  expect((await primary.status()).epoch.committed - stopped).toBeLessThanOrEqual(1);
  expect(primary.log).toContain("the configuration was read anew");
});
