/**
 * Other releases of the program. Until there are some to install, one is the present source under another version number, with
 * what a later release may change: built by the build's own bundler, and run as processes like the present one.
 */
import { readFileSync, symlinkSync } from "node:fs";
import { join } from "node:path";
import type { Plugin } from "esbuild";
import * as declared from "../../proto/versions.ts";
import { bundleProgram, ROOT } from "../../tools/bundle-program.ts";
import { scratchDirectory } from "./scratch.ts";

const versions = { ...declared };
export type ReleaseVersions = Partial<Record<keyof typeof versions, string | number>>;

interface Edit {
  readonly file: string;
  readonly from: string;
  readonly to: string;
}

/** What a later release says beyond what this one knows: each may be passed over by this one. */
const ADDITIONS: readonly Edit[] = [
  {
    file: "shared/replication/own-hello.ts",
    from: "agentVersion: AGENT_VERSION,",
    to: 'agentVersion: AGENT_VERSION, ofLater: { said: ["in", "a", "hello"] },',
  },
  {
    file: "proto/state-record.ts",
    from: "const body = packr.pack(record);",
    to: 'const body = packr.pack({ ...record, ofLater: "kept in a record" });',
  },
];

/** Builds a release with these versions into a directory of its own, and returns that; it goes with the test. */
export async function buildRelease(changed: ReleaseVersions): Promise<string> {
  const edits = Object.entries(changed).map(([name, version]) => {
    const present = JSON.stringify(versions[name as keyof typeof versions]);
    return { file: "proto/versions.ts", from: `${name} = ${present};`, to: `${name} = ${JSON.stringify(version)};` };
  });
  const root = scratchDirectory();
  symlinkSync(join(ROOT, "node_modules"), join(root, "node_modules"));
  await bundleProgram(join(root, "dist"), [editing([...edits, ...ADDITIONS])]);
  return root;
}

/** The program of a release that is built at `root`. */
export function mainOf(root: string): string {
  return join(root, "dist/cli/main.js");
}

function editing(edits: readonly Edit[]): Plugin {
  return {
    name: "another release",
    setup: ({ onLoad, onEnd }) => {
      const made = new Set<Edit>();
      for (const file of new Set(edits.map((edit) => edit.file))) {
        onLoad({ filter: new RegExp(`/${file.replaceAll(".", "\\.")}$`) }, ({ path }) => {
          let contents = readFileSync(path, "utf8");
          for (const edit of edits) {
            if (edit.file !== file) continue;
            if (!contents.includes(edit.from)) throw new Error(`${file} has no "${edit.from}"`);
            contents = contents.replace(edit.from, edit.to);
            made.add(edit);
          }
          return { contents, loader: "ts" };
        });
      }
      onEnd(() => {
        if (made.size < edits.length) throw new Error("what a release changes is not part of the program");
      });
    },
  };
}
