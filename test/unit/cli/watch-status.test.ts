import { describe, expect, it } from "vitest";
import { nextTurn, runInProcess, serveFakeAgent } from "../../support/control-harness.ts";
import { ManualClock } from "../../support/manual-clock.ts";

/** Lets requests on real sockets proceed until `condition` holds. */
async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await nextTurn();
}

/** Turns of the event loop in which a redraw that should not be would have shown itself. */
async function idleTurns(): Promise<void> {
  for (let i = 0; i < 50; i++) await nextTurn();
}

/** `pieces`: how many are written until the first status is shown. */
async function startWatching(flags: readonly string[], tty: boolean, pieces = 1) {
  const agent = await serveFakeAgent();
  const clock = new ManualClock();
  const interrupt = new AbortController();
  const shown: string[] = [];
  const done = runInProcess(["status", "--watch", "--run", agent.run, ...flags], {
    clock,
    tty,
    interrupted: interrupt.signal,
    onStdout: (text) => shown.push(text),
  });
  await until(() => shown.length === pieces && clock.pendingTimers === 1);
  return { ...agent, clock, interrupt, shown, done };
}

describe("status --watch", () => {
  it("shows the status once, and again after an event, at most every 500 ms", async () => {
    const { control, clock, interrupt, shown, done } = await startWatching(["--json"], false);
    for (let i = 0; i < 100; i++) control.log.emit("job-changed");
    clock.advance(499);
    await idleTurns();
    expect(shown).toHaveLength(1);
    control.currentStatus = { ...control.currentStatus, vm: "renamed" };
    clock.advance(1);
    await until(() => shown.length === 2);
    expect(shown.map((line) => (JSON.parse(line) as { vm: string }).vm)).toEqual(["web", "renamed"]);
    await until(() => clock.pendingTimers === 1);
    clock.advance(60_000);
    await idleTurns();
    expect(shown).toHaveLength(2);
    control.log.emit("merged");
    await until(() => shown.length === 3);
    interrupt.abort();
    expect((await done).code).toBe(0);
  });

  it("takes the whole screen, brings it up to date without an event, and gives it back", async () => {
    const { control, clock, interrupt, shown, done } = await startWatching([], true, 2);
    expect(shown[0]).toBe("\u001b[?1049h\u001b[?25l");
    control.currentStatus = { ...control.currentStatus, vm: "renamed\u001b[2J" };
    clock.advance(500);
    await until(() => clock.pendingTimers === 1);
    clock.advance(500);
    await until(() => shown.length === 3);
    expect(shown.slice(1).every((text) => text.startsWith("\u001b[H"))).toBe(true);
    expect(shown[2]).toContain("renamed?[2J");
    interrupt.abort();
    expect(await done).toMatchObject({ code: 0, stderr: "" });
    expect(shown[3]).toBe("\u001b[?25h\u001b[?1049l");
    expect(shown).toHaveLength(4);
  });

  it("gives the screen back before it says that the agent has gone", async () => {
    const { server, shown, done } = await startWatching([], true, 2);
    await server.close();
    expect((await done).code).toBe(3);
    expect(shown.at(-1)).toBe("\u001b[?25h\u001b[?1049l");
  });

  it("writes plain text, one status after another, where there is no screen", async () => {
    const { control, clock, interrupt, shown, done } = await startWatching([], false);
    control.log.emit("merged");
    clock.advance(500);
    await until(() => shown.length === 2);
    expect(shown.join("")).not.toContain("\u001b");
    interrupt.abort();
    await done;
  });

  it("fails with 3 when the agent goes away", async () => {
    const { server, done } = await startWatching(["--json"], false);
    await server.close();
    const { code, stderr } = await done;
    expect(code).toBe(3);
    expect(stderr).toContain("ended the stream of events");
  });

  it("does not miss an event that comes while the status is asked for", async () => {
    const { control, clock, interrupt, shown, done } = await startWatching(["--json"], false);
    const status = control.status.bind(control);
    control.status = () => {
      control.status = status;
      control.log.emit("merged");
      return status();
    };
    control.log.emit("merged");
    clock.advance(500);
    await until(() => shown.length === 2 && clock.pendingTimers === 1);
    clock.advance(500);
    await until(() => shown.length === 3);
    interrupt.abort();
    await done;
  });
});

describe("events --follow", () => {
  it("writes kept events and then later ones, until interrupted", async () => {
    const { control, run } = await serveFakeAgent();
    control.log.emit("agent-started");
    const interrupt = new AbortController();
    const lines: string[] = [];
    const done = runInProcess(["events", "--follow", "--json", "--run", run], {
      interrupted: interrupt.signal,
      onStdout: (text) => lines.push(text),
    });
    await until(() => lines.length === 1);
    control.log.emit("merged");
    await until(() => lines.length === 2);
    interrupt.abort();
    expect(await done).toMatchObject({ code: 0, stderr: "" });
    expect(lines.map((line) => JSON.parse(line) as unknown)).toEqual(control.log.since(0));
  });

  it("fails with 3 when the agent goes away", async () => {
    const { control, run, server } = await serveFakeAgent();
    control.log.emit("agent-stopping");
    const done = runInProcess(["events", "--follow", "--run", run], { onStdout: () => void server.close() });
    expect(await done).toMatchObject({ code: 3 });
  });
});
