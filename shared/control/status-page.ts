/**
 * The files of the status page, as `npm run build` leaves them, and the headers that they are served with. They are the
 * same for everybody and hold nothing of the agent, so they are open to who has no token; what the page shows, it asks the
 * control API for, with the token.
 *
 * A page of the agent loads nothing from elsewhere, runs no script but its own file, and is shown in no other page's frame.
 */
import { join } from "node:path";
import type { FastifyReply } from "fastify";
import { ColobusError } from "../../proto/errors.ts";
import { readAsset } from "../host/read-asset.ts";

const CONTENT_SECURITY_POLICY = [
  "default-src 'none'",
  "script-src 'self'",
  "style-src 'self'",
  "img-src 'self'",
  "connect-src 'self'",
  "base-uri 'none'",
  "form-action 'none'",
  "frame-ancestors 'none'",
  "require-trusted-types-for 'script'",
  "trusted-types 'none'",
].join("; ");

const HEADERS = {
  "content-security-policy": CONTENT_SECURITY_POLICY,
  "cross-origin-opener-policy": "same-origin",
  "cross-origin-resource-policy": "same-origin",
  "referrer-policy": "no-referrer",
  "x-content-type-options": "nosniff",
  // The next release has other files under the same names.
  "cache-control": "no-cache",
} as const;

/** Each file of the page by its path, and its type. */
const FILES = {
  "/": { name: "index.html", type: "text/html; charset=utf-8" },
  "/page/page.js": { name: "page.js", type: "text/javascript; charset=utf-8" },
  "/page/page.css": { name: "page.css", type: "text/css; charset=utf-8" },
  "/page/icon.svg": { name: "icon.svg", type: "image/svg+xml" },
} as const;

type PagePath = keyof typeof FILES;
export const PAGE_PATHS = Object.keys(FILES) as PagePath[];

/** Where the page asks whether it needs a token. */
export const DOOR_PATH = "/page/door";

/** Whether a request is for the page itself, and not for anything of the agent. */
export function isForPage(method: string | undefined, url: string | undefined): boolean {
  const path = url?.split("?", 1)[0] ?? "";
  return method === "GET" && (path in FILES || path === DOOR_PATH);
}

export class StatusPage {
  readonly #directory: string;
  readonly #read = new Map<PagePath, Buffer>();

  /** `directory`: where the built files are. */
  constructor(directory: string) {
    this.#directory = directory;
  }

  /** Sends a file of the page. Errors: `not-found`, in a program that was not built. */
  async send(path: PagePath, reply: FastifyReply): Promise<unknown> {
    const { name, type } = FILES[path];
    const content = this.#read.get(path) ?? (await readAsset(join(this.#directory, name)));
    if (content === undefined) {
      throw new ColobusError("not-found", "The status page is not built.", "Run `npm run build`, and use `dist`.");
    }
    this.#read.set(path, content);
    return reply.headers(HEADERS).type(type).send(content);
  }
}
