/** Strangers at every port that an agent opens to the network, while a guest writes and reads: it notices nothing. */
import { readFileSync, writeFileSync } from "node:fs";
import { connect, type Socket } from "node:net";
import { join } from "node:path";
import { connect as connectTls } from "node:tls";
import { describe, expect, it } from "vitest";
import type { Status } from "../../proto/status.ts";
import { EXIT } from "../../proto/errors.ts";
import { AgentPair, freePort, MIB, type AgentUnderTest } from "../support/agent-pair.ts";
import { makeHosts, tlsFlags } from "../support/certificates.ts";
import { askColobus, type ErrorDocument } from "../support/cli-runner.ts";
import { qemuIo } from "../support/nbd-tools.ts";
import { requirePeers } from "../support/peers.ts";
import { present } from "../support/present.ts";
import { scratchDirectory } from "../support/scratch.ts";

const CONNECTIONS = 10_000;
/** At a time: what an ordinary user's limit of descriptors allows. */
const AT_ONCE = 250;
const SLOW_AT_EACH_PORT = 100;
const MEMORY_GROWTH_MAX_BYTES = 192 * MIB;

const GARBAGE: readonly Buffer[] = [
  Buffer.from("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
  Buffer.alloc(4096, 0xff),
  Buffer.from([0x16, 3, 1, 0xff, 0xff, 1, 0, 0, 0]),
  Buffer.concat([
    Buffer.from([0, 0, 0, 3]),
    Buffer.from("IHAVEOPT"),
    Buffer.from([0, 0, 0, 7, 0xff, 0xff, 0xff, 0xff]),
  ]),
  Buffer.alloc(0),
];

function memoryOf({ pid }: AgentUnderTest): number {
  const [, kib = "0"] = /^VmRSS:\s+(\d+) kB/m.exec(readFileSync(`/proc/${pid}/status`, "utf8")) ?? [];
  return Number(kib) * 1024;
}

/** Connects, says something that makes no sense, and resolves when it is thrown out or has seen enough. */
function annoy(port: number, bytes: Buffer): Promise<void> {
  return new Promise((resolve) => {
    const socket = connect(port, "127.0.0.1", () => socket.end(bytes));
    socket.on("data", () => undefined);
    socket.on("error", () => undefined);
    socket.on("close", () => resolve());
    socket.setTimeout(2_000, () => socket.destroy());
  });
}

async function burst(ports: readonly number[]): Promise<void> {
  let started = 0;
  const one = async (): Promise<void> => {
    while (started < CONNECTIONS) {
      const index = started;
      started += 1;
      await annoy(present(ports[index % ports.length]), present(GARBAGE[index % GARBAGE.length]));
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, one));
}

/** Holds connections open and feeds each a byte now and then. Returns what ends that. */
function slowClients(ports: readonly number[], ca: Buffer): () => void {
  const sockets: Socket[] = [];
  for (const port of ports) {
    for (let count = 0; count < SLOW_AT_EACH_PORT; count += 1) {
      const isTls = count % 10 === 0;
      const socket = isTls ? connectTls({ port, host: "127.0.0.1", ca }) : connect(port, "127.0.0.1");
      socket.on("error", () => undefined);
      sockets.push(socket);
    }
  }
  const timer = setInterval(() => {
    for (const socket of sockets) if (socket.writable) socket.write("G");
  }, 500);
  return () => {
    clearInterval(timer);
    for (const socket of sockets) socket.destroy();
  };
}

describe.runIf(requirePeers("qemu-io", "openssl"))("an agent whose ports are open to strangers", () => {
  it(`serves its guest through ${CONNECTIONS} connections of garbage and slow clients, in bounded memory`, async () => {
    const [a, b] = await makeHosts(join(scratchDirectory(), "ca"), "host-a", "host-b");
    const tokenFile = join(scratchDirectory(), "token");
    writeFileSync(tokenFile, "d43f2f8cc0fc1e9477ea6c799100e2d1\n", { mode: 0o600 });
    const [nbdA, controlA, nbdB, controlB] = [await freePort(), await freePort(), await freePort(), await freePort()];
    const open = (nbd: number, control: number): string[] => [
      "--nbd-listen",
      `127.0.0.1:${nbd}`,
      "--control-listen",
      `127.0.0.1:${control}`,
      "--control-token-file",
      tokenFile,
    ];
    const pair = await AgentPair.create({
      disks: { vda: 16 * MIB },
      primaryFlags: [...tlsFlags(present(a)), ...open(nbdA, controlA)],
      secondaryFlags: [...tlsFlags(present(b)), ...open(nbdB, controlB)],
    });
    const { primary, secondary } = pair;
    primary.setFlag("--peer", `wss://127.0.0.1:${pair.port}`);
    await pair.start();
    const before = [memoryOf(primary), memoryOf(secondary)];

    const ports = [pair.port, nbdA, controlA, nbdB, controlB];
    const endSlow = slowClients(ports, readFileSync(present(a).ca));
    let isOver = false;
    const strangers = burst(ports).finally(() => {
      isOver = true;
    });
    let rounds = 0;
    while (!isOver) {
      rounds += 1;
      const pattern = String(1 + (rounds % 250));
      await qemuIo(primary.uri(), `write -P ${pattern} 0 1M`, "flush", `read -P ${pattern} 0 1M`);
    }
    await strangers;
    endSlow();
    expect(rounds).toBeGreaterThan(0);
    const after = [memoryOf(primary), memoryOf(secondary)];
    for (const [index, bytes] of after.entries()) {
      expect(bytes - present(before[index])).toBeLessThan(MEMORY_GROWTH_MAX_BYTES);
    }

    // The pair has lost nothing, and whoever may still gets in.
    expect(await pair.checkpoint()).toBeGreaterThan(0);
    await pair.untilProtected();
    const url = ["--control", `https://127.0.0.1:${controlB}`, "--tls-ca", present(a).ca, "--token-file", tokenFile];
    const { code, json } = await askColobus<Status>("status", ...url);
    expect({ code, role: json.role }).toEqual({ code: EXIT.done, role: "Secondary" });
    const withoutToken = await askColobus<ErrorDocument>("status", ...url.slice(0, 4));
    expect(withoutToken.json.error.code).toBe("auth-failed");
    // Reasons, not connections, are what the log tells of.
    for (const agent of [primary, secondary]) {
      expect(agent.log.split("\n").filter((line) => line.includes("a connection was refused")).length).toBeLessThan(40);
    }
    await primary.stop();
    await secondary.stop();
  });
});
