/** The hook that fences the peer before a failover. */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import type { FailoverAnswer } from "../../proto/control-api.ts";
import { AgentPair } from "../support/agent-pair.ts";
import type { ErrorDocument } from "../support/cli-runner.ts";

async function pairWithHook(script: string, ...flags: string[]): Promise<AgentPair> {
  const pair = await AgentPair.create({ flags: ["--peer-timeout", "1s"] });
  const path = join(pair.root, "fence.sh");
  writeFileSync(path, `#!/bin/sh\n${script}\n`, { mode: 0o755 });
  pair.secondary.command.push("--fence-peer", path, ...flags);
  await pair.start();
  await pair.primary.crash();
  await pair.secondary.until("alone", ({ peers }) => peers[0]?.connection === "Connecting");
  return pair;
}

describe("the fence hook", () => {
  it.each([3, 4, 5, 7])("lets a failover go on with exit code %i", async (code) => {
    const { secondary, primary } = await pairWithHook(`echo "fencing $DRBD_RESOURCE, $COLOBUS_PEER"; exit ${code}`);
    expect(await secondary.get<FailoverAnswer>("failover")).toMatchObject({ already: false });
    expect(secondary.log).toContain("fencing test, ");
    expect((await secondary.status()).role).toBe("Primary");
    expect(primary.isRunning).toBe(false);
  });

  it.each([
    ["says that the peer is Primary", "exit 6", "peer is Primary"],
    ["says nothing that is known", "exit 1", "ended with 1"],
    ["takes too long", "sleep 600", "has not ended within 300 ms"],
  ])("that %s stops a failover, unless that is forced", async (_, script, message) => {
    const { secondary } = await pairWithHook(script, "--fence-timeout", "300ms");
    const refused = await secondary.ask<ErrorDocument>("failover");
    expect(refused).toMatchObject({ code: 1, json: { error: { code: "fence-failed" } } });
    expect(refused.json.error.message).toContain(message);
    expect((await secondary.status()).role).toBe("Secondary");
    expect(await secondary.get<FailoverAnswer>("failover", "--dry-run")).toMatchObject({ dryRun: true });
    expect(await secondary.get<FailoverAnswer>("failover", "--force")).toMatchObject({ already: false });
  });
});
