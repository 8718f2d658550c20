import { mkdirSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { once } from "node:events";
import { join } from "node:path";
import { describe, expect, it, onTestFinished } from "vitest";
import { findAgentDirectories } from "../../../../shared/host/run-directory.ts";
import { scratchDirectory } from "../../../support/scratch.ts";

async function makeAgentDirectory(path: string): Promise<void> {
  mkdirSync(path, { recursive: true });
  const server = createServer();
  server.listen({ path: join(path, "control.sock") });
  await once(server, "listening");
  onTestFinished(() => void server.close());
}

describe("finding agents' directories", () => {
  it("finds none in a directory that is empty, or is not there", () => {
    const run = scratchDirectory();
    expect(findAgentDirectories(run)).toEqual([]);
    expect(findAgentDirectories(join(run, "absent"))).toEqual([]);
  });

  it("takes the directory itself when it has a control socket", async () => {
    const run = scratchDirectory();
    await makeAgentDirectory(run);
    await makeAgentDirectory(join(run, "below"));
    expect(findAgentDirectories(run)).toEqual([run]);
  });

  it("takes the subdirectories with a control socket, sorted, and passes over everything else", async () => {
    const run = scratchDirectory();
    await makeAgentDirectory(join(run, "web"));
    await makeAgentDirectory(join(run, "db"));
    mkdirSync(join(run, "empty"));
    mkdirSync(join(run, "not-a-socket"));
    writeFileSync(join(run, "not-a-socket", "control.sock"), "");
    writeFileSync(join(run, "file"), "");
    expect(findAgentDirectories(run)).toEqual([join(run, "db"), join(run, "web")]);
  });

  it("reports a path that is not a directory", () => {
    const file = join(scratchDirectory(), "file");
    writeFileSync(file, "");
    expect(() => findAgentDirectories(file)).toThrow(expect.objectContaining({ code: "io-error" }));
  });
});
