import { createServer, type Server, type Socket } from "node:net";
import type { AgentControl } from "../../proto/control-api.ts";
import { asColobusError } from "../../proto/errors.ts";
import { COMMAND_TIMEOUT_MAX_MS } from "../../proto/limits.ts";
import type { Log } from "../host/log.ts";
import { listenOnUnixSocket } from "../host/unix-socket.ts";

/**
 * The unix socket into which a hypervisor migrates: each connection brings the VM state of the newest checkpoint that
 * awaits one. Its end is the state's end; whether that is all of it only the hypervisor's own word can tell, so nobody
 * commits the checkpoint before that.
 */
export class VmStateSocket {
  readonly #control: Pick<AgentControl, "receiveVmState">;
  readonly #log: Log;
  readonly #server: Server;
  readonly #calls = new Map<Socket, AbortController>();

  constructor({ control, log }: { readonly control: Pick<AgentControl, "receiveVmState">; readonly log: Log }) {
    this.#control = control;
    this.#log = log;
    this.#server = createServer((socket) => void this.#receive(socket));
    // A hypervisor has one migration at a time.
    this.#server.maxConnections = 4;
    this.#server.on("drop", () => {
      log.warn({ connections: this.#calls.size }, "a VM state's connection was dropped");
    });
  }

  /** Errors: as `listenOnUnixSocket`. */
  listen(path: string, inherited?: number): Promise<void> {
    return listenOnUnixSocket(this.#server, path, inherited);
  }

  /** Breaks off what is being received, and listens no more. */
  async close(): Promise<void> {
    for (const [socket, call] of this.#calls) {
      call.abort();
      socket.destroy();
    }
    if (!this.#server.listening) return;
    await new Promise<void>((resolve) => {
      this.#server.close(() => resolve());
    });
  }

  async #receive(socket: Socket): Promise<void> {
    const call = new AbortController();
    this.#calls.set(socket, call);
    socket.on("error", (error) => this.#log.debug({ reason: error.message }, "the VM state's socket"));
    const content = socket.iterator({ destroyOnReturn: false }) as AsyncIterator<Uint8Array, unknown>;
    try {
      const request = { timeoutMs: COMMAND_TIMEOUT_MAX_MS };
      const { epoch, bytes } = await this.#control.receiveVmState(request, content, call.signal);
      this.#log.info({ epoch, bytes }, "a VM state is stored");
    } catch (error) {
      this.#log.warn({ reason: asColobusError(error) }, "a VM state was not taken");
      await readToEnd(socket, content);
    } finally {
      this.#calls.delete(socket);
      socket.destroy();
    }
  }
}

/**
 * What nobody wants is read all the same: a QEMU that cannot write a background snapshot to its end leaves the guest's memory
 * write-protected, and the guest hangs (seen with 7.2). A socket does not flow while an iterator has it: `content` is ended first.
 */
async function readToEnd(socket: Socket, content: AsyncIterator<Uint8Array, unknown>): Promise<void> {
  if (socket.destroyed || socket.readableEnded) return;
  await new Promise<void>((resolve) => {
    socket.once("end", resolve);
    socket.once("close", resolve);
    const drop = (): unknown => socket.resume();
    content.return?.().then(drop, drop);
  });
}
