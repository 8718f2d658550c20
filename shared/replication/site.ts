import { IMAGE_TOLD_MAX_BYTES } from "../../proto/limits.ts";
import type { Site } from "../../proto/replication-messages.ts";
import type { StateRecord } from "../../proto/state-record.ts";
import { isLoopback } from "../host/loopback.ts";

/** Where this side's images are, as a peer is told it. */
export function siteOf({ bootId, disks }: Pick<StateRecord, "bootId" | "disks">, host: string): Site {
  return {
    host,
    bootId,
    disks: disks.map(({ name, image }) => ({
      name,
      image: Buffer.byteLength(image) > IMAGE_TOLD_MAX_BYTES ? null : image,
    })),
  };
}

/** The image that a side has told for a disk; null: none is known. */
export function imageAt(site: Site | undefined, disk: string): string | null {
  return site?.disks.find(({ name }) => name === disk)?.image ?? null;
}

/**
 * What the host of a peer is called here: two peers on one machine are on one host, however its names differ. `at`: its
 * address or URL. null: nothing is known.
 */
export function hostNameOf(site: Site | undefined, own: Site, at: string | null): string | null {
  const address = at === null ? null : hostOfAddress(at);
  if (site === undefined) return address;
  if (site.bootId === own.bootId) return own.host;
  return site.host === own.host ? `${site.host} at ${address ?? "another address"}` : site.host;
}

/** The host of `HOST:PORT` or a URL. Behind a loopback address may be a tunnel to anywhere: its port tells it from others. */
export function hostOfAddress(at: string): string {
  const [, authority = at] = /^[a-z]+:\/\/([^/?#]*)/.exec(at) ?? [];
  const host = authority.replace(/:\d+$/, "").replace(/^\[|\]$/g, "");
  return isLoopback(host) ? authority : host;
}
