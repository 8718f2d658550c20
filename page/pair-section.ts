import type { PeerStatus, Status } from "../proto/status.ts";
import { DELAY_SHOWN_MIN_MS } from "../proto/limits.ts";
import { formatBytes, formatDuration } from "../cli/quantities.ts";
import { definitions, element, fill, prose, section, type Child } from "./element.ts";

type Fields = (readonly [name: string, value: string])[];

/** This host, each of its peers, and what is between them; the primary stands first. */
export class PairSection {
  readonly #pair = element("div", { class: "pair" });
  readonly root = section("pair", "Hosts", this.#pair);

  update(status: Status): void {
    const shown = {
      status: { ...status, recoverable: null, jobs: [], disks: [], copies: [], hosts: [] },
      rows: fieldsOfThis(status),
    };
    fill(this.#pair, shown, () => {
      const here = hostCard(status.role, "this host", fieldsOfThis(status));
      const peers = status.peers.length === 0 ? [undefined] : status.peers;
      return peers.flatMap((peer, index) => {
        const mine = index === 0 ? here : element("div", { class: "gap" });
        const there = peer === undefined ? nobody() : peerCard(peer, status);
        return status.role === "Primary" ? [mine, linkOf(peer), there] : [there, linkOf(peer), mine];
      });
    });
  }
}

function fieldsOfThis(status: Status): Fields {
  const states = new Map<string, number>();
  for (const { state } of status.disks) states.set(state, (states.get(state) ?? 0) + 1);
  const fields: Fields = [
    ["disks", [...states].map(([state, count]) => `${count} ${state}`).join(", ")],
    ["agent", `${status.agentId}, ${status.agentVersion}, pid ${status.pid}`],
    ["writes", `ack ${status.ack}, durability ${status.durability}`],
    ["takes over", status.failover.kind],
  ];
  const { arbiter } = status.failover;
  if (arbiter !== null) {
    const lease = arbiter.state === "own" ? "this side has the lease" : arbiter.state;
    fields.push(["arbiter", arbiter.lastError?.message ?? lease]);
  }
  const delay = status.eventLoopDelay;
  if (delay !== null && delay.maxMs >= DELAY_SHOWN_MIN_MS) {
    fields.push(["held up", `for ${formatDuration(delay.maxMs)} in the last ${formatDuration(delay.overMs)}`]);
  }
  return fields;
}

function peerCard(peer: PeerStatus, { role }: Status): HTMLElement {
  const isThere = peer.connection === "Connected";
  const fields: Fields = [
    ["address", peer.url ?? peer.address ?? "not yet known"],
    ["agent", [peer.agentId, peer.agentVersion].filter((part) => part !== null).join(", ") || "not yet known"],
    ["last heard", peer.lastContactMs === null ? "never" : `${formatDuration(peer.lastContactMs)} ago`],
  ];
  if (peer.mayTakeOver !== null) fields.push(["may take over", peer.mayTakeOver ? "yes" : "no"]);
  const otherRole = role === "Primary" ? "Secondary" : "Primary";
  const card = hostCard(isThere ? otherRole : "Peer", isThere ? "" : "not connected", fields);
  if (peer.lastError !== null) {
    const { code, message, action } = peer.lastError;
    card.append(
      element("p", { class: "fault" }, element("strong", {}, code), ": ", ...prose(message), " ", ...prose(action)),
    );
  }
  return card;
}

function nobody(): HTMLElement {
  return element(
    "div",
    { class: "host absent" },
    element("h3", {}, "No peer"),
    element("p", {}, "None is configured."),
  );
}

function hostCard(role: string, tag: string, fields: Fields): HTMLElement {
  const heading: Child[] = [role];
  if (tag !== "") heading.push(" ", element("span", { class: tag === "this host" ? "tag" : "tag warn" }, tag));
  return element(
    "div",
    { class: "host" },
    element("h3", {}, ...heading),
    element("dl", { class: "fields" }, ...definitions(fields)),
  );
}

function linkOf(peer: PeerStatus | undefined): HTMLElement {
  const { connection, replication, lagBytes } = peer ?? { connection: "StandAlone", replication: "Off", lagBytes: 0 };
  const tone = connection === "Connected" ? "good" : connection === "Connecting" ? "warn" : "bad";
  return element(
    "div",
    { class: `link ${tone}` },
    element("span", { class: "word" }, connection),
    element("span", { class: "line" }),
    element("span", {}, replication),
    element("span", { class: "quiet" }, `${formatBytes(lagBytes)} behind`),
  );
}
