/** Text tables: columns two spaces apart, as wide as their widest cell. */
import { stripVTControlCharacters } from "node:util";
import type { Paint } from "./output.ts";

export interface Column {
  readonly title: string;
  readonly align?: "left" | "right";
}

/** The table's lines: titles, then a line for each row. Cells may be painted. */
export function renderTable(columns: readonly Column[], rows: readonly (readonly string[])[], paint: Paint): string[] {
  const widths = columns.map(({ title }, index) => Math.max(title.length, ...rows.map((row) => cellWidth(row[index]))));
  const line = (cells: readonly string[]): string =>
    columns
      .map(({ align }, index) => {
        const cell = cells[index] ?? "";
        const padding = " ".repeat((widths[index] ?? 0) - cellWidth(cell));
        return align === "right" ? padding + cell : cell + padding;
      })
      .join("  ")
      .trimEnd();
  return [paint("heading", line(columns.map(({ title }) => title))), ...rows.map(line)];
}

function cellWidth(cell: string | undefined): number {
  return cell === undefined ? 0 : stripVTControlCharacters(cell).length;
}
