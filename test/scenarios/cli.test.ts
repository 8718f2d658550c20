/**
 * What people see: the command line against fake agents on real sockets. Beside `colobus …`, a scenario may say
 * `agent NAME EXAMPLE` (an agent in a well-known situation starts, or changes into it), `stop NAME`,
 * `dead NAME` (the socket of an agent that was killed),
 * `event NAME TYPE JSON`, `fail NAME CODE MESSAGE` (the agent refuses the calls that wait) and `terminal on|off`.
 */
import { once } from "node:events";
import { mkdirSync, readdirSync, renameSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";
import { ColobusError, isErrorCode } from "../../proto/errors.ts";
import { EVENT_TYPES } from "../../proto/words.ts";
import { runInProcess, serveFakeAgent, type ServedAgent } from "../support/control-harness.ts";
import { scratchDirectory } from "../support/scratch.ts";
import * as examples from "../support/status-examples.ts";
import { runTextScenario } from "../support/text-scenario.ts";

const DIRECTORY = fileURLToPath(new URL("cli", import.meta.url));

const EXAMPLES = {
  "protected-primary": examples.protectedPrimary,
  "syncing-primary": examples.syncingPrimary,
  "lonely-secondary": examples.lonelySecondary,
  "lonely-mirror": () => ({ ...examples.lonelySecondary(), mode: "mirror" as const }),
};

class CliScenario {
  readonly #run = scratchDirectory();
  readonly #agents = new Map<string, ServedAgent>();
  #terminal = false;

  async execute(command: string): Promise<string> {
    const [word = "", name = "", ...rest] = command.split(" ");
    switch (word) {
      case "colobus":
        return this.#colobus(command.split(" ").slice(1));
      case "agent":
        return this.#agent(name, rest[0] as keyof typeof EXAMPLES);
      case "stop":
        await this.#find(name).server.close();
        return "";
      case "dead":
        await leaveDeadSocket(join(this.#run, name));
        return "";
      case "event": {
        const type = EVENT_TYPES.find((known) => known === rest[0]);
        if (type === undefined) throw new Error(`no event ${rest[0]}`);
        this.#find(name).control.log.emit(type, JSON.parse(rest.slice(1).join(" ")) as Record<string, unknown>);
        return "";
      }
      case "fail": {
        const [code, ...message] = rest;
        if (!isErrorCode(code)) throw new Error(`no error ${code}`);
        this.#find(name).control.before = () => {
          throw new ColobusError(code, message.join(" "), "Read the manual.");
        };
        return "";
      }
      case "terminal":
        this.#terminal = name === "on";
        return "";
      default:
        throw new Error(`no command ${word}`);
    }
  }

  async #agent(name: string, example: keyof typeof EXAMPLES): Promise<string> {
    const agent = this.#agents.get(name) ?? (await serveFakeAgent(join(this.#run, name)));
    this.#agents.set(name, agent);
    agent.control.currentStatus = EXAMPLES[example]();
    return "";
  }

  async #colobus(argv: readonly string[]): Promise<string> {
    const { code, stdout, stderr } = await runInProcess(argv, { env: { COLOBUS_RUN: this.#run }, tty: this.#terminal });
    const text = [stdout, stderr, code === 0 ? "" : `exit ${code}\n`].join("").replaceAll(this.#run, "RUN");
    return text.replaceAll("\u001b", "^[").replace(/\n$/, "");
  }

  #find(name: string): ServedAgent {
    const agent = this.#agents.get(name);
    if (agent === undefined) throw new Error(`no agent ${name}`);
    return agent;
  }
}

/** Node removes the socket's file when the server closes, under the name that it was made with. */
async function leaveDeadSocket(run: string): Promise<void> {
  mkdirSync(run);
  const server = createServer().listen({ path: join(run, "alive.sock") });
  await once(server, "listening");
  renameSync(join(run, "alive.sock"), join(run, "control.sock"));
  server.close();
  await once(server, "close");
}

describe("the command line", () => {
  const files = readdirSync(DIRECTORY).filter((name) => name.endsWith(".txt"));

  it.each(files)("%s", async (file) => {
    const scenario = new CliScenario();
    await runTextScenario(join(DIRECTORY, file), (command) => scenario.execute(command));
  });

  it("has scenarios", () => {
    expect(files.length).toBeGreaterThan(0);
  });
});
