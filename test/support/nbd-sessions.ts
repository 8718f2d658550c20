/** Recorded NBD sessions of a well-behaved client: every option and every command, in both reply modes. */
import { BASE_ALLOCATION, COMMAND, COMMAND_FLAG, INFO, OPTION } from "../../proto/nbd-protocol.ts";
import type { SentRequest } from "./nbd-client.ts";
import { DISCONNECT, clientFlags, infoData, metaData, negotiation, option, request } from "./nbd-client.ts";

export interface RecordedSession {
  readonly name: string;
  readonly bytes: Buffer;
}

/** Sessions for an export named `vda` of at least 64 KiB, which is also the default export. */
export function recordedSessions(): RecordedSession[] {
  return [...negotiationSessions(), ...commandSessions()];
}

const { READ, WRITE, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS } = COMMAND;
const { FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO } = COMMAND_FLAG;

const STRUCTURED = option(OPTION.STRUCTURED_REPLY);
const READ_SOME = request({ type: READ, cookie: 1, offset: 512, length: 1024 });
const WRITE_SOME = request({ type: WRITE, cookie: 2, offset: 4096, payload: Buffer.alloc(700, 0xab) });

function negotiationSessions(): RecordedSession[] {
  const session = (name: string, flags: number, ...parts: Buffer[]): RecordedSession => ({
    name,
    bytes: Buffer.concat([clientFlags(flags), ...parts]),
  });
  const go = option(OPTION.GO, infoData("vda", [INFO.BLOCK_SIZE]));
  return [
    session("EXPORT_NAME, oldest client", 0, option(OPTION.EXPORT_NAME, "vda"), READ_SOME, WRITE_SOME, DISCONNECT),
    session("EXPORT_NAME after STRUCTURED_REPLY", 3, STRUCTURED, option(OPTION.EXPORT_NAME, ""), READ_SOME, DISCONNECT),
    session("LIST and ABORT", 1, option(OPTION.LIST), option(OPTION.ABORT)),
    session(
      "INFO with everything, then GO",
      3,
      option(OPTION.INFO, infoData("vda", [0, 1, 2, 3])),
      go,
      READ_SOME,
      DISCONNECT,
    ),
    session(
      "options that are not served",
      3,
      option(OPTION.STARTTLS),
      option(OPTION.EXTENDED_HEADERS),
      option(OPTION.PEEK_EXPORT, "vda"),
      go,
      WRITE_SOME,
    ),
    session("a wrong name first", 3, option(OPTION.GO, infoData("nonesuch")), go, READ_SOME, DISCONNECT),
    session(
      "metadata contexts",
      3,
      STRUCTURED,
      option(OPTION.LIST_META_CONTEXT, metaData("vda", [])),
      option(OPTION.LIST_META_CONTEXT, metaData("vda", ["base:", "qemu:"])),
      option(OPTION.SET_META_CONTEXT, metaData("vda", ["qemu:dirty-bitmap:x", BASE_ALLOCATION])),
      go,
      request({ type: BLOCK_STATUS, cookie: 3, length: 65536 }),
      DISCONNECT,
    ),
  ];
}

function commandSessions(): RecordedSession[] {
  const payload = Buffer.from(Array.from({ length: 3000 }, (_, index) => index & 0xff));
  const requests: SentRequest[] = [
    { type: READ, cookie: 1, offset: 1000, length: 5000 },
    { type: WRITE, cookie: 2, offset: 2000, payload },
    { type: WRITE, cookie: 3, offset: 9000, payload: payload.subarray(0, 512), flags: FUA },
    { type: FLUSH, cookie: 4 },
    { type: TRIM, cookie: 5, offset: 4096, length: 8192 },
    { type: CACHE, cookie: 6, offset: 0, length: 4096 },
    { type: WRITE_ZEROES, cookie: 7, offset: 16384, length: 4096, flags: NO_HOLE },
    { type: WRITE_ZEROES, cookie: 8, offset: 20480, length: 4096, flags: FAST_ZERO | FUA },
    { type: READ, cookie: 9, offset: 0, length: 0 },
  ];
  const structuredOnly: SentRequest[] = [
    { type: BLOCK_STATUS, cookie: 10, offset: 0, length: 65536 },
    { type: BLOCK_STATUS, cookie: 11, offset: 512, length: 60000, flags: REQ_ONE },
    { type: READ, cookie: 12, offset: 0, length: 65536, flags: DF },
    { type: READ, cookie: 13, offset: 0, length: 65536 },
  ];
  const simple = negotiation("vda");
  const structured = negotiation("vda", { structured: true, allocation: true });
  const sessions: RecordedSession[] = [];
  for (const sent of requests) {
    const bytes = Buffer.concat([simple, request(sent), DISCONNECT]);
    sessions.push({ name: `simple: command ${sent.type}, cookie ${sent.cookie}`, bytes });
  }
  for (const sent of [...requests, ...structuredOnly]) {
    const bytes = Buffer.concat([structured, request(sent), DISCONNECT]);
    sessions.push({ name: `structured: command ${sent.type}, cookie ${sent.cookie}`, bytes });
  }
  sessions.push(
    { name: "simple: all commands", bytes: Buffer.concat([simple, ...requests.map(request), DISCONNECT]) },
    {
      name: "structured: all commands",
      bytes: Buffer.concat([structured, ...[...requests, ...structuredOnly].map(request), DISCONNECT]),
    },
  );
  return sessions;
}
