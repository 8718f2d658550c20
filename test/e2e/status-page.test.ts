/** The status page in a real browser: of a running pair, of an agent that wants a token, and of agents in many states. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import type { Browser, Page } from "playwright-core";
import { afterAll, beforeAll, describe, expect, it, onTestFinished } from "vitest";
import type { JobStatus, Status } from "../../proto/status.ts";
import { ColobusError } from "../../proto/errors.ts";
import { ControlServer } from "../../shared/control/api-server.ts";
import { StatusPage } from "../../shared/control/status-page.ts";
import { NodeClock } from "../../shared/host/node-clock.ts";
import { RefusalLog } from "../../shared/host/refusal-log.ts";
import { TlsFiles } from "../../shared/host/tls-files.ts";
import { AgentPair, type AgentUnderTest } from "../support/agent-pair.ts";
import { CHROMIUM, launchBrowser, openPage, violationsOf } from "../support/browser.ts";
import { makeHosts, type CertificateFiles } from "../support/certificates.ts";
import { FakeAgentControl } from "../support/fake-agent-control.ts";
import { forwardSocket } from "../support/forwarded-socket.ts";
import { qemuIo } from "../support/nbd-tools.ts";
import { requirePeers } from "../support/peers.ts";
import { present } from "../support/present.ts";
import { scratchDirectory } from "../support/scratch.ts";
import { SilentLog } from "../support/silent-log.ts";
import {
  lonelySecondary,
  ofTwoSecondaries,
  protectedPrimary,
  runningSync,
  syncingPrimary,
} from "../support/status-examples.ts";

const TOKEN = "d43f2f8cc0fc1e9477ea6c799100e2d1";
const BUILT = fileURLToPath(new URL("../../dist/page/", import.meta.url));

/** Resolves when the part of the page says so: `text` is a piece of it. */
async function says(page: Page, selector: string, text: string | RegExp): Promise<void> {
  await page.locator(selector).filter({ hasText: text }).first().waitFor();
}

/** An agent of the test's own, and where a browser finds it. */
async function serveFake(): Promise<{ readonly control: FakeAgentControl; readonly url: string }> {
  const control = new FakeAgentControl();
  const server = new ControlServer({ control, log: new SilentLog(), page: new StatusPage(BUILT) });
  const socket = join(scratchDirectory(), "control.sock");
  await server.listenUnix(socket);
  onTestFinished(() => server.close());
  return { control, url: `http://127.0.0.1:${await forwardSocket(socket)}/` };
}

