/** NBD over TCP with TLS and certificates, tried by the clients that people use, and by one that does what it must not. */
import { execFile } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import type { SecureContextOptions } from "node:tls";
import { promisify } from "node:util";
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { OPTION, OPTION_REPLY } from "../../proto/nbd-protocol.ts";
import { NodeClock } from "../../shared/host/node-clock.ts";
import { RefusalLog } from "../../shared/host/refusal-log.ts";
import { TlsFiles } from "../../shared/host/tls-files.ts";
import { NbdServer } from "../../shared/nbd/server.ts";
import { makeClient, makeHosts, type CertificateFiles } from "../support/certificates.ts";
import { MemoryDevice } from "../support/memory-device.ts";
import { option } from "../support/nbd-client.ts";
import { TestDirectory, TestExport } from "../support/nbd-harness.ts";
import { NbdWire } from "../support/nbd-wire.ts";
import { requirePeers } from "../support/peers.ts";
import { present } from "../support/present.ts";
import { SilentLog } from "../support/silent-log.ts";

const run = promisify(execFile);
const SIZE = 8 * 1024 * 1024;

let root: string;
let client: CertificateFiles;
let stranger: CertificateFiles;
let required: number;
let offered: number;
let device: MemoryDevice;
const log = new SilentLog();
const directory = new TestDirectory();
const server = new NbdServer({ directory, clock: new NodeClock(), log });

beforeAll(async () => {
  root = mkdtempSync(join(tmpdir(), "colobus-interop-"));
  const host = present((await makeHosts(join(root, "ca"), "host-a"))[0]);
  client = await makeClient(join(root, "ca"), "client");
  stranger = await makeClient(join(root, "another-ca"), "client");
  device = new MemoryDevice(SIZE);
  directory.exports.push(new TestExport("vda", device, "a secret disk"));
  const clock = new NodeClock();
  const files = new TlsFiles({ paths: host, clock, log });
  const tls = (offer: "required" | "offered") =>
    ({ files, offer, refusals: new RefusalLog({ clock, log, port: "nbd" }) }) as const;
  ({ port: required } = await server.listenTcp("127.0.0.1", 0, tls("required")));
  ({ port: offered } = await server.listenTcp("127.0.0.1", 0, tls("offered")));
});

afterAll(async () => {
  await server.close();
  rmSync(root, { recursive: true });
});

beforeEach(() => {
  log.lines.length = 0;
});

async function execute(program: string, ...args: string[]): Promise<string> {
  const { stdout, stderr } = await run(program, args, { encoding: "utf8", timeout: 60_000 });
  return stdout + stderr;
}

async function failure(program: string, ...args: string[]): Promise<string> {
  try {
    return `succeeded: ${await execute(program, ...args)}`;
  } catch (error) {
    return (error as { stderr: string }).stderr;
  }
}

function contentOf({ cert, key, ca }: CertificateFiles): SecureContextOptions {
  return { cert: readFileSync(cert), key: readFileSync(key), ca: readFileSync(ca) };
}

const uriOf = (port: number, { cert }: CertificateFiles): string =>
  `nbds://127.0.0.1:${port}/vda?tls-certificates=${dirname(cert)}`;

const qemuArgs = (port: number, { cert }: CertificateFiles): string[] => [
  "--object",
  `tls-creds-x509,id=tls0,endpoint=client,dir=${dirname(cert)}`,
  "--image-opts",
  `driver=nbd,host=127.0.0.1,port=${port},export=vda,tls-creds=tls0`,
];

describe.runIf(requirePeers("qemu-io", "openssl"))("qemu-io over TLS", () => {
  it.each(["required", "offered"])("writes and reads where TLS is %s", async (offer) => {
    const port = offer === "required" ? required : offered;
    const commands = ["write -P 5 4k 1M", "flush", "read -P 5 4k 1M", "write -z 8k 64k", "read -P 0 8k 64k"];
    const output = await execute("qemu-io", ...commands.flatMap((c) => ["-c", c]), ...qemuArgs(port, client));
    expect(output).not.toMatch(/fail|error/i);
  });

  it("is refused without TLS, and told so", async () => {
    expect(await failure("qemu-io", "-f", "raw", "-c", "read 0 512", `nbd://127.0.0.1:${required}/vda`)).toMatch(/TLS/);
  });

  it("is refused with a certificate of another authority", async () => {
    expect(await failure("qemu-io", "-c", "read 0 512", ...qemuArgs(required, stranger))).not.toMatch(/^succeeded/);
  });
});

