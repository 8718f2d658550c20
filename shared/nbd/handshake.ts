/**
 * The server's side of the NBD negotiation (fixed newstyle): a synchronous state machine over received bytes.
 *
 * It collects the client's flags and then one option after the other, answers each through `send`, and ends with an
 * outcome: an export was opened, or the connection is to be closed. Option data is never allocated by its announced
 * length beyond NBD_MAX_OPTION_BYTES; what is longer is skipped, and what is absurd ends the connection.
 * Where TLS is offered, STARTTLS is answered and the negotiation waits for `tlsStarted`; nothing that was agreed on before
 * holds after it. Where it is required, nothing but STARTTLS and ABORT is answered before. Extended headers are answered
 * ERR_UNSUP. It knows nothing of sockets and time.
 */
import assert from "node:assert/strict";
import {
  NBD_ADVERTISED_MAX_PAYLOAD_BYTES,
  NBD_MAX_OPTIONS_PER_CONNECTION,
  NBD_MAX_OPTION_BYTES,
  NBD_MAX_SKIPPED_OPTION_BYTES,
  NBD_PREFERRED_BLOCK_BYTES,
} from "../../proto/limits.ts";
import {
  BASE_ALLOCATION,
  DIRTY_BITMAP_NAMESPACE,
  CLIENT_FLAG,
  CLIENT_FLAGS_BYTES,
  INFO,
  NBD_OPTION_MAGIC,
  OPTION,
  OPTION_HEADER_BYTES,
  OPTION_REPLY,
  QEMU_NAMESPACE,
  TRANSMISSION_FLAG,
  encodeExportNameReply,
  encodeGreeting,
  encodeInfoBlockSize,
  encodeInfoExport,
  encodeInfoText,
  encodeMetaContext,
  encodeOptionReply,
  encodeServerEntry,
} from "../../proto/nbd-protocol.ts";
import type { OptionReply } from "../../proto/nbd-protocol.ts";
import { asColobusError } from "../../proto/errors.ts";
import { ByteGatherer } from "./byte-gatherer.ts";
import type { NbdExport, NbdExportDirectory } from "./export.ts";
import type { MetaContext } from "./meta-context.ts";
import { parseInfoRequest, parseMetaContextRequest, parseName } from "./option-data.ts";

/** The id by which BLOCK_STATUS replies name base:allocation, on every connection. */
export const ALLOCATION_CONTEXT_ID = 1;

export interface SelectedContext {
  readonly id: number;
  readonly context: MetaContext;
}

/** What the transmission phase needs to know of the negotiation. */
export interface NegotiatedExport {
  readonly nbdExport: NbdExport;
  readonly structuredReplies: boolean;
  /** base:allocation was selected for this export. */
  readonly allocationContext: boolean;
  /** Further contexts that were selected for it, and their ids. */
  readonly contexts: readonly SelectedContext[];
}

export type HandshakeOutcome =
  | { readonly kind: "transmission"; readonly negotiated: NegotiatedExport }
  /** What was sent is still to be delivered. `fault` says what the client did wrong; undefined when it asked to end. */
  | { readonly kind: "close"; readonly fault: string | undefined };

type Step = "client-flags" | "option-header" | "option-data" | "skip" | "tls";

/** Whether a client may, or must, ask for TLS first. */
export type TlsOffer = "off" | "offered" | "required";

const UNSUPPORTED = "this server does not know the option";

export class Handshake {
  readonly #directory: NbdExportDirectory;
  readonly #send: (reply: Buffer) => void;
  readonly #gatherer = new ByteGatherer();
  readonly #tls: TlsOffer;
  #isSecure = false;
  #step: Step = "client-flags";
  #option = 0;
  #optionsSeen = 0;
  #bytesToSkip = 0;
  #noZeroes = false;
  #structuredReplies = false;
  /** Name of the export for which base:allocation was selected last. */
  #allocationSelectedFor: string | undefined;
  /** Further contexts that were selected last, and the export that they were selected for. */
  #selected: { readonly exportName: string; readonly contexts: readonly SelectedContext[] } | undefined;
  #shuttingDown = false;
  #outcome: HandshakeOutcome | undefined;

  /** `send` takes each reply, in order. The directory is told of an export that is opened before the client is. */
  constructor(directory: NbdExportDirectory, send: (reply: Buffer) => void, tls: TlsOffer = "off") {
    this.#directory = directory;
    this.#tls = tls;
    this.#send = send;
    this.#gatherer.begin(CLIENT_FLAGS_BYTES);
  }

  /** Set once: the negotiation is over and takes no more bytes. */
  get outcome(): HandshakeOutcome | undefined {
    return this.#outcome;
  }

