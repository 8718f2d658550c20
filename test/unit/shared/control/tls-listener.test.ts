import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { get } from "node:https";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { connect as connectTls } from "node:tls";
import { afterAll, beforeAll, describe, expect, it, onTestFinished } from "vitest";
import { CONTROL_CONNECTIONS_MAX } from "../../../../proto/limits.ts";
import { ControlClient } from "../../../../shared/control/api-client.ts";
import { ControlServer } from "../../../../shared/control/api-server.ts";
import { NodeClock } from "../../../../shared/host/node-clock.ts";
import { RefusalLog } from "../../../../shared/host/refusal-log.ts";
import { TlsFiles } from "../../../../shared/host/tls-files.ts";
import { readBearerToken } from "../../../../shared/host/token-file.ts";
import { makeClient, makeForeignHost, makeHosts, type CertificateFiles } from "../../../support/certificates.ts";
import { FakeAgentControl } from "../../../support/fake-agent-control.ts";
import { present } from "../../../support/present.ts";
import { SilentLog } from "../../../support/silent-log.ts";

const TOKEN = "d43f2f8cc0fc1e9477ea6c799100e2d1";

let root: string;
let host: CertificateFiles;
let operator: CertificateFiles;
let stranger: CertificateFiles;

beforeAll(async () => {
  root = mkdtempSync(join(tmpdir(), "colobus-test-"));
  host = present((await makeHosts(join(root, "ca"), "host-a"))[0]);
  operator = await makeClient(join(root, "ca"), "operator");
  stranger = await makeClient(join(root, "another-ca"), "operator");
});
afterAll(() => rmSync(root, { recursive: true }));

async function serving(own = host) {
  const log = new SilentLog();
  const clock = new NodeClock();
  const control = new FakeAgentControl();
  const server = new ControlServer({ control, log });
  const files = new TlsFiles({ paths: own, clock, log });
  const refusals = new RefusalLog({ clock, log, port: "control" });
  const port = await server.listenTls("127.0.0.1", 0, { files, token: Buffer.from(TOKEN), refusals });
  onTestFinished(() => server.close());
  const reasons = (): unknown[] =>
    log.lines
      .filter(({ message }) => message === "a connection was refused")
      .map(({ fields }) => (fields as { reason: string }).reason);
  return { port, reasons, control };
}

function client(
  port: number,
  token: string | undefined,
  tls: Partial<CertificateFiles> = { ca: host.ca },
): ControlClient {
  const read = (path: string | undefined): Buffer | undefined => (path === undefined ? undefined : readFileSync(path));
  const options = Object.fromEntries(Object.entries(tls).map(([key, path]) => [key, read(path)]));
  return new ControlClient({ kind: "url", url: `https://127.0.0.1:${port}`, token, tls: options });
}

