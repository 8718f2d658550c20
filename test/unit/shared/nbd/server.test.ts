import assert from "node:assert/strict";
import { existsSync, mkdtempSync, renameSync, rmSync, statSync, writeFileSync } from "node:fs";
import { connect, createServer } from "node:net";
import { once } from "node:events";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { GREETING_BYTES, COMMAND, OPTION, OPTION_REPLY } from "../../../../proto/nbd-protocol.ts";
import { NBD_TCP_CONNECTIONS_MAX } from "../../../../proto/limits.ts";
import { NbdServer } from "../../../../shared/nbd/server.ts";
import { NodeClock } from "../../../../shared/host/node-clock.ts";
import { ManualClock } from "../../../support/manual-clock.ts";
import { deferred } from "../../../support/deferred.ts";
import { MemoryDevice } from "../../../support/memory-device.ts";
import {
  DISCONNECT,
  NbdTestSocket,
  clientFlags,
  decodeAnswers,
  infoData,
  option,
  request,
} from "../../../support/nbd-client.ts";
import { MemoryLog, TestDirectory, TestExport } from "../../../support/nbd-harness.ts";

const MIB = 1024 * 1024;
const { READ, WRITE, FLUSH } = COMMAND;

let directoryPath: string;
let path: string;
let device: MemoryDevice;
let directory: TestDirectory;
let log: MemoryLog;
let server: NbdServer;
const cleanUp: (() => unknown)[] = [];

beforeEach(() => {
  directoryPath = mkdtempSync(join(tmpdir(), "colobus-nbd-"));
  path = join(directoryPath, "nbd.sock");
  device = new MemoryDevice(32 * MIB);
  directory = new TestDirectory(new TestExport("vda", device));
  log = new MemoryLog();
  server = new NbdServer({ directory, clock: new NodeClock(), log: log.asLog() });
});

afterEach(async () => {
  device.gate = undefined;
  for (const step of cleanUp.splice(0)) await step();
  await server.close();
  rmSync(directoryPath, { recursive: true });
  assert.deepEqual(log.errors, []);
});

async function client(): Promise<NbdTestSocket> {
  const socket = await NbdTestSocket.connect({ path });
  cleanUp.push(() => socket.destroy());
  return socket;
}

/** Resolves some turns of the event loop later. */
async function turns(count: number): Promise<void> {
  for (let turn = 0; turn < count; turn += 1) {
    await new Promise<void>((resolve) => {
      setImmediate(resolve);
    });
  }
}

async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await turns(1);
}

describe("listening on a unix socket", () => {
  it("lets only the owner connect, and removes the socket at the end", async () => {
    await server.listenUnix(path);
    expect(statSync(path).mode & 0o777).toBe(0o600);
    await server.close();
    expect(existsSync(path)).toBe(false);
  });

  it("replaces a socket that nobody answers at", async () => {
    // A listener removes its path when it closes: moved away meanwhile, the socket outlives it.
    const dead = createServer().listen(path);
    await once(dead, "listening");
    const kept = `${path}.kept`;
    renameSync(path, kept);
    dead.close();
    await once(dead, "close");
    renameSync(kept, path);
    await server.listenUnix(path);
    await (await client()).open("vda");
  });

  it("refuses a path where a process answers, or that is no socket", async () => {
    await server.listenUnix(path);
    const second = new NbdServer({ directory, clock: new NodeClock(), log: log.asLog() });
    await expect(second.listenUnix(path)).rejects.toMatchObject({ code: "address-in-use" });
    await (await client()).open("vda");
    const file = join(directoryPath, "file");
    writeFileSync(file, "precious");
    await expect(second.listenUnix(file)).rejects.toMatchObject({ code: "address-in-use" });
    expect(existsSync(file)).toBe(true);
  });
});

