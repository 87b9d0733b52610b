// What a version's delta keeps, layer by layer.

import { get } from "./api.js";
import { el, field, fill, scrolled, select } from "./dom.js";
import { bytes, count, percent, short, whole } from "./format.js";
import { groupsOf } from "./groups.js";
import { refusal } from "./words.js";

/** Folded until somebody asks: the server may have to read the delta for it. */
export function keptSection(page) {
  const shown = el("div");
  const choosing = el("div");
  const load = async (digest) => {
    fill(shown, el("p", { class: "quiet" }, "Counting…"));
    try {
      fill(shown, pictured(await get(`${page.path}/kept?version=${digest}`, page.signal)));
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

function pictured({ method, bytes: size, layers }) {
  const numbers = [...new Set(layers.map((one) => one.layer).filter((one) => one !== null))].sort((a, b) => a - b);
  const inside = groupsOf(
    layers.filter((one) => one.layer !== null),
    (one) => one.module,
  );
  const outside = layers.filter((one) => one.layer === null);
  const most = { positions: strongest(layers, "positions"), rank: strongest(layers, "rank") };
  const lines = [...inside].map(([module, tensors]) => line(module, numbers, tensors, most));
  return [
    el("p", {}, `Method ${method}, ${size === null ? "" : `a file of ${bytes(size)}, `}${amounts(layers)}.`),
    el(
      "p",
      { class: "quiet" },
      "Columns are layers. The stronger the colour, the larger the share of the tensor that is kept.",
    ),
    lines.length ? scrolled("Kept by layer", grid(numbers, lines)) : null,
    outside.length ? el("h3", {}, "Outside the layers") : null,
    outside.length ? scrolled("Kept outside the layers", rows(outside, most)) : null,
  ];
}

const strongest = (layers, unit) => Math.max(...layers.filter((one) => one.unit === unit).map((one) => one.share)) || 1;

/** How much is kept in all, in words. */
function amounts(layers) {
  const positions = layers.filter((one) => one.unit === "positions").reduce((sum, one) => sum + one.kept, 0);
  const shifted = layers.filter((one) => one.unit === "rank" && one.kept > 0).length;
  const parts = [
    shifted ? `${count(shifted, "matrix", "matrices")} shifted by the rank that is given` : null,
    positions ? `${count(positions, "position")} kept` : null,
  ];
  return parts.filter(Boolean).join(", ") || "nothing kept";
}

function grid(numbers, lines) {
  const heads = numbers.map((layer) => el("th", { scope: "col", class: "number" }, String(layer)));
  const head = el("tr", {}, el("th", { scope: "col" }, "Tensor"), heads);
  return el("table", { class: "heat" }, el("thead", {}, head), el("tbody", {}, lines));
}

function line(module, numbers, tensors, most) {
  const byLayer = new Map(tensors.map((one) => [one.layer, one]));
  const cells = numbers.map((layer) => cell(byLayer.get(layer), most));
  return el("tr", {}, el("th", { scope: "row" }, module), cells);
}

function rows(tensors, most) {
  const lines = tensors.map((one) => el("tr", {}, el("th", { scope: "row" }, one.module), cell(one, most)));
  return el("table", { class: "heat" }, el("tbody", {}, lines));
}

function cell(one, most) {
  if (!one) return el("td", { class: "number quiet" }, "–");
  const ranked = one.unit === "rank";
  const title = `${one.module}: ${whole(one.kept)} of ${whole(one.of)} ${ranked ? "ranks" : "positions"}, ${bytes(one.bytes)}`;
  const text = ranked && one.kept ? `rank ${one.kept}` : percent(one.share);
  return el("td", { class: "number tint", title, style: { "--tint": one.share / most[one.unit] } }, text);
}
