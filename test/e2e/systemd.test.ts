/** The units of packaging/ under the real systemd, installed as docs/services.md says, in a machine that boots for it. */
import { chmodSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import type { Status } from "../../proto/status.ts";
import { makeImage, MIB } from "../support/agent-pair.ts";
import { askColobus } from "../support/cli-runner.ts";
import { readSections, sectionOf } from "../support/doc-sections.ts";
import { expectSame, qemuIo, readDisk } from "../support/nbd-tools.ts";
import { requirePeers } from "../support/peers.ts";
import { serveByQemu } from "../support/qemu-server.ts";
import { SteadyGuest } from "../support/steady-guest.ts";
import { requireSystemd, SystemdMachine } from "../support/systemd-machine.ts";

const LIMIT_MS = 5 * 60_000;
const SIZE = 16 * MIB;
/** So many writes go through between one step and the next. */
const WRITES = 20;
/** Long enough that a machine that is busy with other tests does not miss a sign. */
const WATCHDOG_S = 3;

/** Both agents of one VM on one machine, so the instances have names of their own. */
const PRIMARY = "colobus-primary@web";
const SECONDARY = "colobus-secondary@standby";
const PROTECTION = "colobus-protect@web";
const CONFIGURATIONS = {
  web: "vm: web\ndisk: vda=/var/lib/images/web.img\npeer: ws://127.0.0.1:7000\nlisten: 127.0.0.1:7001\n",
  standby: "vm: web\ndisk: vda=/var/lib/images/standby.img\ncreate: true\nlisten: 127.0.0.1:7000\n",
};
type Instance = keyof typeof CONFIGURATIONS;

/** Prints a line each: user, capabilities that it has and could have, and what it can write of what is not its own. */
const lookAround = (unit: string): string => `pid=$(systemctl show --property=MainPID --value ${unit})
stat --format %U /proc/$pid
grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/$pid/status | tr -d '\\t'
for path in /usr /etc /var/lib /dev; do nsenter --target $pid --mount touch $path/new 2>/dev/null && echo $path; done; true`;
const FEW_RIGHTS = `colobus
CapEff:${"0".repeat(16)}
CapBnd:${"0".repeat(16)}
NoNewPrivs:1
Seccomp:2
`;

/** A machine with both agents' services installed, and nothing started. */
class Services {
  readonly machine: SystemdMachine;

  private constructor(machine: SystemdMachine) {
    this.machine = machine;
  }

  static async install(): Promise<Services> {
    const machine = await SystemdMachine.boot();
    const services = new Services(machine);
    for (const command of sectionOf(readSections("docs/services.md"), "Install").commands) {
      if (!/^npm |^systemctl enable/.test(command)) await machine.must(command);
    }
    for (const instance of Object.keys(CONFIGURATIONS) as Instance[]) services.configure(instance);
    await machine.must("chown root:colobus /etc/colobus/*; install -d -o colobus -g colobus -m 700 /var/lib/images");
    makeImage(machine.path("var/lib/images/web.img"), SIZE);
    await machine.must("chown colobus: /var/lib/images/web.img");
    return services;
  }

  /** Writes the configuration of an instance, with lines more. */
  configure(instance: Instance, more = ""): void {
    const path = this.machine.path(`etc/colobus/${instance}.yaml`);
    writeFileSync(path, CONFIGURATIONS[instance] + more);
    chmodSync(path, 0o640);
  }

  /** Settings of both agents' services that an operator's drop-in has. */
  async dropIn(text: string): Promise<void> {
    for (const unit of ["colobus-primary@", "colobus-secondary@"]) {
      await this.machine.must(`mkdir -p /etc/systemd/system/${unit}.service.d
printf '${text}' > /etc/systemd/system/${unit}.service.d/test.conf`);
    }
    await this.machine.must("systemctl daemon-reload");
  }

  run(instance: Instance): string {
    return this.machine.path(`run/colobus/${instance}`);
  }

  /** A question at the agent's socket waits while there is no agent. */
  async status(instance: Instance): Promise<Status> {
    const { code, json } = await askColobus<Status>("status", "--run", this.run(instance), "--timeout", "30s");
    expect({ code, json }).toMatchObject({ code: 0 });
    return json;
  }

  async colobus(instance: Instance, ...words: string[]): Promise<void> {
    const { code, stderr } = await askColobus(...words, "--run", this.run(instance));
    expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
  }

  uri(instance: Instance): string {
    return `nbd+unix:///vda?socket=${join(this.run(instance), "nbd.sock")}`;
  }

  /** Resolves when somebody has begun a checkpoint and committed it: the protection, of which there is no other sign. */
  async untilCheckpoint(): Promise<void> {
    const { epoch } = await this.status("web");
    const committed = async (): Promise<number> => (await this.status("standby")).epoch.committed;
    await expect.poll(committed, { timeout: 60_000 }).toBeGreaterThan(epoch.open);
  }

  async untilStatusText(unit: string, text: string): Promise<void> {
    const read = async (): Promise<string | undefined> => (await this.machine.show(unit, "StatusText"))["StatusText"];
    await expect.poll(read, { timeout: 30_000 }).toBe(text);
  }
}

describe.runIf(requireSystemd() && requirePeers("qemu-storage-daemon", "nbdcopy", "qemu-io"))(
  "a pair of services",
  () => {
    it(
      "is up when it serves, with few rights; guests go on over restarts, kills and hangs",
      { timeout: LIMIT_MS },
      async () => {
        const services = await Services.install();
        const { machine } = services;
        await services.dropIn(`[Service]\\nWatchdogSec=${WATCHDOG_S}s\\n`);
        await machine.must(`systemctl start ${SECONDARY} ${PRIMARY}`);
        await services.colobus("web", "wait", "committed");
        await services.untilStatusText(PRIMARY, "Primary of VM web, Protected");
        await services.untilStatusText(SECONDARY, "Secondary of VM web, Protected");
        for (const unit of [PRIMARY, SECONDARY]) expect(await machine.must(lookAround(unit))).toBe(FEW_RIGHTS);
        expect(
          await machine.must("cd /; stat --format '%A %U:%G %n' run/colobus/web run/colobus/web/* var/lib/colobus/web"),
        ).toBe(
          [
            "drwx------ colobus:colobus run/colobus/web",
            "srw------- colobus:colobus run/colobus/web/control.sock",
            "srw------- colobus:colobus run/colobus/web/nbd.sock",
            "srw------- colobus:colobus run/colobus/web/vmstate.sock",
            "drwx------ colobus:colobus var/lib/colobus/web",
            "",
          ].join("\n"),
        );

        const disk = Buffer.alloc(SIZE);
        const guest = await SteadyGuest.start({ run: await serveByQemu(services.run("web")) }, disk);
        await guest.writesMore(WRITES);
        const pids = new Set([(await services.status("web")).pid]);
        const again = async (how: string): Promise<void> => {
          await machine.must(how);
          const { pid, role } = await services.status("web");
          expect(role).toBe("Primary");
          expect(pids).not.toContain(pid);
          pids.add(pid);
          await guest.writesMore(WRITES);
        };
        const { ino } = statSync(join(services.run("web"), "nbd.sock"));
        await again(`systemctl restart ${PRIMARY}`);
        await again(`systemctl kill --signal=KILL ${PRIMARY}`);
        await again(`systemctl kill --kill-who=main --signal=STOP ${PRIMARY}`);
        expect(await machine.show(PRIMARY, "ActiveState", "NRestarts")).toEqual({
          ActiveState: "active",
          NRestarts: "2",
        });
        expect(statSync(join(services.run("web"), "nbd.sock")).ino).toBe(ino);

        const { pid } = await services.status("standby");
        await machine.must(`systemctl kill --kill-who=main --signal=STOP ${SECONDARY}`);
        const standby = await services.status("standby");
        expect(standby.role).toBe("Secondary");
        expect(standby.pid).not.toBe(pid);

        services.configure("web", "max-checkpoint-age: 1h\n");
        await machine.must(`systemctl reload ${PRIMARY}`);
        expect(await machine.journal("--unit", PRIMARY)).toContain("the configuration was read anew");
        services.configure("web", "max-checkpoint-age: old\n");
        expect((await machine.run(`systemctl reload ${PRIMARY}`)).code).toBe(1);
        expect(await machine.show(PRIMARY, "ActiveState")).toEqual({ ActiveState: "active" });
        expect(await machine.journal("--unit", PRIMARY)).toContain("max-checkpoint-age");

        await guest.writesMore(WRITES);
        await guest.stop();
        await services.colobus("web", "wait", "synced");
        await services.colobus("web", "checkpoint");
        for (const instance of ["web", "standby"] as const) expectSame(await readDisk(services.uri(instance)), disk);
      },
    );

    it("comes up with the machine, ends in order, and keeps its roles", { timeout: LIMIT_MS }, async () => {
      const services = await Services.install();
      const { machine } = services;
      writeFileSync(machine.path("etc/colobus/web.protect"), 'PROTECT="--disks-only --interval 1s"\n');
      await machine.must(`systemctl enable ${SECONDARY} ${PRIMARY} ${PROTECTION}`);
      await machine.reboot();
      await services.colobus("web", "wait", "committed");
      await qemuIo(services.uri("web"), "write -P 7 0 1M", "flush");
      await services.untilCheckpoint();

      const before = await services.status("web");
      await machine.must(`systemctl kill --signal=KILL ${PRIMARY}`);
      expect((await services.status("web")).pid).not.toBe(before.pid);
      await machine.must(`systemctl restart ${PRIMARY}`);
      await services.untilCheckpoint();

      await machine.must(`systemctl stop ${PRIMARY}.socket ${PRIMARY}`);
      for (const unit of [PROTECTION, PRIMARY]) {
        const ended = await machine.show(unit, "ActiveState", "Result", "ExecMainStatus");
        expect(ended, unit).toEqual({ ActiveState: "inactive", Result: "success", ExecMainStatus: "0" });
      }
      expect(await machine.journal("--unit", PRIMARY)).toContain("the agent is being stopped");
      await services.colobus("standby", "failover");
      const { pid } = await services.status("standby");
      await machine.must(`systemctl kill --signal=KILL ${SECONDARY}`);
      const promoted = await services.status("standby");
      expect(promoted.role).toBe("Primary");
      expect(promoted.pid).not.toBe(pid);
      await services.untilStatusText(SECONDARY, "Primary of VM web, NotProtected: no-peer");
      await qemuIo(services.uri("standby"), "read -P 7 0 1M", "write -P 8 0 1M", "flush");
      expect(await machine.must("systemctl list-units --failed --plain --no-legend")).toBe("");
    });
  },
);