describe("listening on TCP", () => {
  it("serves at the port that it tells, and refuses an address that is taken or foreign", async () => {
    const { port } = await server.listenTcp("127.0.0.1", 0);
    const socket = await NbdTestSocket.connect({ host: "127.0.0.1", port });
    cleanUp.push(() => socket.destroy());
    await socket.open("vda");
    await expect(server.listenTcp("127.0.0.1", port)).rejects.toMatchObject({ code: "address-in-use" });
    await expect(server.listenTcp("192.0.2.1", 0)).rejects.toMatchObject({ code: "io-error" });
  });

  it("has a place for the next client once one has left, however many have been there", async () => {
    const { port } = await server.listenTcp("127.0.0.1", 0);
    for (let round = 0; round < NBD_TCP_CONNECTIONS_MAX + 10; round += 1) {
      const socket = await NbdTestSocket.connect({ host: "127.0.0.1", port });
      await socket.read(GREETING_BYTES);
      socket.destroy();
      await until(() => server.connectionCount === 0);
    }
    const socket = await NbdTestSocket.connect({ host: "127.0.0.1", port });
    cleanUp.push(() => socket.destroy());
    await socket.open("vda");
  });
});

describe("clients", () => {
  it("share the disk and are counted until they leave", async () => {
    await server.listenUnix(path);
    const [a, b] = [await client(), await client()];
    await a.open("vda");
    await b.open("");
    expect(server.connectionCount).toBe(2);
    a.write(request({ type: WRITE, cookie: 1, offset: 512, payload: Buffer.from("hello") }));
    expect(await a.readSimpleReply()).toEqual({ error: 0, cookie: 1 });
    b.write(request({ type: READ, cookie: 2, offset: 512, length: 5 }));
    await b.readSimpleReply();
    expect((await b.read(5)).toString()).toBe("hello");
    a.write(DISCONNECT);
    expect((await a.readToEnd()).length).toBe(0);
    a.destroy();
    b.destroy();
    await until(() => server.connectionCount === 0);
    expect(directory.openNames).toEqual([]);
  });

  it("write and read large payloads without either being collected", async () => {
    await server.listenUnix(path);
    const socket = await client();
    await socket.open("vda");
    const payload = Buffer.from(Array.from({ length: 256 }, (_, index) => index))
      .toString("latin1")
      .repeat(64 * 1024);
    const bytes = Buffer.from(payload, "latin1");
    socket.write(request({ type: WRITE, cookie: 1, offset: 777, length: bytes.length }), bytes);
    expect(await socket.readSimpleReply()).toEqual({ error: 0, cookie: 1 });
    expect(device.bytes.subarray(777, 777 + bytes.length).equals(bytes)).toBe(true);
    socket.write(request({ type: READ, cookie: 2, offset: 777, length: bytes.length }));
    expect(await socket.readSimpleReply()).toEqual({ error: 0, cookie: 2 });
    expect((await socket.read(bytes.length)).equals(bytes)).toBe(true);
  });

  it("write what they have sent, though the disk takes one of two writes late and others come in the same memory", async () => {
    await server.listenUnix(path);
    const socket = await client();
    await socket.open("vda");
    let writes = 0;
    device.gate = (operation) => {
      writes += 1;
      return operation.kind === "write" && writes % 2 === 0 ? turns(3) : undefined;
    };
    const blockBytes = 4096;
    const blocks = 2048;
    const expected = Buffer.alloc(blocks * blockBytes);
    for (let block = 0; block < blocks; block += 1) {
      expected.fill(1 + (block % 251), block * blockBytes, (block + 1) * blockBytes);
      const payload = expected.subarray(block * blockBytes, (block + 1) * blockBytes);
      socket.write(request({ type: WRITE, cookie: block, offset: block * blockBytes, payload }));
    }
    for (let answered = 0; answered < blocks; answered += 1) await socket.readSimpleReply();
    expect(device.bytes.subarray(0, expected.length).equals(expected)).toBe(true);
  });

  it("get every reply after a half-close or DISC, however slow the disk is", async () => {
    await server.listenUnix(path);
    for (const leaves of ["half-close", "disc"]) {
      const held = deferred();
      device.gate = () => held.promise;
      device.operations = [];
      const socket = await client();
      await socket.open("vda");
      const reads = Array.from({ length: 64 }, (_, cookie) => request({ type: READ, cookie, length: 64 * 1024 }));
      socket.write(...reads);
      if (leaves === "disc") socket.write(DISCONNECT);
      else socket.socket.end();
      await until(() => device.operations?.length === 64);
      held.resolve();
      expect(decodeAnswers(await socket.readToEnd(), () => 64 * 1024)).toHaveLength(64);
    }
  });

  it("that vanish at any moment harm nobody", async () => {
    await server.listenUnix(path);
    const steady = await client();
    await steady.open("vda");
    const session = [
      clientFlags(),
      option(OPTION.GO, infoData("vda")),
      request({ type: READ, cookie: 1, length: 4 * MIB }),
    ];
    for (let round = 0; round < 60; round += 1) {
      const socket = connect({ path });
      for (const part of session.slice(0, 1 + (round % session.length))) socket.write(part);
      if (round % 2 === 0) await once(socket, "connect");
      if (round % 4 === 0) await once(socket, "data");
      socket.destroy();
    }
    steady.write(request({ type: FLUSH, cookie: 9 }));
    expect(await steady.readSimpleReply()).toEqual({ error: 0, cookie: 9 });
    await until(() => server.connectionCount === 1);
  });

  it("that do not read are not read from, and do not hold up others", async () => {
    await server.listenUnix(path);
    const stuck = connect({ path });
    cleanUp.push(() => stuck.destroy());
    stuck.write(Buffer.concat([clientFlags(), option(OPTION.GO, infoData("vda"))]));
    device.operations = [];
    for (let cookie = 0; cookie < 64; cookie += 1) stuck.write(request({ type: READ, cookie, length: 16 * MIB }));
    await until(() => (device.operations?.length ?? 0) > 0);
    const other = await client();
    await other.open("vda");
    for (let cookie = 0; cookie < 50; cookie += 1) {
      other.write(request({ type: FLUSH, cookie }));
      await other.readSimpleReply();
    }
    expect(device.operations.filter(({ kind }) => kind === "read").length).toBeLessThan(4);
  });
});

