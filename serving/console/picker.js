// Choosing tasks: one with its version, or many from a list.

import { button, el, field, fill, newId, select } from "./dom.js";
import { count, short } from "./format.js";

const DIGITS = /^[0-9a-f]{8,}$/;

/** A task and the version of it that is asked. `changed` is called after each change. */
export class Target {
  constructor(tasks, label, named, changed) {
    this.tasks = new Map(tasks.map((task) => [task.name, task]));
    this.changed = changed;
    const [name, version = ""] = named.split("@");
    const list = newId("tasks");
    this.input = el("input", {
      type: "text",
      value: name,
      list,
      spellcheck: "false",
      autocomplete: "off",
      on: { change: () => this.choose("") },
    });
    this.version = el("div");
    this.element = el(
      "div",
      { class: "columns", role: "group", "aria-label": label },
      field(label, this.input),
      this.version,
      el(
        "datalist",
        { id: list },
        tasks.map((task) => el("option", { value: task.name })),
      ),
    );
    this.choose(version, false);
  }

  /** Offer the task's versions, with `version` chosen, even if there is none of this name: the server says so then. */
  choose(version, told = true) {
    const task = this.tasks.get(this.input.value);
    const aliases = Object.keys(task?.aliases ?? {});
    const options = [
      ["", task?.route ? "By its route" : "Live"],
      ...aliases.filter((one) => task.route || one !== "live").map((one) => [one, one]),
      ...[...(task?.versions ?? [])].reverse().map((one) => [short(one), short(one)]),
    ];
    const chosen = options.some(([value]) => value === version) ? version : listed(version, task);
    if (!options.some(([value]) => value === chosen)) options.push([chosen, chosen]);
    this.choice = select(options, chosen, { on: { change: this.changed } });
    fill(this.version, field("Version", this.choice));
    if (told) this.changed();
  }

  /** The task, and its version where one was chosen, as paths name it. */
  get name() {
    return this.choice.value ? `${this.input.value.trim()}@${this.choice.value}` : this.input.value.trim();
  }

  get known() {
    return this.tasks.has(this.input.value);
  }
}

/** The version of a task that digits name, as it is listed; else what was named. */
function listed(named, task) {
  const found = DIGITS.test(named) ? (task?.versions ?? []).filter((one) => one.startsWith(named)) : [];
  return found.length === 1 ? short(found[0]) : named;
}

/** A list of tasks to tick, from `least` to `most`, with a search above it. `changed` is called after each change. */
export class Checklist {
  constructor(tasks, ticked, { least, most }, changed) {
    const names = new Set(tasks.map((task) => task.name));
    this.ticked = new Set(ticked.filter((name) => names.has(name)));
    this.least = least;
    this.most = most;
    this.changed = changed;
    this.told = el("p", { class: "quiet", role: "status" });
    this.boxes = tasks.map((task) => this.box(task.name));
    const search = el("input", { type: "search", on: { input: () => this.filter(search.value) } });
    this.element = el(
      "fieldset",
      {},
      el("legend", {}, "Tasks"),
      tasks.length > 8 ? field("Search", search) : null,
      el(
        "div",
        { class: "checks" },
        this.boxes.map((one) => one.label),
      ),
      el(
        "div",
        { class: "row" },
        button("Tick all shown", () => this.tick(true), { class: "small" }),
        button("Untick all", () => this.tick(false), { class: "small" }),
        this.told,
      ),
    );
    this.tell();
  }

  box(name) {
    const input = el("input", {
      type: "checkbox",
      checked: this.ticked.has(name),
      on: { change: () => this.take(name, input.checked) },
    });
    return { name, input, label: el("label", { class: "check" }, input, name) };
  }

  take(name, on) {
    if (on) this.ticked.add(name);
    else this.ticked.delete(name);
    this.tell();
    this.changed();
  }

  tick(on) {
    for (const { name, input, label } of this.boxes) {
      const wanted = on ? input.checked || (!label.hidden && this.ticked.size < this.most) : false;
      input.checked = wanted;
      if (wanted) this.ticked.add(name);
      else this.ticked.delete(name);
    }
    this.tell();
    this.changed();
  }

  filter(text) {
    for (const { name, label } of this.boxes) label.hidden = !name.toLowerCase().includes(text.trim().toLowerCase());
  }

  tell() {
    this.told.textContent = `${count(this.ticked.size, "task")} ticked. Tick ${this.least} to ${this.most}.`;
  }

  /** Whether as many are ticked as the server takes. */
  get ready() {
    return this.ticked.size >= this.least && this.ticked.size <= this.most;
  }

  get names() {
    return this.boxes.filter((one) => one.input.checked).map((one) => one.name);
  }
}
