import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { connect as connectTls } from "node:tls";
import { afterAll, beforeAll, describe, expect, it, onTestFinished } from "vitest";
import { ColobusError } from "../../../../proto/errors.ts";
import { UNAUTHENTICATED_BYTES_MAX } from "../../../../proto/limits.ts";
import { NodeClock } from "../../../../shared/host/node-clock.ts";
import { RefusalLog } from "../../../../shared/host/refusal-log.ts";
import { TlsFiles } from "../../../../shared/host/tls-files.ts";
import type { Link } from "../../../../shared/replication/link.ts";
import { WebSocketDialer, WebSocketListener } from "../../../../shared/replication/websocket-link.ts";
import {
  makeExpired,
  makeForeignHost,
  makeHosts,
  renewHosts,
  type CertificateFiles,
} from "../../../support/certificates.ts";
import { present } from "../../../support/present.ts";
import { SilentLog } from "../../../support/silent-log.ts";

let root: string;
let hostA: CertificateFiles;
let hostB: CertificateFiles;

beforeAll(async () => {
  root = mkdtempSync(join(tmpdir(), "colobus-test-"));
  const made = await makeHosts(join(root, "ca"), "host-a", "host-b");
  hostA = present(made[0]);
  hostB = present(made[1]);
});
afterAll(() => rmSync(root, { recursive: true }));

function tlsOf(paths: Partial<CertificateFiles>): TlsFiles {
  const { cert, key, ca } = paths;
  return new TlsFiles({ paths: { cert, key, ca }, clock: new NodeClock(), log: new SilentLog() });
}

/** The reasons that were logged, in order. */
function refusals(log: SilentLog): unknown[] {
  const refused = log.lines.filter(({ message }) => message === "a connection was refused");
  return refused.map(({ fields }) => (fields as { reason: string }).reason);
}

interface Listening {
  readonly port: number;
  readonly accepted: Link[];
  readonly log: SilentLog;
  readonly files: TlsFiles;
}

async function listening(
  own: CertificateFiles | undefined,
  rules: { requiresCertificate?: boolean; peerNames?: readonly string[] } = {},
): Promise<Listening> {
  const accepted: Link[] = [];
  const log = new SilentLog();
  const files = tlsOf(own ?? {});
  const tls = own === undefined ? undefined : { files, requiresCertificate: true, peerNames: [], ...rules };
  const refusalLog = new RefusalLog({ clock: new NodeClock(), log, port: "replication" });
  const listener = new WebSocketListener((link) => accepted.push(link), { tls, refusals: refusalLog });
  const port = await listener.listen("127.0.0.1", 0);
  onTestFinished(() => listener.close());
  return { port, accepted, log, files };
}

/** Dials and resolves with the link, or with why there is none. */
async function dial(
  port: number,
  own: Partial<CertificateFiles> | undefined,
  { scheme = "wss", host = "127.0.0.1", peerNames = [] as readonly string[] } = {},
): Promise<Link | ColobusError> {
  const security = own === undefined ? undefined : { files: tlsOf(own), peerNames };
  const dialer = new WebSocketDialer(`${scheme}://${host}:${port}`, security);
  try {
    const link = await dialer.dial(new AbortController().signal);
    link.start({ message: () => undefined, closed: () => undefined });
    onTestFinished(() => link.close(new ColobusError("shutting-down", "the test is over")));
    return link;
  } catch (error) {
    if (error instanceof ColobusError) return error;
    throw error;
  }
}

function faultOf(result: Link | ColobusError): ColobusError {
  if (result instanceof ColobusError) return result;
  throw new Error("a link was made");
}

function linkOf(result: Link | ColobusError): Link {
  if (result instanceof ColobusError) throw result;
  return result;
}

