// A table that is written again and again. Its elements stay, and so do focus and the place that it is scrolled to.

import { el, scrolled } from "./dom.js";

export class Table {
  /** `heads` are of text, of `{text, number, hint}`, or null above what needs no name. */
  constructor(label, heads, attributes = {}) {
    this.lines = new Map();
    this.body = el("tbody");
    this.element = scrolled(label, el("table", attributes, el("thead", {}, el("tr", {}, heads.map(head))), this.body));
  }

  /** Show a line for each key, in this order. `make(key)` makes a new one: `{line}`, and what is filled in later. */
  show(keys, make) {
    for (const [key, { line }] of this.lines) {
      if (keys.includes(key)) continue;
      line.remove();
      this.lines.delete(key);
    }
    keys.forEach((key, i) => {
      if (!this.lines.has(key)) this.lines.set(key, make(key));
      const { line } = this.lines.get(key);
      if (this.body.rows[i] !== line) this.body.insertBefore(line, this.body.rows[i] ?? null);
    });
  }
}

function head(one) {
  if (one === null) return el("td");
  const { text, number, hint } = one.text ? one : { text: one };
  return el("th", { scope: "col", class: number ? "number" : null, title: hint }, text);
}

/** A line's cells, to be filled: the first is its name. `numbers` says which hold numbers. */
export const cellsOf = (numbers) =>
  numbers.map((number, i) => el(i ? "td" : "th", { scope: i ? null : "row", class: number ? "number" : null }));
