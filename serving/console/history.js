// Who changed what and when, in words.

import { el } from "./dom.js";
import { ago, moment, percent, short } from "./format.js";

const FIRST = 10;

/** A task's history, newest first; older entries are folded away. */
export function historyList(entries) {
  if (entries.length === 0) return el("p", { class: "quiet" }, "Nothing was changed yet.");
  const items = entries.map(item);
  const rest = items.slice(FIRST);
  return [
    el("ol", { class: "history" }, items.slice(0, FIRST)),
    rest.length
      ? el("details", {}, el("summary", {}, `${rest.length} older`), el("ol", { class: "history" }, rest))
      : null,
  ];
}

function item(entry) {
  return el(
    "li",
    {},
    el("span", { class: "what" }, said(entry)),
    el(
      "span",
      { class: "quiet" },
      entry.who,
      ", ",
      el("time", { datetime: new Date(entry.when * 1000).toISOString(), title: moment(entry.when) }, ago(entry.when)),
    ),
    entry.other_labels
      ? el("small", { class: "hint" }, `Another form of answers was allowed: ${entry.other_labels}`)
      : null,
  );
}

function said(entry) {
  const {
    action,
    alias,
    digest,
    previous,
    route,
    previous_route: before,
    shadow,
    previous_shadow: shadowBefore,
  } = entry;
  if (action.includes("route"))
    return [
      verb(action),
      ": ",
      split(route, shadow),
      before || shadowBefore ? [" Before: ", split(before, shadowBefore)] : null,
    ];
  return [
    verb(action),
    alias ? [" ", el("span", { class: alias === "live" ? "chip live" : "chip" }, alias)] : null,
    digest ? [" ", el("code", { title: digest }, short(digest))] : null,
    previous && previous !== digest ? [", before ", el("code", { title: previous }, short(previous))] : null,
  ];
}

/** A route's shares in words. */
function split(weights, shadow) {
  const total = Object.values(weights ?? {}).reduce((sum, one) => sum + one, 0);
  const shares = Object.entries(weights ?? {}).map(([target, weight]) => `${short(target)} ${percent(weight / total)}`);
  return `${shares.length ? shares.join(", ") : "all to live"}${shadow ? `, copies to ${short(shadow)}` : ""}.`;
}

const SAID = {
  publish: "Published",
  promote: "Promoted",
  rollback: "Rolled back",
  route: "Route",
  "rollback-route": "Route, rolled back",
  delete: "Deleted",
  "delete-version": "Deleted",
};

const verb = (action) => SAID[action] ?? action;
