import { resolve } from "node:path";
import { ColobusError } from "../../proto/errors.ts";
import type { CertificateHolder } from "../../shared/host/make-certificates.ts";
import { outputFlags, timeoutOf } from "../agent-flags.ts";
import { defineCommand } from "../command.ts";

const DAYS_DEFAULT = 365;
const DAYS_MAX = 3650;
/** Both agents of a try on one machine can use them. */
const TRY_ADDRESSES = ["localhost", "127.0.0.1", "::1"] as const;

export const certsCommand = defineCommand({
  command: "certs <dir>",
  describe: "Make a certificate authority, and certificates for two hosts and a client",
  builder: (yargs) =>
    outputFlags(yargs)
      .positional("dir", { type: "string", demandOption: true, describe: "Where they are put" })
      .option("host", {
        type: "string",
        array: true,
        requiresArg: true,
        describe: "NAME_OR_IP[,NAME_OR_IP …] of a host; repeat it for each (host-a and host-b, on this machine)",
      })
      .option("client", {
        type: "string",
        array: true,
        requiresArg: true,
        describe: "Name of a client, such as an operator or an NBD client (client, where no --host is given)",
      })
      .option("days", {
        type: "string",
        requiresArg: true,
        describe: `How long the certificates last (${DAYS_DEFAULT})`,
      })
      .option("ca-only", { type: "boolean", default: false, describe: "Make the authority only" })
      .option("renew", { type: "boolean", default: false, describe: "Replace the certificates that are there" })
      .option("timeout", { type: "string", requiresArg: true, describe: "How long to wait, with a unit (default 60s)" })
      .example(
        "$0 certs /etc/colobus/tls --host db1,192.0.2.1 --host db2,192.0.2.2",
        "For each host a directory to copy there",
      )
      .example("$0 certs /etc/colobus/tls --renew --host db1,192.0.2.1", "Before they run out"),
  run: async (args, host) => {
    const { makeCertificates } = await import("../../shared/host/make-certificates.ts");
    const made = await makeCertificates({
      directory: resolve(args.dir),
      holders: holdersOf(args),
      days: parseDays(args.days),
      renew: args.renew,
      timeoutMs: timeoutOf(args),
      signal: host.interrupted,
    });
    host.output.result(args.json, made, ({ caCert, caMade, made: certificates }) =>
      [
        `${caCert}: ${caMade ? "a new certificate authority; its key, ca-key.pem, stays here" : "the authority that was there"}`,
        ...certificates.map(
          ({ kind, directory }) => `${directory}: copy it to ${kind === "host" ? "that host" : "the client"}`,
        ),
      ].join("\n"),
    );
  },
});

function holdersOf(args: {
  readonly "host": readonly string[] | undefined;
  readonly "client": readonly string[] | undefined;
  readonly "ca-only": boolean;
}): CertificateHolder[] {
  const { host, client } = args;
  if (args["ca-only"]) {
    if (host === undefined && client === undefined) return [];
    throw new ColobusError("usage", "--ca-only makes no certificates of hosts and clients.", "Leave one of them out.");
  }
  if (host === undefined && client === undefined) {
    return [
      { kind: "host", names: ["host-a", ...TRY_ADDRESSES] },
      { kind: "host", names: ["host-b", ...TRY_ADDRESSES] },
      { kind: "client", names: ["client"] },
    ];
  }
  return [
    ...(host ?? []).map((text) => ({ kind: "host" as const, names: namesOf(text) })),
    ...(client ?? []).map((name) => ({ kind: "client" as const, names: [name] as const })),
  ];
}

function namesOf(text: string): [string, ...string[]] {
  const [first = "", ...rest] = text.split(",");
  return [first, ...rest];
}

function parseDays(text: string | undefined): number {
  if (text === undefined) return DAYS_DEFAULT;
  const days = /^\d+$/.test(text) ? Number(text) : 0;
  if (days >= 1 && days <= DAYS_MAX) return days;
  throw new ColobusError("usage", `--days ${JSON.stringify(text)} is not possible`, `Write 1 to ${DAYS_MAX}.`);
}