describe("the control API over TLS", () => {
  it("answers who knows the token, with a certificate of its own or without", async () => {
    const { port, reasons } = await serving();
    expect((await client(port, TOKEN).status()).vm).toBeDefined();
    expect((await client(port, TOKEN, operator).status()).vm).toBeDefined();
    const events = client(port, TOKEN).follow(0)[Symbol.asyncIterator]();
    await events.return?.();
    expect(reasons()).toEqual([]);
  });

  it.each([
    ["no token", undefined, "the request has no token"],
    ["another token", TOKEN.toUpperCase(), "the request has another token than the agent"],
  ])("refuses who has %s, and logs it once", async (_, token, reason) => {
    const { port, reasons } = await serving();
    await expect(client(port, token).status()).rejects.toMatchObject({ code: "auth-failed" });
    await expect(client(port, token).startAlone({ force: false })).rejects.toMatchObject({ code: "auth-failed" });
    expect(reasons()).toEqual([reason]);
  });

  it("refuses a certificate of another authority, whatever the token", async () => {
    const { port, reasons } = await serving();
    const shown = { ...stranger, ca: host.ca };
    await expect(client(port, TOKEN, shown).status()).rejects.toMatchObject({ code: "auth-failed" });
    expect(reasons()).toHaveLength(1);
  });

  it("is not believed by a client that has another authority, or wants another host", async () => {
    const { port } = await serving();
    const another = await serving(await makeForeignHost(join(root, "ca"), "elsewhere"));
    await expect(client(port, TOKEN, { ca: stranger.ca }).status()).rejects.toMatchObject({
      code: "agent-unreachable",
      message: expect.stringContaining("is not signed by") as string,
    });
    await expect(client(another.port, TOKEN).status()).rejects.toMatchObject({
      message: expect.stringContaining("is of another host") as string,
    });
  });

  it("takes the places back of clients that send what is no request, and never close", async () => {
    const { port } = await serving();
    const ca = readFileSync(host.ca);
    const rude = Array.from({ length: CONTROL_CONNECTIONS_MAX }, async () => {
      const plain = connect({ port, host: "127.0.0.1", allowHalfOpen: true });
      const socket = connectTls({ socket: plain, host: "127.0.0.1", ca });
      onTestFinished(() => void socket.destroy());
      socket.on("error", () => undefined);
      socket.resume().write("\0 rubbish\r\n\r\n");
      await once(socket, "end");
    });
    await Promise.all(rude);
    const vm = (): Promise<string | undefined> =>
      client(port, TOKEN)
        .status()
        .then(
          (status) => status.vm,
          () => undefined,
        );
    await expect.poll(vm, { timeout: 10_000 }).toBeDefined();
  });

  it("tells nothing to a client without TLS", async () => {
    const { port, reasons } = await serving();
    const answer = await new Promise<string>((resolve) => {
      const socket = connect(port, "127.0.0.1", () => socket.write("GET /v1/status HTTP/1.1\r\nhost: x\r\n\r\n"));
      let text = "";
      socket.on("data", (chunk: Buffer) => (text += chunk.toString("latin1")));
      socket.on("error", () => undefined);
      socket.on("close", () => resolve(text));
    });
    expect(answer).not.toContain("HTTP");
    expect(reasons()).toEqual(["the client speaks no TLS, and this port does"]);
  });
});

describe("the control API over TLS, asked by a browser", () => {
  /** What a request with these headers is answered: the status and the reason. */
  async function asked(port: number, path: string, headers: Readonly<Record<string, string>>) {
    return new Promise<{ status: number | undefined; body: string }>((resolve, reject) => {
      const url = `https://127.0.0.1:${port}${path}`;
      get(url, { headers, ca: readFileSync(host.ca), agent: false }, (answer) => {
        let body = "";
        answer.setEncoding("utf8").on("data", (text: string) => (body += text));
        answer.on("end", () => resolve({ status: answer.statusCode, body }));
      }).on("error", reject);
    });
  }

  it("gives the page's files to everybody, and nothing else without the token", async () => {
    const { port, reasons } = await serving();
    // There is no page here: it is not that the token is missing.
    expect((await asked(port, "/", { "sec-fetch-site": "cross-site" })).status).toBe(404);
    expect((await asked(port, "/page/door", {})).status).toBe(404);
    expect(reasons()).toEqual([]);
    for (const path of ["/v1/status", "/metrics", "/page/other", "/page", "//"]) {
      expect((await asked(port, path, {})).status).toBe(401);
    }
  });

  it("answers the agent's own page, and no other, whatever the token", async () => {
    const { port } = await serving();
    const authorization = `Bearer ${TOKEN}`;
    const own = `https://127.0.0.1:${port}`;
    expect((await asked(port, "/v1/status", { authorization, origin: own })).status).toBe(200);
    for (const headers of [{ origin: "https://evil.example" }, { "sec-fetch-site": "cross-site" }]) {
      const { status, body } = await asked(port, "/v1/status", { authorization, ...headers });
      expect(status).toBe(401);
      expect(body).toContain("not the agent's own");
    }
  });
});

describe("a control token", () => {
  it("can be sent in a header", () => {
    const path = join(root, "token");
    writeFileSync(path, "one word and another one\n", { mode: 0o600 });
    expect(() => readBearerToken(path, "--token-file")).toThrow("has characters that cannot be sent");
    writeFileSync(path, `${TOKEN}\n`);
    expect(readBearerToken(path, "--token-file").toString()).toBe(TOKEN);
  });
});