describe.runIf(requirePeers("nbdinfo", "nbdcopy", "openssl"))("libnbd over TLS", () => {
  it("lists, and copies there and back", async () => {
    expect(await execute("nbdinfo", "--json", uriOf(required, client))).toContain('"TLS": true');
    const [source, target] = [join(root, "source.img"), join(root, "target.img")];
    const content = Buffer.alloc(SIZE, "what is copied over TLS ");
    writeFileSync(source, content);
    await execute("nbdcopy", source, uriOf(required, client));
    await execute("nbdcopy", uriOf(required, client), target);
    expect(readFileSync(target).equals(content)).toBe(true);
  });

  it("is refused without TLS and without a certificate that is accepted, and the exports stay secret", async () => {
    const plain = await failure("nbdinfo", "--list", `nbd://127.0.0.1:${required}/`);
    expect(plain).not.toMatch(/^succeeded/);
    expect(plain).not.toContain("secret");
    expect(await failure("nbdinfo", uriOf(required, { ...stranger, ca: client.ca }))).not.toMatch(/^succeeded/);
  });
});

describe.runIf(requirePeers("openssl"))("a client of its own making", () => {
  const REFUSED = [OPTION.LIST, OPTION.INFO, OPTION.GO, OPTION.STRUCTURED_REPLY, OPTION.SET_META_CONTEXT, 4711];

  it.each(REFUSED)("gets ERR_TLS_REQD for option %i before STARTTLS", async (refused) => {
    const wire = await NbdWire.open(required);
    wire.option(refused);
    expect(await wire.reply()).toEqual({ option: refused, type: OPTION_REPLY.ERR_TLS_REQD });
    wire.option(OPTION.STARTTLS, Buffer.from("data"));
    expect((await wire.reply()).type).toBe(OPTION_REPLY.ERR_INVALID);
  });

  it("cannot use what it agreed on before TLS, nor begin TLS twice", async () => {
    const wire = await NbdWire.open(offered);
    wire.option(OPTION.STRUCTURED_REPLY);
    expect((await wire.reply()).type).toBe(OPTION_REPLY.ACK);
    wire.option(OPTION.STARTTLS);
    expect((await wire.reply()).type).toBe(OPTION_REPLY.ACK);
    await wire.secure(contentOf(client));
    // Meta contexts need structured replies.
    wire.option(OPTION.LIST_META_CONTEXT, Buffer.alloc(8));
    expect((await wire.reply()).type).toBe(OPTION_REPLY.ERR_INVALID);
    wire.option(OPTION.STARTTLS);
    expect((await wire.reply()).type).toBe(OPTION_REPLY.ERR_INVALID);
    wire.option(OPTION.LIST);
    expect((await wire.reply()).type).toBe(OPTION_REPLY.SERVER);
  });

  it.each(["TLSv1.2", "TLSv1.3"] as const)(
    "cannot resume the session of an earlier connection (%s)",
    async (version) => {
      const options = { ...contentOf(client), minVersion: version, maxVersion: version };
      const first = await NbdWire.open(required);
      const secured = await first.startTls(options);
      first.option(OPTION.LIST);
      await first.reply();
      const second = await NbdWire.open(required);
      const again = await second.startTls({ ...options, session: secured.getSession() });
      expect(again.isSessionReused()).toBe(false);
    },
  );

  it("cannot slip words in that were sent before TLS began", async () => {
    const wire = await NbdWire.open(offered);
    wire.send(Buffer.concat([option(OPTION.STARTTLS), option(OPTION.STRUCTURED_REPLY)]));
    await wire.closed;
    expect(log.lines.map(({ message }) => message)).toContain("NBD client sent more behind STARTTLS before TLS began");
  });

  it("is refused without a certificate, and that is logged once", async () => {
    for (let count = 0; count < 2; count += 1) {
      const wire = await NbdWire.open(required);
      wire.option(OPTION.STARTTLS);
      await wire.reply();
      await wire.secure({ ca: readFileSync(client.ca) });
      wire.option(OPTION.LIST);
      await wire.closed;
      expect(wire.rest).toBe(0);
    }
    const refused = log.lines.filter(({ message }) => message === "a connection was refused");
    expect(refused.map(({ fields }) => (fields as { reason: string }).reason)).toEqual([
      "the client shows no certificate",
    ]);
  });
});
