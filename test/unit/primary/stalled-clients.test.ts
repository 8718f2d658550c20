import { describe, expect, it } from "vitest";
import { GuestGate } from "../../../primary/guest-gate.ts";
import { PermittedDisk } from "../../../primary/permitted-disk.ts";
import { ReplicatedDisk } from "../../../primary/replicated-disk.ts";
import { NBD_STALLED_CLIENT_MS } from "../../../proto/limits.ts";
import { COMMAND } from "../../../proto/nbd-protocol.ts";
import { ManualClock } from "../../support/manual-clock.ts";
import { MemoryDevice } from "../../support/memory-device.ts";
import { decodeAnswers, negotiation, request } from "../../support/nbd-client.ts";
import { NbdHarness, TestDirectory, TestExport } from "../../support/nbd-harness.ts";

const SIZE = 1024 * 1024;
const PAYLOAD_BYTES = 256 * 1024;
const nothing = (): undefined => undefined;

/** A disk as guests have it, and how they connect to it. */
class Scene {
  readonly clock = new ManualClock();
  readonly disk: ReplicatedDisk;
  readonly #directory: TestDirectory;

  constructor() {
    const child = new MemoryDevice(SIZE);
    const forwarding = {
      mark: nothing,
      forward: nothing,
      room: nothing,
      flush: nothing,
      failed: nothing,
      refused: nothing,
    };
    this.disk = new ReplicatedDisk("vda", child, child, new GuestGate(), forwarding);
    const permitted = new PermittedDisk(this.disk, { isValid: true, admit: nothing });
    this.#directory = new TestDirectory(new TestExport("vda", permitted));
  }

  connect(): NbdHarness {
    const client = new NbdHarness(this.#directory, { clock: this.clock });
    client.send(negotiation("vda"));
    client.takeOutput();
    return client;
  }

  /** A client that has sent a part of a write's payload. `more` sends `bytes` of it. */
  async writer(): Promise<{ client: NbdHarness; more: (bytes: number) => Promise<void> }> {
    const client = this.connect();
    const write = request({ type: COMMAND.WRITE, cookie: 1, offset: 0, payload: Buffer.alloc(PAYLOAD_BYTES, 7) });
    let sent = 0;
    const more = async (bytes: number): Promise<void> => {
      client.send(write.subarray(sent, sent + bytes));
      sent += bytes;
      await client.settle();
    };
    await more(PAYLOAD_BYTES / 2);
    return { client, more };
  }

  async pass(ms: number, ...clients: NbdHarness[]): Promise<void> {
    this.clock.advance(ms);
    for (const client of clients) await client.settle();
  }
}

describe("a client that stops in the middle of a write", () => {
  it("is dropped when a change of the disk's children waits for it, and other guests behind that", async () => {
    const scene = new Scene();
    const { client } = await scene.writer();
    const guest = scene.connect();
    let isSettled = false;
    void scene.disk.settled().then(() => (isSettled = true));
    guest.send(request({ type: COMMAND.WRITE, cookie: 2, offset: SIZE / 2, payload: Buffer.alloc(512, 1) }));
    await scene.pass(NBD_STALLED_CLIENT_MS - 1, client, guest);
    expect([client.isDestroyed, isSettled, guest.takeOutput().length]).toEqual([false, false, 0]);
    await scene.pass(NBD_STALLED_CLIENT_MS, client, guest);
    expect([client.isDestroyed, isSettled, guest.isDestroyed]).toEqual([true, true, false]);
    expect(decodeAnswers(guest.takeOutput(), () => 0)).toMatchObject([{ cookie: 2, error: 0 }]);
    expect(client.log.warnings).toMatchObject([{ offset: 0, length: PAYLOAD_BYTES }]);
  });

  it("is left alone while nobody waits for it, and dropped once somebody does", async () => {
    const scene = new Scene();
    const { client } = await scene.writer();
    await scene.pass(10 * NBD_STALLED_CLIENT_MS, client);
    expect(client.isDestroyed).toBe(false);
    const other = scene.connect();
    other.send(request({ type: COMMAND.WRITE, cookie: 2, offset: 0, payload: Buffer.alloc(512, 1) }));
    await scene.pass(NBD_STALLED_CLIENT_MS, client, other);
    expect(client.isDestroyed).toBe(true);
    expect(decodeAnswers(other.takeOutput(), () => 0)).toMatchObject([{ cookie: 2, error: 0 }]);
  });

  it("is waited for as long as it sends anything, however slowly", async () => {
    const scene = new Scene();
    const { client, more } = await scene.writer();
    let isSettled = false;
    void scene.disk.settled().then(() => (isSettled = true));
    for (let times = 0; times < 20; times += 1) {
      await scene.pass(NBD_STALLED_CLIENT_MS - 1, client);
      await more(1);
    }
    expect([client.isDestroyed, isSettled]).toEqual([false, false]);
    await more(PAYLOAD_BYTES);
    expect(decodeAnswers(client.takeOutput(), () => 0)).toMatchObject([{ cookie: 1, error: 0 }]);
    expect(isSettled).toBe(true);
    await scene.pass(NBD_STALLED_CLIENT_MS, client);
    expect(scene.clock.pendingTimers).toBe(0);
  });

  it("leaves no timer behind", async () => {
    const scene = new Scene();
    const { client } = await scene.writer();
    client.disconnect();
    expect(scene.clock.pendingTimers).toBe(0);
  });
});
