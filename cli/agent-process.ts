import { chmodSync, mkdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { ColobusError } from "../proto/errors.ts";
import { LEASE_TTL_DEFAULT_MS, SHUTDOWN_TIMEOUT_MS } from "../proto/limits.ts";
import type { Arbiter } from "../shared/arbiter/arbiter.ts";
import { EtcdArbiter } from "../shared/arbiter/etcd-arbiter.ts";
import { parseImageLocation } from "../shared/block/image-location.ts";
import { ControlServer } from "../shared/control/api-server.ts";
import { VmStateSocket } from "../shared/control/vm-state-socket.ts";
import { readBootId } from "../shared/host/boot-id.ts";
import { EventLoopDelay } from "../shared/host/event-loop-delay.ts";
import { spareFullCollections } from "../shared/host/heap.ts";
import type { Log } from "../shared/host/log.ts";
import { NodeClock } from "../shared/host/node-clock.ts";
import { NodeRandom } from "../shared/host/node-random.ts";
import { NodeStorage } from "../shared/host/node-storage.ts";
import { NbdServer } from "../shared/nbd/server.ts";
import { WebSocketDialer, WebSocketListener } from "../shared/replication/websocket-link.ts";
import { Agent } from "./agent.ts";
import { AgentImages } from "./agent-images.ts";
import type { AgentConfig } from "./agent-config.ts";
import { runFailoverHook } from "./failover-hook.ts";
import { fencePeer } from "./fence-peer.ts";
import type { Hook } from "./hook.ts";

export interface HostPort {
  readonly host: string;
  readonly port: number;
}

export interface ProcessConfig {
  readonly agent: AgentConfig;
  /** Holds `control.sock`, `nbd.sock` and `vmstate.sock`. */
  readonly runDirectory: string;
  /** Where the agent accepts its peer. */
  readonly listen: HostPort | undefined;
  /** Where the exports are served over TCP beside the unix socket. */
  readonly nbdListen: HostPort | undefined;
  readonly tokenFile: string | undefined;
  /** URLs of the members of one etcd cluster; none: there is no arbiter. */
  readonly arbiters: readonly string[];
  /** Run before a failover; undefined: none. */
  readonly fence: Hook | undefined;
  readonly onFailover: Hook | undefined;
  /** Plain WebSocket and NBD over addresses other than loopback. */
  readonly insecure: boolean;
}

const TOKEN_MIN_BYTES = 16;
const TOKEN_MAX_BYTES = 4096;

/** One agent on this machine: its sockets, and its end. */
export class AgentProcess {
  readonly agent: Agent;
  readonly #nbd: NbdServer;
  readonly #control: ControlServer;
  readonly #vmStates: VmStateSocket;
  readonly #listener: WebSocketListener | undefined;
  #listenPort: number | undefined;
  #stopped: Promise<void> | undefined;

  private constructor(agent: Agent, log: Log, accepts: boolean) {
    this.agent = agent;
    this.#nbd = new NbdServer({ directory: agent.exports, clock: new NodeClock(), log });
    this.#control = new ControlServer({ control: agent, log });
    this.#vmStates = new VmStateSocket({ control: agent, log });
    this.#listener = accepts ? new WebSocketListener((link) => agent.accept(link)) : undefined;
  }

  /** Starts an agent and resolves when it serves. On an error nothing is left running. */
  static async start(config: ProcessConfig, log: Log): Promise<AgentProcess> {
    assertAddressesAllowed(config);
    spareFullCollections();
    const token = config.tokenFile === undefined ? undefined : readToken(config.tokenFile);
    mkdirSync(config.runDirectory, { recursive: true, mode: 0o700 });
    const { fence, onFailover } = config;
    const running: { process?: AgentProcess } = {};
    const { runDirectory } = config;
    const machine = { storage: new NodeStorage(), clock: new NodeClock(), random: new NodeRandom(), log };
    const agent = await Agent.open({
      host: {
        ...machine,
        images: new AgentImages({ ...machine, runDirectory }),
        bootId: readBootId(),
        pid: process.pid,
        dialer: (url) => new WebSocketDialer(url),
        eventLoopDelay: new EventLoopDelay(new NodeClock()),
      },
      config: config.agent,
      token,
      acceptsPeers: config.listen !== undefined,
      arbiter: arbiterOf(config),
      fence: fence === undefined ? undefined : (peer) => fencePeer(fence, peer, new NodeClock(), log),
      startVm:
        onFailover === undefined
          ? undefined
          : (vm) => {
              log.info({ command: onFailover.command, epoch: vm.epoch }, "the command that starts the VM runs");
              const output = (line: string): void => log.info({ line }, "on-failover");
              return runFailoverHook({ ...vm, run: runDirectory }, onFailover, { clock: new NodeClock(), output });
            },
      assertImageAllowed: config.insecure ? () => undefined : assertStaysHere,
      dropClients: () => running.process?.dropClients(),
      exportUri: (name) => `nbd+unix:///${encodeURIComponent(name)}?socket=${config.runDirectory}/nbd.sock`,
    });
    const started = new AgentProcess(agent, log, config.listen !== undefined);
    running.process = started;
    try {
      await started.#listen(config);
    } catch (error) {
      await started.stop();
      throw error;
    }
    return started;
  }

  /** The port on which the agent accepts its peer. */
  get listenPort(): number | undefined {
    return this.#listenPort;
  }

  /** Sends the exports' clients away. */
  dropClients(): void {
    this.#nbd.dropClients();
  }

  /** Finishes what clients have under way, drains the send window, flushes, and closes everything. */
  stop(): Promise<void> {
    this.#stopped ??= this.#stop();
    return this.#stopped;
  }

  async #listen(config: ProcessConfig): Promise<void> {
    if (config.listen !== undefined) {
      this.#listenPort = await this.#listener?.listen(config.listen.host, config.listen.port);
    }
    await this.#nbd.listenUnix(join(config.runDirectory, "nbd.sock"));
    chmodSync(config.runDirectory, 0o700);
    if (config.nbdListen !== undefined) await this.#nbd.listenTcp(config.nbdListen.host, config.nbdListen.port);
    await this.#vmStates.listen(join(config.runDirectory, "vmstate.sock"));
    // The control socket comes last: whoever finds it finds an agent that serves.
    await this.#control.listenUnix(join(config.runDirectory, "control.sock"));
  }

  async #stop(): Promise<void> {
    this.agent.leave();
    await this.#vmStates.close();
    await this.#nbd.close();
    await this.agent.stop(SHUTDOWN_TIMEOUT_MS / 3);
    await this.#listener?.close();
    await this.#control.close();
  }
}