describe("a link over TLS", () => {
  it("carries messages, and each side knows the other by the subject of its certificate", async () => {
    const { port, accepted } = await listening(hostA);
    const dialled = linkOf(await dial(port, hostB, { host: "localhost" }));
    expect(dialled.peerIdentity).toEqual({ subject: "CN=host-a", isNamed: false });
    const served = present(accepted[0]);
    expect(served.peerIdentity).toEqual({ subject: "CN=host-b", isNamed: false });
    const heard = new Promise<Buffer>((resolve) => {
      served.start({ message: resolve, closed: () => undefined });
    });
    dialled.send([Buffer.from("a message")]);
    expect((await heard).toString()).toBe("a message");
  });

  it("is made with a peer of one of the names that are configured", async () => {
    const { port, accepted } = await listening(hostA, { peerNames: ["another", "host-b"] });
    const dialled = linkOf(await dial(port, hostB, { peerNames: ["host-a"] }));
    expect(dialled.peerIdentity?.isNamed).toBe(true);
    expect(accepted[0]?.peerIdentity?.isNamed).toBe(true);
  });

  it("is made without a client's certificate where the token is to prove who it is", async () => {
    const { port, accepted } = await listening(hostA, { requiresCertificate: false });
    linkOf(await dial(port, { ca: hostA.ca }));
    expect(accepted[0]?.peerIdentity).toBeUndefined();
  });
});

describe("a listener with TLS refuses, says why to the client, and logs it once", () => {
  async function refusedTwice(own: Partial<CertificateFiles> | undefined, rules: Parameters<typeof listening>[1] = {}) {
    const made = await listening(hostA, rules);
    const fault = faultOf(await dial(made.port, own));
    faultOf(await dial(made.port, own));
    expect(made.accepted).toEqual([]);
    return { fault, reasons: refusals(made.log) };
  }

  it("a client without a certificate", async () => {
    const { fault, reasons } = await refusedTwice({ ca: hostA.ca });
    expect(fault).toMatchObject({ code: "auth-failed" });
    expect(fault.message).toContain("the client shows no certificate");
    expect(reasons).toEqual(["the client shows no certificate"]);
  });

  it("a certificate of another authority, also where the token would do", async () => {
    const [stranger] = await makeHosts(join(root, "another-ca"), "host-b");
    for (const requiresCertificate of [true, false]) {
      const { fault, reasons } = await refusedTwice({ ...present(stranger), ca: hostA.ca }, { requiresCertificate });
      expect(fault.code).toBe("auth-failed");
      expect(fault.message).toContain("is not signed by the certificate authority");
      expect(reasons).toHaveLength(1);
    }
  });

  it("a certificate that has expired", async () => {
    const expired = makeExpired(join(root, "ca"), "expired-client");
    const { port, log, accepted } = await listening(hostA);
    // This side refuses to start with it: so shown by a client of its own.
    const answer = await rawUpgrade(port, expired);
    expect(answer).toContain("403 Forbidden");
    expect(answer).toContain("the client's certificate has expired");
    expect(accepted).toEqual([]);
    expect(refusals(log)).toHaveLength(1);
  });

  it("a certificate of none of the names that are configured", async () => {
    const { fault, reasons } = await refusedTwice(hostB, { peerNames: ["host-c"] });
    expect(fault.message).toContain("none of those whom this agent takes as its peer");
    expect(reasons).toHaveLength(1);
  });

  it("a client that speaks no TLS", async () => {
    const { port, log } = await listening(hostA);
    const fault = faultOf(await dial(port, undefined, { scheme: "ws" }));
    expect(fault.code).toBe("connection-lost");
    expect(fault.message).toContain("expects TLS, dial wss://");
    faultOf(await dial(port, undefined, { scheme: "ws" }));
    const reasons = refusals(log);
    expect(reasons).toEqual(["the client speaks no TLS, and this port does"]);
  });
});

describe("a listener without TLS", () => {
  it("is told from one with TLS on both sides", async () => {
    const { port, log } = await listening(undefined);
    const fault = faultOf(await dial(port, hostB));
    expect(fault.message).toContain("if its agent speaks no TLS");
    const reasons = refusals(log);
    expect(reasons).toEqual(["the client speaks TLS, and this port does not"]);
  });
});

describe("a dialler refuses a listener", () => {
  it("whose certificate is of another authority", async () => {
    const [stranger] = await makeHosts(join(root, "false-ca"), "host-a");
    const { port, accepted } = await listening(present(stranger));
    const fault = faultOf(await dial(port, hostB));
    expect(fault).toMatchObject({ code: "auth-failed" });
    expect(fault.message).toContain("is not signed by the certificate authority");
    expect(accepted).toEqual([]);
  });

  it("whose certificate is of another host than the URL names", async () => {
    const { port } = await listening(await makeForeignHost(join(root, "ca"), "elsewhere"));
    const fault = faultOf(await dial(port, hostB));
    expect(fault).toMatchObject({ code: "auth-failed" });
    expect(fault.message).toContain("is of another host");
  });

  it("of another name than is configured", async () => {
    const { port } = await listening(hostA);
    expect(faultOf(await dial(port, hostB, { peerNames: ["host-c"] })).code).toBe("auth-failed");
  });
});

