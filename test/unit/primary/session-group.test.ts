import { describe, expect, it } from "vitest";
import { ColobusError } from "../../../proto/errors.ts";
import { SessionGroup } from "../../../primary/session-group.ts";
import type { SourceSession } from "../../../primary/source-session.ts";

type Make = Parameters<SourceSession["request"]>[0];

/** A session of which a test says what becomes of its requests. */
class ScriptedSession {
  isClosed = false;
  closedWith: ColobusError | undefined;
  answer: (() => void) | undefined;
  refuse: ((code: "io-error" | "outcome-unknown" | "epoch-committed") => void) | undefined;

  request(make: Make): Promise<number> {
    make(1);
    return new Promise((resolve, reject) => {
      this.answer = () => resolve(1);
      this.refuse = (code) => {
        if (code === "outcome-unknown") this.isClosed = true;
        reject(new ColobusError(code, "it is not done"));
      };
    });
  }

  close(reason: ColobusError): void {
    this.isClosed = true;
    this.closedWith = reason;
  }
}

function group(): {
  b: ScriptedSession;
  c: ScriptedSession;
  all: SessionGroup;
  answered: string[];
  partings: () => number;
} {
  const [b, c] = [new ScriptedSession(), new ScriptedSession()];
  const answered: string[] = [];
  let partings = 0;
  const all = new SessionGroup({
    members: new Map([
      ["b", b as unknown as SourceSession],
      ["c", c as unknown as SourceSession],
    ]),
    answered: (peer, question) => answered.push(`${peer} ${question.type}`),
    mayTell: () => {
      partings += 1;
      return undefined;
    },
  });
  return { b, c, all, answered, partings: () => partings };
}

const barrier: Make = (id) => ({ type: "barrier", id, epoch: 5, commit: false });
const commit: Make = (id) => ({ type: "commit", id, epoch: 5 });
const discard: Make = (id) => ({ type: "discard", id, epochs: [5] });

describe("the secondaries that take part in a checkpoint", () => {
  it("have done what they are asked when all have answered", async () => {
    const { b, c, all, answered } = group();
    let isDone = false;
    const done = all.request(barrier).then(() => {
      isDone = true;
    });
    b.answer?.();
    await new Promise((resolve) => {
      setImmediate(resolve);
    });
    expect([isDone, answered]).toEqual([false, ["b barrier"]]);
    c.answer?.();
    await done;
    expect(answered).toEqual(["b barrier", "c barrier"]);
  });

  it("go on without one that is lost, and a commit is told when the others have parted from it", async () => {
    const { b, c, all, partings } = group();
    const done = all.request(commit);
    b.refuse?.("outcome-unknown");
    c.answer?.();
    await done;
    expect(partings()).toBe(1);
    expect(all.isClosed).toBe(false);
  });

  it("send away one that refuses what another has done", async () => {
    const { b, c, all } = group();
    const done = all.request(barrier);
    b.refuse?.("io-error");
    c.answer?.();
    await done;
    expect(b.closedWith?.code).toBe("io-error");
    expect(c.isClosed).toBe(false);
  });

  it("tell why none has done it: a refusal before a loss", async () => {
    const { b, c, all } = group();
    const done = all.request(commit);
    b.refuse?.("outcome-unknown");
    c.refuse?.("io-error");
    await expect(done).rejects.toMatchObject({ code: "io-error" });
    expect(c.isClosed).toBe(false);
  });

  it("do not withdraw what one of them has committed", async () => {
    const { b, c, all } = group();
    const done = all.request(discard);
    b.refuse?.("epoch-committed");
    c.answer?.();
    await expect(done).rejects.toMatchObject({ code: "epoch-committed" });
    expect(b.isClosed).toBe(false);
  });
});
