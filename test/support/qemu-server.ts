import { join } from "node:path";
import { scratchDirectory } from "./scratch.ts";
import { ToolProcess } from "./tool-process.ts";

/**
 * Serves the disk vda of the agent with this run directory as QEMU gives it to a guest: requests wait while the agent is away.
 * Returns the directory of the server's `nbd.sock`.
 */
export async function serveByQemu(agentRun: string): Promise<string> {
  const directory = scratchDirectory();
  const socket = join(directory, "nbd.sock");
  const server = `server.type=unix,server.path=${join(agentRun, "nbd.sock")}`;
  const qemu = new ToolProcess("qemu-storage-daemon", [
    "--blockdev",
    `driver=nbd,node-name=vda,${server},export=vda,reconnect-delay=60`,
    "--nbd-server",
    `addr.type=unix,addr.path=${socket}`,
    "--export",
    "type=nbd,id=vda,node-name=vda,name=vda,writable=on",
  ]);
  await qemu.untilListening(socket);
  return directory;
}
