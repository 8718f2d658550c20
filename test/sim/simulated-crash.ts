/** How a host dies. `process`: kill -9, the kernel lives on. `power`: what was not synced is at the disk's mercy. */
export type CrashKind = "process" | "power";

/**
 * Thrown into the code of a simulated process at the moment of its death, and at everything it tries afterwards.
 * It is not a ColobusError: no code may handle it, and whatever a catch block does with it reaches nothing any more.
 */
export class SimulatedCrash extends Error {
  constructor(process: string) {
    super(`${process} is dead`);
    this.name = "SimulatedCrash";
  }
}
