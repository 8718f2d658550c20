/** Several VMs whose secondaries are on one host, and one VM whose replicas are on several. */
import { spawnSync } from "node:child_process";
import { mkdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it, onTestFinished } from "vitest";
import type { CheckpointAnswer } from "../../proto/control-api.ts";
import type { Status } from "../../proto/status.ts";
import { AgentPair, AgentUnderTest, freePort, makeImage, MIB, type AgentHost } from "../support/agent-pair.ts";
import { askColobus, type ErrorDocument } from "../support/cli-runner.ts";
import { namedHost } from "../support/named-host.ts";
import { expectSame, qemuIo, readDisk } from "../support/nbd-tools.ts";
import { canMakeNamespaces } from "../support/network-namespaces.ts";
import { requirePeers } from "../support/peers.ts";
import { scratchDirectory } from "../support/scratch.ts";
import { SteadyGuest } from "../support/steady-guest.ts";
import { ThreeNamespaces } from "../support/three-namespaces.ts";

const SIZE = 16 * MIB;
const SOME_WRITES = 200;

/** A VM on host `a` whose secondary is on host `b`, in the directories that the units of the services give it. */
class Vm {
  readonly name: string;
  readonly port: number;
  readonly primary: AgentUnderTest;
  readonly secondary: AgentUnderTest;

  constructor(name: string, root: string, port: number) {
    this.name = name;
    this.port = port;
    this.primary = this.#agent(join(root, "a"), "primary", "--peer", `ws://127.0.0.1:${port}`);
    this.secondary = this.#agent(join(root, "b"), "secondary", "--listen", `127.0.0.1:${port}`);
  }

  async start(): Promise<void> {
    await Promise.all([this.primary.start(), this.secondary.start()]);
    await this.untilProtected();
  }

  untilProtected(): Promise<Status> {
    return this.primary.until("protected", ({ protection }) => protection.state === "Protected");
  }

  #agent(host: string, role: string, ...flags: string[]): AgentUnderTest {
    for (const directory of ["run", "state", "images"]) mkdirSync(join(host, directory), { recursive: true });
    const image = join(host, "images", `${this.name}.img`);
    makeImage(image, SIZE);
    const run = join(host, "run", this.name);
    const command = [role, "--vm", this.name, "--run", run, "--state", join(host, "state", this.name)];
    return new AgentUnderTest(`the ${role} of ${this.name}`, run, [...command, "--disk", `vda=${image}`, ...flags]);
  }
}

interface Listed {
  readonly vm: string;
  readonly role: string;
}

describe.runIf(requirePeers("qemu-io", "nbdcopy"))("one host with the secondaries of several VMs", () => {
  it("has each of them go its own way", async () => {
    const root = scratchDirectory();
    const web = new Vm("web", root, await freePort());
    const db = new Vm("db", root, await freePort());
    await Promise.all([web.start(), db.start()]);
    const rolesOnB = async (): Promise<Record<string, string>> => {
      const { json } = await askColobus<Listed[]>("list", "--run", join(root, "b", "run"));
      return Object.fromEntries(json.map(({ vm, role }) => [vm, role]));
    };
    expect(await rolesOnB()).toEqual({ web: "Secondary", db: "Secondary" });

    await qemuIo(web.primary.uri(), "write -P 0x11 0 1M");
    await qemuIo(db.primary.uri(), "write -P 0x22 0 1M");
    const before = (await db.secondary.status()).epoch.committed;
    const { epoch } = await web.primary.get<CheckpointAnswer>("checkpoint");
    const saved = await readDisk(web.primary.uri());
    expect((await web.secondary.status()).epoch.committed).toBe(epoch);
    expect((await db.secondary.status()).epoch.committed).toBe(before);

    await db.secondary.crash();
    await qemuIo(web.primary.uri(), "write -P 0x33 0 1M");
    await web.untilProtected();

    // What belongs to the other one is refused.
    const strayed = async (flag: string, value: string): Promise<string> => {
      const at = db.secondary.command.indexOf(flag) + 1;
      const { code, json } = await askColobus<ErrorDocument>(...db.secondary.command.with(at, value));
      expect(code).toBe(1);
      return json.error.code;
    };
    expect(await strayed("--listen", `127.0.0.1:${web.port}`)).toBe("address-in-use");
    expect(await strayed("--state", join(root, "b", "state", "web"))).toBe("image-busy");
    expect(await strayed("--run", web.secondary.run)).toBe("address-in-use");
    await db.secondary.start();
    await db.untilProtected();
    await web.untilProtected();

    await web.primary.crash();
    await web.secondary.until("alone", ({ peers }) => peers[0]?.connection === "Connecting");
    await web.secondary.get("failover");
    expect(await rolesOnB()).toEqual({ web: "Primary", db: "Secondary" });
    expectSame(await readDisk(web.secondary.uri()), saved);
    await qemuIo(db.primary.uri(), "read -P 0x22 0 1M", "write -P 0x44 1M 1M");
    await db.primary.get("checkpoint");
    expectSame(await readDisk(db.secondary.uri()), await readDisk(db.primary.uri()));
  });

  it("refuses the primary of another VM", async () => {
    const root = scratchDirectory();
    const web = new Vm("web", root, await freePort());
    const db = new Vm("db", root, await freePort());
    db.primary.setFlag("--peer", `ws://127.0.0.1:${web.port}`);
    await Promise.all([web.start(), db.primary.start()]);
    await db.primary.until("refused", ({ peers }) => peers[0]?.lastError?.code === "vm-mismatch");
    await web.primary.get("checkpoint");
  });
});

