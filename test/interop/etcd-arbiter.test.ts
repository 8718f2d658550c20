/** The arbiter in a real etcd. */
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { describe, expect, it, onTestFinished } from "vitest";
import { z } from "zod";
import type { ArbiterEntry } from "../../proto/arbiter-record.ts";
import { EtcdArbiter } from "../../shared/arbiter/etcd-arbiter.ts";
import { EtcdGateway, type EtcdAccess } from "../../shared/arbiter/etcd-gateway.ts";
import { OwnLease } from "../../shared/arbiter/own-lease.ts";
import { NodeClock } from "../../shared/host/node-clock.ts";
import { TlsFiles, type TlsPaths } from "../../shared/host/tls-files.ts";
import { makeHosts } from "../support/certificates.ts";
import { Etcd } from "../support/etcd.ts";
import { requirePeers } from "../support/peers.ts";
import { present } from "../support/present.ts";
import { scratchDirectory } from "../support/scratch.ts";

const TTL_MS = 3_000;
const NOBODY = "http://127.0.0.1:1";

function entryOf(vm: string, holder: string, more: Partial<ArbiterEntry> = {}): ArbiterEntry {
  return { vm, lineage: "first", holder, committed: 0, outdated: [], ttlMs: TTL_MS, ...more };
}

describe.runIf(requirePeers("etcd"))("an arbiter in etcd", () => {
  let vms = 0;

  /** Two agents of a VM that etcd has not heard of. */
  async function agents(endpoints: readonly string[] = []): Promise<{ vm: string; a: EtcdArbiter; b: EtcdArbiter }> {
    const { url } = await Etcd.start();
    vms += 1;
    const vm = `vm${vms}`;
    const clock = new NodeClock();
    const agent = (agentId: string): EtcdArbiter =>
      new EtcdArbiter({ endpoints: [...endpoints, url], vm, agentId, ttlMs: TTL_MS, clock });
    return { vm, a: agent("a"), b: agent("b") };
  }

  it("gives the lease to one of two agents, with the record", async () => {
    const { vm, a, b } = await agents();
    const nothing = await a.read();
    expect(nothing).toEqual({ record: undefined, revision: "0", leaseHolder: null });
    const claimed = await a.claim("0", entryOf(vm, "a"), false);
    expect(claimed).toMatchObject({ leaseHolder: "a", record: { holder: "a", lineage: "first" } });
    expect(await b.read()).toEqual(claimed);
    expect(await b.claim(claimed?.revision ?? "", entryOf(vm, "b"), false)).toBeUndefined();
    expect(await b.amend(claimed?.revision ?? "", entryOf(vm, "b"))).toBeUndefined();
    expect(await a.renew()).toEqual(claimed);
    await a.release();
    expect(await b.claim(claimed?.revision ?? "", entryOf(vm, "b"), false)).toMatchObject({ leaseHolder: "b" });
  });

  it("changes the record once for each revision, and for the holder of the lease only", async () => {
    const { vm, a, b } = await agents();
    const claimed = await a.claim("0", entryOf(vm, "a"), false);
    const revision = claimed?.revision ?? "";
    const amended = await a.amend(revision, entryOf(vm, "a", { outdated: ["b"] }));
    expect(amended?.record?.outdated).toEqual(["b"]);
    expect(await a.amend(revision, entryOf(vm, "a"))).toBeUndefined();
    expect(await b.read()).toEqual(amended);
    await a.release();
    expect(await a.amend(amended?.revision ?? "", entryOf(vm, "a"))).toBeUndefined();
    expect(await b.claim(revision, entryOf(vm, "b"), false)).toBeUndefined();
  });

  it("lets the lease of an agent end that does not renew it", async () => {
    const { vm, a, b } = await agents();
    await a.claim("0", entryOf(vm, "a"), false);
    let state = await b.read();
    while (state.leaseHolder !== null) state = await b.read();
    expect(state.record).toMatchObject({ holder: "a" });
    expect((await a.renew()).leaseHolder).toBeNull();
    expect(await b.claim(state.revision, entryOf(vm, "b"), false)).toMatchObject({ leaseHolder: "b" });
    expect((await a.renew()).leaseHolder).toBe("b");
  });

  it("has the record as it was before a claim whose lease has ended, unless another has claimed since", async () => {
    const { vm, a, b } = await agents();
    const clock = new NodeClock();
    const silent = (): void => undefined;
    const log = { info: silent, debug: silent, warn: silent, error: silent };
    const lease = new OwnLease({ arbiter: b, agentId: "b", ttlMs: TTL_MS, clock, log, emit: silent });
    await a.claim("0", entryOf(vm, "a"), false);
    const before = entryOf(vm, "a");
    const claimed = entryOf(vm, "b", { lineage: "second", outdated: ["a"] });
    for (const isTaken of [false, true]) {
      await a.release();
      expect(await lease.claim(await lease.read(), claimed)).toBe(true);
      let state = await a.read();
      while (state.leaseHolder !== null) state = await a.read();
      if (isTaken) await a.claim(state.revision, entryOf(vm, "a", { lineage: "third" }), false);
      expect(await lease.replace("second", before)).toBe(!isTaken);
      await lease.release();
      const { record, leaseHolder } = await a.read();
      expect([record?.holder, record?.lineage, leaseHolder]).toEqual(
        isTaken ? ["a", "third", "a"] : ["a", "first", null],
      );
    }
  });

  it("takes the lease from its holder by force, who learns it at the next renewal", async () => {
    const { vm, a, b } = await agents();
    await a.claim("0", entryOf(vm, "a"), false);
    expect(await b.claim("0", entryOf(vm, "b"), true)).toMatchObject({ leaseHolder: "b" });
    expect((await a.renew()).leaseHolder).toBe("b");
    expect(await a.amend((await a.read()).revision, entryOf(vm, "a"))).toBeUndefined();
  });

  it("takes those who show a certificate, where it asks for one", async () => {
    const [server, client] = await makeHosts(join(scratchDirectory(), "ca"), "etcd", "agent");
    const { url } = await Etcd.start(present(server));
    const clock = new NodeClock();
    const { cert, key, ca } = present(client);
    const agent = (paths: TlsPaths): EtcdArbiter => {
      const access = { tls: new TlsFiles({ paths, clock }) };
      return new EtcdArbiter({ endpoints: [url], vm: "vm", agentId: "a", ttlMs: TTL_MS, clock, access });
    };
    expect(await agent({ cert, key, ca }).claim("0", entryOf("vm", "a"), false)).toMatchObject({ leaseHolder: "a" });
    for (const paths of [
      { cert: undefined, key: undefined, ca },
      { cert, key, ca: undefined },
    ]) {
      await expect(agent(paths).read()).rejects.toMatchObject({ code: "arbiter-unreachable" });
    }
  });

  it("takes those who know a password, where it has users", async () => {
    const { url } = await Etcd.start();
    const clock = new NodeClock();
    const gateway = new EtcdGateway([url], clock, TTL_MS);
    const login = { name: "root", password: "of:the tests" };
    await gateway.call("/v3/auth/user/add", login, z.object({}));
    await gateway.call("/v3/auth/role/add", { name: "root" }, z.object({}));
    await gateway.call("/v3/auth/user/grant", { user: "root", role: "root" }, z.object({}));
    await gateway.call("/v3/auth/enable", {}, z.object({}));
    const agent = (access: EtcdAccess): EtcdArbiter =>
      new EtcdArbiter({ endpoints: [url], vm: "vm", agentId: "a", ttlMs: TTL_MS, clock, access });
    const known = agent({ login });
    expect(await known.claim("0", entryOf("vm", "a"), false)).toMatchObject({ leaseHolder: "a" });
    expect(await known.renew()).toMatchObject({ leaseHolder: "a" });
    for (const access of [{}, { login: { ...login, password: "wrong" } }]) {
      await expect(agent(access).read()).rejects.toMatchObject({ code: "arbiter-unreachable" });
    }
  });

  it("is found behind an endpoint that does not answer", async () => {
    const { vm, a } = await agents([NOBODY]);
    expect(await a.claim("0", entryOf(vm, "a"), false)).toMatchObject({ leaseHolder: "a" });
  });
});

