// How far tasks keep the same positions, against what chance gives, as KENviz counts it.

import { get } from "./api.js";
import { button, el, fill, scrolled, select } from "./dom.js";
import { Checklist } from "./picker.js";
import { refusal } from "./words.js";

const BOUNDS = { least: 2, most: 32 };
const FIRST = 8;
const VIEWS = [
  ["found", "Shared"],
  ["beyond", "Shared beyond chance"],
];

export async function show(main, { query, signal }) {
  const tasks = await get("v1/tasks", signal);
  if (tasks.length < 2) {
    fill(
      main,
      el("h1", { tabindex: "-1" }, "Overlap"),
      el("p", { class: "card" }, "Two tasks are needed to compare what their deltas keep."),
    );
    return;
  }
  const asked = query.get("tasks")?.split(",") ?? tasks.slice(0, FIRST).map((task) => task.name);
  const list = new Checklist(tasks, asked, BOUNDS, () => ready());
  const shown = el("div", { "aria-live": "polite" });
  let counting = false;
  const compare = async () => {
    counting = go.disabled = true;
    fill(shown, el("p", { class: "quiet" }, "Counting…"));
    history.replaceState(null, "", `#/overlap?${new URLSearchParams({ tasks: list.names.join(",") })}`);
    try {
      const found = await get(`v1/overlap?${new URLSearchParams({ tasks: list.names.join(",") })}`, signal);
      fill(shown, pictured(found));
    } catch (error) {
      if (!signal.aborted) fill(shown, refusal(error));
    } finally {
      counting = false;
      ready();
    }
  };
  const go = button("Compare", compare, { class: "primary" });
  const ready = () => (go.disabled = counting || !list.ready);
  ready();
  fill(
    main,
    el("h1", { tabindex: "-1" }, "Overlap"),
    el(
      "p",
      { class: "lead" },
      "The positions that two deltas keep both, as a share of those that at least one keeps. Large deltas share many by chance, so each share stands above what chance would give.",
    ),
    el("section", { class: "card" }, list.element, el("div", { class: "row" }, go)),
    shown,
  );
}

function pictured(found) {
  const left = Object.entries(found.left_out ?? {});
  const grid = el("div");
  const view = select(VIEWS, "found", {
    "aria-label": "What the cells show",
    on: { change: () => fill(grid, heatMap(found, view.value)) },
  });
  fill(grid, heatMap(found, "found"));
  return el(
    "section",
    { class: "card" },
    el("h2", {}, "What pairs of tasks share"),
    found.tasks.length > 1 ? [view, grid] : el("p", {}, "Fewer than two of these tasks keep positions."),
    left.length ? el("h3", {}, "Left out") : null,
    left.length
      ? el(
          "ul",
          {},
          left.map(([task, why]) => el("li", {}, el("strong", {}, task), `: ${why}`)),
        )
      : null,
  );
}

function heatMap({ tasks, shared, by_chance: byChance }, view) {
  const value = (i, j) => (view === "found" ? shared[i][j] : shared[i][j] - byChance[i][j]);
  const pairs = tasks.flatMap((_, i) => tasks.map((__, j) => (i === j ? 0 : Math.abs(value(i, j) ?? 0))));
  const most = Math.max(...pairs) || 1;
  const cell = (i, j) => {
    if (i === j) return el("td", { class: "number quiet" }, "·");
    const given = value(i, j);
    if (given === null || Number.isNaN(given)) return el("td", { class: "number quiet" }, "–");
    const title = `${tasks[i]} and ${tasks[j]}: ${number(shared[i][j])} found, ${number(byChance[i][j])} by chance`;
    const text = view === "found" ? number(given) : signed(given);
    return el(
      "td",
      { class: given < 0 ? "number tint less" : "number tint", title, style: { "--tint": Math.abs(given) / most } },
      text,
      view === "found" ? el("small", {}, number(byChance[i][j])) : null,
    );
  };
  const heads = tasks.map((task) => el("th", { scope: "col", class: "upright" }, el("span", {}, task)));
  const lines = tasks.map((task, i) =>
    el(
      "tr",
      {},
      el("th", { scope: "row" }, task),
      tasks.map((_, j) => cell(i, j)),
    ),
  );
  const legend =
    view === "found"
      ? "Above: shared. Below, smaller: by chance. The stronger the colour, the more they share."
      : "Shared, less what chance gives. Near zero, the tasks have nothing in common. Below zero, they share less than by chance.";
  return [
    scrolled(
      "Overlap",
      el("table", { class: "heat pairs" }, el("thead", {}, el("tr", {}, el("td"), heads)), el("tbody", {}, lines)),
    ),
    el("p", { class: "quiet" }, legend),
  ];
}

const number = (share) => share.toFixed(3);
const signed = (share) => `${share < 0 ? "−" : "+"}${Math.abs(share).toFixed(3)}`;
