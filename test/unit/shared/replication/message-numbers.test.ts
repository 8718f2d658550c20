import { describe, expect, it } from "vitest";
import { encodeMessage, numberOf } from "../../../../proto/replication-messages.ts";
import { MessageNumbers } from "../../../../shared/replication/message-numbers.ts";

/** The next message of the side with these numbers. */
function next(numbers: MessageNumbers): Buffer {
  const parts = encodeMessage({ type: "ping" });
  numbers.stamp(parts);
  return Buffer.concat(parts);
}

describe("the numbers of a session's messages", () => {
  it("begin at 0, in each direction by itself", () => {
    const [left, right] = [new MessageNumbers(), new MessageNumbers()];
    const said = [next(left), next(left), next(left)];
    expect(said.map(numberOf)).toEqual([0, 1, 2]);
    for (const message of said) right.check(message);
    expect(numberOf(next(right))).toBe(0);
  });

  it("go on behind the largest one with 0, on both sides", () => {
    const last = 2 ** 32 - 1;
    const [left, right] = [new MessageNumbers(last), new MessageNumbers(last)];
    const said = [next(left), next(left), next(left)];
    expect(said.map(numberOf)).toEqual([last, 0, 1]);
    for (const message of said) right.check(message);
    expect(() => right.check(next(new MessageNumbers(last)))).toThrow(
      expect.objectContaining({
        code: "protocol-error",
        message: expect.stringContaining(`message ${last} of the peer came where 2 was expected`) as string,
      }) as Error,
    );
  });
});
