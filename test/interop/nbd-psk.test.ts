/** NBD over TCP with TLS and pre-shared keys, tried by the clients that people use, and by one that does what it must not. */
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import type { ConnectionOptions } from "node:tls";
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { OPTION, OPTION_REPLY } from "../../proto/nbd-protocol.ts";
import { NodeClock } from "../../shared/host/node-clock.ts";
import { NodeRandom } from "../../shared/host/node-random.ts";
import { openPskKeys, type PskKeys } from "../../shared/host/psk-keys.ts";
import { RefusalLog } from "../../shared/host/refusal-log.ts";
import { NbdServer } from "../../shared/nbd/server.ts";
import { MemoryDevice } from "../support/memory-device.ts";
import { TestDirectory, TestExport } from "../support/nbd-harness.ts";
import { runTool, tool } from "../support/nbd-tools.ts";
import { NbdWire } from "../support/nbd-wire.ts";
import { requirePeers } from "../support/peers.ts";
import { SilentLog } from "../support/silent-log.ts";

const SIZE = 8 * 1024 * 1024;
const KEY = Buffer.alloc(32, 0xa1);
const OTHER_KEY = Buffer.alloc(32, 0xb2);
const VERSIONS = ["TLSv1.2", "TLSv1.3"] as const;

let root: string;
let serverFile: string;
let keys: PskKeys;
let server: NbdServer;
let required: number;
let offered: number;
const log = new SilentLog();

/** A file of keys as a client has it: where libnbd is told of it, and QEMU of its directory. */
function keyFile(name: string, content: Readonly<Record<string, Buffer>>): string {
  const path = join(root, name, "keys.psk");
  mkdirSync(dirname(path), { recursive: true });
  const lines = Object.entries(content).map(([user, key]) => `${user}:${key.toString("hex")}\n`);
  writeFileSync(path, lines.join(""), { mode: 0o600 });
  return path;
}

beforeAll(async () => {
  root = mkdtempSync(join(tmpdir(), "colobus-interop-"));
  serverFile = keyFile("server", { backup: KEY, vm: OTHER_KEY });
  const clock = new NodeClock();
  keys = openPskKeys(serverFile, clock, log);
  const directory = new TestDirectory();
  directory.exports.push(new TestExport("vda", new MemoryDevice(SIZE), "a secret disk"));
  server = new NbdServer({ directory, clock, log });
  const listen = (offer: "required" | "offered"): Promise<{ port: number }> => {
    const refused = new RefusalLog({ clock, log, port: "nbd" });
    return server.listenTcp("127.0.0.1", 0, { keys, random: new NodeRandom(), offer, refusals: refused });
  };
  ({ port: required } = await listen("required"));
  ({ port: offered } = await listen("offered"));
});

afterAll(async () => {
  await server.close();
  rmSync(root, { recursive: true });
});

beforeEach(() => {
  log.lines.length = 0;
});

const uriOf = (port: number, user: string, file: string): string =>
  `nbds://${user}@127.0.0.1:${port}/vda?tls-psk-file=${file}`;

const qemuArgs = (port: number, user: string, file: string, priority?: string): string[] => [
  "--object",
  [
    `tls-creds-psk,id=tls0,endpoint=client,dir=${dirname(file)},username=${user}`,
    ...(priority === undefined ? [] : [`priority=${priority}`]),
  ].join(","),
  "--image-opts",
  `driver=nbd,host=127.0.0.1,port=${port},export=vda,tls-creds=tls0`,
];

/** Who holds this key, as Node's TLS client. */
const holderOf = (user: string, psk: Buffer, version: (typeof VERSIONS)[number]): ConnectionOptions => ({
  minVersion: version,
  maxVersion: version,
  ciphers: "PSK:TLS_AES_128_GCM_SHA256",
  pskCallback: () => ({ identity: user, psk }),
  checkServerIdentity: () => undefined,
});

/** The code of what ends the handshake of a client; empty where it succeeds. */
async function faultOf(port: number, options: ConnectionOptions): Promise<string> {
  const wire = await NbdWire.open(port);
  try {
    await wire.startTls(options);
    return "";
  } catch (error) {
    return (error as NodeJS.ErrnoException).code ?? "?";
  }
}

const refusals = (): string[] =>
  log.lines
    .filter(({ message }) => message === "a connection was refused")
    .map(({ fields }) => (fields as { reason: string }).reason);

describe.runIf(requirePeers("qemu-io"))("qemu-io with a pre-shared key", () => {
  it.each([
    ["required", undefined],
    ["offered", undefined],
    ["required", "NORMAL:-VERS-ALL:+VERS-TLS1.2"],
    ["required", "NORMAL:-VERS-ALL:+VERS-TLS1.3"],
  ])("writes and reads where TLS is %s, with the priorities %s", async (offer, priority) => {
    const file = keyFile("client", { backup: KEY });
    const port = offer === "required" ? required : offered;
    const commands = ["write -P 5 4k 1M", "flush", "read -P 5 4k 1M", "write -z 8k 64k", "read -P 0 8k 64k"];
    const output = await tool(
      "qemu-io",
      ...commands.flatMap((c) => ["-c", c]),
      ...qemuArgs(port, "backup", file, priority),
    );
    expect(output.toString()).not.toMatch(/fail|error/i);
    expect(refusals()).toEqual([]);
  });

  it("is refused without TLS, and told so", async () => {
    const { code, stderr } = await runTool("qemu-io", [
      "-f",
      "raw",
      "-c",
      "read 0 512",
      `nbd://127.0.0.1:${required}/vda`,
    ]);
    expect({ code, stderr }).toEqual({ code: 1, stderr: expect.stringContaining("TLS") });
  });

  it.each([
    ["another key", "backup", OTHER_KEY, 'the client does not hold the key of user "backup"'],
    ["a user that there is not", "nobody", KEY, "the client names a user who has no key"],
  ])("is refused with %s, which is logged once", async (_, user, key, reason) => {
    const file = keyFile("stranger", { [user]: key });
    for (let count = 0; count < 2; count += 1) {
      const { code } = await runTool("qemu-io", ["-c", "read 0 512", ...qemuArgs(required, user, file)]);
      expect(code).toBe(1);
    }
    expect(refusals()).toEqual([reason]);
  });
});

