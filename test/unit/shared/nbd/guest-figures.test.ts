import { describe, expect, it } from "vitest";
import type { GuestOperation } from "../../../../proto/metrics.ts";
import { COMMAND, COMMAND_FLAG } from "../../../../proto/nbd-protocol.ts";
import { GuestFigures } from "../../../../shared/nbd/guest-figures.ts";
import { MemoryDevice } from "../../../support/memory-device.ts";
import { negotiation, request, type SentRequest } from "../../../support/nbd-client.ts";
import { NbdHarness, TestDirectory, TestExport } from "../../../support/nbd-harness.ts";

const SIZE = 1024 * 1024;
const { READ, WRITE, FLUSH, TRIM, WRITE_ZEROES, BLOCK_STATUS, CACHE } = COMMAND;

class FiguredExport extends TestExport {
  readonly figures = new GuestFigures();
}

class Client {
  readonly device = new MemoryDevice(SIZE);
  readonly nbdExport = new FiguredExport("vda", this.device);
  readonly harness = new NbdHarness(new TestDirectory(this.nbdExport));

  constructor() {
    this.harness.send(negotiation("vda", { structured: true, allocation: true }));
  }

  ask(...requests: SentRequest[]): void {
    this.harness.send(Buffer.concat(requests.map(request)));
  }

  get figures(): GuestFigures {
    return this.nbdExport.figures;
  }

  count(operation: GuestOperation): number {
    return this.figures.seconds(operation).cumulative().at(-1) ?? 0;
  }

  seconds(operation: GuestOperation): number {
    return this.figures.seconds(operation).sum;
  }
}

function sent(type: number, length: number, payload?: Buffer): SentRequest {
  return { type, flags: 0, cookie: 1, offset: 0, length, ...(payload === undefined ? {} : { payload }) };
}

const write = (length: number): SentRequest => sent(WRITE, length, Buffer.alloc(length, 7));

/** Holds every operation of the device until it is called. */
function held(device: MemoryDevice): () => void {
  let release = (): void => undefined;
  const released = new Promise<void>((resolve) => {
    release = resolve;
  });
  device.gate = () => released;
  return () => {
    device.gate = undefined;
    release();
  };
}

async function settle(): Promise<void> {
  for (let turn = 0; turn < 10; turn += 1) await Promise.resolve();
}

describe("the figures of guests' requests", () => {
  it("counts each kind with its bytes, and nothing that asks for nothing to be done", () => {
    const client = new Client();
    client.ask(write(4096), write(512), sent(READ, 1024), sent(FLUSH, 0), sent(TRIM, 8192), sent(WRITE_ZEROES, 4096));
    client.ask(sent(CACHE, 4096), { ...sent(BLOCK_STATUS, 4096), flags: COMMAND_FLAG.REQ_ONE });
    expect(["read", "write", "discard", "flush"].map((kind) => client.count(kind as GuestOperation))).toEqual([
      1, 2, 2, 1,
    ]);
    expect(client.figures.bytes("write")).toBe(4608);
    expect(client.figures.bytes("read")).toBe(1024);
    expect(client.figures.bytes("discard")).toBe(12_288);
    expect(client.figures.errors).toBe(0);
  });

  it("times a request from when it came, also while others were answered", async () => {
    const client = new Client();
    const release = held(client.device);
    client.ask(write(4096));
    client.harness.clock.advance(250);
    client.device.gate = undefined;
    client.ask(sent(READ, 512));
    expect(client.count("write")).toBe(0);
    expect(client.count("read")).toBe(1);
    release();
    await settle();
    expect(client.count("write")).toBe(1);
    expect(client.seconds("write")).toBeCloseTo(0.25);
    expect(client.seconds("read")).toBe(0);
  });

  it("times a flush and a read that the device takes its time for", async () => {
    const client = new Client();
    const release = held(client.device);
    client.ask(sent(FLUSH, 0), sent(READ, 512));
    client.harness.clock.advance(2000);
    release();
    await settle();
    expect(client.seconds("flush")).toBeCloseTo(2);
    expect(client.seconds("read")).toBeCloseTo(2);
    expect(client.figures.bytes("read")).toBe(512);
  });

  it("times a write whose payload comes in pieces from its first piece", () => {
    const client = new Client();
    const whole = request(write(8192));
    client.harness.send(whole.subarray(0, 5000));
    client.harness.clock.advance(100);
    client.harness.send(whole.subarray(5000));
    expect(client.count("write")).toBe(1);
    expect(client.seconds("write")).toBeCloseTo(0.1);
    expect(client.figures.bytes("write")).toBe(8192);
  });

  it("gives those that are done in one turn the time that the turn took", () => {
    const client = new Client();
    client.device.gate = () => {
      client.harness.clock.advance(4);
      return undefined;
    };
    client.ask(write(512), write(512));
    expect(client.count("write")).toBe(2);
    expect(client.seconds("write")).toBeCloseTo(0.016);
  });

  it("counts what was refused, or failed, as an error and not as done", () => {
    const client = new Client();
    client.ask(sent(READ, 2 * SIZE));
    client.device.gate = () => {
      throw new Error("the device fails");
    };
    client.ask(write(512));
    expect(client.figures.errors).toBe(2);
    expect(client.count("write") + client.count("read")).toBe(0);
    expect(client.figures.bytes("write")).toBe(0);
  });
});
