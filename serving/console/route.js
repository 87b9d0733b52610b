// How a task's requests are split over its versions, and how each of these does meanwhile.

import { post, put, remove } from "./api.js";
import { confirmed } from "./ask.js";
import { button, el, field, fill, newId, select } from "./dom.js";
import { duration, percent, rate, short } from "./format.js";
import { may } from "./session.js";
import { WHOLE, sharesOf, weightsOf, withShare } from "./shares.js";

const WAIT = "wait=10";

export class RouteSection {
  constructor(page) {
    this.page = page;
    this.changeable = may("publish", page.name);
    this.seen = new Map();
    this.edited = false;
    this.moved = false;
    this.lines = el("div", { class: "split" });
    this.shadow = el("div");
    this.agreement = el("div");
    this.actions = el("div", { class: "row" });
    this.element = el("div", {}, this.lines, this.shadow, this.agreement, this.actions);
  }

  /** Show the task's route, but for what somebody is just changing here. */
  take(task) {
    this.task = task;
    if (!this.edited) {
      this.reset();
    } else if (!this.moved) {
      const added = Object.entries(this.shares).filter(([, share]) => share === 0);
      this.shares = { ...Object.fromEntries(added), ...sharesOf(this.task.route ?? { live: 1 }) };
      this.draw();
    }
  }

  reset() {
    this.edited = this.moved = false;
    this.shares = sharesOf(this.task.route ?? { live: 1 });
    this.copies = this.task.shadow ?? "";
    this.draw();
  }

  see(seen, shadows) {
    this.seen = seen;
    for (const write of this.writers ?? []) write();
    fill(this.agreement, shadows.map(agreementOf));
  }

  draw() {
    this.writers = [];
    fill(
      this.lines,
      Object.keys(this.shares).map((target) => this.line(target)),
      this.changeable ? this.adding() : null,
      this.changeable && this.writers.length > 1
        ? el("small", { class: "hint" }, "A version with 0 % leaves the split.")
        : null,
    );
    fill(this.shadow, this.shadowField());
    fill(this.actions, this.changeable ? this.buttons() : null);
  }

  /** The weights to send: those of the route, exact to the last request, unless a share was moved here. */
  get weights() {
    return this.moved ? weightsOf(this.shares) : (this.task.route ?? { live: 1 });
  }

  /** A target's part of all requests. */
  partOf(target) {
    const weights = this.weights;
    return (weights[target] ?? 0) / Object.values(weights).reduce((sum, one) => sum + one, 0);
  }

  digestOf(target) {
    return this.task.aliases[target] ?? this.task.versions.find((one) => one === target || one.startsWith(target));
  }

  /** A version's share, as a slider and as a number, and how the version does. */
  line(target) {
    const id = newId("share");
    const name = short(target);
    const digest = this.digestOf(target);
    const live = el("span", { class: "quiet" });
    const only = !this.changeable || Object.keys(this.shares).length === 1;
    const slider = el("input", {
      type: "range",
      min: "0",
      max: "100",
      step: "1",
      id,
      disabled: only,
      on: { input: () => this.set(target, slider.valueAsNumber * 10) },
    });
    const number = el("input", {
      type: "number",
      min: "0",
      max: "100",
      step: "0.1",
      "aria-label": `Per cent of requests to ${name}`,
      disabled: only,
      on: { change: () => this.set(target, Math.round(number.valueAsNumber * 10)) },
    });
    this.writers.push(() => {
      const share = this.shares[target];
      slider.value = share / 10;
      const said = percent(this.partOf(target));
      slider.setAttribute("aria-valuetext", said);
      number.placeholder = said.startsWith("<") ? said.replace(" %", "") : "";
      if (document.activeElement !== number) number.value = number.placeholder ? "" : share / 10;
      const seen = this.seen.get(short(digest ?? ""));
      live.textContent = seen
        ? `${rate(seen.requests_per_second)}/s, p99 ${duration(seen.p99_seconds)}, ${percent(seen.failed_share)} failed`
        : "no requests lately";
      live.classList.toggle("alarm", Boolean(seen?.failed_share));
    });
    this.writers.at(-1)();
    return el(
      "div",
      { class: "share" },
      el(
        "label",
        { htmlFor: id },
        el("span", { class: target === "live" ? "chip live" : "chip" }, name),
        digest && short(digest) !== name ? el("code", {}, short(digest)) : null,
      ),
      slider,
      el("span", { class: "percent" }, number, " %"),
      live,
    );
  }