describe("closing", () => {
  it("finishes requests in flight, takes no further ones, and refuses new clients", async () => {
    await server.listenUnix(path);
    const socket = await client();
    await socket.open("vda");
    const held = deferred();
    device.gate = () => held.promise;
    device.operations = [];
    socket.write(request({ type: READ, cookie: 1, length: 512 }));
    await until(() => device.operations?.length === 1);
    const closed = server.close();
    socket.write(request({ type: READ, cookie: 2, length: 512 }));
    await expect(NbdTestSocket.connect({ path })).rejects.toMatchObject({ code: "ENOENT" });
    held.resolve();
    expect(decodeAnswers(await socket.readToEnd(), () => 512).map(({ cookie }) => cookie)).toEqual([1]);
    socket.destroy();
    await closed;
    expect(server.connectionCount).toBe(0);
  });

  it("answers a client that is negotiating with ERR_SHUTDOWN", async () => {
    await server.listenUnix(path);
    const socket = await client();
    socket.write(clientFlags());
    await socket.read(GREETING_BYTES);
    const closed = server.close();
    socket.write(option(OPTION.LIST));
    expect(await socket.readOptionAnswer()).toMatchObject({ type: OPTION_REPLY.ERR_SHUTDOWN });
    expect((await socket.readToEnd()).length).toBe(0);
    socket.destroy();
    await closed;
  });

  it("is bounded when a disk does not answer, or a client says nothing", async () => {
    const clock = new ManualClock();
    const other = new NbdServer({ directory, clock, log: log.asLog() });
    const turns = setInterval(() => clock.endTurn(), 1);
    cleanUp.push(() => clearInterval(turns));
    await other.listenUnix(path);
    const transmitting = await client();
    await transmitting.open("vda");
    const silent = await client();
    await silent.read(GREETING_BYTES);
    const held = deferred();
    device.gate = () => held.promise;
    device.operations = [];
    transmitting.write(request({ type: FLUSH, cookie: 1 }));
    await until(() => device.operations?.length === 1);
    const closed = other.close();
    clock.advance(5_000);
    await closed;
    expect((await transmitting.readToEnd()).length).toBe(0);
    expect((await silent.readToEnd()).length).toBe(0);
    expect(log.warnings).toHaveLength(1);
    held.resolve();
    await until(() => other.connectionCount === 0);
  });
});
