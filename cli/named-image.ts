import { resolve } from "node:path";
import { ColobusError } from "../proto/errors.ts";
import { formatImageLocation, parseImageLocation, type ImageLocation } from "../shared/block/image-location.ts";
import { impossible } from "./flag-errors.ts";

/** NAME=IMAGE as an operator writes it; a path is as it is from anywhere then. Errors: `usage`, naming `what`, with the `example`. */
export function parseNamedImage(
  what: string,
  text: string,
  example = "b=/mnt/b/web.img",
): { name: string; image: string } {
  const at = text.indexOf("=");
  const name = text.slice(0, at);
  const image = text.slice(at + 1);
  if (at < 1 || image === "") throw impossible(what, text, `Write NAME=IMAGE, such as ${example}.`);
  let location: ImageLocation;
  try {
    location = parseImageLocation(image);
  } catch (error) {
    throw error instanceof ColobusError ? impossible(what, text, error.action) : error;
  }
  return {
    name,
    image: formatImageLocation(location.kind === "nbd" ? location : { ...location, path: resolve(location.path) }),
  };
}
