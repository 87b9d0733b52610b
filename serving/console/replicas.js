// The replicas, how tasks are placed on them, and changes of task as they happen.

import { Refusal, get } from "./api.js";
import { el, fill, svg } from "./dom.js";
import { bytes, clock, duration, percent, rate, span, whole } from "./format.js";
import { groupsOf } from "./groups.js";
import { every, followActivity, followEvents } from "./live.js";
import { seesEveryTask } from "./session.js";
import { Table, cellsOf } from "./table.js";
import { refusal } from "./words.js";

const LOOK_SECONDS = 5;
const WINDOW_SECONDS = 60;
const LATEST = 12;
const TONES = 6;
const OTHER = "@other"; // weights of no task

const COLUMNS = [
  ["Replica", (one) => one.name],
  ["State", stateOf],
  ["Requests/s", (one) => rate(one.seen?.requests_per_second), true],
  ["In flight", (one) => whole(one.in_flight), true],
  ["Waiting", (one) => whole(one.seen?.waiting_inputs), true],
  ["Mixed", (one) => percent(one.seen?.mixed_share), true, "share of forward passes that answered several tasks"],
  ["Swaps/s", (one) => rate(one.seen?.swaps_per_second), true, "changes of the weights from one task to another"],
  ["Tasks held", (one) => whole(one.held_tasks), true, "tasks on the device"],
  ["Memory", memoryOf, true, "of the base, and of deltas"],
  ["Up", (one) => span(one.seen?.up_seconds), true],
];

export async function show(main, { signal }) {
  const page = new ReplicasPage(signal);
  await page.look();
  fill(main, page.element);
  page.live();
}

class ReplicasPage {
  constructor(signal) {
    this.signal = signal;
    this.replicas = [];
    this.seen = new Map();
    this.swaps = [];
    this.table = new Table(
      "Load of the replicas",
      COLUMNS.map(([text, , number, hint]) => ({ text, number, hint })),
    );
    this.unread = el("div");
    this.facts = el("dl", { class: "facts-list" });
    this.strips = el("div", { class: "strips", "aria-hidden": "true" });
    this.latest = el("div");
    this.swapped = new Table("The latest swaps", ["When", "Replica", "From", "To", { text: "Took", number: true }]);
    this.element = el(
      "div",
      {},
      el("h1", { tabindex: "-1" }, "Replicas"),
      el("section", { class: "card" }, el("h2", {}, "Load"), this.table.element, this.unread),
      el("section", { class: "card" }, el("h2", {}, "Base and placement"), this.facts),
      el(
        "section",
        { class: "card" },
        el("h2", {}, "Swaps"),
        el(
          "p",
          { class: "quiet" },
          "The weights in memory change from one task to another, bit for bit. Forward passes that mix tasks need no swap.",
        ),
        this.strips,
        this.latest,
      ),
    );
  }

  /** Ask which replicas there are, and how they are placed. */
  async look() {
    const [replicas, base, ready] = await Promise.all([
      get("v1/replicas", this.signal),
      get("v1/base", this.signal),
      this.readiness(),
    ]);
    this.replicas = replicas.sort((a, b) => a.name.localeCompare(b.name));
    this.draw();
    fill(this.facts, this.told(base, ready));
  }

  async readiness() {
    try {
      return await get("readyz", this.signal);
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      return { status: error.detail };
    }
  }

  told(base, ready) {
    const placement = ready.placement;
    const one = (name, value, alarm = false) =>
      el("div", {}, el("dt", {}, name), el("dd", { class: alarm ? "alarm" : null }, value));
    return [
      one("Base", `${base.name}, ${bytes(base.bytes)}`),
      one("Fingerprint", el("code", { title: base.fingerprint }, base.fingerprint.slice(0, 16))),
      base.trouble ? one("Base file", base.trouble, true) : null,
      one("Asked", base.replica),
      one(
        "Placement",
        placement?.epoch
          ? `epoch ${placement.epoch}, ${placement.enforced ? "requests go by it" : "requests do not go by it"}`
          : "none yet",
      ),
      placement?.trouble ? one("Why not", placement.trouble) : null,
      one(
        "Store",
        ready.store ? (ready.store.trouble ?? "answers") : (ready.status ?? "unknown"),
        Boolean(ready.store?.trouble),
      ),
    ];
  }

  live() {
    every(LOOK_SECONDS, this.signal, async () => {
      try {
        await this.look();
        fill(this.unread);
      } catch (error) {
        if (!this.signal.aborted) fill(this.unread, refusal(error));
      }
    });
    followActivity(this.signal, (activity) => {
      if (!activity.replicas) return;
      this.seen = new Map(activity.replicas.map((one) => [one.replica, one]));
      this.draw();
    });
    followEvents(this.signal, (kind, told) => this.heard(kind, told));
    every(1, this.signal, () => this.drawStrips());
    this.drawLatest();
  }