/** What makes the arbiter of an agent; undefined where none is configured. */
function arbiterOf({ arbiters, agent }: ProcessConfig): ((agentId: string) => Arbiter) | undefined {
  if (arbiters.length === 0) return undefined;
  const { vm, arbiterTtlMs: ttlMs = LEASE_TTL_DEFAULT_MS } = agent;
  return (agentId) => new EtcdArbiter({ endpoints: arbiters, vm, agentId, ttlMs, clock: new NodeClock() });
}

/** Only `--insecure` lets anything unencrypted cross a network. */
function assertAddressesAllowed(config: ProcessConfig): void {
  if (config.insecure) return;
  const arbiter = config.arbiters.find((url) => url.startsWith("http:") && !isLoopback(new URL(url).hostname));
  if (arbiter !== undefined) {
    throw new ColobusError(
      "usage",
      `${arbiter} is not encrypted and leaves this machine`,
      "Use https://; or keep the way to the arbiter within a protected network and say --insecure.",
    );
  }
  const plain = config.agent.peers.find((url) => url.startsWith("ws:") && !isLoopback(new URL(url).hostname));
  if (plain !== undefined) {
    throw new ColobusError(
      "usage",
      `${plain} is not encrypted and leaves this machine`,
      "Keep the link within a protected network and say --insecure, together with --token-file.",
    );
  }
  for (const { image } of config.agent.disks) assertStaysHere(image);
  for (const [flag, address] of [
    ["--listen", config.listen],
    ["--nbd-listen", config.nbdListen],
  ] as const) {
    if (address !== undefined && !isLoopback(address.host)) {
      throw new ColobusError(
        "usage",
        `${flag} ${address.host}:${address.port} is open to the network and not encrypted`,
        "Listen on a loopback address, or keep it within a protected network and say --insecure.",
      );
    }
  }
}

/** Errors: `usage` for an image whose server is on another host: there is no TLS to it. */
function assertStaysHere(image: string): void {
  const location = parseImageLocation(image);
  if (location.kind !== "nbd" || location.address.kind === "unix" || isLoopback(location.address.host)) return;
  throw new ColobusError(
    "usage",
    `${image} is not encrypted and leaves this machine`,
    "Keep the way to the server within a protected network, and start the agent with --insecure.",
  );
}

function isLoopback(host: string): boolean {
  return host === "localhost" || host === "[::1]" || host === "::1" || /^127\.\d+\.\d+\.\d+$/.test(host);
}

/** The pre-shared token: the file's content without the white space around it. */
function readToken(path: string): Buffer {
  let text: string;
  try {
    text = readFileSync(path, "utf8").trim();
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error);
    throw new ColobusError("usage", `the token file cannot be read: ${why}`, "Check --token-file.", { cause: error });
  }
  const token = Buffer.from(text, "utf8");
  if (token.length < TOKEN_MIN_BYTES || token.length > TOKEN_MAX_BYTES) {
    throw new ColobusError(
      "usage",
      `the token in ${path} has ${token.length} bytes; it must have ${TOKEN_MIN_BYTES} to ${TOKEN_MAX_BYTES}`,
      "Make one with `openssl rand -hex 32`, and put the same into the token file of both agents.",
    );
  }
  if ((statSync(path).mode & 0o007) !== 0) {
    throw new ColobusError("usage", `the token file ${path} is accessible to others`, `Run \`chmod 600 ${path}\`.`);
  }
  return token;
}
