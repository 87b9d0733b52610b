// All tasks: where they are held, how often they are asked, how fast and how well they answer.

import { get, part } from "./api.js";
import { button, el, field, fill, scrolled } from "./dom.js";
import { count, duration, percent, rate, whole } from "./format.js";
import { followActivity, followEvents } from "./live.js";
import { session } from "./session.js";
import { code, refusal, tier, tile } from "./words.js";

const ROWS = 50;
const TIERS = ["materialised", "packed", "host", "disk", "store"];

const COLUMNS = [
  { name: "Task", key: (row) => row.task.name, cell: (row) => link(row.task.name) },
  {
    name: "Versions",
    number: true,
    key: (row) => row.task.versions.length,
    cell: (row) => whole(row.task.versions.length),
  },
  { name: "Beside live", cell: beside, hint: "other aliases, and whether requests are split or copied" },
  {
    name: "Held",
    key: (row) => TIERS.indexOf(heldAt(row)),
    cell: (row) => tier(heldAt(row)),
    hint: "the nearest tier that holds the live version",
  },
  {
    name: "Hits",
    number: true,
    key: (row) => row.seen?.hit_rate ?? -1,
    cell: (row) => percent(row.seen?.hit_rate),
    hint: "share of requests that found the delta on the device, since the replica that was asked started",
  },
  {
    name: "Requests/s",
    number: true,
    key: (row) => row.seen?.requests_per_second ?? -1,
    cell: (row) => rate(row.seen?.requests_per_second),
  },
  {
    name: "p99",
    number: true,
    key: (row) => row.seen?.p99_seconds ?? -1,
    cell: (row) => duration(row.seen?.p99_seconds),
  },
  {
    name: "Failed",
    number: true,
    key: (row) => row.seen?.failed_share ?? -1,
    cell: failed,
    hint: "share of answers with a status of 500 or more",
  },
];

export async function show(main, { query, signal }) {
  const page = new TasksPage(await get("v1/tasks", signal), query.get("q") ?? "", signal);
  fill(main, page.element);
  page.live();
}

class TasksPage {
  constructor(tasks, search, signal) {
    this.signal = signal;
    this.rows = new Map();
    this.sorted = { column: COLUMNS[0], descending: false };
    this.shown = ROWS;
    this.tiles = Object.fromEntries(["Tasks", "Requests/s", "Failed", "Replicas"].map((name) => [name, tile(name)]));
    this.search = el("input", {
      type: "search",
      value: search,
      placeholder: "Part of a name",
      on: { input: () => this.draw() },
    });
    this.body = el("tbody");
    this.heads = COLUMNS.map((column) => this.head(column));
    this.found = el("p", { class: "quiet", role: "status" });
    this.more = button("Show more", () => this.showMore());
    this.list = el("div");
    this.element = el(
      "div",
      {},
      el("h1", { tabindex: "-1" }, "Tasks"),
      el(
        "dl",
        { class: "tiles" },
        Object.values(this.tiles).map((one) => one.element),
      ),
      this.list,
    );
    this.take(tasks);
  }

  head(column) {
    const text = column.key ? button(column.name, () => this.sort(column), { class: "plain" }) : column.name;
    return el("th", { scope: "col", class: column.number ? "number" : null, title: column.hint }, text);
  }

  /** Take the list of tasks, and keep what is known of those that are still there. */
  take(tasks) {
    this.rows = new Map(tasks.map((task) => [task.name, { ...this.rows.get(task.name), task }]));
    this.tiles.Tasks.set(whole(tasks.length));
    if (tasks.length === 0) {
      this.table = null;
      fill(this.list, empty());
    } else if (!this.table) {
      this.table = el("table", {}, el("thead", {}, el("tr", {}, this.heads)), this.body);
      const above = el("div", { class: "bar-row" }, field("Search", this.search), this.found);
      fill(
        this.list,
        el("div", { class: "card" }, above, scrolled("Tasks", this.table), el("div", { class: "row" }, this.more)),
      );
    }
    this.draw();
  }

  live() {
    const reload = async () => {
      try {
        this.take(await get("v1/tasks", this.signal));
      } catch (error) {
        if (!this.signal.aborted) fill(this.found, refusal(error));
      }
    };
    followEvents(this.signal, (kind) => ["change", "again"].includes(kind) && reload());
    followActivity(this.signal, (activity) => this.see(activity));
  }

