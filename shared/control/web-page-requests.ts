/**
 * Requests that a browser makes on behalf of a web page. The agent's own status page may ask for everything, any other page
 * for nothing: neither by a request to the agent's address (its `Origin`, or `Sec-Fetch-Site`, tells), nor by a name of its
 * own that it has lead there (the `Host` tells, where the client has no certificate to look at).
 */
import type { IncomingHttpHeaders } from "node:http";
import { ColobusError } from "../../proto/errors.ts";

/** Why a request over TLS may not be made; undefined: it may. */
export function pageRefusal(headers: IncomingHttpHeaders): ColobusError | undefined {
  return isOwnPage(headers, ["https"]) ? undefined : foreignPage();
}

/**
 * The same for the unix socket, which a browser reaches only through a forwarded port of its own machine: the address is
 * then one of loopback. A name without a dot is nobody's on the internet, and is what other clients of the socket make up.
 */
export function forwardedPageRefusal(headers: IncomingHttpHeaders): ColobusError | undefined {
  return isLocalName(headers.host ?? "") && isOwnPage(headers, ["http", "https"]) ? undefined : foreignPage();
}

function isOwnPage(
  { origin, host = "", "sec-fetch-site": site }: IncomingHttpHeaders,
  schemes: readonly string[],
): boolean {
  if (site !== undefined && site !== "same-origin" && site !== "none") return false;
  return origin === undefined || schemes.some((scheme) => origin === `${scheme}://${host}`);
}

function isLocalName(host: string): boolean {
  const name = host.replace(/:\d+$/, "");
  return name === "[::1]" || /^127(?:\.\d{1,3}){3}$/.test(name) || !/[.[\]]/.test(name);
}

function foreignPage(): ColobusError {
  return new ColobusError(
    "auth-failed",
    "the request comes from a web page that is not the agent's own",
    "Open the agent's status page at this address, or use the command line.",
  );
}