describe("what is no etcd", () => {
  it.each([
    ["refuses", (): [number, string] => [503, "no leader"]],
    ["answers nonsense", (): [number, string] => [200, "<html>"]],
    ["answers another form", (): [number, string] => [200, `{"succeeded":"yes"}`]],
    ["answers without end", (): [number, string] => [200, " ".repeat(1024 * 1024)]],
  ])("is told as unreachable when it %s", async (_, answer) => {
    const server = createServer((request, response) => {
      request.resume();
      const [status, body] = answer();
      response.writeHead(status).end(body);
    });
    await new Promise<void>((resolve) => {
      server.listen(0, "127.0.0.1", resolve);
    });
    onTestFinished(() => void server.close());
    const { port } = server.address() as AddressInfo;
    const endpoints = [`http://127.0.0.1:${port}`];
    const arbiter = new EtcdArbiter({ endpoints, vm: "vm", agentId: "a", ttlMs: TTL_MS, clock: new NodeClock() });
    await expect(arbiter.read()).rejects.toMatchObject({ code: "arbiter-unreachable" });
  });

  it("is asked for a new token once it has forgotten the last one", async () => {
    const seen: string[] = [];
    let current = 1;
    const server = createServer((request, response) => {
      const isLogin = request.url === "/v3/auth/authenticate";
      seen.push(isLogin ? "login" : (request.headers.authorization ?? "nobody"));
      const isKnown = isLogin || request.headers.authorization === `token-${current}`;
      request.resume().once("end", () => {
        response.writeHead(isKnown ? 200 : 401).end(JSON.stringify(isLogin ? { token: `token-${current}` } : {}));
      });
    });
    await new Promise<void>((resolve) => {
      server.listen(0, "127.0.0.1", resolve);
    });
    onTestFinished(() => void server.close());
    const { port } = server.address() as AddressInfo;
    const login = { name: "agent", password: "secret" };
    const gateway = new EtcdGateway([`http://127.0.0.1:${port}`], new NodeClock(), TTL_MS, { login });
    await gateway.call("/v3/kv/range", {}, z.object({}));
    current = 2;
    await gateway.call("/v3/kv/range", {}, z.object({}));
    expect(seen).toEqual(["login", "token-1", "token-1", "login", "token-2"]);
  });

  it("is given up when it does not answer", async () => {
    const server = createServer(() => undefined);
    await new Promise<void>((resolve) => {
      server.listen(0, "127.0.0.1", resolve);
    });
    onTestFinished(() => {
      server.closeAllConnections();
      server.close();
    });
    const { port } = server.address() as AddressInfo;
    const endpoints = [`http://127.0.0.1:${port}`];
    const arbiter = new EtcdArbiter({ endpoints, vm: "vm", agentId: "a", ttlMs: TTL_MS, clock: new NodeClock() });
    await expect(arbiter.read()).rejects.toThrow(/has not answered in time/);
  });
});