  see(activity) {
    const seen = new Map(activity.tasks.map((one) => [one.task, one]));
    for (const [name, row] of this.rows) row.seen = seen.get(name);
    const sum = (name) => activity.tasks.reduce((total, one) => total + (one[name] ?? 0), 0);
    const [asked, failing] = [sum("requests_per_second"), sum("failed_per_second")];
    this.tiles["Requests/s"].set(rate(asked), activity.seconds ? `over ${duration(activity.seconds)}` : "");
    this.tiles.Failed.set(asked ? percent(failing / asked) : "–", asked ? "of answers" : "no requests", failing > 0);
    this.seeReplicas(activity.replicas);
    if (this.table && !this.table.matches(":hover, :focus-within")) this.draw();
    else this.refresh();
  }

  seeReplicas(replicas) {
    this.tiles.Replicas.element.hidden = !replicas;
    if (!replicas) return;
    const ready = replicas.filter((one) => one.ready).length;
    const note = ready === replicas.length ? "ready" : `ready, of ${replicas.length}`;
    this.tiles.Replicas.set(whole(ready), note, ready < replicas.length);
  }

  sort(column) {
    const descending = this.sorted.column === column ? !this.sorted.descending : Boolean(column.number);
    this.sorted = { column, descending };
    this.draw();
  }

  showMore() {
    this.shown += ROWS;
    const first = this.drawn.length;
    this.draw();
    this.body.rows[first]?.querySelector("a")?.focus();
  }

  draw() {
    const wanted = this.search.value.trim().toLowerCase();
    const found = [...this.rows.values()].filter((row) => row.task.name.toLowerCase().includes(wanted));
    found.sort(this.order());
    this.drawn = found.slice(0, this.shown);
    for (const row of this.drawn) this.write(row);
    const same =
      this.body.rows.length === this.drawn.length && this.drawn.every((row, i) => this.body.rows[i] === row.line);
    if (!same)
      fill(
        this.body,
        this.drawn.map((row) => row.line),
      );
    const all =
      found.length === this.rows.size
        ? count(found.length, "task")
        : `${found.length} of ${count(this.rows.size, "task")}`;
    const note = found.length > this.shown ? `${all}, the first ${this.shown} shown` : all;
    if (this.found.textContent !== note) this.found.textContent = note;
    this.more.hidden = found.length <= this.shown;
    this.heads.forEach((head, i) => {
      if (COLUMNS[i] !== this.sorted.column) head.removeAttribute("aria-sort");
      else head.setAttribute("aria-sort", this.sorted.descending ? "descending" : "ascending");
    });
  }

  refresh() {
    for (const row of this.drawn) this.write(row);
  }

  order() {
    const { column, descending } = this.sorted;
    const sign = descending ? -1 : 1;
    return (a, b) => {
      const [first, second] = [column.key(a), column.key(b)];
      const difference = typeof first === "string" ? first.localeCompare(second) : first - second;
      return difference * sign || a.task.name.localeCompare(b.task.name);
    };
  }

  /** Fill a task's line, made once, so that focus stays where it is. */
  write(row) {
    if (!row.line) {
      row.cells = COLUMNS.map((column, i) =>
        el(i ? "td" : "th", { scope: i ? null : "row", class: column.number ? "number" : null }),
      );
      row.line = el("tr", {}, row.cells);
      fill(row.cells[0], COLUMNS[0].cell(row));
    }
    for (let i = 1; i < COLUMNS.length; i += 1) fill(row.cells[i], COLUMNS[i].cell(row));
  }
}

const link = (name) => el("a", { href: `#/tasks/${part(name)}` }, name);

function beside({ task }) {
  const others = Object.keys(task.aliases).filter((alias) => alias !== "live");
  const split = task.route && Object.keys(task.route).length > 1;
  const marks = [split ? "split" : null, task.shadow ? "copied" : null].filter(Boolean);
  return [
    others.map((alias) => el("span", { class: "chip" }, alias)),
    el("span", { class: "quiet" }, marks.join(", ")),
  ];
}

function heldAt({ seen }) {
  const held = Object.values(seen?.held ?? {});
  return TIERS.find((name) => held.includes(name)) ?? held[0];
}

function failed({ seen }) {
  const share = seen?.failed_share;
  return share ? el("span", { class: "alarm" }, percent(share)) : percent(share);
}

function empty() {
  const { key } = session();
  const limited = key && !key.tasks.includes("*");
  return el(
    "div",
    { class: "card" },
    el("h2", {}, "No tasks yet"),
    limited
      ? el("p", {}, `Your key is for the tasks ${key.tasks.join(", ")}, and there is none of these.`)
      : el("p", {}, "Cut a fine-tune to a delta and publish it. It appears here at once."),
    limited
      ? null
      : code("ken extract --base ./minilm --tuned ./minilm-trec --out trec.ken\nken publish trec trec.ken", "Commands"),
  );
}
