import type { MirrorRequest } from "../../proto/control-api.ts";

/** Has all of vda mirrored to an image that is to be made, behind the guests, and ends where anything fails. */
export function mirrorTo(target: string): MirrorRequest {
  return {
    disk: "vda",
    target,
    sync: "full",
    copyMode: "background",
    speed: 0,
    granularityBytes: undefined,
    unmap: true,
    onSourceError: "report",
    onTargetError: "report",
    create: true,
    timeoutMs: 60_000,
  };
}
