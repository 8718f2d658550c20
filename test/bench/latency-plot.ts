import type { Load } from "./fio.ts";
import type { Plot } from "./plot.ts";

/** What is rarer is left out: it is chance. */
const SHARE_MIN = 0.0001;

/** The share of requests that took longer than each latency, of all the loads of each series together. */
export function latencyPlot(
  workload: string,
  series: readonly { readonly name: string; readonly loads: readonly Load[] }[],
): Plot {
  return {
    name: `latency ${workload}`,
    title: `${workload}: share of requests that took longer`,
    x: { label: "latency, µs", scale: "log" },
    y: { label: "share of requests", scale: "log" },
    series: series.map(({ name, loads }) => ({ name, points: slowerThan(loads.flatMap((load) => load.latencies)) })),
  };
}

function slowerThan(latencies: Load["latencies"]): [number, number][] {
  const counts = new Map<number, number>();
  for (const [us, count] of latencies) counts.set(us, (counts.get(us) ?? 0) + count);
  const total = [...counts.values()].reduce((sum, count) => sum + count, 0);
  let slower = total;
  return [...counts]
    .sort(([left], [right]) => left - right)
    .map(([us, count]): [number, number] => {
      slower -= count;
      return [us, slower / total];
    })
    .filter(([, share]) => share >= SHARE_MIN);
}
