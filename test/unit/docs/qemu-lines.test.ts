/** Wherever a reader is told how QEMU uses a disk of ours, the guest has to survive a restart of the agent. */
import { readdirSync, readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";

const root = new URL("../../../", import.meta.url);
const PRINTED = ["cli", "primary", "proto", "secondary", "shared"];

function filesBelow(folder: string, extension: string): string[] {
  return readdirSync(new URL(`${folder}/`, root), { recursive: true, encoding: "utf8" })
    .filter((name) => name.endsWith(extension))
    .map((name) => `${folder}/${name}`);
}

const files = ["README.md", ...filesBelow("docs", ".md"), ...PRINTED.flatMap((folder) => filesBelow(folder, ".ts"))];

/** What connects QEMU to a disk: each command line, each value of `-blockdev` or `-drive`, each of libvirt's disks. */
function connectionsIn(text: string): string[] {
  const lines = text.replaceAll("\\\n", " ").split("\n");
  const disks = [...text.matchAll(/<source protocol=['"]nbd['"].*?<\/disk>/gs)].map(([disk]) => disk);
  return [
    ...lines.filter((line) => /\bdriver["']?[=:] ?["']?nbd\b/.test(line)),
    ...lines.filter((line) => /qemu-system-\w+ .*\bnbd(\+unix)?:/.test(line)),
    ...disks,
  ];
}

function hasDelay(connection: string): boolean {
  return /\breconnect-delay["']?[=:] ?[1-9]|<reconnect delay=['"][1-9]/.test(connection);
}

describe("what is printed about QEMU", () => {
  it("has a reconnect-delay for each disk", () => {
    const without = files.flatMap((file) =>
      connectionsIn(readFileSync(new URL(file, root), "utf8"))
        .filter((connection) => !hasDelay(connection))
        .map((connection) => `${file}: ${connection}`),
    );
    expect(without).toEqual([]);
  });

  it.each(["README.md", "docs/operations.md", "docs/qemu.md", "cli/demo.ts"])("%s tells of one", (file) => {
    expect(connectionsIn(readFileSync(new URL(file, root), "utf8"))).not.toEqual([]);
  });
});
