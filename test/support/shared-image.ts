/** The one image of a pair that shares its disk, raw or qcow2. */
import { rmSync } from "node:fs";
import { AgentPair, type PairOptions } from "./agent-pair.ts";
import { untilNoFormatServer } from "./format-servers.ts";
import { tool } from "./nbd-tools.ts";

export type SharedFormat = "raw" | "qcow2";

/** A pair in mode `shared`; a qcow2 image is made with these flags of `qemu-img convert`. Nothing runs yet. */
export async function createSharing(
  format: SharedFormat,
  options: PairOptions,
  ...convert: string[]
): Promise<AgentPair> {
  if (format === "raw") return AgentPair.create({ ...options, shared: {} });
  const pair = await AgentPair.create({ ...options, shared: {}, imageOf: (path) => `qcow2:${path}` });
  const image = pair.imagePath("a");
  const raw = `${image}.raw`;
  await tool("mv", image, raw);
  await tool("qemu-img", "convert", "-f", "raw", "-O", "qcow2", ...convert, raw, image);
  rmSync(raw);
  return pair;
}

/** What the image holds on its medium, whoever has it open. A qcow2 image that nobody writes is checked as well. */
export async function contentOf(pair: AgentPair, format: SharedFormat): Promise<Buffer> {
  const image = pair.imagePath("a");
  if (format === "raw") return pair.image("a");
  const raw = `${image}.content`;
  if (!pair.primary.isRunning && !pair.secondary.isRunning) await tool("qemu-img", "check", "-q", image);
  await tool("qemu-img", "convert", "-U", "-f", "qcow2", "-O", "raw", image, raw);
  const content = await tool("cat", raw);
  rmSync(raw);
  return content;
}

/** The primary is dead, its host cut off from the disk, and the other side promoted. */
export async function failOverFenced({ primary, secondary }: AgentPair): Promise<void> {
  if (primary.isRunning) await primary.crash();
  await untilNoFormatServer(primary.run);
  await secondary.until("alone", ({ peers }) => peers[0]?.connection !== "Connected");
  await secondary.get("failover", "--fenced");
}
