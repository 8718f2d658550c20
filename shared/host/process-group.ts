import type { ChildProcess } from "node:child_process";

/**
 * Ends a process that was started `detached`, with everything that it has started and that has not left its group. False:
 * what is left of the group belongs to another user (sudo), and goes on.
 */
export function killGroup(child: ChildProcess): boolean {
  if (child.pid === undefined) return true;
  try {
    process.kill(-child.pid, "SIGKILL");
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === "EPERM") return false;
    if (code !== "ESRCH") throw error; // else nothing of it is left
  }
  return true;
}