describe.runIf(requirePeers("nbdinfo", "nbdcopy"))("libnbd with a pre-shared key", () => {
  it("lists, and copies there and back", async () => {
    const uri = uriOf(required, "vm", keyFile("client", { vm: OTHER_KEY }));
    expect((await tool("nbdinfo", "--json", uri)).toString()).toContain('"TLS": true');
    const [source, target] = [join(root, "source.img"), join(root, "target.img")];
    const content = Buffer.alloc(SIZE, "what is copied over TLS ");
    writeFileSync(source, content);
    await tool("nbdcopy", source, uri);
    await tool("nbdcopy", uri, target);
    expect(readFileSync(target).equals(content)).toBe(true);
  });

  it("is refused without TLS and without a key that is right, and the exports stay secret", async () => {
    const wrong = keyFile("stranger", { backup: OTHER_KEY, nobody: KEY });
    const uris = [`nbd://127.0.0.1:${required}/`, uriOf(required, "backup", wrong), uriOf(required, "nobody", wrong)];
    for (const uri of uris) {
      const { code, stdout, stderr } = await runTool("nbdinfo", ["--list", uri]);
      expect({ uri, code, stdout: stdout.toString() }).toEqual({ uri, code: 1, stdout: "" });
      expect(stderr).not.toContain("secret");
    }
  });
});

describe.runIf(requirePeers("psktool"))("a file that psktool has made", () => {
  it("is taken as it is", async () => {
    const path = join(root, "made.psk");
    for (const user of ["backup", "restore"]) await tool("psktool", "--username", user, "--pskfile", path);
    const made = openPskKeys(path, new NodeClock(), log).content;
    expect([...made].map(([user, { length }]) => [user, length])).toEqual([
      ["backup", 32],
      ["restore", 32],
    ]);
  });
});

describe("a client of its own making, where keys are asked for", () => {
  it.each(VERSIONS)("gets in with the key by %s", async (version) => {
    const wire = await NbdWire.open(required);
    const socket = await wire.startTls(holderOf("backup", KEY, version));
    expect(socket.getProtocol()).toBe(version);
    wire.option(OPTION.LIST);
    expect((await wire.reply()).type).toBe(OPTION_REPLY.SERVER);
  });

  it.each(VERSIONS)("cannot tell a user that there is from one that there is not (%s)", async (version) => {
    const answers: string[] = [];
    for (const user of ["backup", "nobody", "ü".repeat(40)]) {
      answers.push(await faultOf(required, holderOf(user, Buffer.alloc(32, 0xc3), version)));
    }
    for (const answer of answers) expect(answer).toMatch(/^ERR_SSL_.*ALERT/);
    expect(new Set(answers).size).toBe(1);
  });

  it.each([
    ["no key", { rejectUnauthorized: false }],
    ["ciphers without the exchange of a secret", { ciphers: "PSK-AES128-GCM-SHA256", maxVersion: "TLSv1.2" }],
  ] as const)("is refused with %s", async (_, options) => {
    const holder = "ciphers" in options ? holderOf("backup", KEY, "TLSv1.2") : {};
    expect(await faultOf(required, { ...holder, ...options })).toMatch(/^ERR_SSL_.*ALERT/);
    expect(refusals()).toHaveLength(1);
  });

  it("is refused with garbage, and nobody else notices", async () => {
    const wire = await NbdWire.open(required);
    wire.option(OPTION.STARTTLS);
    await wire.reply();
    wire.send(Buffer.alloc(4096, 0x16));
    await wire.closed;
    const other = await NbdWire.open(required);
    await other.startTls(holderOf("backup", KEY, "TLSv1.3"));
  });

  it.each(VERSIONS)("is known by the keys as they are now, also when it resumes a session (%s)", async (version) => {
    const file = readFileSync(serverFile);
    const before = await NbdWire.open(required);
    const socket = await before.startTls(holderOf("backup", KEY, version));
    before.option(OPTION.LIST);
    await before.reply();
    const session = socket.getSession();
    try {
      writeFileSync(serverFile, `added:${KEY.toString("hex")}\n`);
      keys.reload();
      expect(await faultOf(required, { ...holderOf("backup", KEY, version), session })).toMatch(/^ERR_SSL_.*ALERT/);
      const added = await NbdWire.open(required);
      await added.startTls(holderOf("added", KEY, version));
      // Who is in stays in.
      before.option(OPTION.LIST);
      expect((await before.reply()).type).toBe(OPTION_REPLY.ACK);
    } finally {
      writeFileSync(serverFile, file);
      keys.reload();
    }
  });
});
