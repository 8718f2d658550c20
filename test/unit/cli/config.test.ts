import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { parse } from "yaml";
import { z } from "zod";
import { agentKeysSchema, RELOADABLE_KEYS, type AgentKeys } from "../../../cli/agent-keys.ts";
import { processConfigOf } from "../../../cli/checked-config.ts";
import { ConfigFile, type ConfigFault } from "../../../cli/config-file.ts";
import { configJsonSchema, describeKeys } from "../../../cli/config-schema.ts";
import { LiveConfig } from "../../../cli/live-config.ts";
import { runInProcess, serveFakeAgent } from "../../support/control-harness.ts";
import { scratchDirectory } from "../../support/scratch.ts";

const WHOLE: AgentKeys = {
  vm: "web",
  run: "/run/web",
  state: "/var/web",
  disk: ["vda=/a.img"],
  peer: ["ws://[::1]:1"],
};

interface Checked {
  readonly ok: boolean;
  readonly faults: readonly ConfigFault[];
}

async function check(text: string, ...flags: string[]): Promise<Checked & { readonly code: number }> {
  const file = join(scratchDirectory(), "web.yaml");
  writeFileSync(file, text);
  const { code, stdout } = await runInProcess(["config", "check", file, "--json", ...flags]);
  expect(stdout.trim().split("\n")).toHaveLength(1);
  return { code, ...(JSON.parse(stdout) as Checked) };
}

/** The YAML examples of the documents. */
function documentedExamples(): string[] {
  const docs = new URL("../../../docs/", import.meta.url);
  return readdirSync(docs)
    .filter((name) => name.endsWith(".md"))
    .flatMap((name) => [...readFileSync(new URL(name, docs), "utf8").matchAll(/^```yaml\n(.*?)^```/gms)])
    .map(([, text = ""]) => text)
    .filter((text) => text.includes("disk:"));
}

describe("config check", () => {
  it("tells of everything that is wrong with its line, its column, and what may stand there", async () => {
    const text =
      'vm: web\ndurabilty: power\nmode: sometimes\ninsecure: "yes"\ndisk:\n  - a=b\n  - [c]\npeer-timeout: [1]\nchild: [[c]]\n';
    const { code, ok, faults } = await check(text);
    expect({ code, ok }).toEqual({ code: 1, ok: false });
    expect(faults.map(({ line, column, key, action }) => [line, column, key, action])).toEqual([
      [2, 1, "durabilty", expect.stringContaining("Did you mean durability?")],
      [3, 7, "mode", "Write one of colo, mc, shared, mirror."],
      [4, 11, "insecure", "Write true or false."],
      [6, 3, "disk", "Write one value, or a list of values."],
      [8, 15, "peer-timeout", "Write one value."],
      [9, 8, "child", "Write one value, or a list of values."],
    ]);
    expect(faults[1]?.message).toBe('"sometimes" is not possible for mode');
  });

  it.each([
    ["a value that its flag would not take", "checkpoint-every: 5\n", 6, 19, "checkpoint-every"],
    ["values that contradict each other", "shared-mark: /mark\n", 6, 14, "shared-mark"],
    ["an address that may not be used", "listen: 0.0.0.0:7000\n", 6, 9, "listen"],
  ])("places %s", async (_what, line, expectedLine, column, key) => {
    const whole = "vm: web\nrun: /r\nstate: /s\ndisk: vda=/a.img\npeer: ws://127.0.0.1:7000\n";
    expect(await check(whole)).toMatchObject({ code: 0, ok: true, faults: [] });
    const { code, faults } = await check(whole + line);
    expect(code).toBe(1);
    expect(faults).toMatchObject([{ line: expectedLine, column, key }]);
  });

  it.each([
    ["what is not YAML", "vm: web\ndisk: [\n", 3],
    ["a key that comes twice", "vm: web\nvm: web\n", 2],
    ["a list", "- vm\n", 1],
    ["a text", "web\n", 1],
  ])("refuses %s", async (_what, text, line) => {
    expect(await check(text)).toMatchObject({ code: 1, faults: [{ line, key: null }] });
  });

  it("tells what is missing, for the role that is meant", async () => {
    expect((await check("vm: web\n")).faults).toMatchObject([{ line: null, key: "run" }]);
    const secondary = "run: /r\nstate: /s\ndisk: vda=/a.img\nlisten: 127.0.0.1:1\n";
    expect((await check(secondary)).ok).toBe(true);
    const nobody = "run: /r\nstate: /s\ndisk: vda=/a.img\n";
    expect((await check(nobody, "--role", "primary")).faults[0]?.message).toContain("--peer");
    expect((await check(nobody, "--role", "secondary")).faults[0]?.message).toContain("--listen");
  });

  it("shows people a line for each fault, in the form that editors understand", async () => {
    const file = join(scratchDirectory(), "web.yaml");
    writeFileSync(file, "vn: web\n");
    const { code, stdout, stderr } = await runInProcess(["config", "check", file]);
    expect({ code, stderr }).toEqual({ code: 1, stderr: "" });
    expect(stdout).toMatch(new RegExp(`^${file}:1:1: vn is not a key\n  Did you mean vm\\?`));
    expect((await runInProcess(["config", "check", "/none.yaml"])).code).toBe(2);
    expect((await runInProcess(["config", "check"])).code).toBe(2);
    expect((await runInProcess(["config", "schema", file])).code).toBe(2);
  });
});

