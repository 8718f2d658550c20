import assert from "node:assert/strict";
import { Socket } from "node:net";
import type { InputBuffer, InputBufferPool } from "./input-buffers.ts";

/**
 * A socket that was accepted, reading into buffers of `pool` instead of into a new one each time. `receive` gets what has
 * arrived, and the hold of the buffer that it lies in, instead of a listener of "data".
 *
 * Node offers that to sockets that connect (`onread`), and not to a server's, so its connection is put into another one here.
 * undefined: this Node cannot; nothing has changed then.
 */
export function readIntoPool(
  accepted: Socket,
  pool: InputBufferPool,
  receive: (chunk: Buffer, buffer: InputBuffer) => void,
): Socket | undefined {
  const inside = accepted as unknown as { _handle: unknown };
  const handle = inside._handle;
  if (handle === undefined || handle === null) return undefined;
  inside._handle = null;
  let next: InputBuffer | undefined;
  const options = {
    handle,
    allowHalfOpen: accepted.allowHalfOpen,
    readable: true,
    writable: true,
    onread: {
      buffer: () => {
        next = pool.take();
        return next.bytes;
      },
      callback: (length: number) => {
        assert(next !== undefined, "a socket asks for a buffer before it reads");
        receive(next.bytes.subarray(0, length), next);
        return true;
      },
    },
  };
  const socket = new Socket(options);
  socket.once("close", () => {
    next?.release(); // nothing is read into it any more
    accepted.destroy(); // the server counts the socket that it knows
  });
  return socket;
}