describe("certificates", () => {
  it("are renewed without a restart: new links have the new one, the link that is open goes on", async () => {
    const [own, client] = await makeHosts(join(root, "renewed"), "host-a", "host-b");
    const { port, accepted, files } = await listening(present(own));
    const before = linkOf(await dial(port, present(client)));
    const serialBefore = await serialOf(port, present(client));
    await renewHosts(join(root, "renewed"), "host-a");
    files.reload();
    expect(await serialOf(port, present(client))).not.toBe(serialBefore);
    const heard = new Promise<Buffer>((resolve) => {
      present(accepted[0]).start({ message: resolve, closed: () => undefined });
    });
    before.send([Buffer.from("still here")]);
    expect((await heard).toString()).toBe("still here");
    const after = linkOf(await dial(port, present(client)));
    expect(after.peerIdentity?.subject).toBe(before.peerIdentity?.subject);
  });
});

describe("a peer that has not proved itself", () => {
  it("is dropped when it sends much, and not after it has proved itself", async () => {
    const { port, accepted } = await listening(hostA);
    const ends: ColobusError[] = [];
    const much = Buffer.alloc(UNAUTHENTICATED_BYTES_MAX + 1);
    const unproved = linkOf(await dial(port, hostB));
    const dropped = new Promise<void>((resolve) => {
      present(accepted[0]).start({
        message: () => undefined,
        closed: (reason) => {
          ends.push(reason);
          resolve();
        },
      });
    });
    unproved.send([much]);
    await dropped;
    expect(ends).toMatchObject([{ code: "protocol-error" }]);

    const proved = linkOf(await dial(port, hostB));
    const heard = new Promise<Buffer>((resolve) => {
      present(accepted[1]).start({ message: resolve, closed: () => undefined });
    });
    accepted[1]?.proved?.();
    proved.send([much]);
    expect((await heard).length).toBe(much.length);
  });

  it("gets nothing but the end of its connection for garbage", async () => {
    const { port, accepted, log } = await listening(hostA);
    const received = await new Promise<Buffer>((resolve) => {
      const socket = connect(port, "127.0.0.1", () => socket.write("\0garbage\r\n\r\n"));
      const chunks: Buffer[] = [];
      socket.on("data", (chunk: Buffer) => chunks.push(chunk));
      socket.on("error", () => undefined);
      socket.on("close", () => resolve(Buffer.concat(chunks)));
    });
    expect(received.length).toBeLessThanOrEqual(7); // an alert of TLS
    expect(accepted).toEqual([]);
    expect(refusals(log)).toHaveLength(1);
  });
});

const UPGRADE =
  "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n" +
  "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n";

/** What the listener answers to the handshake of a client that shows any certificate at all. */
function rawUpgrade(port: number, { cert, key, ca }: CertificateFiles): Promise<string> {
  return new Promise((resolve, reject) => {
    const options = { cert: readFileSync(cert), key: readFileSync(key), ca: readFileSync(ca) };
    const socket = connectTls({ port, host: "127.0.0.1", ...options }, () => socket.write(UPGRADE));
    let text = "";
    socket.on("data", (chunk: Buffer) => (text += chunk.toString()));
    socket.on("error", reject);
    socket.on("close", () => resolve(text));
  });
}

/** The serial number of the certificate that a listener shows. */
function serialOf(port: number, { cert, key, ca }: CertificateFiles): Promise<string | undefined> {
  return new Promise((resolve, reject) => {
    const options = { cert: readFileSync(cert), key: readFileSync(key), ca: readFileSync(ca) };
    const socket = connectTls({ port, host: "127.0.0.1", ...options }, () => {
      resolve(socket.getPeerX509Certificate()?.serialNumber);
      socket.destroy();
    });
    socket.on("error", reject);
  });
}