describe("config schema", () => {
  const schema = z.fromJSONSchema(configJsonSchema());

  it("accepts every example of the documents, and so does the check", () => {
    const examples = documentedExamples();
    expect(examples.length).toBeGreaterThan(1);
    for (const text of examples) {
      expect(schema.safeParse(parse(text)).error).toBeUndefined();
      expect(new ConfigFile(text).faults).toEqual([]);
    }
  });

  it.each([{ mode: "sometimes" }, { vn: "web" }, { disk: [["a"]] }, { insecure: "yes" }])("refuses %j", (value) => {
    expect(schema.safeParse(value).success).toBe(false);
    expect(agentKeysSchema.safeParse(value).success).toBe(false);
  });

  it("describes every key once", () => {
    expect(
      describeKeys()
        .map(({ key }) => key)
        .sort(),
    ).toEqual(Object.keys(agentKeysSchema.shape).sort());
    expect(describeKeys().filter(({ reloadable }) => reloadable)).toHaveLength(RELOADABLE_KEYS.length);
  });

  it("is printed as one document", async () => {
    const { stdout } = await runInProcess(["config", "schema"]);
    expect(JSON.parse(stdout)).toEqual(configJsonSchema());
  });
});

describe("a configuration that is read anew", () => {
  function live(): { readonly config: LiveConfig; readonly levels: string[]; now: AgentKeys } {
    const levels: string[] = [];
    const state = { now: WHOLE, levels } as { config: LiveConfig; levels: string[]; now: AgentKeys };
    state.config = new LiveConfig(processConfigOf(WHOLE, "Primary", {}), {
      keys: WHOLE,
      read: async () => Promise.resolve({ keys: state.now, config: processConfigOf(state.now, "Primary", {}) }),
      setLogLevel: (level) => levels.push(level),
    });
    return state;
  }

  it("takes up what can change, and names what needs a restart until there was one", async () => {
    const state = live();
    state.now = {
      ...WHOLE,
      "log-level": "debug",
      "checkpoint-every": "5s",
      "resync-speed": "10MiB",
      "on-failover": "start",
      "window": "8MiB",
    };
    expect(await state.config.reload()).toEqual({
      answer: { applied: ["resync-speed", "checkpoint-every", "on-failover", "log-level"], needsRestart: ["window"] },
      settings: { checkpointEveryMs: 5000, resyncSpeed: 10 * 1024 * 1024 },
    });
    expect(state.levels).toEqual(["debug"]);
    expect(state.config.onFailover?.command).toBe("start");
    expect(await state.config.reload()).toEqual({ answer: { applied: [], needsRestart: ["window"] }, settings: {} });
    state.now = WHOLE;
    const back = await state.config.reload();
    expect(back.answer.needsRestart).toEqual([]);
    expect(back.settings).toEqual({ checkpointEveryMs: undefined, resyncSpeed: "dynamic" });
    expect(state.config.onFailover).toBeUndefined();
  });

  it("changes nothing where the file is wrong", async () => {
    const state = live();
    state.now = { ...WHOLE, "log-level": "debug", "checkpoint-every": "5" };
    await expect(state.config.reload()).rejects.toMatchObject({ code: "usage" });
    expect(state.levels).toEqual([]);
    state.now = { ...WHOLE, "log-level": "debug" };
    expect((await state.config.reload()).answer.applied).toEqual(["log-level"]);
  });

  it("is refused where there is no file", async () => {
    const config = new LiveConfig(processConfigOf(WHOLE, "Primary", {}), undefined);
    await expect(config.reload()).rejects.toMatchObject({ code: "not-applicable" });
  });

  it("is asked for by config reload", async () => {
    const { run, control } = await serveFakeAgent();
    const { code, stdout } = await runInProcess(["config", "reload", "--run", run]);
    expect({ code, stdout }).toEqual({
      code: 0,
      stdout: "taken up: log-level\nneeds a restart of the agent: window\n",
    });
    expect(control.calls.map(({ name }) => name)).toEqual(["reload"]);
  });
});
