import { ColobusError } from "../../proto/errors.ts";

/** Formats that qemu-nbd is started for: those that it can write. */
export const IMAGE_FORMATS = ["qcow2", "qcow", "qed", "vmdk", "vdi", "vhdx", "vpc", "parallels"] as const;
export type ImageFormat = (typeof IMAGE_FORMATS)[number];

const NBD_DEFAULT_PORT = 10_809;

/** What `--disk NAME=IMAGE` can name. */
export type ImageLocation =
  /** A raw file or block device. `isExplicit`: it is raw whatever its first bytes look like. */
  | { readonly kind: "file"; readonly path: string; readonly isExplicit: boolean }
  /** A file that a format server is started for. */
  | { readonly kind: "format"; readonly format: ImageFormat; readonly path: string }
  /** An export of a server that somebody else runs. */
  | {
      readonly kind: "nbd";
      readonly exportName: string;
      readonly address:
        | { readonly kind: "unix"; readonly path: string }
        | { readonly kind: "tcp"; readonly host: string; readonly port: number };
    };

/**
 * What a disk's IMAGE means: a path, FORMAT:PATH, nbd://HOST:PORT/NAME or nbd+unix:///NAME?socket=PATH (the NBD URI
 * specification). Errors: `usage`.
 */
export function parseImageLocation(text: string): ImageLocation {
  const scheme = /^([a-z][a-z0-9+.-]*):/.exec(text)?.[1];
  if (scheme === undefined) return { kind: "file", path: text, isExplicit: false };
  const rest = text.slice(scheme.length + 1);
  if (scheme === "nbd" || scheme === "nbd+unix") return parseNbdUri(text, scheme, rest);
  if (scheme === "nbds" || scheme === "nbds+unix") {
    throw invalid(text, "TLS to an NBD server is not available in this release; use nbd+unix:// or nbd://.");
  }
  if (rest === "") throw invalid(text, `Write a path behind ${scheme}:.`);
  if (scheme === "raw") return { kind: "file", path: rest, isExplicit: true };
  const format = IMAGE_FORMATS.find((known) => known === scheme);
  if (format !== undefined) return { kind: "format", format, path: rest };
  throw invalid(
    text,
    `Formats are raw, ${IMAGE_FORMATS.join(", ")}; other servers are named as nbd:// or nbd+unix://.`,
  );
}

/** The location as it is recorded: the same image is always written in the same way. */
export function formatImageLocation(location: ImageLocation): string {
  switch (location.kind) {
    case "file":
      return location.isExplicit ? `raw:${location.path}` : location.path;
    case "format":
      return `${location.format}:${location.path}`;
    case "nbd": {
      const name = encodeURIComponent(location.exportName);
      const { address } = location;
      if (address.kind === "unix") return `nbd+unix:///${name}?socket=${encodePath(address.path)}`;
      const host = address.host.includes(":") ? `[${address.host}]` : address.host;
      return `nbd://${host}:${address.port}/${name}`;
    }
  }
}

function parseNbdUri(text: string, scheme: "nbd" | "nbd+unix", rest: string): ImageLocation {
  const match = /^\/\/([^/?#]*)(?:\/([^?#]*))?(?:\?([^#]*))?$/.exec(rest);
  if (match === null) throw invalid(text, "Write nbd://HOST:PORT/NAME or nbd+unix:///NAME?socket=PATH.");
  const [, authority = "", name = "", query = ""] = match;
  const exportName = decode(text, name);
  if (scheme === "nbd+unix") {
    const socket = /^socket=([^&]+)$/.exec(query)?.[1];
    if (authority !== "" || socket === undefined) throw invalid(text, "Write nbd+unix:///NAME?socket=PATH.");
    const path = decode(text, socket);
    if (!path.startsWith("/")) throw invalid(text, "The socket's path begins with /.");
    return { kind: "nbd", exportName, address: { kind: "unix", path } };
  }
  const address = /^(\[[0-9a-fA-F:.]+\]|[^:@[\]]+)(?::(\d{1,5}))?$/.exec(authority);
  const port = address?.[2] === undefined ? NBD_DEFAULT_PORT : Number(address[2]);
  if (address?.[1] === undefined || query !== "" || port === 0 || port > 65_535) {
    throw invalid(text, "Write nbd://HOST:PORT/NAME.");
  }
  return { kind: "nbd", exportName, address: { kind: "tcp", host: address[1].replace(/^\[|\]$/g, ""), port } };
}

function decode(text: string, part: string): string {
  try {
    return decodeURIComponent(part);
  } catch (error) {
    throw invalid(text, "Its percent-encoding is broken.", error);
  }
}

/** Percent-encodes what would end the query, and leaves a path readable. */
function encodePath(path: string): string {
  return encodeURIComponent(path).replaceAll("%2F", "/");
}

function invalid(text: string, what: string, cause?: unknown): ColobusError {
  const options = cause === undefined ? undefined : { cause };
  return new ColobusError("usage", `${JSON.stringify(text)} is not an image`, what, options);
}
