/**
 * What `colobus doctor` looks at of the files that are nobody's but the agent's: its secrets, and its state directory with the
 * guest's data in it. It looks at owners and modes, as `chmod` has them; who is on which access list it does not know.
 */
import { statSync, type Stats } from "node:fs";
import { dirname, join } from "node:path";
import { asColobusError } from "../proto/errors.ts";
import { CONTROL_SOCKET_NAME } from "../shared/host/run-directory.ts";
import { readBearerToken, readToken } from "../shared/host/token-file.ts";
import { failed, ok, warning, type Finding } from "./finding.ts";
import type { ProcessConfig } from "./process-config.ts";

const ROOT = 0;
const OWNER_READS = 0o400;
const GROUP_READS = 0o040;
const GROUP_WRITES = 0o020;
const OTHERS = 0o007;
const OTHERS_WRITE = 0o002;
const ALL_BUT_OWNER = 0o077;
const OTHERS_CHANGE = 0o022;
const STICKY = 0o1000;

interface Secret {
  readonly check: string;
  readonly path: string | undefined;
  /** What makes one. */
  readonly make: string;
  /** Reads it as the agent does. Errors: `usage`. */
  readonly read?: (path: string) => unknown;
}

/**
 * The user that an agent runs as: its control socket belongs to it, or else its state directory does. Without either, who
 * asks is taken for the one who will start it.
 */
export function userOfAgent(runDirectory: string, stateDirectory: string): number {
  for (const path of [join(runDirectory, CONTROL_SOCKET_NAME), stateDirectory]) {
    try {
      const found = statSync(path, { throwIfNoEntry: false });
      if (found !== undefined) return found.uid;
    } catch {
      // What cannot be looked at is told where it is examined.
    }
  }
  return self();
}

/** The files with secrets that a configuration names, where the agent runs as `user`. */
export function checkSecrets(config: ProcessConfig, user: number): Finding[] {
  const { tokenFile, control, tls, nbdPskFile, arbiterAccess } = config;
  const random = "Make one with `openssl rand -hex 32`.";
  const secrets: readonly Secret[] = [
    { check: "token", path: tokenFile, make: random, read: (path) => readToken(path, "--token-file") },
    {
      check: "control token",
      path: control?.tokenFile,
      make: random,
      read: (path) => readBearerToken(path, "--control-token-file"),
    },
    { check: "TLS key", path: tls?.paths.key, make: "Make certificates with `colobus certs`, or check --tls-key." },
    { check: "NBD keys", path: nbdPskFile, make: "Make a key with `psktool --username NAME --pskfile FILE`." },
    { check: "arbiter login", path: arbiterAccess.userFile, make: "Write one line into it: NAME:PASSWORD." },
    { check: "arbiter TLS key", path: arbiterAccess.tls.key, make: "Check --arbiter-tls-key." },
  ];
  return secrets.flatMap(({ path, ...secret }) => {
    if (path === undefined) return [];
    return [unlessHidden(secret.check, path, () => checkSecret({ path, ...secret }, user))];
  });
}

function checkSecret({ check, path, make, read }: Secret & { readonly path: string }, user: number): Finding {
  const found = statSync(path, { throwIfNoEntry: false });
  if (found === undefined) return failed(check, `${path} does not exist`, make);
  const fault = faultOf(found, user);
  if (fault !== undefined) {
    const leaked = (found.mode & OTHERS) === 0 ? "" : " Make a new secret, too: somebody may have read this one.";
    return failed(check, `${path} ${fault}`, `Run \`${mendFile(path, found, user)}\`.${leaked}`);
  }
  const directory = dirname(path);
  const place = statSync(directory);
  if ((place.mode & OTHERS_WRITE) !== 0 && (place.mode & STICKY) === 0) {
    const message = `every user of this host can put another file in the place of ${path}: ${directory} has mode ${octal(place)}`;
    return failed(check, message, `Run \`chmod o-w ${directory}\`.`);
  }
  try {
    // Who asks may not be able to read what the agent reads.
    if (isReadable(found, self())) read?.(path);
  } catch (error) {
    const { message, action } = asColobusError(error);
    return failed(check, message, action);
  }
  if (found.uid !== user) return ok(check, `${path} is readable by root and group ${found.gid} alone`);
  if ((found.mode & GROUP_READS) === 0) return ok(check, `${path} is readable by its owner alone`);
  return warning(check, `${path} can be read by its group, ${found.gid}`, `Run \`chmod 600 ${path}\`.`);
}

/** What is wrong with who may use a secret; undefined: nothing. */
function faultOf(found: Stats, user: number): string | undefined {
  if ((found.mode & OTHERS) !== 0) return `has mode ${octal(found)}: every user of this host can use it`;
  if (found.uid !== ROOT && found.uid !== user) return `belongs to user ${found.uid}, and the agent runs as ${user}`;
  if ((found.mode & GROUP_WRITES) !== 0) return `has mode ${octal(found)}: its group, ${found.gid}, can change it`;
  if (!isReadable(found, user)) return `cannot be read by the agent, which runs as user ${user}`;
  return undefined;
}

function isReadable(found: Stats, user: number): boolean {
  if (user === ROOT || (found.mode & GROUP_READS) !== 0) return true;
  return found.uid === user && (found.mode & OWNER_READS) !== 0;
}

/** The state directory of an agent that runs as `user`. */
export function checkStateAccess(path: string, user: number): Finding {
  const check = "state access";
  return unlessHidden(check, path, () => {
    const found = statSync(path, { throwIfNoEntry: false });
    if (found === undefined) return ok(check, `${path} will be made for its owner alone`);
    const mend = `Run \`chmod 700 ${path}\`.`;
    if (user !== ROOT && found.uid !== user) {
      const message = `${path} belongs to user ${found.uid}, and the agent runs as ${user}`;
      return failed(check, message, `Run \`chown -R ${user} ${path}\`.`);
    }
    const mode = `${path} has mode ${octal(found)}`;
    if ((found.mode & OTHERS_CHANGE) !== 0) return failed(check, `${mode}: others can put files into it`, mend);
    if ((found.mode & ALL_BUT_OWNER) === 0) return ok(check, `${path} is open to its owner alone`);
    return warning(check, `${mode}: others can look into it, and the guest's data is there`, mend);
  });
}

/** What is found, where whoever asks may look at `path`. */
function unlessHidden(check: string, path: string, examine: () => Finding): Finding {
  try {
    return examine();
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error);
    return warning(check, `${path} cannot be looked at: ${why}`, "Run it as root, or as the user that runs the agent.");
  }
}

function self(): number {
  return process.getuid?.() ?? ROOT;
}

function mendFile(path: string, { uid }: Stats, user: number): string {
  return uid === user ? `chmod 600 ${path}` : `chown ${user} ${path} && chmod 600 ${path}`;
}

function octal({ mode }: Stats): string {
  return (mode & 0o7777).toString(8).padStart(4, "0");
}
