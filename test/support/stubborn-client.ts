import { connect } from "node:net";
import { connect as connectTls } from "node:tls";
import { onTestFinished } from "vitest";

const WRITE_EVERY_MS = 20;

/**
 * A client that sends `bytes`, and then never closes its side of the connection. Resolves with what it was sent when the
 * server has closed both; `ca`: over TLS.
 */
export function askStubbornly(port: number, bytes: string, ca?: Buffer): Promise<string> {
  const options = { port, host: "127.0.0.1", allowHalfOpen: true };
  const socket = ca === undefined ? connect(options) : connectTls({ ...options, ca });
  onTestFinished(() => void socket.destroy());
  let answer = "";
  socket.write(bytes);
  socket.on("data", (chunk: Buffer) => (answer += chunk.toString("latin1")));
  socket.on("error", () => undefined);
  return new Promise((resolve) => {
    // Nothing but a word of its own tells it that the other end is gone altogether.
    let timer: NodeJS.Timeout | undefined;
    socket.on("end", () => {
      timer = setInterval(() => socket.write("?"), WRITE_EVERY_MS);
    });
    socket.on("close", () => {
      clearInterval(timer);
      resolve(answer);
    });
  });
}