  set(target, share) {
    if (!Number.isFinite(share)) return this.draw();
    this.shares = withShare(this.shares, target, Math.max(0, Math.min(WHOLE, share)));
    this.moved = true;
    this.touched();
    for (const write of this.writers) write();
    return undefined;
  }

  adding() {
    const aliased = new Set(Object.values(this.task.aliases));
    const targets = [...Object.keys(this.task.aliases), ...this.task.versions.filter((one) => !aliased.has(one))];
    const left = targets.filter((one) => !(one in this.shares));
    if (left.length === 0) return null;
    const choice = select([["", "Add a version to the split…"], ...left.map((one) => [one, short(one)])], "", {
      "aria-label": "Add a version to the split",
      on: {
        change: () => {
          this.shares[choice.value] = 0;
          this.touched();
          this.draw();
        },
      },
    });
    return choice;
  }

  shadowField() {
    if (!this.changeable)
      return el("p", {}, this.task.shadow ? ["Copies go to ", el("code", {}, short(this.task.shadow)), "."] : null);
    const targets = [...Object.keys(this.task.aliases), ...this.task.versions.map((one) => one)];
    const choice = select([["", "None"], ...targets.map((one) => [one, short(one)])], this.copies, {
      on: {
        change: () => {
          this.copies = choice.value;
          this.touched();
        },
      },
    });
    return field(
      "Shadow",
      choice,
      "Gets a copy of each request that the route decides. Its answers are compared, and nobody gets them.",
    );
  }

  buttons() {
    this.apply = button("Apply", () => this.send(), { class: "primary", disabled: !this.edited });
    this.undo = button("Discard", () => this.reset(), { disabled: !this.edited });
    return [
      this.apply,
      this.undo,
      this.task.route || this.task.shadow ? button("Send all to live…", () => this.clear()) : null,
      button("Previous route…", () => this.back()),
    ];
  }

  touched() {
    this.edited = true;
    if (this.apply) this.apply.disabled = this.undo.disabled = false;
  }

  send() {
    const { weights } = this;
    const body = { weights, ...(this.copies ? { shadow: this.copies } : {}) };
    const parts = Object.keys(weights).map((target) => `${short(target)} ${percent(this.partOf(target))}`);
    return confirmed({
      title: "Change the route?",
      text: `From now on: ${parts.join(", ")}${this.copies ? `; copies to ${short(this.copies)}` : "; no copies"}.`,
      does: "Change route",
      insist: { status: 409, does: "Do it all the same" },
      work: this.page.ifUnchanged((insists) =>
        this.done(
          () => put(`${this.page.path}/route?${WAIT}`, { ...body, allow_other_labels: insists }),
          "The route is changed",
        ),
      ),
    });
  }

  clear() {
    return confirmed({
      title: "Send all requests to live?",
      text: "The split and the copies end.",
      does: "Send all to live",
      work: this.page.ifUnchanged(() =>
        this.done(() => remove(`${this.page.path}/route?${WAIT}`), "All requests go to live"),
      ),
    });
  }

  back() {
    return confirmed({
      title: "Go back to the previous route?",
      text: "The split and the copies are those of before the last change of the route.",
      does: "Go back",
      work: this.page.ifUnchanged(() =>
        this.done(() => post(`${this.page.path}/route/rollback?${WAIT}`), "The previous route is back"),
      ),
    });
  }

  done(work, told) {
    return this.page.change(async () => {
      const answer = await work();
      this.edited = false;
      return answer;
    }, told);
  }
}

/** How far a shadow's answers agree with those that were given. */
function agreementOf({ version, agreed, differed, failed, skipped }) {
  const compared = agreed + differed;
  const width = (share) => ({ width: `${compared ? (share / compared) * 100 : 0}%` });
  return el(
    "div",
    { class: "agreement" },
    el(
      "p",
      {},
      "Shadow ",
      el("code", {}, short(version)),
      ": ",
      el("strong", {}, compared ? `${percent(agreed / compared)} agreed` : "nothing compared yet"),
      compared ? ` of ${compared} inputs compared` : "",
    ),
    el(
      "span",
      { class: "stack", "aria-hidden": "true" },
      el("i", { class: "good", style: width(agreed) }),
      el("i", { class: "bad", style: width(differed) }),
    ),
    el(
      "p",
      { class: "quiet" },
      `${agreed} agreed, ${differed} differed, ${failed} failed, ${skipped} skipped since the replicas started`,
    ),
  );
}
