import { METRICS, type MetricName, type MetricRow } from "../../proto/metrics.ts";

/** One line of an exposition. `name` is the metric's: a histogram's parts have their `part`. */
export interface Sample {
  readonly name: MetricName;
  readonly part: "bucket" | "sum" | "count" | undefined;
  readonly labels: Readonly<Record<string, string>>;
  readonly value: number;
}

const SAMPLE = /^([a-zA-Z_:][a-zA-Z0-9_:]*)\{((?:[a-zA-Z_]\w*="(?:[^"\\\n]|\\["\\n])*",?)*)\} (\S+)$/;
const LABEL = /([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"/g;

/** The metric that a series of this name belongs to; undefined: there is none. */
export function metricOf(series: string): Pick<Sample, "name" | "part"> | undefined {
  if (series in METRICS && METRICS[series as MetricName].type !== "histogram") {
    return { name: series as MetricName, part: undefined };
  }
  const [, name, part] = /^(.*)_(bucket|sum|count)$/.exec(series) ?? [];
  if (name === undefined || !(name in METRICS) || METRICS[name as MetricName].type !== "histogram") return undefined;
  return { name: name as MetricName, part: part as "bucket" | "sum" | "count" };
}

/**
 * Reads an exposition as strictly as Prometheus does: every line has its form, every series is of the metric that was
 * announced last, has the labels that this is declared with, and comes once.
 */
export function parseExposition(text: string): Sample[] {
  if (!text.endsWith("\n")) throw new Error("the last line does not end");
  const seen = new Set<string>();
  let announced = "";
  return text
    .slice(0, -1)
    .split("\n")
    .flatMap((line) => {
      if (line.startsWith("#")) {
        const [, kind, name = "", rest] = /^# (HELP|TYPE) (\w+) (.+)$/.exec(line) ?? [];
        const row: MetricRow | undefined = METRICS[name as MetricName];
        if (kind === "TYPE" ? rest !== row?.type : kind !== "HELP") throw new Error(`not announced so: ${line}`);
        if (kind === "HELP" && seen.has(name)) throw new Error(`announced twice: ${line}`);
        seen.add(name);
        announced = name;
        return [];
      }
      const [, series = "", labelText = "", value = ""] = SAMPLE.exec(line) ?? [];
      const metric = metricOf(series);
      if (metric === undefined || metric.name !== announced) throw new Error(`a line of no metric: ${line}`);
      const labels = Object.fromEntries(
        [...labelText.matchAll(LABEL)].map(([, label = "", text = ""]) => [label, text]),
      );
      const expected = ["vm", ...METRICS[metric.name].labels, ...(metric.part === "bucket" ? ["le"] : [])];
      if (Object.keys(labels).join() !== expected.join())
        throw new Error(`other labels than ${expected.join(", ")}: ${line}`);
      const key = line.slice(0, line.lastIndexOf(" "));
      if (seen.has(key)) throw new Error(`twice: ${line}`);
      seen.add(key);
      const number = value === "+Inf" ? Infinity : Number(value);
      if (value === "" || Number.isNaN(number)) throw new Error(`no number: ${line}`);
      return [{ ...metric, labels, value: number }];
    });
}

/** The value of the one series of `name` whose labels include `labels`; undefined where there is none. */
export function valueOf(
  samples: readonly Sample[],
  name: MetricName,
  labels: Readonly<Record<string, string>> = {},
  part?: Sample["part"],
): number | undefined {
  const found = samples.filter(
    (sample) =>
      sample.name === name &&
      sample.part === part &&
      Object.entries(labels).every(([label, value]) => sample.labels[label] === value),
  );
  if (found.length > 1) throw new Error(`${found.length} series of ${name} fit`);
  return found[0]?.value;
}