describe.runIf(requirePeers(CHROMIUM, "openssl", "qemu-io"))("the status page", () => {
  let browser: Browser;
  let certificates: string;
  let host: CertificateFiles;

  beforeAll(async () => {
    certificates = mkdtempSync(join(tmpdir(), "colobus-test-"));
    [browser, host] = await Promise.all([
      launchBrowser(),
      makeHosts(join(certificates, "ca"), "host-a").then(([made]) => present(made)),
    ]);
  });
  afterAll(async () => {
    await browser.close();
    rmSync(certificates, { recursive: true });
  });

  it("shows a pair live, and orders a checkpoint, and a failover with the VM's name typed", async () => {
    const { primary, secondary } = await AgentPair.protected({ primaryFlags: ["--assume-in-sync"] });
    const portOf = (agent: AgentUnderTest): Promise<number> => forwardSocket(join(agent.run, "control.sock"));
    const ofPrimary = await openPage(browser, `http://127.0.0.1:${await portOf(primary)}/`, "light");
    const ofSecondary = await openPage(browser, `http://127.0.0.1:${await portOf(secondary)}/`, "dark");
    const [a, b] = [ofPrimary.page, ofSecondary.page];
    await says(a, ".verdict", /^Protected$/);
    await says(b, ".link", "Established");
    await qemuIo(primary.uri(), "write -P 3 0 64k");
    await a.getByRole("img", { name: /^Guests' writes: .*at most [1-9]/ }).waitFor();

    const before = (await primary.status()).epoch.committed;
    await a.getByRole("button", { name: "Take a checkpoint" }).click();
    await says(a, "[role=status]", /Checkpoint \d+ is committed, after/);
    const { committed } = (await primary.status()).epoch;
    expect(committed).toBeGreaterThan(before);
    for (const page of [a, b]) await says(page, "#events li", `epoch=${committed}`);
    await says(b, "#failover-now", `To checkpoint ${committed}, `);
    await a.getByRole("img", { name: /^Checkpoint latency: [\d.]+ m?s, at most/ }).waitFor();

    await primary.crash();
    await says(a, ".live", "The agent does not answer");
    await says(b, ".host", "not connected");
    await b.getByRole("button", { name: /^Fail over to this host/ }).click();
    await says(b, "#failover-outlook", `from checkpoint ${committed}`);
    const confirm = b.getByRole("button", { name: "Fail over", exact: true });
    await b.keyboard.type("tes");
    expect(await confirm.isDisabled()).toBe(true);
    await b.keyboard.press("Enter");
    expect((await secondary.status()).role).toBe("Secondary");
    await b.keyboard.type("t");
    await b.keyboard.press("Enter");
    await says(b, "[role=status]", `This side is now Primary from checkpoint ${committed}`);
    await says(b, ".what", "Primary");
    expect((await secondary.status()).role).toBe("Primary");
    for (const { complaints, origins, page } of [ofPrimary, ofSecondary]) {
      expect(complaints).toEqual([]);
      expect([...origins]).toEqual([new URL(page.url()).origin]);
    }
  });

  it("asks for the token at a TLS address, says why one is not taken, and keeps it out of the URL", async () => {
    const log = new SilentLog();
    const clock = new NodeClock();
    const control = new FakeAgentControl();
    const server = new ControlServer({ control, log, page: new StatusPage(BUILT) });
    const files = new TlsFiles({ paths: host, clock, log });
    const refusals = new RefusalLog({ clock, log, port: "control" });
    const port = await server.listenTls("127.0.0.1", 0, { files, token: Buffer.from(TOKEN), refusals });
    onTestFinished(() => server.close());
    const { page, complaints, origins } = await openPage(browser, `https://127.0.0.1:${port}/`, "dark");

    await says(page, ".sign-in", "--control-token-file");
    expect(JSON.stringify(log.lines)).not.toContain("token");
    expect(await violationsOf(page)).toEqual([]);
    await page.getByRole("textbox", { name: "Control token" }).fill("another");
    await page.keyboard.press("Enter");
    await says(page, ".sign-in [role=alert]", "another token than the agent");
    expect(control.calls).toEqual([]);
    await page.getByRole("textbox", { name: "Control token" }).fill(TOKEN);
    await page.keyboard.press("Enter");
    await says(page, "h1", control.currentStatus.vm);
    control.log.emit("merged");
    await says(page, "#events li", "merged");
    await page.getByRole("button", { name: "Take a checkpoint" }).click();
    await says(page, "[role=status]", "is committed");
    expect(control.calls.map(({ name }) => name)).toEqual(["checkpoint"]);
    await page.reload();
    await says(page, "h1", control.currentStatus.vm);
    expect(page.url()).toBe(`https://127.0.0.1:${port}/`);
    expect(complaints).toEqual([]);
    expect([...origins]).toEqual([`https://127.0.0.1:${port}`]);
  });

  it("pauses a job and lets it go on, by the keyboard, without losing the focus", async () => {
    const { control, url } = await serveFake();
    const job = runningSync();
    control.currentStatus = { ...syncingPrimary(), jobs: [job] };
    control.job = (id, verb) => {
      const changed: JobStatus = { ...job, id, state: verb === "pause" ? "paused" : "running" };
      control.currentStatus = { ...syncingPrimary(), jobs: [changed] };
      return Promise.resolve(changed);
    };
    const { page } = await openPage(browser, url, "light");
    await page.getByRole("button", { name: `Pause ${job.id}` }).focus();
    await page.keyboard.press("Enter");
    await says(page, "[role=status]", `Job ${job.id} is paused.`);
    await page.getByRole("button", { name: `Resume ${job.id}` }).waitFor();
    expect(await page.evaluate("document.activeElement.textContent")).toBe("Resume");
    expect(await violationsOf(page)).toEqual([]);
    control.job = () => Promise.reject(new ColobusError("job-state", "the job has ended", "See `colobus jobs`."));
    await page.keyboard.press("Enter");
    await says(page, "[role=alert]", `No resume of job ${job.id}: the job has ended. See colobus jobs.`);
  });

  it.each(["light", "dark"] as const)("is accessible in whatever state the agent is, %s", async (scheme) => {
    const { control, url } = await serveFake();
    control.log.emit("disk-error", { disk: "vda", message: "It <b>failed</b>." });
    const states: (readonly [string, Status])[] = [
      ["Primary", protectedPrimary()],
      ["ws://db3:7000", ofTwoSecondaries()],
      ["initial-sync", syncingPrimary()],
      ["connecting", lonelySecondary()],
    ];
    const { page, complaints } = await openPage(browser, url, scheme);
    for (const [shown, status] of states) {
      control.currentStatus = status;
      control.log.emit("protection-changed");
      await says(page, "body", shown);
      expect(await violationsOf(page), shown).toEqual([]);
    }
    await says(page, "#events li", "<b>failed</b>");
    expect(await page.locator("#events b").count()).toBe(0);
    await page.getByRole("button", { name: /^Fail over to this host/ }).click();
    await says(page, "#failover-outlook", "would become Primary");
    expect(await violationsOf(page)).toEqual([]);
    await page.keyboard.press("Escape");
    await page.setViewportSize({ width: 400, height: 800 });
    expect(await page.evaluate("document.documentElement.scrollWidth <= innerWidth")).toBe(true);
    expect(await violationsOf(page)).toEqual([]);
    expect(complaints).toEqual([]);
  });
});
