import { connect } from "node:net";
import { once } from "node:events";
import { join } from "node:path";
import { describe, expect, it, onTestFinished } from "vitest";
import { VmStateStream } from "../../../../primary/vm-state-stream.ts";
import type { AgentControl } from "../../../../proto/control-api.ts";
import { ColobusError } from "../../../../proto/errors.ts";
import { VMSTATE_CHUNK_BYTES, VMSTATE_WINDOW_CHUNKS } from "../../../../proto/limits.ts";
import { VmStateSocket } from "../../../../shared/control/vm-state-socket.ts";
import { recordingLog, type LogLine } from "../../../support/control-harness.ts";
import { scratchDirectory } from "../../../support/scratch.ts";

const REST_BYTES = 16 * 1024 * 1024;
const VM_STATES_AT_ONCE = 4;

interface Served {
  readonly path: string;
  readonly lines: LogLine[];
  readonly server: VmStateSocket;
  /** The streams that states were taken into, each with the chunks that were sent of it. */
  readonly taken: { readonly stream: VmStateStream; chunks: number }[];
}

/** The socket in front of a primary's streams, whose secondary takes every chunk, or none. */
async function serve(takesChunks: () => boolean): Promise<Served> {
  const taken: Served["taken"] = [];
  const receiveVmState: AgentControl["receiveVmState"] = async (_request, content) => {
    const one = {
      chunks: 0,
      stream: new VmStateStream(7, () => {
        one.chunks += 1;
        if (takesChunks()) one.stream.acknowledge(one.chunks, undefined);
      }),
    };
    taken.push(one);
    const { bytes } = await one.stream.pump(content);
    return { epoch: 7, bytes, vmstateMs: 0 };
  };
  const lines: LogLine[] = [];
  const server = new VmStateSocket({ control: { receiveVmState }, log: recordingLog(lines) });
  const path = join(scratchDirectory(), "vmstate.sock");
  await server.listen(path);
  onTestFinished(() => server.close());
  return { path, lines, server, taken };
}

describe("the socket of VM states", () => {
  it.each([
    ["its bytes are awaited", VMSTATE_WINDOW_CHUNKS - 1, true],
    ["the secondary is awaited", VMSTATE_WINDOW_CHUNKS + 2, false],
  ])("reads a state to its end that nobody wants any more while %s, and takes the next", async (_, begun, takes) => {
    let takesChunks = takes;
    const { path, lines, taken } = await serve(() => takesChunks);
    for (let states = 0; states <= VM_STATES_AT_ONCE; states += 1) {
      const hypervisor = connect({ path });
      hypervisor.resume();
      const closed = once(hypervisor, "close");
      hypervisor.write(Buffer.alloc(begun * VMSTATE_CHUNK_BYTES));
      await expect.poll(() => taken[states]?.chunks).toBe(Math.min(begun, VMSTATE_WINDOW_CHUNKS));
      taken[states]?.stream.fail(new ColobusError("epoch-unknown", "it was discarded"));
      hypervisor.end(Buffer.alloc(REST_BYTES));
      await once(hypervisor, "finish");
      await closed;
      expect(lines.at(-1)).toMatchObject({ level: "warn", message: "a VM state was not taken" });
    }
    takesChunks = true;
    const last = connect({ path });
    last.resume();
    last.end(Buffer.alloc(REST_BYTES));
    await once(last, "close");
    expect(lines.at(-1)).toMatchObject({ message: "a VM state is stored", fields: { bytes: REST_BYTES } });
  });

  it("logs a connection that is one too many", async () => {
    const { path, lines, taken } = await serve(() => true);
    const hypervisors = Array.from({ length: VM_STATES_AT_ONCE }, () => connect({ path }));
    onTestFinished(() => {
      for (const hypervisor of hypervisors) hypervisor.destroy();
    });
    await expect.poll(() => taken.length).toBe(VM_STATES_AT_ONCE);
    const another = connect({ path });
    // It may be reset.
    another.on("error", () => undefined).resume();
    await new Promise<void>((resolve) => {
      another.once("close", () => resolve());
    });
    expect(lines).toEqual([
      { level: "warn", fields: { connections: VM_STATES_AT_ONCE }, message: "a VM state's connection was dropped" },
    ]);
  });
});