  /** STARTTLS is answered: what the client sends next is the handshake of TLS. Until `tlsStarted` no bytes are taken. */
  get wantsTls(): boolean {
    return this.#step === "tls";
  }

  /** From here on everything is encrypted; what was agreed on before may have been somebody else's words. */
  tlsStarted(): void {
    assert(this.wantsTls, "STARTTLS was answered");
    this.#isSecure = true;
    this.#structuredReplies = false;
    this.#deselect();
    this.#expectOption();
  }

  /** Sends the greeting: the server speaks first. */
  start(): void {
    this.#send(encodeGreeting());
  }

  /** From now on the next option is answered ERR_SHUTDOWN and ends the connection. */
  shutDown(): void {
    this.#shuttingDown = true;
  }

  /** Takes bytes of `chunk` from `position`, answers at most one option, and returns the position behind what it took. */
  consume(chunk: Buffer, position: number): number {
    assert(this.#outcome === undefined && !this.wantsTls, "the negotiation takes no bytes");
    if (this.#step === "skip") return this.#skip(chunk, position);
    const next = this.#gatherer.feed(chunk, position);
    const bytes = this.#gatherer.complete;
    if (bytes === undefined) return next;
    if (this.#step === "client-flags") this.#takeClientFlags(bytes.readUInt32BE(0));
    else if (this.#step === "option-header") this.#takeOptionHeader(bytes);
    else this.#takeOption(bytes);
    return next;
  }

  #takeClientFlags(flags: number): void {
    const known = CLIENT_FLAG.FIXED_NEWSTYLE | CLIENT_FLAG.NO_ZEROES;
    if ((flags & ~known) !== 0) {
      this.#close("unknown client flags");
      return;
    }
    this.#noZeroes = (flags & CLIENT_FLAG.NO_ZEROES) !== 0;
    this.#expectOption();
  }

  #expectOption(): void {
    this.#step = "option-header";
    this.#gatherer.begin(OPTION_HEADER_BYTES);
  }

  #takeOptionHeader(header: Buffer): void {
    if (header.readBigUInt64BE(0) !== NBD_OPTION_MAGIC) {
      this.#close("wrong option magic");
      return;
    }
    this.#option = header.readUInt32BE(8);
    const length = header.readUInt32BE(12);
    this.#optionsSeen += 1;
    if (length > NBD_MAX_SKIPPED_OPTION_BYTES) {
      this.#close("option data of absurd length");
    } else if (this.#optionsSeen > NBD_MAX_OPTIONS_PER_CONNECTION) {
      this.#close("too many options");
    } else if (length > NBD_MAX_OPTION_BYTES) {
      this.#step = "skip";
      this.#bytesToSkip = length;
    } else {
      this.#step = "option-data";
      this.#gatherer.begin(length);
      const empty = this.#gatherer.complete;
      if (empty !== undefined) this.#takeOption(empty);
    }
  }

  #skip(chunk: Buffer, position: number): number {
    const taken = Math.min(this.#bytesToSkip, chunk.length - position);
    this.#bytesToSkip -= taken;
    if (this.#bytesToSkip === 0) this.#answerSkippedOption();
    return position + taken;
  }

  #answerSkippedOption(): void {
    if (this.#option === OPTION.EXPORT_NAME) {
      this.#close("export name too long");
      return;
    }
    // A failed SET_META_CONTEXT withdraws what was selected before, too.
    if (this.#option === OPTION.SET_META_CONTEXT) this.#deselect();
    this.#expectOption();
    if (this.#refuseForShutdown()) return;
    if (this.#option === OPTION.ABORT) this.#abort();
    else if (this.#refuseWithoutTls()) return;
    else if (this.#isSupported()) this.#refuse(OPTION_REPLY.ERR_TOO_BIG, "the option's data is too long");
    else this.#refuse(OPTION_REPLY.ERR_UNSUP, UNSUPPORTED);
  }

  #isSupported(): boolean {
    switch (this.#option) {
      case OPTION.LIST:
      case OPTION.INFO:
      case OPTION.GO:
      case OPTION.STRUCTURED_REPLY:
      case OPTION.LIST_META_CONTEXT:
      case OPTION.SET_META_CONTEXT:
        return true;
      default:
        return false;
    }
  }

  #takeOption(data: Buffer): void {
    this.#expectOption();
    if (this.#refuseForShutdown() || this.#refuseWithoutTls()) return;
    switch (this.#option) {
      case OPTION.EXPORT_NAME:
        this.#exportName(data);
        break;
      case OPTION.ABORT:
        this.#abort();
        break;
      case OPTION.LIST:
        this.#list(data);
        break;
      case OPTION.INFO:
      case OPTION.GO:
        this.#infoOrGo(data);
        break;
      case OPTION.STRUCTURED_REPLY:
        this.#structuredReply(data);
        break;
      case OPTION.LIST_META_CONTEXT:
      case OPTION.SET_META_CONTEXT:
        this.#metaContext(data);
        break;
      case OPTION.STARTTLS:
        this.#startTls(data);
        break;
      default:
        this.#refuse(OPTION_REPLY.ERR_UNSUP, UNSUPPORTED);
    }
  }

  #refuseForShutdown(): boolean {
    if (!this.#shuttingDown) return false;
    if (this.#option !== OPTION.EXPORT_NAME) this.#refuse(OPTION_REPLY.ERR_SHUTDOWN, "the server is shutting down");
    this.#close(undefined);
    return true;
  }

  /** Nothing is told, and nothing opened, before TLS where that is required. */
  #refuseWithoutTls(): boolean {
    if (this.#tls !== "required" || this.#isSecure) return false;
    if (this.#option === OPTION.STARTTLS || this.#option === OPTION.ABORT) return false;
    if (this.#option === OPTION.EXPORT_NAME) this.#close("TLS is required");
    else this.#refuse(OPTION_REPLY.ERR_TLS_REQD, "this server requires TLS: begin with STARTTLS");
    return true;
  }

  #startTls(data: Buffer): void {
    if (this.#tls === "off") this.#refuse(OPTION_REPLY.ERR_UNSUP, "this server offers no TLS");
    else if (data.length > 0) this.#refuse(OPTION_REPLY.ERR_INVALID, "STARTTLS takes no data");
    else if (this.#isSecure) this.#refuse(OPTION_REPLY.ERR_INVALID, "TLS is in use already");
    else {
      this.#reply(OPTION_REPLY.ACK);
      this.#step = "tls";
    }
  }

  /** EXPORT_NAME has no form in which an error could be told: the connection is closed with nothing sent. */
  #exportName(data: Buffer): void {
    const name = parseName(data);
    const nbdExport = name === undefined ? undefined : this.#directory.find(name);
    if (nbdExport === undefined) {
      this.#close("unknown export");
      return;
    }
    const flags = this.#transmissionFlags(nbdExport);
    if (this.#open(nbdExport) !== undefined) return;
    this.#send(encodeExportNameReply(nbdExport.sizeBytes, flags, this.#noZeroes));
  }

  #abort(): void {
    this.#reply(OPTION_REPLY.ACK);
    this.#close(undefined);
  }

  #list(data: Buffer): void {
    if (data.length > 0) {
      this.#refuse(OPTION_REPLY.ERR_INVALID, "LIST takes no data");
      return;
    }
    for (const { name, description } of this.#directory.list()) {
      this.#reply(OPTION_REPLY.SERVER, encodeServerEntry(name, description));
    }
    this.#reply(OPTION_REPLY.ACK);
  }

  #infoOrGo(data: Buffer): void {
    const request = parseInfoRequest(data);
    if (request === undefined) {
      this.#refuse(OPTION_REPLY.ERR_INVALID, "the lengths in the request do not add up");
      return;
    }
    const nbdExport = this.#directory.find(request.exportName);
    if (nbdExport === undefined) {
      this.#refuseUnknownExport(request.exportName);
      return;
    }
    const flags = this.#transmissionFlags(nbdExport);
    if (this.#option === OPTION.GO) {
      const failure = this.#open(nbdExport);
      if (failure !== undefined) {
        this.#refuse(OPTION_REPLY.ERR_PLATFORM, failure);
        return;
      }
    }
    this.#reply(OPTION_REPLY.INFO, encodeInfoExport(nbdExport.sizeBytes, flags));
    const wanted = new Set(request.infoTypes);
    if (wanted.has(INFO.NAME)) this.#reply(OPTION_REPLY.INFO, encodeInfoText(INFO.NAME, nbdExport.name));
    if (wanted.has(INFO.DESCRIPTION)) {
      this.#reply(OPTION_REPLY.INFO, encodeInfoText(INFO.DESCRIPTION, nbdExport.description));
    }
    if (wanted.has(INFO.BLOCK_SIZE)) {
      const sizes = encodeInfoBlockSize(1, NBD_PREFERRED_BLOCK_BYTES, NBD_ADVERTISED_MAX_PAYLOAD_BYTES);
      this.#reply(OPTION_REPLY.INFO, sizes);
    }
    this.#reply(OPTION_REPLY.ACK);
  }

  #structuredReply(data: Buffer): void {
    if (data.length > 0) {
      this.#refuse(OPTION_REPLY.ERR_INVALID, "STRUCTURED_REPLY takes no data");
      return;
    }
    this.#structuredReplies = true;
    this.#reply(OPTION_REPLY.ACK);
  }

  #metaContext(data: Buffer): void {
    const isSet = this.#option === OPTION.SET_META_CONTEXT;
    if (isSet) this.#deselect();
    if (!this.#structuredReplies) {
      this.#refuse(OPTION_REPLY.ERR_INVALID, "structured replies must be negotiated first");
      return;
    }
    const request = parseMetaContextRequest(data);
    if (request === undefined) {
      this.#refuse(OPTION_REPLY.ERR_INVALID, "the lengths in the request do not add up");
      return;
    }
    const nbdExport = this.#directory.find(request.exportName);
    if (nbdExport === undefined) {
      this.#refuseUnknownExport(request.exportName);
      return;
    }
    const { queries } = request;
    const isNamed = queries.includes(BASE_ALLOCATION);
    const isListed = !isSet && (queries.length === 0 || queries.includes("base:"));
    if (isNamed || isListed) {
      const id = isSet ? ALLOCATION_CONTEXT_ID : 0;
      this.#reply(OPTION_REPLY.META_CONTEXT, encodeMetaContext(id, BASE_ALLOCATION));
    }
    if (isSet && isNamed) this.#allocationSelectedFor = nbdExport.name;
    const found = (nbdExport.contexts ?? [])
      .filter(({ name }) => queries.includes(name) || (!isSet && isListedBy(queries, name)))
      .map((context, index) => ({ id: ALLOCATION_CONTEXT_ID + 1 + index, context }));
    for (const { id, context } of found) {
      this.#reply(OPTION_REPLY.META_CONTEXT, encodeMetaContext(isSet ? id : 0, context.name));
    }
    if (isSet) this.#selected = { exportName: nbdExport.name, contexts: found };
    this.#reply(OPTION_REPLY.ACK);
  }

  #deselect(): void {
    this.#allocationSelectedFor = undefined;
    this.#selected = undefined;
  }

  #transmissionFlags(nbdExport: NbdExport): number {
    const always =
      TRANSMISSION_FLAG.HAS_FLAGS |
      TRANSMISSION_FLAG.SEND_FLUSH |
      TRANSMISSION_FLAG.SEND_FUA |
      TRANSMISSION_FLAG.SEND_CACHE;
    const writable =
      TRANSMISSION_FLAG.SEND_TRIM | TRANSMISSION_FLAG.SEND_WRITE_ZEROES | TRANSMISSION_FLAG.SEND_FAST_ZERO;
    const multiConn = nbdExport.multiConn === false ? 0 : TRANSMISSION_FLAG.CAN_MULTI_CONN;
    const access = nbdExport.readOnly ? TRANSMISSION_FLAG.READ_ONLY : writable;
    return always | multiConn | access | (this.#structuredReplies ? TRANSMISSION_FLAG.SEND_DF : 0);
  }

  /** Enters the transmission phase, unless the directory objects; then the result says why. */
  #open(nbdExport: NbdExport): string | undefined {
    try {
      this.#directory.opened(nbdExport);
    } catch (thrown) {
      const { message } = asColobusError(thrown);
      if (this.#option === OPTION.EXPORT_NAME) this.#close(message);
      return message;
    }
    this.#outcome = {
      kind: "transmission",
      negotiated: {
        nbdExport,
        structuredReplies: this.#structuredReplies,
        allocationContext: this.#allocationSelectedFor === nbdExport.name,
        contexts: this.#selected?.exportName === nbdExport.name ? this.#selected.contexts : [],
      },
    };
    return undefined;
  }

  #reply(type: OptionReply, data?: Uint8Array): void {
    this.#send(encodeOptionReply(this.#option, type, data));
  }

  #refuse(type: OptionReply, message: string): void {
    this.#reply(type, Buffer.from(message, "utf8"));
  }

  #refuseUnknownExport(name: string): void {
    this.#refuse(OPTION_REPLY.ERR_UNKNOWN, `there is no export ${JSON.stringify(name.slice(0, 128))}`);
  }

  #close(fault: string | undefined): void {
    this.#outcome = { kind: "close", fault };
  }
}

/** Whether a LIST asks for a context of QEMU's namespace by a wildcard. */
function isListedBy(queries: readonly string[], name: string): boolean {
  const isOfBitmap = name.startsWith(DIRTY_BITMAP_NAMESPACE);
  return queries.length === 0 || (isOfBitmap && queries.some((query) => WILDCARDS.includes(query)));
}

const WILDCARDS: readonly string[] = [QEMU_NAMESPACE, DIRTY_BITMAP_NAMESPACE];
