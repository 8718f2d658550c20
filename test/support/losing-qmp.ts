/** A way to a QEMU on which an answer is lost: what was asked for is carried out, and whoever has asked waits in vain. */
import { connect, createServer } from "node:net";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { onTestFinished } from "vitest";

/** Has `socket` lead to the QMP socket `target`. From the first `command` on nothing comes back on its connection. */
export async function loseAnswer(command: string, target: string, socket: string): Promise<void> {
  let isLost = false;
  const server = createServer((near) => {
    const far = connect({ path: target });
    near.pipe(far);
    far.pipe(near);
    for (const [one, other] of [
      [near, far],
      [far, near],
    ] as const) {
      one.on("error", () => other.destroy()); // an end of a connection takes the other with it
      one.on("close", () => other.destroy());
    }
    const lines = createInterface({ input: near });
    lines.on("error", () => undefined); // the socket's own listener has it
    lines.on("line", (line) => {
      if (isLost || (JSON.parse(line) as { readonly execute: string }).execute !== command) return;
      isLost = true;
      far.unpipe(near);
      far.resume();
    });
    onTestFinished(() => void near.destroy());
  });
  server.listen({ path: socket });
  await once(server, "listening");
  onTestFinished(() => void server.close());
}
