import { connect, createServer, type AddressInfo } from "node:net";
import { onTestFinished } from "vitest";

/** A port on loopback that leads to a unix socket, as `ssh -L` makes one; resolves with the port. */
export async function forwardSocket(path: string): Promise<number> {
  const server = createServer((near) => {
    const far = connect({ path });
    near.pipe(far).pipe(near);
    // Either end of a connection takes the other with it; the browser tells what it makes of that.
    near.on("error", () => far.destroy());
    far.on("error", () => near.destroy());
    onTestFinished(() => void near.destroy());
  });
  await new Promise<void>((resolve) => {
    server.listen(0, "127.0.0.1", resolve);
  });
  onTestFinished(() => void server.close());
  return (server.address() as AddressInfo).port;
}
