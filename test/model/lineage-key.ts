import type { Side, SideIndex, World } from "./lineage-world.ts";

/**
 * Two worlds with the same key go the same ways. Ids count by where else they appear, not by their names: a lineage that
 * only one side knows cannot be met again, and one that stands in the same places as another says nothing new. Versions
 * count within their cluster, epochs by their order, and the clusters can be swapped.
 */
export function keyOf(world: World): string {
  const { sides, session, greeting, backup } = world;
  const kept = backup === null ? [] : [backup.side];
  const all = [...sides, ...kept];
  const epochs = epochRanks(all);
  const sessions = sessionNames(all);
  const parts = [
    session === null ? "-" : `${session.source}${session.extent[0]}${session.phase}`,
    greeting === null
      ? ""
      : sides.map((side, at) => (greeting[at]?.lineage === side.record.lineage ? "=" : "!")).join(""),
    world.forced ? "f" : "",
    `${world.restores}${world.replacements}${world.rollbacks}`,
    backup === null ? "" : String(backup.of),
    ...sides.map((side, at) => sideKey(side, world, at === 0 ? 0 : 1, epochs, sessions)),
    ...kept.map((side) => sideKey(side, world, backup?.of ?? 0, epochs, sessions)),
    lineages(all),
    clusters(world, all),
  ];
  return parts.join("|");
}

function sideKey(
  { record, up, held, told, view, prepared, retained, truth }: Side,
  world: World,
  index: SideIndex,
  epochs: readonly number[],
  sessions: readonly string[],
): string {
  const self = world.sides[index].record.agentId;
  const peer = world.sides[index === 0 ? 1 : 0].record.agentId;
  const agent = (id: string | null | undefined): string => (id === self ? "i" : id === peer ? "p" : (id ?? "-") && "?");
  const isPrimary = record.role === "Primary";
  const flags =
    (isPrimary ? 1 : 0) |
    (up ? 2 : 0) |
    (held ? 4 : 0) |
    (record.lineage === null ? 8 : 0) |
    (isPrimary && record.history.origin === "alone" ? 16 : 0) |
    (isPrimary && record.history.shared ? 32 : 0) |
    (record.outdated ? 64 : 0) |
    (record.discardsOwn ? 128 : 0) |
    (view === null ? 256 : 0) |
    (prepared === null ? 512 : 0) |
    (record.replaced?.includes(peer) === true ? 1024 : 0);
  const truths =
    (truth.alone ? 1 : 0) |
    (truth.superseded ? 2 : 0) |
    (truth.behind ? 4 : 0) |
    (truth.gaveAway ? 8 : 0) |
    (truth.ownState ? 16 : 0) |
    (truth.whole ? 32 : 0) |
    (truth.blank ? 64 : 0) |
    (truth.givenUp ? 128 : 0) |
    (truth.rolledBack ? 256 : 0);
  const { pairing } = record;
  const ids = agent(record.agentId) + agent(record.tracks) + agent(record.handOver) + agent(pairing?.peer);
  const met = pairing === null ? "" : pairing.sessions.map((id) => sessions.indexOf(id)).join("_");
  const committed = epochs.indexOf(record.committed.epoch);
  const kept = retained === null ? "" : `k${epochs.indexOf(retained.epoch)}`;
  const { rolledBackFrom } = record.history;
  const from = rolledBackFrom === undefined ? "" : `r${epochs.indexOf(rolledBackFrom)}`;
  return `${flags}.${truths}${ids}${met}.${committed}.${isPrimary ? epochs.indexOf(told) : ""}${kept}${from}`;
}

/** The epochs that matter, ascending: only their order does. */
function epochRanks(sides: readonly Side[]): number[] {
  const known = new Set([0]);
  for (const { record, told, retained } of sides) {
    known.add(record.committed.epoch);
    if (record.role === "Primary") known.add(told);
    if (retained !== null) known.add(retained.epoch);
    if (record.history.rolledBackFrom !== undefined) known.add(record.history.rolledBackFrom);
  }
  return [...known].sort((one, two) => one - two);
}

/** The ids of sessions in the order in which they are come across. */
function sessionNames(sides: readonly Side[]): string[] {
  const names: string[] = [];
  for (const { record } of sides) {
    for (const id of record.pairing?.sessions ?? []) {
      if (!names.includes(id)) names.push(id);
    }
  }
  return names;
}

/** The places in which lineages stand: four for each side, as a set of sets. */
function lineages(sides: readonly Side[]): string {
  const places = new Map<string, number>();
  const put = (id: string, place: number): void => {
    places.set(id, (places.get(id) ?? 0) | (1 << place));
  };
  for (const [at, { record }] of sides.entries()) {
    if (record.lineage !== null) put(record.lineage, 3 * at);
    for (const id of record.history.ancestors) put(id, 3 * at + 1);
    for (const id of record.history.heard) put(id, 3 * at + 2);
  }
  // Known as an ancestor to one side only: nobody can bring it back.
  const telling = [...places.values()].filter((set) => set !== 2 && set !== 16 && set !== 128);
  return [...new Set(telling)].sort((one, two) => one - two).join(",");
}

function clusters({ session, sides: [{ image }] }: World, sides: readonly Side[]): string {
  return image
    .map((_, cluster) => {
      const versions: number[] = [];
      let key = "";
      const put = (version: number | null | undefined): void => {
        if (version === null || version === undefined) {
          key += "-";
          return;
        }
        let at = versions.indexOf(version);
        if (at < 0) at = versions.push(version) - 1;
        key += at;
      };
      for (const side of sides) {
        put(side.image[cluster]);
        put(side.view?.[cluster]);
        put(side.prepared?.[cluster]);
        if (side.retained !== null) put(side.retained.image[cluster]);
        if (side.dirty[cluster] === true) key += "d";
      }
      put(session?.sent[cluster]);
      if (session?.differing?.[cluster] === true) key += "d";
      if (session?.older?.[cluster] === true) key += "o";
      return key;
    })
    .sort()
    .join(" ");
}
