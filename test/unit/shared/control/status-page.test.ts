import { writeFileSync } from "node:fs";
import { request, type IncomingHttpHeaders } from "node:http";
import { join } from "node:path";
import { describe, expect, it, onTestFinished } from "vitest";
import { ControlServer } from "../../../../shared/control/api-server.ts";
import { StatusPage } from "../../../../shared/control/status-page.ts";
import { FakeAgentControl } from "../../../support/fake-agent-control.ts";
import { scratchDirectory } from "../../../support/scratch.ts";
import { SilentLog } from "../../../support/silent-log.ts";

interface Answer {
  readonly status: number | undefined;
  readonly headers: IncomingHttpHeaders;
  readonly body: string;
}

/** Serves a page whose files are `files`, and asks for it. */
async function serving(files: Readonly<Record<string, string>>) {
  const directory = scratchDirectory();
  for (const [name, content] of Object.entries(files)) writeFileSync(join(directory, name), content);
  const control = new FakeAgentControl();
  const server = new ControlServer({ control, log: new SilentLog(), page: new StatusPage(directory) });
  const socketPath = join(directory, "control.sock");
  await server.listenUnix(socketPath);
  onTestFinished(() => server.close());
  const ask = (method: string, path: string, headers: Readonly<Record<string, string>> = {}): Promise<Answer> =>
    new Promise((resolve, reject) => {
      const asked = request({ socketPath, method, path, headers, agent: false }, (answer) => {
        let body = "";
        answer.setEncoding("utf8").on("data", (text: string) => (body += text));
        answer.on("end", () => resolve({ status: answer.statusCode, headers: answer.headers, body }));
      });
      asked.on("error", reject).end();
    });
  return { control, ask };
}

describe("the status page's files", () => {
  it("are served with a policy that lets nothing else in", async () => {
    const { ask } = await serving({ "index.html": "<p>", "page.js": "1", "page.css": "p{}", "icon.svg": "<svg/>" });
    for (const [path, type, content] of [
      ["/", "text/html; charset=utf-8", "<p>"],
      ["/page/page.js", "text/javascript; charset=utf-8", "1"],
      ["/page/page.css", "text/css; charset=utf-8", "p{}"],
      ["/page/icon.svg", "image/svg+xml", "<svg/>"],
    ] as const) {
      const { status, headers, body } = await ask("GET", path);
      expect({ status, type: headers["content-type"], body }).toEqual({ status: 200, type, body: content });
      expect(headers["content-security-policy"]).toMatch(/^default-src 'none'; script-src 'self';/);
      expect(headers["content-security-policy"]).not.toContain("unsafe");
      expect(headers["x-content-type-options"]).toBe("nosniff");
    }
    expect(JSON.parse((await ask("GET", "/page/door")).body)).toEqual({ wantsToken: false });
    expect((await ask("POST", "/")).status).toBe(405);
    expect((await ask("GET", "/page/../../etc/passwd")).status).toBe(404);
  });

  it("are said to be missing where the program was not built", async () => {
    const { status, body } = await (await serving({})).ask("GET", "/");
    expect(status).toBe(404);
    expect(body).toContain("npm run build");
  });

  it("may be asked for from anywhere, and nothing else may", async () => {
    const { ask, control } = await serving({ "index.html": "<p>" });
    const foreign = { "sec-fetch-site": "cross-site", "origin": "https://evil.example" };
    expect((await ask("GET", "/", foreign)).status).toBe(200);
    expect((await ask("GET", "/v1/status", foreign)).status).toBe(401);
    expect((await ask("POST", "/v1/checkpoint", foreign)).status).toBe(401);
    expect((await ask("POST", "/v1/checkpoint", { host: "evil.example" })).status).toBe(401);
    expect(control.calls).toEqual([]);
    expect(
      (await ask("POST", "/v1/checkpoint", { host: "localhost:7001", origin: "http://localhost:7001" })).status,
    ).toBe(200);
  });
});
