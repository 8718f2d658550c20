import { readFileSync } from "node:fs";

/**
 * Has a program that takes its terminal's whole screen give it back while the shell has stopped it (Ctrl-Z). `leave` is called
 * before it stops; `enter` when it goes on in the foreground. In the background (`bg`) it stops again, as whoever wants the
 * terminal does there. Where nobody could have it go on, the kernel stops nothing, and `enter` follows at once.
 *
 * Returns what ends that.
 */
export function followJobControl(leave: () => void, enter: () => void): () => void {
  const suspend = (): void => {
    leave();
    // With nobody who handles it the signal does what it is for: the call returns when the process goes on.
    process.off("SIGTSTP", suspend);
    process.kill(process.pid, "SIGTSTP");
    process.on("SIGTSTP", suspend);
    resume();
  };
  const resume = (): void => {
    if (isInForeground()) enter();
    else process.kill(process.pid, "SIGTTOU"); // SIGCONT leads here again
  };
  process.on("SIGTSTP", suspend);
  process.on("SIGCONT", resume);
  return () => {
    process.off("SIGTSTP", suspend);
    process.off("SIGCONT", resume);
  };
}

/** Whether the process may write to its terminal, or has none. */
function isInForeground(): boolean {
  const stat = readFileSync("/proc/self/stat", "latin1");
  // Behind the program's name, which may have anything in it: state, parent, process group, session, terminal, its foreground group.
  const [, , group, , , foreground] = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  return foreground === "-1" || foreground === group;
}
