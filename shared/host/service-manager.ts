/**
 * What an agent says to the service manager that started it, and what it is given by it: readiness, a sign of life for its
 * watchdog, and sockets that are open already (systemd's sd_notify(3) and sd_listen_fds(3)).
 *
 * The sign of life comes from the event loop, so that an agent that hangs is missed. The sockets outlive the agent: who
 * connects while it is restarted waits instead of being refused. Nothing is told to children: they are not the service.
 */
import { readFileSync, readlinkSync } from "node:fs";
import { constants } from "node:os";
import { resolve } from "node:path";
import type { Clock, Timer } from "./clock.ts";
import type { Log } from "./log.ts";
import { sendToUnixSocket } from "./posix.ts";

/** sd_listen_fds(3): the first descriptor that is passed. */
const FIRST_FD = 3;
const FDS_MAX = 64;
/** As sd_watchdog_enabled(3) asks for, with a sign to spare. */
const SIGNS_PER_TERM = 3;
const US_PER_MS = 1000;

export interface ServiceManagerOptions {
  readonly env: Readonly<Record<string, string | undefined>>;
  readonly pid: number;
  readonly clock: Clock;
  readonly log: Log;
}

export class ServiceManager {
  readonly #options: ServiceManagerOptions;
  readonly #address: string | undefined;
  readonly #sockets: ReadonlyMap<string, number>;
  #timer: Timer | undefined;
  #isToldUnheard = false;

  /** Without a service manager nobody is told anything, and there are no sockets. */
  constructor(options: ServiceManagerOptions) {
    this.#options = options;
    const address = options.env["NOTIFY_SOCKET"];
    // systemd knows addresses of another kind (vsock:) for machines as a whole.
    this.#address = address !== undefined && /^[/@]./.test(address) ? address : undefined;
    this.#sockets = socketsOf(options);
  }

  /** The descriptor of the listening unix socket at `path` that the service manager has made; undefined: there is none. */
  socketAt(path: string): number | undefined {
    return this.#sockets.get(resolve(path));
  }

  /** Tells that the agent serves, and from then on that its event loop runs. */
  ready(status: string): void {
    this.#notify(`READY=1\nSTATUS=${status}\nMAINPID=${this.#options.pid}`);
    const { env, pid } = this.#options;
    const termMs = Number(env["WATCHDOG_USEC"] ?? "0") / US_PER_MS;
    const isMeant = env["WATCHDOG_PID"] === undefined || env["WATCHDOG_PID"] === String(pid);
    if (termMs > 0 && isMeant) this.#giveSigns(termMs / SIGNS_PER_TERM);
  }

  /** Tells what the agent is at, for whoever asks the service manager. */
  status(status: string): void {
    this.#notify(`STATUS=${status}`);
  }

  /** Tells that the agent ends. The watchdog goes on: an end that hangs is one, too. */
  stopping(): void {
    this.#notify("STOPPING=1");
  }

  /** No more signs of life. */
  stop(): void {
    this.#timer?.cancel();
  }

  #giveSigns(everyMs: number): void {
    this.#notify("WATCHDOG=1");
    this.#timer = this.#options.clock.after(everyMs, () => this.#giveSigns(everyMs));
  }

  /** A word that does not arrive is no reason to fail: the service manager acts on it, and the log tells why. */
  #notify(words: string): void {
    if (this.#address === undefined) return;
    const result = sendToUnixSocket(this.#address, words);
    if (result >= 0 || this.#isToldUnheard) return;
    this.#isToldUnheard = true;
    const errno = Object.entries(constants.errno).find(([, value]) => value === -result)?.[0] ?? String(-result);
    this.#options.log.warn({ socket: this.#address, errno }, "the service manager cannot be told");
  }
}

/** The unix sockets that were passed, by their paths. */
function socketsOf({ env, pid, log }: ServiceManagerOptions): ReadonlyMap<string, number> {
  const count = env["LISTEN_PID"] === String(pid) ? Number(env["LISTEN_FDS"] ?? "0") : 0;
  const sockets = new Map<string, number>();
  if (!Number.isInteger(count) || count <= 0) return sockets;
  const paths = unixSocketPaths();
  for (let fd = FIRST_FD; fd < FIRST_FD + Math.min(count, FDS_MAX); fd += 1) {
    const path = paths.get(readlinkSync(`/proc/self/fd/${fd}`));
    if (path === undefined) log.warn({ fd }, "a socket of the service manager is not used: it is no unix socket");
    else sockets.set(path, fd);
  }
  return sockets;
}

/** The kernel's list: `Num RefCount Protocol Flags Type St Inode Path`, keyed as a descriptor's link names the socket. */
function unixSocketPaths(): ReadonlyMap<string, string> {
  const lines = readFileSync("/proc/net/unix", "utf8").split("\n").slice(1);
  return new Map(
    lines.flatMap((line): [string, string][] => {
      const [, inode = "", path] = /^(?:\S+\s+){6}(\d+) (.+)$/.exec(line) ?? [];
      return path === undefined ? [] : [[`socket:[${inode}]`, path]];
    }),
  );
}
