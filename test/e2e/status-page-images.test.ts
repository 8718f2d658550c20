/**
 * The status page of a pair that is in sync, resyncs, and has failed over: whole and accessible at each width. With UPDATE=1 the
 * pictures of the documents are taken of it, after some minutes of a guest's life.
 */
import { randomBytes } from "node:crypto";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Browser, Page } from "playwright-core";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { AgentUnderTest, freePort, makeImage, MIB } from "../support/agent-pair.ts";
import { CHROMIUM, launchBrowser, openPage, violationsOf } from "../support/browser.ts";
import { forwardSocket } from "../support/forwarded-socket.ts";
import { NbdGuest } from "../support/nbd-guest.ts";
import { requirePeers } from "../support/peers.ts";
import { present } from "../support/present.ts";
import { scratchDirectory } from "../support/scratch.ts";

const IMAGES = join(import.meta.dirname, "../../docs/images");
const UPDATES = process.env["UPDATE"] === "1";
/** Bursts of writes with a checkpoint behind each. */
const BURSTS = UPDATES ? 90 : 2;
const PAUSE_MS = UPDATES ? 2_500 : 0;
const DISKS = { vda: 256 * MIB, vdb: 64 * MIB } as const;
const WIDTHS = [1180, 760, 400] as const;
const HEIGHT = 900;
/** So slow that the resync is still on its way when it is looked at. */
const RESYNC_BYTES_PER_SECOND = "2MiB";
const RESYNC_BYTES = 48 * MIB;
/** What has a host's name, and the paths of an installation, whatever this machine has. */
const HOST = `
mount --bind "$0/boot-id" /proc/sys/kernel/random/boot_id
mount --bind "$0/hosts" /etc/hosts
hostname "$1"
shift
for parent in /run /var/lib; do mount -t tmpfs tmpfs "$parent"; done
for path in /run/colobus /var/lib/colobus /var/lib/images; do mkdir -p "$path"; mount --bind "$0$path" "$path"; done
exec "$@"`;

/** An agent on a host of that name; its files lie below `root`. */
function agentOn(name: string, role: string, flags: readonly string[]): AgentUnderTest {
  const root = join(scratchDirectory(), name);
  for (const path of ["run/colobus", "var/lib/colobus", "var/lib/images"])
    mkdirSync(join(root, path), { recursive: true });
  writeFileSync(join(root, "boot-id"), `boot-of-${name}\n`);
  writeFileSync(join(root, "hosts"), "127.0.0.1 db1 db2\n");
  for (const [disk, bytes] of Object.entries(DISKS)) makeImage(join(root, "var/lib/images", `web-${disk}.img`), bytes);
  const disks = Object.keys(DISKS).flatMap((disk) => ["--disk", `${disk}=/var/lib/images/web-${disk}.img`]);
  const directories = ["--run", "/run/colobus/web", "--state", "/var/lib/colobus/web"];
  const command = [role, "--vm", "web", ...directories, ...disks, "--insecure", ...flags];
  const launcher = ["unshare", "--mount", "--uts", "sh", "-ec", HOST, root, name];
  return new AgentUnderTest(name, join(root, "run/colobus/web"), command, launcher);
}

/** Writes as a guest does who is busy now and then, and has a checkpoint taken behind each burst. */
async function live(primary: AgentUnderTest): Promise<void> {
  const guest = await NbdGuest.connect(join(primary.run, "nbd.sock"));
  for (let burst = 0; burst < BURSTS; burst += 1) {
    const writes = 8 + ((burst * burst * 37) % 300);
    for (let write = 0; write < writes; write += 1) {
      const offset = ((burst * 7919 + write * 104_729) % (DISKS.vda / 65_536)) * 65_536;
      await guest.write(offset, randomBytes(65_536));
    }
    await primary.control.checkpoint({ prepare: false, timeoutMs: 60_000 });
    await new Promise((resolve) => {
      setTimeout(resolve, PAUSE_MS * (0.5 + ((burst * 13) % 10) / 10));
    });
  }
  guest.close();
}

/** The page is whole and accessible, however wide the window; then its picture is taken, where pictures are wanted. */
async function expectWell(page: Page, name: string): Promise<void> {
  for (const width of WIDTHS) {
    await page.setViewportSize({ width, height: HEIGHT });
    expect(await page.evaluate("document.documentElement.scrollWidth <= innerWidth"), `${name} at ${width}`).toBe(true);
    expect(await violationsOf(page), `${name} at ${width}`).toEqual([]);
  }
  await page.setViewportSize({ width: WIDTHS[0], height: HEIGHT });
  if (UPDATES) await page.screenshot({ path: join(IMAGES, `status-page-${name}.png`), fullPage: true });
}

const says = (page: Page, selector: string, text: string | RegExp): Promise<void> =>
  page.locator(selector).filter({ hasText: text }).first().waitFor();

describe.runIf(process.getuid?.() === 0 && requirePeers(CHROMIUM))("the status page of a pair", () => {
  let browser: Browser;
  beforeAll(async () => {
    browser = await launchBrowser();
  });
  afterAll(() => browser.close());

  it("is whole and accessible in sync, in a resync and after a failover", async () => {
    const port = UPDATES ? 7000 : await freePort();
    const db1 = agentOn("db1", "primary", ["--peer", `ws://db2:${port}`, "--resync-speed", RESYNC_BYTES_PER_SECOND]);
    const db2 = agentOn("db2", "secondary", ["--listen", `127.0.0.1:${port}`]);
    await Promise.all([db1.start(), db2.start()]);
    const open = async (agent: AgentUnderTest, scheme: "light" | "dark"): Promise<Page> => {
      const url = `http://127.0.0.1:${await forwardSocket(join(agent.run, "control.sock"))}/`;
      return (await openPage(browser, url, scheme)).page;
    };
    const [a, b] = [await open(db1, "light"), await open(db2, "dark")];
    await says(a, ".verdict", /^Protected$/);
    await live(db1);
    await db1.untilDrained();
    await expectWell(a, "light");

    await db2.stop();
    const guest = await NbdGuest.connect(join(db1.run, "nbd.sock"));
    for (let offset = 0; offset < RESYNC_BYTES; offset += MIB) await guest.write(offset, randomBytes(MIB));
    guest.close();
    await db2.start();
    await says(a, ".link", "SyncSource");
    await says(a, "#jobs", "resync");
    await expectWell(a, "resync");
    const [job] = (await db1.status()).jobs.filter(({ state }) => state === "running");
    await db1.get("job", "set-speed", present(job).id, "dynamic");
    await says(a, ".verdict", /^Protected$/);
    await db1.control.checkpoint({ prepare: false, timeoutMs: 60_000 });

    await db1.crash();
    await says(b, ".host", "not connected");
    await b.getByRole("button", { name: /^Fail over to this host/ }).click();
    await says(b, "#failover-outlook", "from checkpoint");
    await b.keyboard.type("web");
    await b.keyboard.press("Enter");
    await says(b, ".what", "Primary");
    await db2.get("wait", "merged");
    await says(b, "#events li", "merged");
    await expectWell(b, "dark");
    await db2.stop();
  }, 900_000);
});
