// One task: its versions and which of them answers, how they do, who changed what, and what each delta keeps.

import { Refusal, get, part, post, remove } from "./api.js";
import { confirmed } from "./ask.js";
import { button, el, field, fill, scrolled } from "./dom.js";
import { count, duration, percent, rate, short } from "./format.js";
import { historyList } from "./history.js";
import { keptSection } from "./kept.js";
import { followActivity, followEvents } from "./live.js";
import { RouteSection } from "./route.js";
import { may } from "./session.js";
import { copyButton, tier, tile } from "./words.js";

const WAIT_SECONDS = 10;

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
    this.versions = el("div");
    this.aliases = el("div");
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
      section("Versions", this.versions),
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
    this.lines = new Map();
    const lines = [...this.task.versions].reverse().map((digest) => this.versionLine(digest));
    const heads = [["Version"], ["Aliases"], ["Held"], ["Requests/s", 1], ["p99", 1], ["Failed", 1], [""]];
    const table = el(
      "table",
      {},
      el(
        "thead",
        {},
        el(
          "tr",
          {},
          heads.map(([text, number]) =>
            text ? el("th", { scope: "col", class: number && "number" }, text) : el("td"),
          ),
        ),
      ),
      el("tbody", {}, lines),
    );
    fill(this.versions, scrolled("Versions", table));
  }

  versionLine(digest) {
    const { task } = this;
    const aliases = Object.keys(task.aliases).filter((alias) => task.aliases[alias] === digest);
    const live = {
      rate: el("td", { class: "number" }),
      p99: el("td", { class: "number" }),
      failed: el("td", { class: "number" }),
    };
    this.lines.set(digest, live);
    this.writeVersion(digest);
    const unmixed = task.unmixed[digest];
    return el(
      "tr",
      {},
      el(
        "th",
        { scope: "row" },
        el("code", { title: digest }, short(digest)),
        " ",
        copyButton(() => digest, "Copy", { "aria-label": `Copy: ${short(digest)}` }),
      ),
      el(
        "td",
        {},
        aliases.map((alias) => el("span", { class: alias === "live" ? "chip live" : "chip" }, alias)),
      ),
      el("td", {}, tier(task.tiers[digest]), unmixed ? el("small", { class: "hint" }, `runs alone: ${unmixed}`) : null),
      live.rate,
      live.p99,
      live.failed,
      el("td", { class: "actions" }, this.versionActions(digest, aliases)),
    );
  }

  versionActions(digest, aliases) {
    if (!may("publish", this.name)) return null;
    const name = short(digest);
    return [
      aliases.includes("live")
        ? null
        : button("Make live", () => this.promote(digest, "live"), {
            class: "small",
            "aria-label": `Make live: ${name}`,
          }),
      button("Alias…", () => this.promote(digest), { class: "small", "aria-label": `Alias…: ${name}` }),
      button("Delete…", () => this.deleteVersion(digest), {
        class: "small danger quietly",
        "aria-label": `Delete…: ${name}`,
      }),
    ];
  }

  writeVersion(digest) {
    const line = this.lines.get(digest);
    const seen = this.seen.get(short(digest));
    line.rate.textContent = rate(seen?.requests_per_second);
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
    const lines = Object.entries(this.task.aliases).map(([alias, digest]) =>
      el(
        "tr",
        {},
        el("th", { scope: "row" }, el("span", { class: alias === "live" ? "chip live" : "chip" }, alias)),
        el("td", {}, el("code", { title: digest }, short(digest))),
        el(
          "td",
          { class: "actions" },
          may("publish", this.name)
            ? button("Roll back…", () => this.rollBack(alias), { class: "small", "aria-label": `Roll back…: ${alias}` })
            : null,
        ),
      ),
    );
    const heads = el(
      "thead",
      {},
      el("tr", {}, el("th", { scope: "col" }, "Alias"), el("th", { scope: "col" }, "Version"), el("td")),
    );
    fill(
      this.aliases,
      lines.length
        ? scrolled("Aliases", el("table", { class: "slim" }, heads, el("tbody", {}, lines)))
        : el("p", { class: "quiet" }, "No alias points at a version."),
    );
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

const overall = ({ seconds }) => (seconds ? `over ${duration(seconds)}` : "");

function section(title, content) {
  return el("section", { class: "card" }, el("h2", {}, title), content);
}
