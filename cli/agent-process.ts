import assert from "node:assert/strict";
import { chmodSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { asColobusError, ColobusError } from "../proto/errors.ts";
import { LEASE_TTL_DEFAULT_MS, SHUTDOWN_TIMEOUT_MS, STOP_TELL_EVERY_MS } from "../proto/limits.ts";
import type { Arbiter } from "../shared/arbiter/arbiter.ts";
import { EtcdArbiter } from "../shared/arbiter/etcd-arbiter.ts";
import type { EtcdAccess } from "../shared/arbiter/etcd-gateway.ts";
import { ControlServer } from "../shared/control/api-server.ts";
import { StatusPage } from "../shared/control/status-page.ts";
import { VmStateSocket } from "../shared/control/vm-state-socket.ts";
import { readBootId } from "../shared/host/boot-id.ts";
import { every } from "../shared/host/every.ts";
import { EventLoopDelay } from "../shared/host/event-loop-delay.ts";
import { spareFullCollections } from "../shared/host/heap.ts";
import { readHostName } from "../shared/host/host-name.ts";
import type { Log } from "../shared/host/log.ts";
import { makeDirectory } from "../shared/host/make-directory.ts";
import { NodeClock } from "../shared/host/node-clock.ts";
import { NodeRandom } from "../shared/host/node-random.ts";
import { NodeStorage } from "../shared/host/node-storage.ts";
import { fsError } from "../shared/host/os-error.ts";
import { readProcessFigures } from "../shared/host/process-figures.ts";
import { RefusalLog } from "../shared/host/refusal-log.ts";
import { ServiceManager } from "../shared/host/service-manager.ts";
import type { TlsFiles } from "../shared/host/tls-files.ts";
import { NbdServer, type NbdTls } from "../shared/nbd/server.ts";
import type { Dialer } from "../shared/replication/link.ts";
import { WebSocketDialer, WebSocketListener, type ListenSecurity } from "../shared/replication/websocket-link.ts";
import { Agent } from "./agent.ts";
import { AgentImages } from "./agent-images.ts";
import { Credentials } from "./credentials.ts";
import { describeProtection } from "./describe-protection.ts";
import { runFailoverHook, type PromotedVm } from "./failover-hook.ts";
import { fencePeer, type FencedPeer } from "./fence-peer.ts";
import type { Hook } from "./hook.ts";
import { LiveConfig, type ConfigSource } from "./live-config.ts";
import type { ProcessConfig } from "./process-config.ts";
import { assertAddressesAllowed, assertImageAllowed, dialRefusal } from "./tls-options.ts";

/** Where the build leaves the status page: beside the folder of whatever file this has become a part of. */
const PAGE_DIRECTORY = fileURLToPath(new URL("../page/", import.meta.url));

/** One agent on this machine: its sockets, and its end. */
export class AgentProcess {
  readonly agent: Agent;
  readonly #nbd: NbdServer;
  readonly #control: ControlServer;
  readonly #vmStates: VmStateSocket;
  readonly #listener: WebSocketListener | undefined;
  readonly #log: Log;
  readonly #credentials: Credentials;
  readonly #manager: ServiceManager;
  #listenPort: number | undefined;
  #stopped: Promise<void> | undefined;

  private constructor(agent: Agent, log: Log, config: ProcessConfig, credentials: Credentials) {
    this.agent = agent;
    this.#log = log;
    this.#credentials = credentials;
    this.#manager = new ServiceManager({ env: process.env, pid: process.pid, clock: new NodeClock(), log });
    this.#nbd = new NbdServer({ directory: agent.exports, clock: new NodeClock(), log });
    this.#control = new ControlServer({ control: agent, log, page: new StatusPage(PAGE_DIRECTORY) });
    this.#vmStates = new VmStateSocket({ control: agent, log });
    const refusals = new RefusalLog({ clock: new NodeClock(), log, port: "replication" });
    this.#listener =
      config.listen === undefined
        ? undefined
        : new WebSocketListener((link) => agent.accept(link), {
            tls: listenSecurity(config, credentials.tls),
            refusals,
          });
  }

  /**
   * Starts an agent and resolves when it serves. On an error nothing is left running. `source`: where its configuration
   * can be read anew; undefined: nowhere.
   */
  static async start(config: ProcessConfig, log: Log, source?: ConfigSource): Promise<AgentProcess> {
    assertAddressesAllowed(config);
    spareFullCollections();
    const credentials = new Credentials(config, log);
    makeDirectory(config.runDirectory);
    const live = new LiveConfig(config, source);
    const running: { process?: AgentProcess } = {};
    const { runDirectory } = config;
    const machine = { storage: new NodeStorage(), clock: new NodeClock(), random: new NodeRandom(), log };
    const agent = await Agent.open({
      host: {
        ...machine,
        images: new AgentImages({ ...machine, runDirectory }),
        bootId: readBootId(),
        hostName: readHostName(),
        pid: process.pid,
        dialer: (url) => dialerOf(url, config, credentials.tls),
        eventLoopDelay: new EventLoopDelay(new NodeClock()),
        processFigures: readProcessFigures,
      },
      config: config.agent,
      token: credentials.token,
      acceptsPeers: config.listen !== undefined,
      arbiter: arbiterOf(config, credentials.arbiter),
      reload: () => {
        credentials.reload();
        return live.reload();
      },
      get fence() {
        const { fence } = live;
        if (fence === undefined) return undefined;
        return (peer: FencedPeer, signal: AbortSignal) => fencePeer(fence, peer, { ...machine, signal });
      },
      get startVm() {
        const { onFailover } = live;
        if (onFailover === undefined) return undefined;
        return (vm: Omit<PromotedVm, "run">, signal: AbortSignal) =>
          startVm({ ...vm, run: runDirectory }, onFailover, log, signal);
      },
      assertImageAllowed: (image) => assertImageAllowed(image, config),
      dropClients: () => running.process?.dropClients(),
      exportUri: (name) => `nbd+unix:///${encodeURIComponent(name)}?socket=${config.runDirectory}/nbd.sock`,
    });
    const started = new AgentProcess(agent, log, config, credentials);
    credentials.watch();
    running.process = started;
    try {
      await started.#listen(config);
    } catch (error) {
      await started
        .stop()
        .catch((fault: unknown) => log.warn({ reason: asColobusError(fault) }, "it was not stopped cleanly"));
      throw error;
    }
    return started;
  }

  /** The port on which the agent accepts its peer. */
  get listenPort(): number | undefined {
    return this.#listenPort;
  }

  /** Reads certificates and keys again; sessions that run go on. `Agent.reload` does that too. */
  reloadCertificates(): void {
    this.#credentials.reload();
  }

  /** Sends the exports' clients away. */
  dropClients(): void {
    this.#nbd.dropClients();
  }

  /** Finishes what clients have under way, drains the send window, flushes, and closes everything. Errors: as `Agent.stop`. */
  stop(): Promise<void> {
    this.#stopped ??= this.#stop();
    return this.#stopped;
  }

  async #listen(config: ProcessConfig): Promise<void> {
    if (config.listen !== undefined) {
      this.#listenPort = await this.#listener?.listen(config.listen.host, config.listen.port);
    }
    const [nbd, vmState, control] = ["nbd.sock", "vmstate.sock", "control.sock"].map((name) =>
      join(config.runDirectory, name),
    ) as [string, string, string];
    await this.#nbd.listenUnix(nbd, this.#manager.socketAt(nbd));
    closeToOthers(config.runDirectory);
    await this.#listenForNbd(config);
    await this.#vmStates.listen(vmState, this.#manager.socketAt(vmState));
    await this.#listenForControl(config);
    // The control socket comes last: whoever finds it finds an agent that serves.
    await this.#control.listenUnix(control, this.#manager.socketAt(control));
    this.#manager.ready(this.#describe());
    this.agent.follow(({ type }) => {
      if (type === "role-changed" || type === "protection-changed") this.#manager.status(this.#describe());
    });
  }

  /** What `systemctl status` has in its line for it. */
  #describe(): string {
    const { role, vm, protection } = this.agent.status();
    return `${role} of VM ${vm}, ${describeProtection(protection)}`;
  }

  async #listenForNbd({ nbdListen, nbdTls }: ProcessConfig): Promise<void> {
    if (nbdListen === undefined) return;
    await this.#nbd.listenTcp(nbdListen.host, nbdListen.port, nbdTls === "off" ? undefined : this.#nbdTls(nbdTls));
  }

  /** Clients have keys where there are some, else certificates. */
  #nbdTls(offer: NbdTls["offer"]): NbdTls {
    const { tls: files, nbdKeys: keys } = this.#credentials;
    const refusals = new RefusalLog({ clock: new NodeClock(), log: this.#log, port: "nbd" });
    if (keys !== undefined) return { keys, random: new NodeRandom(), offer, refusals };
    assert(files !== undefined, "who has to use TLS can");
    return { files, offer, refusals };
  }

  async #listenForControl({ control }: ProcessConfig): Promise<void> {
    const { tls: files, controlToken: token } = this.#credentials;
    if (control === undefined) return;
    assert(files !== undefined && token !== undefined, "over TCP it has TLS and a token");
    const refusals = new RefusalLog({ clock: new NodeClock(), log: this.#log, port: "control" });
    const { host, port } = control.address;
    await this.#control.listenTls(host, port, { files, token, refusals });
  }

  async #stop(): Promise<void> {
    this.#manager.stopping();
    this.#credentials.stop();
    this.agent.leave();
    let what = "clients' requests";
    const clock = new NodeClock();
    const begunMs = clock.nowMs();
    const telling = every(clock, STOP_TELL_EVERY_MS, () => {
      this.#log.warn({ waitsFor: what, waitedMs: Math.round(clock.nowMs() - begunMs) }, "the stop is waiting");
    });
    try {
      // At once: who is sent away with a request unanswered must not find this agent again.
      await Promise.all([this.#nbd.close(), this.#vmStates.close()]);
      what = "a failover, commands or jobs that are under way";
      await this.agent.stop(SHUTDOWN_TIMEOUT_MS / 3, (next) => {
        what = next;
      });
    } finally {
      what = "connections to be closed";
      // What stays open keeps the process, which would answer for an agent that is no more.
      await this.#listener?.close();
      await this.#control.close();
      this.#manager.stop();
      telling.cancel();
    }
  }
}

function closeToOthers(directory: string): void {
  try {
    chmodSync(directory, 0o700);
  } catch (error) {
    const { code, message } = fsError(`cannot close ${directory} to other users`, directory, error);
    throw new ColobusError(code, message, "Use a run directory of the user that runs the agent.", { cause: error });
  }
}

function startVm(vm: PromotedVm, hook: Hook, log: Log, signal: AbortSignal): Promise<void> {
  log.info({ epoch: vm.epoch }, "the command that starts the VM runs");
  const output = (line: string): void => log.info({ line }, "on-failover");
  return runFailoverHook(vm, hook, { clock: new NodeClock(), output, signal });
}

/** The listener speaks TLS where this side has a certificate. */
function listenSecurity({ tls, tokenFile }: ProcessConfig, files: TlsFiles | undefined): ListenSecurity | undefined {
  if (tls === undefined || files === undefined || tls.paths.cert === undefined) return undefined;
  return { files, requiresCertificate: tokenFile === undefined, peerNames: tls.peerNames };
}

/** Dials a peer, whoever has named it: a command may give another URL than the configuration. */
function dialerOf(url: string, config: ProcessConfig, files: TlsFiles | undefined): Dialer {
  const refusal = dialRefusal(url, config);
  if (refusal !== undefined) return { url, dial: () => Promise.reject(refusal) };
  const security = files === undefined ? undefined : { files, peerNames: config.tls?.peerNames ?? [] };
  return new WebSocketDialer(url, security);
}

/** What makes the arbiter of an agent; undefined where none is configured. */
function arbiterOf({ arbiters, agent }: ProcessConfig, access: EtcdAccess): ((agentId: string) => Arbiter) | undefined {
  if (arbiters.length === 0) return undefined;
  const { vm, arbiterTtlMs: ttlMs = LEASE_TTL_DEFAULT_MS } = agent;
  return (agentId) => new EtcdArbiter({ endpoints: arbiters, vm, agentId, ttlMs, clock: new NodeClock(), access });
}
