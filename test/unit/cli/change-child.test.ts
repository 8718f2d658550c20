import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { assertImageAllowed } from "../../../cli/tls-options.ts";
import { ColobusError } from "../../../proto/errors.ts";
import { NodeClock } from "../../../shared/host/node-clock.ts";
import { runInProcess } from "../../support/control-harness.ts";
import { openFuzzAgent, storageWithImages } from "../../support/recorded-session.ts";
import { scratchDirectory } from "../../support/scratch.ts";

const CONFIG = "vm: web\nrun: /run/web\nstate: /var/web\ndisk: vda=/a.img\npeer: ws://[::1]:1\n";
const ELSEWHERE = "nbd://192.0.2.5/x";

describe("a copy behind an NBD server of another host", () => {
  it.each(["add", "replace"] as const)("is not made where its way is to be encrypted: %s", async (verb) => {
    const storage = storageWithImages(1);
    const agent = await openFuzzAgent(
      "Primary",
      storage,
      undefined,
      () => Promise.reject(new ColobusError("connection-lost", "nobody is there")),
      new NodeClock(),
      {
        fence: undefined,
        startVm: undefined,
        assertImageAllowed: (image) => assertImageAllowed(image, { insecure: false }),
      },
    );
    const request = { verb, disk: "vda", name: "b", image: ELSEWHERE, create: false, timeoutMs: 10_000 };
    await expect(agent.changeChild(request, new AbortController().signal)).rejects.toMatchObject({
      code: "usage",
      message: expect.stringContaining("is not encrypted and leaves this machine"),
    });
    await agent.stop(100);
  });

  it.each([true, false])("needs --insecure to be configured: %s", async (insecure) => {
    const file = join(scratchDirectory(), "web.yaml");
    writeFileSync(file, `${CONFIG}child: vda:b=${ELSEWHERE}\ninsecure: ${insecure}\n`);
    const { code, stdout } = await runInProcess(["config", "check", file, "--json"]);
    expect(code).toBe(insecure ? 0 : 1);
    expect(stdout.includes("is not encrypted and leaves this machine")).toBe(!insecure);
  });
});
