// One task: its versions and which of them answers, how they do, who changed what, and what each delta keeps.

import { Refusal, get, part, post, remove } from "./api.js";
import { confirmed } from "./ask.js";
import { button, el, field, fill } from "./dom.js";
import { count, duration, percent, rate, short } from "./format.js";
import { historyList } from "./history.js";
import { keptSection } from "./kept.js";
import { followActivity, followEvents } from "./live.js";
import { RouteSection } from "./route.js";
import { may } from "./session.js";
import { Table, cellsOf } from "./table.js";
import { copyButton, tier, tile } from "./words.js";

const WAIT_SECONDS = 10;
const VERSION_HEADS = [
  "Version",
  "Aliases",
  "Held",
  { text: "Requests/s", number: true },
  { text: "p99", number: true },
  { text: "Failed", number: true },
  null,
];

export async function show(main, { name, signal }) {
  const page = new TaskPage(name, signal);
  await page.reload();
  fill(main, page.element);
  page.live();
}

class TaskPage {
  constructor(name, signal) {
    this.name = name;
    this.path = `v1/tasks/${part(name)}`;
    this.signal = signal;
    this.seen = new Map();
    this.tiles = Object.fromEntries(["Requests/s", "p50", "p99", "Failed", "Hits"].map((one) => [one, tile(one)]));
    this.versions = new Table("Versions", VERSION_HEADS);
    this.aliases = el("div");
    this.pointers = new Table("Aliases", ["Alias", "Version", null], { class: "slim" });
    this.past = el("div");
    this.route = new RouteSection(this);
    this.kept = keptSection(this);
    this.element = el(
      "div",
      {},
      el(
        "div",
        { class: "head" },
        el(
          "div",
          {},
          el("p", { class: "crumb" }, el("a", { href: "#/tasks" }, "Tasks")),
          el("h1", { tabindex: "-1" }, name),
        ),
        el(
          "div",
          { class: "row" },
          el("a", { class: "button primary", href: `#/playground?task=${part(name)}` }, "Try it"),
          may("admin", name) ? button("Delete task…", () => this.deleteTask(), { class: "danger quietly" }) : null,
        ),
      ),
      el(
        "dl",
        { class: "tiles" },
        Object.values(this.tiles).map((one) => one.element),
      ),
      section("Versions", this.versions.element),
      section("Aliases", this.aliases),
      section("Route", this.route.element),
      section("What a delta keeps", this.kept),
      section("History", this.past),
    );
  }

  /** Ask for all that does not change by itself. */
  async reload() {
    const [task, history] = await Promise.all([get(this.path, this.signal), get(`${this.path}/history`, this.signal)]);
    this.task = task;
    this.drawVersions();
    this.drawAliases();
    this.route.take(task);
    fill(this.past, historyList(history));
    const hits = Object.values(task.hits).reduce((sum, one) => sum + one, 0);
    this.tiles.Hits.set(
      percent(task.hit_rate),
      hits ? `of ${count(hits, "request")} to ${task.replica}` : "no requests yet",
    );
  }

  /** Ask again; where that fails, what is shown stays until the next time. */
  async refresh() {
    try {
      await this.reload();
    } catch (error) {
      if (error.status === 404) location.hash = "#/tasks";
    }
  }

  live() {
    followEvents(this.signal, async (kind, told) => {
      if (kind !== "again" && !(kind === "change" && told.task === this.name)) return;
      await this.refresh();
    });
    followActivity(this.signal, (activity) => this.see(activity));
  }

  see(activity) {
    const own = activity.tasks.find((one) => one.task === this.name);
    this.tiles["Requests/s"].set(rate(own?.requests_per_second), overall(activity));
    this.tiles.p50.set(duration(own?.p50_seconds), "half are faster");
    this.tiles.p99.set(duration(own?.p99_seconds), "99 of 100 are faster");
    this.tiles.Failed.set(percent(own?.failed_share), "of answers", own?.failed_share > 0);
    this.seen = new Map(activity.versions.filter((one) => one.task === this.name).map((one) => [one.version, one]));
    for (const digest of this.task.versions) this.writeVersion(digest);
    this.route.see(
      this.seen,
      activity.shadows.filter((one) => one.task === this.name),
    );
  }

  /** Make a change, and show what is now. Gives what to announce: how far the change has spread. */
  async change(work, told) {
    const answer = await work();
    const pending = answer?.pending ?? [];
    await this.refresh();
    return pending.length ? `${told}. Not yet known to: ${pending.join(", ")}` : told;
  }

  /** `work`, but only if nobody has changed the task since the question about it was put. */
  ifUnchanged(work) {
    const asked = this.task.revision;
    return async (insists) => {
      const [newest] = await get(`${this.path}/history`, this.signal);
      if (newest?.revision > asked) {
        await this.refresh();
        throw new Refusal({
          title: "Changed meanwhile",
          detail: `${newest.who} has changed ${this.name} since this question was put. Nothing was done. Cancel, look at what holds now, and ask again.`,
          status: 0,
        });
      }
      return work(insists);
    };
  }

  // Versions

  drawVersions() {
    const newestFirst = [...this.task.versions].reverse();
    this.versions.show(newestFirst, (digest) => this.versionLine(digest));
    for (const digest of newestFirst) {
      this.nameVersion(digest);
      this.writeVersion(digest);
    }
  }

