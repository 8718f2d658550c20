/** DOM made and changed by plain functions. Nothing is ever parsed from text, so whatever an agent sends stays text. */

export type Child = Node | string;
type Attributes = Readonly<Record<string, string | undefined>>;

/** A new element; an attribute that is undefined is left out. */
export function element<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  attributes: Attributes = {},
  ...children: readonly Child[]
): HTMLElementTagNameMap[K] {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) if (value !== undefined) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

export function button(label: string, kind: "plain" | "main" | "danger", clicked: () => void): HTMLButtonElement {
  const made = element("button", { type: "button", class: `button ${kind}` }, label);
  made.addEventListener("click", clicked);
  return made;
}

/** Sets the text where it is another one: what stays as it is is neither painted again nor read out. */
export function setText(node: Element, text: string): void {
  if (node.textContent !== text) node.textContent = text;
}

/** A sentence of the agent's: ends as one, and what stands between backticks is set as code. */
export function prose(text: string): Child[] {
  const ended = text === "" || /[.!?:…]$/.test(text) ? text : `${text}.`;
  return ended.split("`").map((part, index) => (index % 2 === 0 ? part : element("code", {}, part)));
}

/** The same into `node`, where it is another text. */
export function setProse(node: Element, ...texts: readonly string[]): void {
  const told = texts.filter((text) => text !== "");
  fill(node, told, () => told.flatMap((text, index) => [index === 0 ? "" : " ", ...prose(text)]));
}

export function setClass(node: Element, name: string): void {
  if (node.className !== name) node.className = name;
}

const shownKeys = new WeakMap<Element, string>();

/** Gives `parent` new children where `shown`, all that they depend on, is not what it was at the last time. */
export function fill(parent: Element, shown: unknown, make: () => readonly Child[]): void {
  const key = JSON.stringify(shown);
  if (shownKeys.get(parent) === key) return;
  shownKeys.set(parent, key);
  parent.replaceChildren(...make());
}

/** A part of the page with a heading of its own, by which it can be found. */
export function section(id: string, title: string, ...children: readonly Child[]): HTMLElement {
  const heading = element("h2", { id: `${id}-title` }, title);
  return element("section", { "id": id, "class": "card", "aria-labelledby": heading.id }, heading, ...children);
}

export interface TableColumn {
  readonly title: string;
  readonly numeric?: boolean;
  /** Sentences, which take as many lines as they need. */
  readonly prose?: boolean;
}

/** A table that can be scrolled, also by the keyboard, where the window is narrower; its body is the caller's to fill. */
export function scrollingTable(
  label: string,
  columns: readonly TableColumn[],
): { readonly box: HTMLElement; readonly body: HTMLTableSectionElement } {
  const body = element("tbody");
  const titles = columns.map(({ title, numeric, prose: isProse }) => {
    const kind = numeric === true ? "numeric" : isProse === true ? "prose" : undefined;
    return element("th", { scope: "col", class: kind }, title);
  });
  const table = element("table", {}, element("thead", {}, element("tr", {}, ...titles)), body);
  const box = element("div", { "class": "scrolling", "tabindex": "0", "role": "region", "aria-label": label }, table);
  return { box, body };
}

/** `dt` and `dd` of each field. */
export function definitions(fields: readonly (readonly [name: string, value: Child])[]): HTMLElement[] {
  return fields.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value)));
}
