/**
 * A pair whose directories can be put away and opened again elsewhere: the images are named by where the agents run, and the
 * link by an address that network namespaces always have.
 */
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { AgentUnderTest, makeImage } from "./agent-pair.ts";
import { NetworkNamespaces } from "./network-namespaces.ts";
import { tool } from "./nbd-tools.ts";
import { scratchDirectory } from "./scratch.ts";

const PORT = 7000;
const HERE = "/proc/self/cwd";

export interface RecordedPairOptions {
  /** The disks and their sizes. */
  readonly disks: Readonly<Record<string, number>>;
  readonly flags?: readonly string[];
  readonly primaryFlags?: readonly string[];
  readonly secondaryFlags?: readonly string[];
  /** Mode `shared`: side `b` has the images of `a`. */
  readonly isShared?: boolean;
}

/** What is below a directory of the pair, as `--child` and the like name it. */
export function pathHere(path: string): string {
  return `${HERE}/${path}`;
}

export class RecordedPair {
  /** `a` and `b`: the state and the images of each side. */
  readonly root = scratchDirectory();
  readonly primary: AgentUnderTest;
  readonly secondary: AgentUnderTest;

  private constructor({ disks, flags = [], primaryFlags = [], secondaryFlags = [], isShared }: RecordedPairOptions) {
    const network = new NetworkNamespaces();
    const runs = scratchDirectory();
    const agent = (side: "a" | "b", role: string, own: readonly string[]): AgentUnderTest => {
      const images = isShared === true ? "a" : side;
      const run = join(runs, side);
      mkdirSync(run);
      const command = [
        role,
        "--vm",
        "test",
        "--run",
        run,
        "--state",
        join(this.root, side, "state"),
        "--insecure",
        ...Object.keys(disks).flatMap((name) => ["--disk", `${name}=${pathHere(`${images}/${name}.img`)}`]),
        ...flags,
        ...own,
      ];
      const launcher = [...network[side].launcher, "env", "-C", this.root];
      return new AgentUnderTest(`the ${role}`, run, command, launcher);
    };
    const { address } = network.b;
    this.primary = agent("a", "primary", ["--peer", `ws://${address}:${PORT}`, ...primaryFlags]);
    this.secondary = agent("b", "secondary", ["--listen", `${address}:${PORT}`, ...secondaryFlags]);
  }

  /** With empty images. Nothing runs yet. */
  static create(options: RecordedPairOptions): RecordedPair {
    const pair = new RecordedPair(options);
    for (const side of options.isShared === true ? ["a"] : ["a", "b"]) {
      mkdirSync(join(pair.root, side));
      for (const [name, size] of Object.entries(options.disks)) makeImage(join(pair.root, side, `${name}.img`), size);
    }
    return pair;
  }

  /** As it was put away in `archive`. Nothing runs yet. */
  static async unpack(options: RecordedPairOptions, archive: string): Promise<RecordedPair> {
    const pair = new RecordedPair(options);
    await tool("tar", "--extract", "--sparse", "--file", archive, "--directory", pair.root);
    return pair;
  }

  /** Puts the directories away. Nothing may run. */
  async pack(archive: string): Promise<void> {
    const anonymous = ["--sort=name", "--owner=0", "--group=0", "--mtime=@0"];
    await tool("tar", "--create", "--gzip", "--sparse", ...anonymous, "--file", archive, "--directory", this.root, ".");
  }

  async untilProtected(): Promise<void> {
    for (const agent of [this.primary, this.secondary]) {
      await agent.until("protected", ({ protection }) => protection.state === "Protected");
    }
  }

  async crash(): Promise<void> {
    await Promise.all([this.primary, this.secondary].map(async (agent) => agent.isRunning && agent.crash()));
  }
}