  versionLine(digest) {
    const name = short(digest);
    const cells = cellsOf(VERSION_HEADS.map((head) => head?.number));
    const [version, aliases, held, asked, p99, failed, actions] = cells;
    const makeLive = this.action("Make live", name, () => this.promote(digest, "live"));
    fill(
      version,
      el("code", { title: digest }, name),
      " ",
      copyButton(() => digest, "Copy", { "aria-label": `Copy: ${name}` }),
    );
    actions.classList.add("actions");
    if (may("publish", this.name)) {
      fill(
        actions,
        makeLive,
        this.action("Alias…", name, () => this.promote(digest)),
        this.action("Delete…", name, () => this.deleteVersion(digest), "danger quietly"),
      );
    }
    return { line: el("tr", {}, cells), aliases, held, asked, p99, failed, makeLive };
  }

  /** A button in a table's line, with the line's name for those who do not see it. */
  action(text, name, click, tone = "") {
    return button(text, click, { class: `small ${tone}`.trim(), "aria-label": `${text}: ${name}` });
  }

  /** Write what a change of the task may change. */
  nameVersion(digest) {
    const { task } = this;
    const { aliases, held, makeLive } = this.versions.lines.get(digest);
    const named = Object.keys(task.aliases).filter((alias) => task.aliases[alias] === digest);
    const unmixed = task.unmixed[digest];
    fill(aliases, named.map(chip));
    fill(held, tier(task.tiers[digest]), unmixed ? el("small", { class: "hint" }, `runs alone: ${unmixed}`) : null);
    makeLive.hidden = named.includes("live");
  }

  writeVersion(digest) {
    const line = this.versions.lines.get(digest);
    const seen = this.seen.get(short(digest));
    line.asked.textContent = rate(seen?.requests_per_second);
    line.p99.textContent = duration(seen?.p99_seconds);
    fill(line.failed, el("span", { class: seen?.failed_share ? "alarm" : null }, percent(seen?.failed_share)));
  }

  promote(digest, alias = null) {
    const named = el("input", {
      required: true,
      value: alias ?? "canary",
      pattern: "[A-Za-z0-9][A-Za-z0-9_.\\-]*",
      spellcheck: "false",
    });
    return confirmed({
      title: alias ? `Make ${short(digest)} live?` : `Point an alias at ${short(digest)}`,
      text: alias
        ? "Requests that name no version are answered by it, unless a route says otherwise. Requests under way are not affected."
        : "Requests to the alias are answered by this version.",
      content: alias ? null : field("Alias", named, `Aliases so far: ${Object.keys(this.task.aliases).join(", ")}`),
      does: alias ? "Make live" : "Point alias",
      insist: { status: 409, does: "Do it all the same" },
      work: (insists) => {
        const body = { digest, alias: named.value, wait: WAIT_SECONDS, allow_other_labels: insists };
        return this.change(() => post(`${this.path}/promote`, body), `${named.value} points at ${short(digest)} now`);
      },
    });
  }

  deleteVersion(digest) {
    return confirmed({
      title: `Delete version ${short(digest)}?`,
      text: "It answers no more, and cannot be made live again unless it is published again.",
      does: "Delete version",
      danger: true,
      insist: { status: 409, does: "Delete it all the same" },
      work: (insists) => {
        const path = `${this.path}/versions/${digest}?wait=${WAIT_SECONDS}${insists ? "&force=true" : ""}`;
        return this.change(() => remove(path), `Version ${short(digest)} is deleted`);
      },
    });
  }

  // Aliases

  drawAliases() {
    const aliases = Object.entries(this.task.aliases);
    this.pointers.show(
      aliases.map(([alias]) => alias),
      (alias) => this.aliasLine(alias),
    );
    for (const [alias, digest] of aliases) {
      fill(this.pointers.lines.get(alias).version, el("code", { title: digest }, short(digest)));
    }
    if (aliases.length === 0) fill(this.aliases, el("p", { class: "quiet" }, "No alias points at a version."));
    else if (!this.aliases.contains(this.pointers.element)) fill(this.aliases, this.pointers.element);
  }

  aliasLine(alias) {
    const cells = cellsOf([false, false, false]);
    const [name, version, actions] = cells;
    fill(name, chip(alias));
    actions.classList.add("actions");
    if (may("publish", this.name)) fill(actions, this.action("Roll back…", alias, () => this.rollBack(alias)));
    return { line: el("tr", {}, cells), version };
  }

  rollBack(alias) {
    return confirmed({
      title: `Roll ${alias} back?`,
      text: `${alias} points at ${short(this.task.aliases[alias])} now. It goes back to the version that it pointed at before.`,
      does: "Roll back",
      work: this.ifUnchanged(() =>
        this.change(() => post(`${this.path}/rollback`, { alias, wait: WAIT_SECONDS }), `${alias} is rolled back`),
      ),
    });
  }

  deleteTask() {
    return confirmed({
      title: `Delete ${this.name} and all its versions?`,
      text: "Requests to it get 404 from then on. Its history stays.",
      does: "Delete task",
      danger: true,
      insist: { status: 409, does: "Delete it all the same" },
      work: async (insists) => {
        await remove(`${this.path}?wait=${WAIT_SECONDS}${insists ? "&force=true" : ""}`);
        location.hash = "#/tasks";
        return `Task ${this.name} is deleted`;
      },
    });
  }
}

const chip = (alias) => el("span", { class: alias === "live" ? "chip live" : "chip" }, alias);
const overall = ({ seconds }) => (seconds ? `over ${duration(seconds)}` : "");

function section(title, content) {
  return el("section", { class: "card" }, el("h2", {}, title), content);
}
