import type { ChildProcess } from "node:child_process";

/** Ends a process that was started `detached`, with everything that it has started and that has not left its group. */
export function killGroup(child: ChildProcess): void {
  if (child.pid === undefined) return;
  try {
    process.kill(-child.pid, "SIGKILL");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ESRCH") throw error; // else nothing of it is left
  }
}
