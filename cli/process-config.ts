import type { ArbiterAccess } from "./arbiter-options.ts";
import type { LogLevel } from "../proto/words.ts";
import type { TlsPaths } from "../shared/host/tls-files.ts";
import type { AgentConfig } from "./agent-config.ts";
import type { Hook } from "./hook.ts";

export interface TlsConfig {
  readonly paths: TlsPaths;
  /** Names of which the peer's certificate must have one; none: the first peer's stays the peer's. */
  readonly peerNames: readonly string[];
}

export interface HostPort {
  readonly host: string;
  readonly port: number;
}

/** What the process of an agent is started with. */
export interface ProcessConfig {
  readonly agent: AgentConfig;
  /** Holds `control.sock`, `nbd.sock` and `vmstate.sock`. */
  readonly runDirectory: string;
  /** Where the agent accepts its peer. */
  readonly listen: HostPort | undefined;
  /** Where the exports are served over TCP beside the unix socket. */
  readonly nbdListen: HostPort | undefined;
  /** What clients there have to do about TLS; anything but `off` needs `nbdPskFile`, or `tls` with all three files. */
  readonly nbdTls: "required" | "offered" | "off";
  /** The file with their keys; undefined: they have certificates. */
  readonly nbdPskFile: string | undefined;
  readonly tokenFile: string | undefined;
  /** Where the control API is served over TCP beside the unix socket, with TLS, and the file with the token for it. */
  readonly control: { readonly address: HostPort; readonly tokenFile: string } | undefined;
  /** undefined: no TLS. */
  readonly tls: TlsConfig | undefined;
  /** URLs of the members of one etcd cluster; none: there is no arbiter. */
  readonly arbiters: readonly string[];
  readonly arbiterAccess: ArbiterAccess;
  /** Run before a failover; undefined: none. */
  readonly fence: Hook | undefined;
  readonly onFailover: Hook | undefined;
  /** Plain WebSocket and NBD over addresses other than loopback. */
  readonly insecure: boolean;
  readonly logLevel: LogLevel;
}