/** An NBD server of an image on a host, which ends with the test. */
class StorageServer {
  readonly uri: string;
  readonly #command: readonly [string, ...string[]];
  readonly #pidFile: string;

  constructor(host: AgentHost, image: string) {
    this.#pidFile = join(scratchDirectory(), "pid");
    const [program = "", ...words] = host.launcher;
    const options = ["--fork", "--persistent", "--shared=4", "-f", "raw", `--pid-file=${this.#pidFile}`];
    this.#command = [program, ...words, "qemu-nbd", ...options, "-b", host.address, "-p", "10809", image];
    this.uri = `nbd://${host.address}/`;
    this.#start();
    onTestFinished(() => this.#end());
  }

  /** Returns when it listens. */
  #start(): void {
    const [program, ...words] = this.#command;
    const done = spawnSync(program, words, { encoding: "utf8", stdio: ["ignore", "ignore", "pipe"] });
    if (done.status !== 0) throw new Error(`${this.#command.join(" ")}: ${done.stderr}`);
  }

  #end(): void {
    process.kill(Number(readFileSync(this.#pidFile, "utf8")), "SIGKILL");
  }
}

describe.runIf(requirePeers("ip", "qemu-nbd", "nbdcopy") && canMakeNamespaces())("a VM's replicas on two hosts", () => {
  it("have one checkpoint, and come together again when one of the hosts was away", async () => {
    // Host `beta` has the secondary and its image of vda; host `gamma` only stores its image of vdb.
    const network = new ThreeNamespaces();
    const [alpha, beta] = [namedHost(network.b, "alpha"), namedHost(network.a, "beta")];
    const gamma = network.c;
    const pair = await AgentPair.create({
      disks: { vda: SIZE, vdb: SIZE },
      flags: ["--insecure", "--peer-timeout", "1s"],
      hosts: { a: alpha, b: beta },
    });
    const { primary, secondary } = pair;
    const storage = new StorageServer(gamma, pair.imagePath("b", "vdb"));
    const at = secondary.command.indexOf(`vdb=${pair.imagePath("b", "vdb")}`);
    secondary.command[at] = `vdb=${storage.uri}`;
    await pair.start();

    const { copies, hosts } = await primary.status();
    expect(copies.map(({ disk, role, host, state }) => [disk, role, host, state])).toEqual([
      ["vda", "Primary", "alpha", "sound"],
      ["vda", "Secondary", "beta", "sound"],
      ["vdb", "Primary", "alpha", "sound"],
      ["vdb", "Secondary", gamma.address, "sound"],
    ]);
    expect(hosts.map(({ name, ifLost }) => [name, ifLost.outcome, ifLost.failoverTo])).toEqual([
      ["alpha", "failover", "beta"],
      ["beta", "unprotected", null],
      [gamma.address, "unprotected", null],
    ]);
    expect((await secondary.status()).hosts.map(({ name, ifLost }) => [name, ifLost.outcome])).toEqual([
      ["beta", "unprotected"],
      ["alpha", "failover"],
      [gamma.address, "unprotected"],
    ]);

    const disks = [Buffer.alloc(SIZE), Buffer.alloc(SIZE)] as const;
    const guest = await SteadyGuest.start(primary, disks[0]);
    await guest.writesMore(SOME_WRITES);
    network.setLink("c", "down");
    await guest.writesMore(SOME_WRITES);
    await qemuIo(primary.uri("vdb"), "write -P 0x22 1M 1M");
    disks[1].fill(0x22, MIB, 2 * MIB);
    network.setLink("c", "up");
    await pair.untilProtected();
    await guest.stop();
    const { epoch } = await primary.get<CheckpointAnswer>("checkpoint");
    await qemuIo(primary.uri("vda"), "write -P 0x33 0 1M");
    await qemuIo(primary.uri("vdb"), "write -P 0x33 0 1M");
    await primary.untilDrained();

    await primary.crash();
    await secondary.until("alone", ({ peers }) => peers[0]?.connection === "Connecting");
    expect(await secondary.get("failover")).toMatchObject({ epoch });
    for (const [index, name] of ["vda", "vdb"].entries()) {
      expectSame(await readDisk(secondary.uri(name)), disks[index] as Buffer);
    }
    await secondary.get("wait", "merged");
    for (const [index, name] of ["vda", "vdb"].entries()) {
      expectSame(await readDisk(secondary.uri(name)), disks[index] as Buffer);
    }
  });
});
