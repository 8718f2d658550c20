/** A TCP relay on loopback whose connections a test can cut, as a network does that loses a link. */
import { connect, createServer, type Socket } from "node:net";
import { once } from "node:events";
import { onTestFinished } from "vitest";

export class CuttingProxy {
  readonly port: number;
  readonly #sockets: Set<Socket>;
  #relayedBytes = 0;
  #hold: { readonly afterBytes: number; readonly reached: () => void } | undefined;
  #goOn: (() => void)[] = [];

  private constructor(port: number, sockets: Set<Socket>) {
    this.port = port;
    this.#sockets = sockets;
  }

  /** Relays connections at `port` to `targetPort`, until the test has finished. */
  static async start(port: number, targetPort: number): Promise<CuttingProxy> {
    const sockets = new Set<Socket>();
    const proxy = new CuttingProxy(port, sockets);
    const server = createServer((incoming) => {
      const outgoing = connect({ host: "127.0.0.1", port: targetPort });
      for (const [socket, other] of [
        [incoming, outgoing],
        [outgoing, incoming],
      ] as const) {
        sockets.add(socket);
        socket.on("error", () => other.destroy());
        socket.on("close", () => {
          sockets.delete(socket);
          other.destroy();
        });
        socket.pipe(other);
      }
      incoming.on("data", (chunk: Buffer) => proxy.#relayed(chunk.length, incoming, outgoing));
    });
    server.listen({ host: "127.0.0.1", port });
    await once(server, "listening");
    onTestFinished(() => {
      server.close();
      for (const socket of sockets) socket.destroy();
    });
    return proxy;
  }

  /** What the side that dials has sent. */
  get relayedBytes(): number {
    return this.#relayedBytes;
  }

  /** Ends every connection at once; what was under way is lost. New ones are taken as before. */
  cut(): void {
    for (const socket of this.#sockets) socket.resetAndDestroy();
  }

  /** Relays `bytes` more from the side that dials, then nothing until `goOn`. Resolves when that point is reached. */
  holdAfter(bytes: number): Promise<void> {
    return new Promise((resolve) => {
      this.#hold = { afterBytes: this.#relayedBytes + bytes, reached: resolve };
    });
  }

  goOn(): void {
    this.#hold = undefined;
    for (const resume of this.#goOn.splice(0)) resume();
  }

  #relayed(bytes: number, incoming: Socket, outgoing: Socket): void {
    this.#relayedBytes += bytes;
    if (this.#hold === undefined || this.#relayedBytes < this.#hold.afterBytes) return;
    incoming.unpipe(outgoing);
    incoming.pause();
    this.#goOn.push(() => incoming.pipe(outgoing));
    this.#hold.reached();
  }
}
