// What a version's delta keeps, layer by layer.

import { getIfThere } from "./api.js";
import { el, field, fill, scrolled, select } from "./dom.js";
import { bytes, percent, short, whole } from "./format.js";
import { refusal } from "./words.js";

/** Folded until somebody asks: the server may have to read the delta for it. */
export function keptSection(page) {
  const shown = el("div");
  const choosing = el("div");
  const load = async (digest) => {
    fill(shown, el("p", { class: "quiet" }, "Counting…"));
    try {
      const kept = await getIfThere(`${page.path}/kept?version=${digest}`, page.signal);
      fill(shown, kept?.layers ? pictured(kept) : el("p", { class: "quiet" }, "This server does not tell it."));
    } catch (error) {
      if (!page.signal.aborted) fill(shown, refusal(error));
    }
  };
  const open = () => {
    if (!details.open) return;
    const { aliases, versions } = page.task;
    const named = (digest) => Object.keys(aliases).filter((alias) => aliases[alias] === digest);
    const options = [...versions].reverse().map((digest) => [digest, [short(digest), ...named(digest)].join(" · ")]);
    const choice = select(options, aliases.live ?? versions.at(-1), { on: { change: () => load(choice.value) } });
    fill(choosing, field("Version", choice));
    load(choice.value);
  };
  const details = el(
    "details",
    { on: { toggle: open } },
    el("summary", {}, "Count it, layer by layer"),
    choosing,
    shown,
  );
  return details;
}

function pictured(kept) {
  const { layers, unit, method } = kept;
  const total = layers.reduce((sum, one) => sum + one.kept, 0);
  const size = layers.reduce((sum, one) => sum + (one.bytes ?? 0), 0);
  const numbers = [...new Set(layers.map((one) => one.layer).filter((one) => one !== null))].sort((a, b) => a - b);
  const modules = [...new Set(layers.filter((one) => one.layer !== null).map((one) => one.module))];
  const rest = layers.filter((one) => one.layer === null);
  const most = Math.max(...layers.map((one) => one.share ?? 0)) || 1;
  const found = new Map(layers.map((one) => [`${one.layer} ${one.module}`, one]));
  const what = unit === "rank" ? "ranks" : "positions";
  return [
    el(
      "p",
      {},
      `Method ${method}: ${whole(total)} ${what} in ${bytes(size)}. A darker cell keeps a larger share of its matrix.`,
    ),
    numbers.length ? scrolled("Kept by layer", grid(numbers, modules, found, most, what)) : null,
    rest.length ? el("h3", {}, "Outside the layers") : null,
    rest.length
      ? el(
          "table",
          { class: "slim" },
          el(
            "tbody",
            {},
            rest.map((one) => el("tr", {}, el("th", { scope: "row" }, one.module), cell(one, most, what))),
          ),
        )
      : null,
  ];
}

function grid(numbers, modules, found, most, what) {
  const heads = modules.map((module) => el("th", { scope: "col" }, module));
  const lines = numbers.map((layer) =>
    el(
      "tr",
      {},
      el("th", { scope: "row" }, String(layer)),
      modules.map((module) => cell(found.get(`${layer} ${module}`), most, what)),
    ),
  );
  return el(
    "table",
    { class: "heat" },
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Layer"), heads)),
    el("tbody", {}, lines),
  );
}

function cell(one, most, what) {
  if (!one) return el("td", { class: "number quiet" }, "–");
  const title = `${one.module}: ${whole(one.kept)} of ${whole(one.of)} ${what}, ${bytes(one.bytes)}`;
  return el(
    "td",
    { class: "number tint", title, style: { "--tint": (one.share ?? 0) / most } },
    what === "ranks" ? whole(one.kept) : percent(one.share),
  );
}
