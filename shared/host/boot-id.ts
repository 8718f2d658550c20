import fs from "node:fs";
import { fsError } from "./os-error.ts";

const PATH = "/proc/sys/kernel/random/boot_id";

/** The kernel's id of this boot: another one means that the machine, and with it the page cache, was lost in between. */
export function readBootId(): string {
  try {
    return fs.readFileSync(PATH, "ascii").trim();
  } catch (error) {
    throw fsError(`cannot read ${PATH}`, PATH, error);
  }
}
