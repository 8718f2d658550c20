import { spawn } from "node:child_process";
import { once } from "node:events";
import { connect } from "node:net";
import { join } from "node:path";
import { describe, expect, it, onTestFinished } from "vitest";
import { NodeClock } from "../../../../shared/host/node-clock.ts";
import { QmpClient } from "../../../../shared/host/qmp-client.ts";
import { scratchDirectory } from "../../../support/scratch.ts";

/** Listens as QEMU does, and takes no connection: its thread waits for ever. */
const HANGING = `
  require("node:net").createServer().listen({ path: process.argv[1], backlog: 1 }, () => {
    require("node:fs").writeSync(1, "listening");
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0);
  });
`;

async function listenAndHang(): Promise<string> {
  const socket = join(scratchDirectory(), "qmp.sock");
  const child = spawn(process.execPath, ["-e", HANGING, socket], { stdio: ["ignore", "pipe", "inherit"] });
  onTestFinished(() => void child.kill("SIGKILL"));
  await once(child.stdout, "data");
  return socket;
}

/** Its place in the queue is kept until it is accepted. */
async function dialAndLeave(path: string): Promise<void> {
  const socket = connect({ path });
  await once(socket, "connect");
  socket.destroy();
}

describe("a QEMU that hangs, and before which others have given up,", () => {
  it.each(["connect", "connectToGuestAgent"] as const)("is one that does not answer in time: %s", async (way) => {
    const socket = await listenAndHang();
    await dialAndLeave(socket);
    await dialAndLeave(socket);
    const dialled = QmpClient[way]({ socket, clock: new NodeClock(), timeoutMs: 20_000 });
    await expect(dialled).rejects.toMatchObject({ code: "timed-out", message: expect.stringContaining(socket) });
  });
});

it("a socket on which nobody listens is a QEMU that is gone", async () => {
  const socket = join(scratchDirectory(), "qmp.sock");
  const dialled = QmpClient.connect({ socket, clock: new NodeClock(), timeoutMs: 20_000 });
  await expect(dialled).rejects.toMatchObject({ code: "vm-unreachable" });
});
