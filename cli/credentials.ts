import type { EtcdAccess } from "../shared/arbiter/etcd-gateway.ts";
import { NodeClock } from "../shared/host/node-clock.ts";
import type { Log } from "../shared/host/log.ts";
import { openPskKeys, type PskKeys } from "../shared/host/psk-keys.ts";
import { TlsFiles } from "../shared/host/tls-files.ts";
import { readBearerToken, readToken } from "../shared/host/token-file.ts";
import { openArbiterAccess } from "./arbiter-options.ts";
import type { ProcessConfig } from "./process-config.ts";

/** What an agent was given as files to prove who it is, and to know others by. Certificates and keys change with their files. */
export class Credentials {
  /** The secret of the two agents. */
  readonly token: Buffer | undefined;
  /** The secret of those who use the control API over TCP. */
  readonly controlToken: Buffer | undefined;
  readonly tls: TlsFiles | undefined;
  /** Of NBD clients on TCP. */
  readonly nbdKeys: PskKeys | undefined;
  readonly arbiter: EtcdAccess;
  readonly #changing: readonly Pick<TlsFiles, "watch" | "stop" | "reload">[];

  /** Reads the files. Errors: `usage`, naming the flag. */
  constructor(config: ProcessConfig, log: Log) {
    const clock = new NodeClock();
    const { tokenFile, control, tls, nbdPskFile } = config;
    this.token = tokenFile === undefined ? undefined : readToken(tokenFile, "--token-file");
    this.controlToken = control === undefined ? undefined : readBearerToken(control.tokenFile, "--control-token-file");
    this.tls = tls === undefined ? undefined : new TlsFiles({ paths: tls.paths, clock, log });
    this.nbdKeys = nbdPskFile === undefined ? undefined : openPskKeys(nbdPskFile, clock, log);
    const arbiter = openArbiterAccess(config.arbiterAccess, clock, log);
    this.arbiter = arbiter;
    this.#changing = [this.tls, this.nbdKeys, arbiter.tls].filter((files) => files !== undefined);
  }

  /** Begins to look after the files, until `stop`. */
  watch(): void {
    for (const files of this.#changing) files.watch();
  }

  stop(): void {
    for (const files of this.#changing) files.stop();
  }

  /** Reads certificates and keys again; sessions that run go on. */
  reload(): void {
    for (const files of this.#changing) files.reload();
  }
}
