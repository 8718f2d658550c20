/** Debian's Chromium, driven by Playwright, and what axe-core says of a page in it. */
import axe from "axe-core";
import { chromium, type Browser, type Page } from "playwright-core";

export const CHROMIUM = "/usr/bin/chromium";

/** Starts a browser without a window; whoever asks for it closes it. */
export function launchBrowser(): Promise<Browser> {
  // Root has no sandbox of its own to put it in.
  const args = process.getuid?.() === 0 ? ["--no-sandbox"] : [];
  return chromium.launch({ executablePath: CHROMIUM, args });
}

export interface OpenedPage {
  readonly page: Page;
  /** What the browser had to complain of: scripts that failed, and what the page's own policy has forbidden. */
  readonly complaints: string[];
  /** The origins that were asked for anything. */
  readonly origins: Set<string>;
}

/** Opens `url` in a window of its own, which knows nothing of the others. Certificates are believed. */
export async function openPage(browser: Browser, url: string, colorScheme: "light" | "dark"): Promise<OpenedPage> {
  const context = await browser.newContext({
    colorScheme,
    ignoreHTTPSErrors: true,
    viewport: { width: 1280, height: 900 },
  });
  const page = await context.newPage();
  page.setDefaultTimeout(20_000);
  const complaints: string[] = [];
  const origins = new Set<string>();
  page.on("pageerror", (error) => complaints.push(error.message));
  page.on("console", (message) => {
    // That an answer was a refusal is told by the page itself.
    if (message.type() === "error" && !message.text().startsWith("Failed to load resource"))
      complaints.push(message.text());
  });
  page.on("request", (request) => origins.add(new URL(request.url()).origin));
  await page.goto(url);
  return { page, complaints, origins };
}

/** What is not accessible, one line for each element. */
export async function violationsOf(page: Page): Promise<string[]> {
  if ((await page.evaluate("typeof axe")) === "undefined") await page.evaluate(axe.source);
  const found = await page.evaluate<{ id: string; nodes: { target: string[]; failureSummary: string }[] }[]>(
    "axe.run(document, { resultTypes: ['violations'] }).then(({ violations }) => violations)",
  );
  return found.flatMap(({ id, nodes }) =>
    nodes.map(({ target, failureSummary }) => `${id} at ${target.join(" ")}: ${failureSummary}`),
  );
}
