/** What agents and commands refuse, and that they say what differs and what to do; nothing of it ends an agent. */
import { chmodSync, readdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { once } from "node:events";
import { join } from "node:path";
import { describe, expect, it, onTestFinished } from "vitest";
import type { Status } from "../../proto/status.ts";
import { EXIT } from "../../proto/errors.ts";
import { AgentPair, freePort, makeImage, MIB, tokenFile } from "../support/agent-pair.ts";
import { askColobus, ColobusProcess, runColobus, type ErrorDocument } from "../support/cli-runner.ts";
import { FakePeer, fakeGreeting, fakeHello } from "../support/fake-peer.ts";
import { expectSame, qemuIo, readDisk, tool } from "../support/nbd-tools.ts";
import { requirePeers } from "../support/peers.ts";
import { scratchDirectory } from "../support/scratch.ts";

const SIZE = 4 * MIB;
const TOKEN = "d43f2f8cc0fc1e9477ea6c799100e2d1";

describe.runIf(requirePeers("qemu-io", "nbdcopy"))("a pair that does not fit", () => {
  interface Misfit {
    readonly what: string;
    readonly code: string;
    /** What the primary and what the secondary must say, each from where it stands. */
    readonly says: readonly [string, string];
    readonly advises: RegExp;
    readonly spoil: (pair: AgentPair) => void;
    /** Removes the cause at the secondary, which is stopped; the primary goes on running. */
    readonly mend: (pair: AgentPair) => void;
  }

  /** A flag that the secondary records: with the right value it needs a state directory without the wrong one. */
  function recorded(flag: string, wrong: string, right: string | undefined): Pick<Misfit, "spoil" | "mend"> {
    return {
      spoil: ({ secondary }) => secondary.setFlag(flag, wrong),
      mend: ({ root, secondary }) => {
        secondary.setFlag(flag, right);
        secondary.setFlag("--state", join(root, "b", "another-state"));
      },
    };
  }

  const MISFITS: readonly Misfit[] = [
    {
      what: "a replica of another size",
      code: "size-mismatch",
      says: [
        "disk vda has 2097152 bytes on the peer and 4194304 bytes here",
        "disk vda has 4194304 bytes on the peer and 2097152 bytes here",
      ],
      advises: /empty state directory .*truncate -s 4194304/,
      spoil: (pair) => truncateSync(pair.imagePath("b"), SIZE / 2),
      mend: (pair) => {
        truncateSync(pair.imagePath("b"), SIZE);
        rmSync(join(pair.root, "b", "state"), { recursive: true });
      },
    },
    {
      what: "another disk name",
      code: "disk-mismatch",
      says: ["the peer has the disks vdx; this agent has vda", "the peer has the disks vda; this agent has vdx"],
      advises: /--disk of the same name/,
      spoil: (pair) => pair.secondary.setFlag("--disk", `vdx=${pair.imagePath("b")}`),
      mend: (pair) => {
        pair.secondary.setFlag("--disk", `vda=${pair.imagePath("b")}`);
        pair.secondary.setFlag("--state", join(pair.root, "b", "another-state"));
      },
    },
    {
      what: "another VM",
      code: "vm-mismatch",
      says: [
        'the peer belongs to VM "other", this agent to VM "test"',
        'the peer belongs to VM "test", this agent to VM "other"',
      ],
      advises: /--vm/,
      ...recorded("--vm", "other", "test"),
    },
    {
      what: "another cluster size",
      code: "cluster-size-mismatch",
      says: [
        "the peer uses clusters of 65536 bytes, this agent of 16384 bytes",
        "the peer uses clusters of 16384 bytes, this agent of 65536 bytes",
      ],
      advises: /--cluster-size/,
      ...recorded("--cluster-size", "64KiB", undefined),
    },
    {
      what: "another token",
      code: "auth-failed",
      says: [
        "the other side does not accept this agent's pre-shared token",
        "the peer does not hold the same pre-shared token",
      ],
      advises: /same token into the --token-file of both/,
      spoil: (pair) => {
        pair.primary.setFlag("--token-file", tokenFile(pair, "token-a", TOKEN));
        pair.secondary.setFlag("--token-file", tokenFile(pair, "token-b", TOKEN.toUpperCase()));
      },
      mend: (pair) => pair.secondary.setFlag("--token-file", tokenFile(pair, "token-b", TOKEN)),
    },
    {
      what: "a token on the primary only",
      code: "auth-failed",
      says: [
        "the peer holds no pre-shared token, and this agent asks for one",
        "the peer asks for a pre-shared token, and this agent has none",
      ],
      advises: /--token-file and the same token/,
      spoil: (pair) => pair.primary.setFlag("--token-file", tokenFile(pair, "token-a", TOKEN)),
      mend: (pair) => pair.secondary.setFlag("--token-file", tokenFile(pair, "token-b", TOKEN)),
    },
    {
      what: "a token on the secondary only",
      code: "auth-failed",
      says: [
        "the peer asks for a pre-shared token, and this agent has none",
        "the peer holds no pre-shared token, and this agent asks for one",
      ],
      advises: /--token-file and the same token/,
      spoil: (pair) => pair.secondary.setFlag("--token-file", tokenFile(pair, "token-b", TOKEN)),
      mend: (pair) => pair.secondary.setFlag("--token-file", undefined),
    },
  ];

  it.each(MISFITS)(
    "is refused on both sides for $what, harms nobody, and connects when it is mended",
    async (misfit) => {
      const initial = Buffer.alloc(SIZE, 0x11);
      const pair = await AgentPair.create({ disks: { vda: initial } });
      const { primary, secondary } = pair;
      misfit.spoil(pair);
      await Promise.all([primary.start(), secondary.start()]);
      await Promise.all(
        [primary, secondary].map(async (agent, side) => {
          await agent.until("told why", ({ peers }) => peers[0]?.lastError?.code === misfit.code);
          const { peers } = await agent.get<Status>("status");
          expect(peers[0]).toMatchObject({ connection: "Connecting", replication: "Off" });
          expect(peers[0]?.lastError).toMatchObject({ code: misfit.code, message: misfit.says[side] });
          expect(peers[0]?.lastError?.action).toMatch(misfit.advises);
        }),
      );
      // The guest is served meanwhile; what needs the secondary says why it cannot be done.
      await qemuIo(primary.uri(), "write -P 0x22 0 64k");
      const refused = await primary.ask<ErrorDocument>("checkpoint");
      expect(refused).toMatchObject({ code: EXIT.failed, json: { error: { code: "no-peer" } } });
      expect(refused.json.error.message).toContain(misfit.says[0]);
      expect(refused.json.error.action).toMatch(misfit.advises);
      const [refusal, ...more] = (await primary.control.events(0)).filter(({ type }) => type === "peer-refused");
      expect(refusal?.data.code).toBe(misfit.code);
      expect(more).toEqual([]); // it is tried again and again, and told once

      expect((await secondary.stop()).code).toBe(0);
      const untouched = pair.image("b");
      expectSame(untouched, initial.subarray(0, untouched.length));
      misfit.mend(pair);
      await secondary.start();
      await pair.untilProtected();
      expect((await primary.status()).peers).toMatchObject([{ connection: "Connected", lastError: null }]);
      await pair.checkpoint();
      expectSame(await readDisk(secondary.uri()), Buffer.from(initial).fill(0x22, 0, 65_536));
    },
  );
});

describe("a peer of another kind", () => {
  const VERSION_2 = fakeGreeting({ protocol: 2, newField: { deep: true } });
  const MISMATCH = "the peer speaks replication protocol 2, this agent speaks 1";

  it("is refused by a secondary for its protocol version, which both are told", async () => {
    const pair = await AgentPair.create({ disks: { vda: SIZE } });
    const { secondary, port } = pair;
    await secondary.start();
    const peer = await FakePeer.dial(port);
    peer.send(VERSION_2);
    const { error } = await peer.receive("refuse");
    expect(error).toMatchObject({ code: "protocol-mismatch", message: MISMATCH });
    expect(await peer.closed).toBe(4020);
    const { peers } = await secondary.status();
    expect(peers[0]?.lastError).toMatchObject({
      code: "protocol-mismatch",
      message: MISMATCH,
    });
    expect(peers[0]?.lastError?.action).toContain("same release");
    await pair.primary.start();
    await pair.untilProtected();
  });

  it("is refused by a primary for its protocol version, which both are told", async () => {
    const pair = await AgentPair.create({ disks: { vda: SIZE } });
    const { primary, port } = pair;
    const told: unknown[] = [];
    const stopListening = await FakePeer.listen(port, async (peer) => {
      peer.send(VERSION_2);
      const { error } = await peer.receive("refuse");
      told.push(error);
      await peer.closed;
    });
    await primary.start();
    const { peers } = await primary.until("told why", ({ peers }) => peers[0]?.lastError?.code === "protocol-mismatch");
    expect(peers[0]?.lastError?.message).toBe(MISMATCH);
    const refused = await primary.ask<ErrorDocument>("checkpoint");
    expect(refused).toMatchObject({ code: EXIT.failed, json: { error: { code: "no-peer" } } });
    expect(refused.json.error.action).toContain("same release");
    expect(told[0]).toMatchObject({ code: "protocol-mismatch", message: peers[0]?.lastError?.message });
    await stopListening();
    await pair.secondary.start();
    await pair.untilProtected();
  });

  it.each([
    { what: "another mode", changed: { mode: "mc" }, code: "mode-mismatch", says: /runs mode "mc", this agent "colo"/ },
    {
      what: "the same role",
      changed: { role: "Secondary" },
      code: "role-conflict",
      says: /the peer is Secondary, and so/,
    },
  ])("is refused for $what", async ({ changed, code, says }) => {
    const { secondary, port } = await AgentPair.create({ disks: { vda: SIZE } });
    await secondary.start();
    const peer = await FakePeer.dial(port);
    peer.introduce(fakeHello("Primary", SIZE, changed));
    const { error } = await peer.receive("refuse");
    expect(error).toMatchObject({ code, message: expect.stringMatching(says) });
    const { peers } = await secondary.until("told why", ({ peers }) => peers[0]?.lastError?.code === code);
    expect(peers[0]?.lastError?.message).toMatch(says);
  });

  it("that talks nonsense is shown the door, and the right one is served beside it and after it", async () => {
    const pair = await AgentPair.protected({ disks: { vda: SIZE } });
    const nonsense = [
      Buffer.alloc(0),
      Buffer.from("GET / HTTP/1.1\r\n\r\n"),
      Buffer.alloc(100_000, 0xff),
      Buffer.alloc(3),
    ];
    for (const bytes of nonsense) {
      const peer = await FakePeer.dial(pair.port);
      peer.sendRaw(bytes);
      expect(await peer.closed).toBe(4040);
    }
    await pair.checkpoint();
    expect((await pair.primary.status()).protection.state).toBe("Protected");
    const { peers } = await pair.secondary.status();
    expect(peers[0]).toMatchObject({ connection: "Connected", replication: "Established" });
  });
});

describe.runIf(requirePeers("qemu-io", "qemu-img", "nbdcopy"))("an agent that cannot start", () => {
  interface Refused {
    readonly code: number | null;
    readonly json: ErrorDocument;
    readonly stderr: string;
  }

  /** Starts an agent, which must end by itself. */
  function start(...args: string[]): Promise<Refused> {
    return askColobus<ErrorDocument>(...args);
  }

  /** The flags of an agent that has never run, with an image of its own. */
  function newAgent(sizeBytes = SIZE): { root: string; image: string; args: string[] } {
    const root = scratchDirectory();
    const image = join(root, "vda.img");
    makeImage(image, sizeBytes);
    return { root, image, args: ["--run", join(root, "run"), ...stateAndDisk(root, image)] };
  }

  function stateAndDisk(root: string, image: string): string[] {
    return ["--state", join(root, "state"), "--disk", `vda=${image}`];
  }

  it.each(["primary", "secondary"])("says which image is missing, and how to make one (%s)", async (role) => {
    const { image, args } = newAgent();
    rmSync(image);
    const link = role === "primary" ? ["--peer", "ws://127.0.0.1:9"] : ["--listen", `127.0.0.1:${await freePort()}`];
    const { code, json, stderr } = await start(role, ...args, ...link);
    expect(code).toBe(EXIT.failed);
    expect(json.error.code).toBe("image-missing");
    expect(json.error.message).toContain(image);
    expect(json.error.action).toMatch(/truncate -s SIZE|--create/);
    expect(stderr).toContain(image);
    // Nothing is left that would stand in the way of the next try.
    makeImage(image, SIZE);
    const agent = new ColobusProcess([role, ...args, ...link]);
    await agent.untilPrinted("serves in");
  });

  it.each(["--run", "--state"])("says what stands where the directory of %s is to be", async (flag) => {
    const root = scratchDirectory();
    const taken = join(root, "file");
    writeFileSync(taken, "");
    const image = join(root, "vda.img");
    makeImage(image, SIZE);
    const others = ["--run", join(root, "run"), ...stateAndDisk(root, image), "--peer", "ws://127.0.0.1:9"];
    for (const [path, named] of [
      [taken, taken],
      [join(taken, "x"), taken],
      ["/proc/colobus", "/proc/colobus"],
    ] as const) {
      const args = others.map((word, at) => (others[at - 1] === flag ? path : word));
      const { code, json } = await start("primary", ...args);
      expect(code).toBe(EXIT.failed);
      expect(json.error.message).toContain(`cannot make the directory ${named}: `);
      expect(json.error.action).toContain(named);
    }
  });

  it("says which image another agent holds", async () => {
    const pair = await AgentPair.create({ disks: { vda: SIZE } });
    await pair.primary.start();
    const root = scratchDirectory();
    const args = ["--run", join(root, "run"), ...stateAndDisk(root, pair.imagePath("a"))];
    const { code, json } = await start("primary", ...args, "--peer", `ws://127.0.0.1:${pair.port}`);
    expect(code).toBe(EXIT.failed);
    expect(json.error).toMatchObject({ code: "image-busy", message: expect.stringContaining(pair.imagePath("a")) });
    expect(json.error.action).not.toBe("");
    expect((await pair.primary.status()).role).toBe("Primary");
  });

  it("says that the same agent runs already", async () => {
    const pair = await AgentPair.create({ disks: { vda: SIZE } });
    await pair.secondary.start();
    const { code, json } = await start(...pair.secondary.command);
    expect(code).toBe(EXIT.failed);
    expect(["image-busy", "address-in-use"]).toContain(json.error.code);
    expect(json.error.action).not.toBe("");
    expect((await pair.secondary.status()).role).toBe("Secondary");
  });

  it("says that another agent uses the state directory", async () => {
    const pair = await AgentPair.create({ disks: { vda: SIZE } });
    await pair.secondary.start();
    const { root, image } = newAgent();
    const state = join(pair.root, "b", "state");
    const args = ["--run", join(root, "run"), "--state", state, "--vm", "test", "--disk", `vda=${image}`];
    const { code, json } = await start("secondary", ...args, "--listen", `127.0.0.1:${await freePort()}`);
    expect(code).toBe(EXIT.failed);
    expect(json.error).toMatchObject({ code: "image-busy", message: expect.stringContaining(state) });
    expect(json.error.action).toContain("Stop the other agent");
    // Nothing of the running agent's was harmed by the attempt.
    await pair.primary.start();
    await pair.untilProtected();
  });

  it.each([
    ["qcow2", /qcow2/],
    ["empty", /at least one sector/],
    ["odd", /whole ones of 512 bytes/],
  ])("takes no %s image for a raw one", async (kind, says) => {
    const { image, args } = newAgent(kind === "empty" ? 0 : 1000);
    if (kind === "qcow2") await tool("qemu-img", "create", "-q", "-f", "qcow2", image, "4M");
    const before = readFileSync(image);
    const { code, json } = await start("primary", ...args, "--peer", "ws://127.0.0.1:9");
    expect(code).toBe(EXIT.failed);
    expect(json.error.code).toBe("image-format");
    expect(json.error.message).toMatch(says);
    expect(json.error.message).toContain(image);
    expect(json.error.action).toContain(kind === "qcow2" ? `qcow2:${image}` : `truncate -s SIZE ${image}`);
    expect(readFileSync(image).equals(before)).toBe(true);
  });

  it("says which port is taken", async () => {
    const port = await freePort();
    const server = createServer().listen({ host: "127.0.0.1", port });
    await once(server, "listening");
    onTestFinished(() => void server.close());
    const { args } = newAgent();
    for (const taken of [
      ["--listen", `127.0.0.1:${port}`],
      ["--listen", `127.0.0.1:${await freePort()}`, "--nbd-listen", `127.0.0.1:${port}`],
    ]) {
      const { code, json } = await start("secondary", ...args, ...taken);
      expect(code).toBe(EXIT.failed);
      expect(json.error).toMatchObject({
        code: "address-in-use",
        message: expect.stringContaining(`127.0.0.1:${port}`),
      });
      expect(json.error.action).not.toBe("");
    }
  });

  it("says that another agent serves in the run directory", async () => {
    const pair = await AgentPair.create({ disks: { vda: SIZE } });
    await pair.primary.start();
    const { root, image } = newAgent();
    const args = ["--run", pair.primary.run, ...stateAndDisk(root, image), "--peer", "ws://127.0.0.1:9"];
    const { code, json } = await start("primary", ...args);
    expect(code).toBe(EXIT.failed);
    expect(json.error).toMatchObject({ code: "address-in-use", message: expect.stringContaining(pair.primary.run) });
    expect((await pair.primary.status()).role).toBe("Primary");
  });

  it("names both images when it is started with another one than recorded", async () => {
    const pair = await AgentPair.create({ disks: { vda: SIZE } });
    await pair.primary.start();
    await pair.primary.stop();
    const other = join(pair.root, "other.img");
    makeImage(other, SIZE);
    pair.primary.setFlag("--disk", `vda=${other}`);
    const { code, json } = await start(...pair.primary.command);
    expect(code).toBe(EXIT.failed);
    expect(json.error.code).toBe("image-changed");
    expect(json.error.message).toContain(other);
    expect(json.error.message).toContain(pair.imagePath("a"));
    expect(json.error.action).toContain("--adopt-image");
  });

  it("is refused an image that changed while it was stopped, until it is told to adopt it", async () => {
    const pair = await AgentPair.protected({ disks: { vda: SIZE } });
    await pair.primary.stop();
    await qemuIo(pair.imagePath("a"), "write -P 0x66 1M 64k");
    const { code, json } = await start(...pair.primary.command);
    expect(code).toBe(EXIT.failed);
    expect(json.error.code).toBe("image-changed");
    expect(json.error.message).toContain(pair.imagePath("a"));
    expect(json.error.action).toContain("--adopt-image");
    pair.primary.command.push("--adopt-image");
    await pair.primary.start();
    await pair.untilProtected();
    expect((await pair.primary.status()).jobs).toMatchObject([
      { type: "resync", state: "concluded", progress: { doneBytes: SIZE, totalBytes: SIZE } },
    ]);
    await pair.checkpoint();
    await qemuIo(pair.secondary.uri(), "read -P 0x66 1M 64k");
    expectSame(await readDisk(pair.secondary.uri()), pair.image("a"));
    expectSame(pair.image("b"), pair.image("a"));
  });

  it("takes the flags of either role, for it may have the other one by now", async () => {
    const pair = await AgentPair.protected({ disks: { vda: SIZE }, primaryFlags: ["--secondary-export", "off"] });
    const { primary: former, secondary: promoted } = pair;
    await former.get("switchover");
    await promoted.until("Primary, and its disk merged", ({ role, jobs }) => {
      return role === "Primary" && jobs.every(({ state }) => state === "concluded");
    });
    await former.until("Secondary without an export", ({ role, exports }) => {
      return role === "Secondary" && exports.length === 0;
    });
    await promoted.stop();
    await qemuIo(pair.imagePath("b"), "write -P 0x66 1M 64k");
    expect((await start(...promoted.command)).json.error.code).toBe("image-changed");
    promoted.command.push("--adopt-image");
    await promoted.start();
    expect((await promoted.status()).role).toBe("Primary");
    await pair.untilProtected();
    expectSame(pair.image("a"), pair.image("b"));
  });

  it("is refused a replica's image that changed while it was stopped, until it has an empty state directory", async () => {
    const pair = await AgentPair.protected({ disks: { vda: Buffer.alloc(SIZE, 0x11) } });
    const { secondary } = pair;
    await secondary.stop();
    await qemuIo(pair.imagePath("b"), "write -P 0x66 1M 64k");
    const { code, json } = await start(...secondary.command);
    expect(code).toBe(EXIT.failed);
    expect(json.error).toMatchObject({
      code: "image-changed",
      message: expect.stringContaining(pair.imagePath("b")),
      action: expect.stringContaining("on a secondary, start with an empty state directory"),
    });
    rmSync(join(pair.root, "b", "state"), { recursive: true });
    await secondary.start();
    await pair.untilProtected();
    await pair.checkpoint();
    expectSame(await readDisk(secondary.uri()), Buffer.alloc(SIZE, 0x11));
    expectSame(pair.image("b"), pair.image("a"));
  });

  it("calls it a usage error when a flag is missing, malformed, unsafe or not available, and leaves nothing", async () => {
    const { root, image } = newAgent();
    const run = ["--run", join(root, "run")];
    const state = ["--state", join(root, "state")];
    const disk = ["--disk", `vda=${image}`];
    const primary = ["primary", ...run, ...state, ...disk, "--peer", "ws://[::1]:1"];
    const secondary = ["secondary", ...run, ...state];
    const listen = ["--listen", "127.0.0.1:1"];
    const wrong: [string[], RegExp][] = [
      [["primary"], /--run DIR is missing/],
      [["primary", ...run], /--state DIR is missing/],
      [["primary", ...run, ...state], /--disk NAME=IMAGE is missing/],
      [["primary", ...run, ...state, ...disk], /--peer WS_URL is missing/],
      [[...secondary, ...disk], /--listen HOST:PORT is missing/],
      [[...secondary, "--disk", "vda", ...listen], /--disk "vda"/],
      [[...secondary, "--disk", "a=I", "--disk", "a=J", ...listen], /"a"/],
      [[...secondary, ...disk, "--listen", "nowhere"], /--listen "nowhere"/],
      [[...secondary, ...disk, "--listen", "0.0.0.0:1"], /--listen 0\.0\.0\.0:1 is open to the network/],
      [[...secondary, ...disk, ...listen, "--nbd-listen", "[::]:1"], /--nbd-listen :::1 is open to the network/],
      [["primary", ...run, ...state, ...disk, "--peer", "http://127.0.0.1:1"], /--peer/],
      [
        ["primary", ...run, ...state, ...disk, "--peer", "wss://127.0.0.1:1"],
        /wss:\/\/127\.0\.0\.1:1 needs something that proves/,
      ],
      [["primary", ...run, ...state, ...disk, "--peer", "ws://192.0.2.1:1"], /ws:\/\/192\.0\.2\.1:1 is not encrypted/],
      [[...primary, "--peer", "ws://[::1]:1"], /--peer ws:\/\/\[::1\]:1 is given twice/],
      [[...primary, "--peer", "ws://[::1]:2", "--secondaries", "1"], /--secondaries 1 and 2 --peer contradict/],
      [[...primary, "--disk", "b=luks:/I"], /--disk "b=luks:\/I"/],
      [[...primary, "--disk", "b=nbds://h/I"], /--disk "b=nbds:/],
      [[...primary, "--disk", "b=nbd+unix:///I?socket=s"], /--disk "b=nbd\+unix:/],
      [[...primary, "--disk", "b=nbd://192.0.2.1/I"], /nbd:\/\/192\.0\.2\.1:10809\/I is not encrypted/],
      [[...primary, "--diks", "a=I"], /--diks is not a flag/],
      [[...primary, "--mode", "x"], /--mode "x"/],
      [[...primary, "--mode", "shared", "--ack", "applied"], /shared and --ack contradict/],
      [[...primary, "--mode", "shared", "--on-peer-loss", "continue"], /continue without --shared-mark contradict/],
      [[...primary, "--mode", "shared", "--assume-in-sync"], /shared and --assume-in-sync contradict/],
      [[...primary, "--mode", "shared", "--adopt-image"], /shared and --adopt-image contradict/],
      [
        [...primary, "--mode", "shared", "--arbiter", "http://127.0.0.1:1", "--failover", "automatic"],
        /automatic without --fence-peer contradict/,
      ],
      [[...secondary, ...disk, ...listen, "--mode", "shared", "--create"], /shared and --create contradict/],
      [[...primary, "--shared-mark", "M"], /--shared-mark "M"/],
      [[...primary, "--mode", "mirror", "--checkpoint-every", "5s"], /mirror and --checkpoint-every contradict/],
      [[...primary, "--mode", "mirror", "--max-checkpoint-age", "5s"], /mirror and --max-checkpoint-age contradict/],
      [[...primary, "--mode", "mirror", "--on-congestion", "detach"], /detach and --ack applied contradict/],
      [[...primary, "--mode", "mirror", "--arbiter", "http://127.0.0.1:1"], /mirror and --arbiter contradict/],
      [[...secondary, ...disk, ...listen, "--mode", "mirror", "--retain", "1"], /mirror and --retain contradict/],
      [
        [...secondary, ...disk, ...listen, "--mode", "mirror", "--secondary-export", "read-write"],
        /mirror and --secondary-export read-write contradict/,
      ],
      [[...primary, "--on-peer-loss", "stop"], /--on-peer-loss "stop"/],
      [[...primary, "--fence-timeout", "5s"], /--fence-timeout "5s"/],
      [[...primary, "--on-congestion", "detach", "--ack", "applied"], /detach and --ack applied contradict/],
      [
        [...primary, "--on-congestion", "detach", "--on-peer-loss", "freeze"],
        /detach and --on-peer-loss freeze contradict/,
      ],
      [[...primary, "--resync-speed", "fast"], /--resync-speed "fast"/],
      [[...primary, "--resync-speed", "1MiB/m"], /--resync-speed "1MiB\/m"/],
      [[...primary, "--overlay-limit", "1KiB"], /--overlay-limit "1KiB"/],
      [[...primary, "--retain", "65"], /--retain "65"/],
      [[...primary, "--retain", "-1"], /--retain/],
      [[...primary, "--control-listen", "127.0.0.1:1"], /--tls-cert FILE is missing/],
      [[...primary, "--cluster-size", "5k"], /cluster/],
      [[...primary, "--window", "1"], /--window/],
      [[...primary, "--peer-timeout", "5"], /--peer-timeout/],
      [[...primary, "--token-file", "/none"], /\/none/],
      [["primary", ...run, "--config", "/none.yaml"], /configuration file/],
    ];
    await Promise.all(
      wrong.map(async ([args, says]) => {
        const { code, json, stderr } = await start(...args);
        expect({ args, code, error: json.error.code }).toEqual({ args, code: EXIT.usage, error: "usage" });
        expect(json.error.message).toMatch(says);
        expect(json.error.action).not.toBe("");
        expect(stderr).toMatch(says);
      }),
    );
    expect(readdirSync(root)).toEqual(["vda.img"]);
  });

  it("takes no token that others can read, that is short, or that is easily guessed", async () => {
    const { root, args } = newAgent();
    const token = join(root, "token");
    writeFileSync(token, TOKEN);
    chmodSync(token, 0o644);
    const link = ["--peer", "ws://127.0.0.1:9", "--token-file", token];
    const readable = await start("primary", ...args, ...link);
    expect(readable).toMatchObject({ code: EXIT.usage, json: { error: { code: "usage" } } });
    expect(readable.json.error.message).toContain(`${token} is accessible to others`);
    expect(readable.json.error.action).toContain(`chmod 600 ${token}`);
    chmodSync(token, 0o600);
    writeFileSync(token, "short\n");
    const { code, json } = await start("primary", ...args, ...link);
    expect(code).toBe(EXIT.usage);
    expect(json.error.message).toContain("has 5 bytes");
    expect(json.error.action).toContain("openssl rand");
    writeFileSync(token, "password".repeat(8));
    const guessed = await start("primary", ...args, ...link);
    expect(guessed.code).toBe(EXIT.usage);
    expect(guessed.json.error.message).toMatch(/token in .* is too easy to guess/);
    expect(guessed.json.error.action).toContain("openssl rand");
  });
});

describe("an operator command", () => {
  it("exits with 3 when there is no agent, or a dead one's socket", async () => {
    const empty = scratchDirectory();
    const none = await askColobus<ErrorDocument>("status", "--run", empty);
    expect(none).toMatchObject({ code: EXIT.unreachable, json: { error: { code: "agent-unreachable" } } });
    expect(none.json.error.message).toContain(empty);
    const pair = await AgentPair.create({ disks: { vda: SIZE } });
    await pair.primary.start();
    // An agent that is there, without a secondary, refuses: that is another exit code.
    const alone = await pair.primary.ask<ErrorDocument>("checkpoint");
    expect(alone).toMatchObject({ code: EXIT.failed, json: { error: { code: "no-peer" } } });
    expect(alone.json.error.action).not.toBe("");
    await pair.primary.crash();
    for (const command of [["status"], ["checkpoint"], ["wait", "synced"], ["events", "--follow"]]) {
      const dead = await pair.primary.ask<ErrorDocument>(...command);
      expect(dead).toMatchObject({ code: EXIT.unreachable, json: { error: { code: "agent-unreachable" } } });
      expect(dead.json.error.action).not.toBe("");
    }
  });

  it("exits with 2 for what is no command, flag or value, and names the one that was meant", async () => {
    const wrong: [string[], RegExp][] = [
      [["chekpoint"], /Did you mean checkpoint/],
      [["checkpoint", "--prepair"], /Did you mean --prepare/],
      [["commit"], /EPOCH|epoch/],
      [["commit", "soon"], /EPOCH "soon"/],
      [["wait", "merge"], /merged/],
      [["job", "stop", "merge-1"], /pause/],
      [["status", "--timeout", "5"], /--timeout/],
      [["status", "--run", "a", "--run", "b"], /--run/],
    ];
    await Promise.all(
      wrong.map(async ([args, says]) => {
        const { code, stdout, stderr } = await runColobus(...args);
        expect({ args, code, stdout }).toEqual({ args, code: EXIT.usage, stdout: "" });
        expect(stderr).toMatch(says);
      }),
    );
  });

  it("for the other role is refused", async () => {
    const pair = await AgentPair.protected({ disks: { vda: SIZE } });
    for (const command of [["checkpoint"], ["commit", "1"], ["discard"]]) {
      const { code, json } = await pair.secondary.ask<ErrorDocument>(...command);
      expect(code).toBe(EXIT.failed);
      expect(json.error.code).toBe("not-primary");
      expect(json.error.action).toContain("primary");
    }
  });

  it("takes the only agent below a directory, and names them when there are several", async () => {
    const pair = await AgentPair.create({ disks: { vda: SIZE } });
    await pair.primary.start();
    const runs = join(pair.root, "run");
    const only = await askColobus<Status>("status", "--run", runs);
    expect(only).toMatchObject({ code: EXIT.done, json: { role: "Primary" } });
    await pair.secondary.start();
    const several = await askColobus<ErrorDocument>("status", "--run", runs);
    expect(several).toMatchObject({ code: EXIT.usage, json: { error: { code: "usage" } } });
    expect(several.json.error.message).toMatch(/several agents in .*: a, b\./);
    const listed = await askColobus<{ name: string; role: string; reachable: boolean }[]>("list", "--run", runs);
    expect(listed.json).toMatchObject([
      { name: "a", role: "Primary", reachable: true },
      { name: "b", role: "Secondary", reachable: true },
    ]);
  });
});
