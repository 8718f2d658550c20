import { chmodSync, mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { processConfigOf } from "../../../cli/checked-config.ts";
import { checkSecrets, checkStateAccess, userOfAgent } from "../../../cli/check-private-files.ts";
import type { Finding } from "../../../cli/finding.ts";
import { scratchDirectory } from "../../support/scratch.ts";

const SELF = process.getuid?.() ?? 0;
/** Nobody here. */
const ANOTHER = SELF + 12_345;
const TOKEN = "d43f2f8cc0fc1e9477ea6c799100e2d1";

/** A configuration that names every secret there is, each in a file with this mode; `make` says where. */
function scene(mode = 0o600) {
  const directory = scratchDirectory();
  const write = (name: string, content: string): string => {
    const path = join(directory, name);
    writeFileSync(path, content);
    chmodSync(path, mode);
    return path;
  };
  const flags = {
    "run": join(directory, "run"),
    "state": join(directory, "state"),
    "disk": [`vda=${join(directory, "vda.img")}`],
    "peer": ["wss://127.0.0.1:9"],
    "token-file": write("token", TOKEN),
    "tls-cert": join(directory, "cert.pem"),
    "tls-key": write("key.pem", ""),
    "tls-ca": join(directory, "ca.pem"),
    "nbd-listen": "127.0.0.1:10809",
    "nbd-psk-file": write("keys.psk", ""),
    "control-listen": "127.0.0.1:7001",
    "control-token-file": write("control-token", TOKEN.toUpperCase()),
    "arbiter": ["https://127.0.0.1:2379"],
    "arbiter-user-file": write("login", "colobus:secret"),
    "arbiter-tls-cert": join(directory, "arbiter.pem"),
    "arbiter-tls-key": write("arbiter-key.pem", ""),
  };
  return { directory, flags, config: processConfigOf(flags, "Primary", {}) };
}

const NAMES = ["token", "control token", "TLS key", "NBD keys", "arbiter login", "arbiter TLS key"];

function statesOf(findings: readonly Finding[]): string[] {
  return [...new Set(findings.map(({ state }) => state))];
}

describe("what a doctor finds of secrets", () => {
  it("is well where their owner alone can read them", () => {
    const findings = checkSecrets(scene().config, SELF);
    expect(findings.map(({ check }) => check)).toEqual(NAMES);
    expect(statesOf(findings)).toEqual(["ok"]);
  });

  it.each([0o604, 0o602, 0o644, 0o666])("is that others can use each of them, and how to mend it (%o)", (mode) => {
    const { config, flags } = scene(mode);
    const findings = checkSecrets(config, SELF);
    expect(findings.map(({ check }) => check)).toEqual(NAMES);
    expect(statesOf(findings)).toEqual(["failed"]);
    expect(findings[0]?.message).toContain(`has mode 0${mode.toString(8)}`);
    expect(findings[0]?.action).toBe(
      `Run \`chmod 600 ${flags["token-file"]}\`. Make a new secret, too: somebody may have read this one.`,
    );
  });

  it.each([
    [0o640, "warning"],
    [0o660, "failed"],
  ] as const)("is that their group can use them (%o: %s)", (mode, state) => {
    const { config, flags } = scene(mode);
    const findings = checkSecrets(config, SELF);
    expect(statesOf(findings)).toEqual([state]);
    expect(findings[0]?.action).toBe(`Run \`chmod 600 ${flags["token-file"]}\`.`);
  });

  it("is that one belongs to another user than the agent's, or that the agent cannot read it", () => {
    const { config, flags } = scene();
    const findings = checkSecrets(config, ANOTHER);
    expect(statesOf(findings)).toEqual(["failed"]);
    expect(findings[0]?.message).toMatch(SELF === 0 ? /cannot be read by the agent/ : /belongs to user/);
    expect(findings[0]?.action).toBe(
      `Run \`chown ${ANOTHER} ${flags["token-file"]} && chmod 600 ${flags["token-file"]}\`.`,
    );
  });

  it.runIf(SELF === 0)("is well where root has given one to the agent's group", () => {
    expect(statesOf(checkSecrets(scene(0o640).config, ANOTHER))).toEqual(["ok"]);
  });

  it("is that everybody can put another file in their place", () => {
    const { config, directory } = scene();
    chmodSync(directory, 0o777);
    const findings = checkSecrets(config, SELF);
    expect(statesOf(findings)).toEqual(["failed"]);
    expect(findings[0]).toMatchObject({
      message: expect.stringMatching(/can put another file in the place of .*token/) as string,
      action: `Run \`chmod o-w ${directory}\`.`,
    });
    chmodSync(directory, 0o1777);
    expect(statesOf(checkSecrets(config, SELF))).toEqual(["ok"]);
  });

  it("is one that is missing, or that the agent would refuse", () => {
    const { flags } = scene();
    writeFileSync(flags["token-file"], "password".repeat(4));
    const missing = join(scratchDirectory(), "none");
    const config = processConfigOf({ ...flags, "nbd-psk-file": missing }, "Primary", {});
    const findings = checkSecrets(config, SELF).filter(({ state }) => state === "failed");
    expect(findings).toMatchObject([
      { check: "token", message: expect.stringMatching(/too easy to guess/) as string },
      { check: "NBD keys", message: `${missing} does not exist`, action: expect.stringMatching(/psktool/) as string },
    ]);
  });
});

describe("what a doctor finds of the state directory", () => {
  it.each([
    [0o700, "ok"],
    [0o750, "warning"],
    [0o755, "warning"],
    [0o770, "failed"],
    [0o707, "failed"],
  ] as const)("with mode %o: %s", (mode, state) => {
    const path = scratchDirectory();
    chmodSync(path, mode);
    const finding = checkStateAccess(path, SELF);
    expect(finding.state).toBe(state);
    if (state !== "ok") expect(finding.action).toBe(`Run \`chmod 700 ${path}\`.`);
  });

  it("of another user than the agent's", () => {
    const path = scratchDirectory();
    expect(checkStateAccess(path, ANOTHER)).toMatchObject({
      state: "failed",
      action: `Run \`chown -R ${ANOTHER} ${path}\`.`,
    });
  });

  it("that is not there yet", () => {
    expect(checkStateAccess(join(scratchDirectory(), "none"), SELF).state).toBe("ok");
  });
});

describe("the user that an agent runs as", () => {
  it("is the owner of its socket, or of its state directory, or else who asks", () => {
    const directory = scratchDirectory();
    expect(userOfAgent(join(directory, "run"), join(directory, "state"))).toBe(SELF);
    mkdirSync(join(directory, "state"));
    expect(userOfAgent(join(directory, "run"), join(directory, "state"))).toBe(SELF);
    expect(userOfAgent("/proc/1/root/nothing", "/")).toBe(0);
  });
});