  heard(kind, told) {
    if (kind === "swap") {
      this.swaps.push(told);
      const oldest = Date.now() / 1000 - 2 * WINDOW_SECONDS;
      this.swaps = this.swaps.filter((one, i) => one.at > oldest || i >= this.swaps.length - LATEST);
      this.drawLatest();
    } else if (kind !== "change") {
      this.look().catch(() => {}); // the next look says what is wrong
    }
  }

  draw() {
    this.table.show(
      this.replicas.map((one) => one.name),
      () => {
        const cells = cellsOf(COLUMNS.map(([, , number]) => number));
        return { line: el("tr", {}, cells), cells };
      },
    );
    for (const one of this.replicas) {
      const { cells } = this.table.lines.get(one.name);
      COLUMNS.forEach(([, cell], i) => fill(cells[i], cell({ ...one, seen: this.seen.get(one.name) })));
    }
  }

  /** The last minute of each replica, a colour a task. */
  drawStrips() {
    const now = Date.now() / 1000;
    const byReplica = groupsOf(
      this.swaps.filter((one) => one.at),
      (one) => one.replica,
    );
    const strips = [...byReplica].map(([replica, swaps]) => {
      const parts = swaps.map((one, i) => this.part(one, swaps[i + 1]?.at ?? now, now));
      return el(
        "div",
        { class: "strip" },
        el("span", {}, replica),
        svg("svg", { viewBox: `0 0 ${WINDOW_SECONDS} 1`, preserveAspectRatio: "none" }, parts),
      );
    });
    fill(
      this.strips,
      strips,
      strips.length
        ? el(
            "p",
            { class: "quiet" },
            `The last ${WINDOW_SECONDS} s. Where nothing is drawn, the weights are the base's.`,
          )
        : null,
    );
  }

  part({ at, to }, until, now) {
    const start = Math.max(0, at - now + WINDOW_SECONDS);
    const end = Math.max(0, until - now + WINDOW_SECONDS);
    if (!to || end <= start) return null;
    return svg(
      "rect",
      { x: start, y: 0, width: end - start, height: 1, class: `tone${toneOf(to)}` },
      svg("title", {}, to),
    );
  }

  drawLatest() {
    const latest = this.swaps.slice(-LATEST).reverse();
    if (latest.length === 0) {
      const told = seesEveryTask() ? "None since this page was opened." : "They are told to keys of every task.";
      fill(this.latest, el("p", { class: "quiet" }, told));
      return;
    }
    this.swapped.show(latest, (one) => ({ line: el("tr", {}, this.said(one)) }));
    if (!this.latest.contains(this.swapped.element)) fill(this.latest, this.swapped.element);
  }

  said({ at, replica, from, to, seconds, skipped }) {
    if (skipped)
      return el("td", { colspan: "5", class: "quiet" }, `${replica}: ${skipped} more, too many to tell one by one`);
    return [
      el("td", {}, clock(at)),
      el("td", {}, replica),
      el("td", {}, weightsOf(from)),
      el("td", {}, weightsOf(to)),
      el("td", { class: "number" }, duration(seconds)),
    ];
  }
}

function stateOf(one) {
  const trouble = one.seen?.trouble ?? [];
  const [text, tone] = one.silent_seconds
    ? [`silent for ${span(one.silent_seconds)}`, "far"]
    : one.ready === false
      ? ["not ready", "mid"]
      : ["ready", "good"];
  return [
    el("span", { class: `tier ${tone}` }, text),
    [trouble].flat().map((words) => el("small", { class: "alarm block" }, words)),
  ];
}

function memoryOf({ seen }) {
  const { base, ...tiers } = seen?.bytes_by_tier ?? {};
  if (base === undefined) return "–";
  const deltas = (tiers.packed ?? 0) + (tiers.materialised ?? 0);
  const parts = Object.entries(tiers).map(([name, count]) => `${name} ${bytes(count)}`);
  return el("span", { title: parts.join(", ") }, `${bytes(base)} + ${bytes(deltas)}`);
}

function weightsOf(task) {
  if (task === null) return el("span", { class: "quiet" }, "base");
  if (task === OTHER) return el("span", { class: "quiet" }, "a merge, or a version on trial");
  return el("span", { class: `chip tone${toneOf(task)}` }, task);
}

const tones = new Map();

/** One of a few colours, the same for a task each time; neighbours in time seldom share one. */
function toneOf(task) {
  if (!tones.has(task)) tones.set(task, tones.size % TONES);
  return tones.get(task);
}
