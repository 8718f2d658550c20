import { chmodSync, copyFileSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { REFUSAL_TOLD_EVERY_MS, TLS_FILES_LOOK_EVERY_MS } from "../../../../proto/limits.ts";
import { makeCertificates } from "../../../../shared/host/make-certificates.ts";
import { NodeClock } from "../../../../shared/host/node-clock.ts";
import { RefusalLog } from "../../../../shared/host/refusal-log.ts";
import { TlsFiles } from "../../../../shared/host/tls-files.ts";
import { makeExpired, makeHosts, renewHosts } from "../../../support/certificates.ts";
import { ManualClock } from "../../../support/manual-clock.ts";
import { present } from "../../../support/present.ts";
import { scratchDirectory } from "../../../support/scratch.ts";
import { SilentLog } from "../../../support/silent-log.ts";

const phrases = (log: SilentLog): unknown[] => log.lines.map(({ message }) => message);

describe("TLS files", () => {
  it("are read again when they change, and what cannot be used changes nothing and is told once", async () => {
    const ca = join(scratchDirectory(), "ca");
    const own = present((await makeHosts(ca, "host-a"))[0]);
    const clock = new ManualClock();
    const log = new SilentLog();
    const files = new TlsFiles({ paths: own, clock, log });
    const told: unknown[] = [];
    files.onChange((options) => told.push(options));
    files.watch();
    const first = files.options;
    clock.advance(TLS_FILES_LOOK_EVERY_MS);
    expect(files.options).toBe(first);

    await renewHosts(ca, "host-a");
    clock.advance(TLS_FILES_LOOK_EVERY_MS);
    const renewed = files.options;
    expect(renewed.cert).not.toEqual(first.cert);
    expect(told).toEqual([renewed]);

    writeFileSync(own.cert, "half a certif");
    clock.advance(TLS_FILES_LOOK_EVERY_MS);
    clock.advance(TLS_FILES_LOOK_EVERY_MS);
    expect(files.options).toBe(renewed);
    expect(phrases(log)).toEqual([
      "TLS files were read again",
      "the changed TLS files cannot be used: the old ones stay in force",
    ]);
    files.stop();
  });

  it("are refused when they do not fit, are expired, missing, or open to others", async () => {
    const root = scratchDirectory();
    const made = await makeHosts(join(root, "ca"), "host-a", "host-b");
    const [a, b] = [present(made[0]), present(made[1])];
    const open = (paths: typeof a): TlsFiles => new TlsFiles({ paths, clock: new NodeClock() });
    expect(() => open({ ...a, key: b.key })).toThrow("it is not the key of");
    expect(() => open({ ...a, cert: join(root, "nothing") })).toThrow("ENOENT");
    expect(() => open({ ...a, ca: a.key })).toThrow("--tls-ca");
    expect(() => open(makeExpired(join(root, "ca"), "late"))).toThrow("it has expired on");
    chmodSync(a.key, 0o644);
    expect(() => open(a)).toThrow("accessible to others");
  });
});

describe("certificates", () => {
  it("are made with keys that only their owner reads, and never overwritten unless renewed", async () => {
    const directory = join(scratchDirectory(), "ca");
    const [own] = await makeHosts(directory, "host-a");
    const { key, cert } = present(own);
    for (const path of [key, join(directory, "ca-key.pem")]) expect(statSync(path).mode & 0o777).toBe(0o600);
    const before = readFileSync(cert);
    await expect(makeHosts(directory, "host-a")).rejects.toMatchObject({ code: "usage" });
    expect(readFileSync(cert)).toEqual(before);
    copyFileSync(join(directory, "ca-cert.pem"), join(directory, "ca-before.pem"));
    await renewHosts(directory, "host-a");
    expect(readFileSync(cert)).not.toEqual(before);
    expect(readFileSync(join(directory, "ca-cert.pem"))).toEqual(readFileSync(join(directory, "ca-before.pem")));
  });

  it.each(["", "../up", "a b", "x,y\nCN=other", "-subj", "a".repeat(64)])("are not made for %j", async (name) => {
    const made = makeCertificates({
      directory: join(scratchDirectory(), "ca"),
      holders: [{ kind: "host", names: [name] }],
      days: 1,
      renew: false,
      timeoutMs: 10_000,
      signal: new AbortController().signal,
    });
    await expect(made).rejects.toMatchObject({ code: "usage" });
  });
});

describe("the log of refusals", () => {
  it("tells each reason once, and again with the count when it goes on for long", () => {
    const clock = new ManualClock();
    const log = new SilentLog();
    const refusals = new RefusalLog({ clock, log, port: "nbd" });
    for (let count = 0; count < 5; count += 1) refusals.refused("no certificate", "192.0.2.1");
    refusals.refused("expired", "192.0.2.1");
    clock.advance(REFUSAL_TOLD_EVERY_MS);
    refusals.refused("no certificate", "192.0.2.2");
    const told = log.lines.map(({ fields }) => fields as { reason: string; before: number });
    expect(told.map(({ reason, before }) => [reason, before])).toEqual([
      ["no certificate", 0],
      ["expired", 0],
      ["no certificate", 4],
    ]);
    for (let count = 0; count < 1000; count += 1) refusals.refused(`reason ${count}`, undefined);
    expect(log.lines.length).toBeLessThan(80);
  });
});
