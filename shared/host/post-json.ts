import { request as requestHttp } from "node:http";
import { request as requestHttps } from "node:https";
import type { SecureContextOptions } from "node:tls";

export interface PostAnswer {
  readonly status: number;
  readonly text: string;
}

export interface PostOptions {
  /** The header of that name. */
  readonly authorization: string | undefined;
  /** Of `https:`: what is believed and shown, beside what Node has. */
  readonly tls: SecureContextOptions | undefined;
  readonly signal: AbortSignal;
  readonly answerMaxBytes: number;
}

/**
 * One HTTP request over a connection of its own, which takes the certificates as they are now. Nothing is redirected.
 * Errors: those of Node, and of an answer that is longer than what is expected.
 */
export function postJson(url: URL, body: object, options: PostOptions): Promise<PostAnswer> {
  const content = JSON.stringify(body);
  const { authorization, tls, signal, answerMaxBytes } = options;
  const headers = {
    "content-type": "application/json",
    "content-length": Buffer.byteLength(content),
    ...(authorization === undefined ? {} : { authorization }),
  };
  const how = { method: "POST", headers, signal, agent: false } as const;
  return new Promise((resolve, reject) => {
    const sent = url.protocol === "https:" ? requestHttps(url, { ...how, ...tls }) : requestHttp(url, how);
    sent.once("error", reject);
    sent.once("response", (response) => {
      readText(response, answerMaxBytes).then((text) => resolve({ status: response.statusCode ?? 0, text }), reject);
    });
    sent.end(content);
  });
}

async function readText(body: AsyncIterable<Buffer>, maxBytes: number): Promise<string> {
  const chunks: Buffer[] = [];
  let length = 0;
  for await (const chunk of body) {
    length += chunk.length;
    if (length > maxBytes) throw new Error("its answer is too long");
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString("utf8");
}
