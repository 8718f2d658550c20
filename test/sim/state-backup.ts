import type { SimDisk } from "./sim-disk.ts";

const STATE = "/state/";

/** The files of an agent's state directory. */
export function backUp(disk: SimDisk): ReadonlyMap<string, Buffer> {
  return new Map(stateFiles(disk).map((path) => [path, disk.readFile(path)]));
}

/** The state directory is again what it was. */
export function putBack(disk: SimDisk, files: ReadonlyMap<string, Buffer>): void {
  for (const path of stateFiles(disk)) disk.remove(path);
  for (const [path, content] of files) disk.addFile(path, content.length, content);
}

function stateFiles(disk: SimDisk): string[] {
  return disk.paths().filter((path) => path.startsWith(STATE));
}
