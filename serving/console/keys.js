// The keys that clients send: making them, listing them, revoking them.

import { get, post, remove } from "./api.js";
import { confirmed, opened } from "./ask.js";
import { announce, button, el, field, fill, scrolled, select } from "./dom.js";
import { ago, moment } from "./format.js";
import { followEvents } from "./live.js";
import { look, locked, may, session } from "./session.js";
import { code, refusal, spoken } from "./words.js";

const SCOPES = [
  ["predict", "predict"],
  ["publish", "publish"],
  ["admin", "admin"],
];
const SCOPE_HINT =
  "predict asks tasks and sees them; publish also changes which versions answer; admin also deletes tasks and, with *, makes keys.";
const DAY = 86400;
const EXPIRIES = [
  ["", "Never"],
  [String(DAY), "After a day"],
  [String(30 * DAY), "After 30 days"],
  [String(90 * DAY), "After 90 days"],
  [String(365 * DAY), "After a year"],
];
const WAIT = "wait=10";
const CHANGES_OF_KEYS = "@keys";

export async function show(main, { signal, restart }) {
  if (!may("admin")) {
    fill(
      main,
      el("h1", { tabindex: "-1" }, "Keys"),
      el("p", { class: "card" }, "Keys need the scope admin, and a key of every task."),
    );
    return;
  }
  const page = new KeysPage(signal, restart);
  await page.reload();
  fill(main, page.element);
  followEvents(signal, (kind, told) => {
    if (kind === "again" || told.task === CHANGES_OF_KEYS) page.reload().catch(() => {}); // the next change says more
  });
}

class KeysPage {
  constructor(signal, restart) {
    this.signal = signal;
    this.restart = restart;
    this.list = el("div");
    this.trouble = el("div");
    const needed = session().needs_key
      ? null
      : el(
          "p",
          { class: "notice" },
          "This server is open. From the first key on it refuses everybody without one, this page too.",
        );
    this.element = el(
      "div",
      {},
      el("h1", { tabindex: "-1" }, "Keys"),
      needed,
      el("section", { class: "card" }, el("h2", {}, "Keys in the store"), this.list),
      this.making(),
    );
  }

  async reload() {
    const keys = await get("v1/keys", this.signal);
    const heads = ["Name", "Id", "Scopes", "Tasks", "Made", "Expires"].map((text) => el("th", { scope: "col" }, text));
    const lines = keys.sort((a, b) => b.created - a.created).map((key) => this.line(key));
    const table = el("table", {}, el("thead", {}, el("tr", {}, heads, el("td"))), el("tbody", {}, lines));
    fill(
      this.list,
      keys.length
        ? scrolled("Keys", table)
        : el("p", { class: "quiet" }, "There are none. Keys of a keys file and the admin token are not listed."),
    );
  }

  line(key) {
    const own = session().key?.id === key.id;
    const over = key.expires !== null && key.expires * 1000 < Date.now();
    return el(
      "tr",
      {},
      el("th", { scope: "row" }, key.name, own ? el("span", { class: "chip" }, "yours") : null),
      el("td", {}, el("code", {}, key.id)),
      el("td", {}, key.scopes.join(", ")),
      el("td", {}, el("code", {}, key.tasks.join(" "))),
      el("td", { title: moment(key.created) }, ago(key.created)),
      el("td", { class: over ? "alarm" : null }, key.expires === null ? "never" : moment(key.expires)),
      el(
        "td",
        { class: "actions" },
        button("Revoke…", () => this.revoke(key), {
          class: "small danger quietly",
          "aria-label": `Revoke…: ${key.name}, ${key.id}`,
        }),
      ),
    );
  }

  making() {
    const name = el("input", { required: true, maxlength: "64", autocomplete: "off", spellcheck: "false" });
    const scope = select(SCOPES, "predict");
    const tasks = el("input", { value: "*", required: true, spellcheck: "false", autocomplete: "off" });
    const expires = select(EXPIRIES, String(90 * DAY));
    const send = el("button", { type: "submit", class: "primary" }, "Make a key");
    const submit = async (event) => {
      event.preventDefault();
      send.disabled = true;
      fill(this.trouble);
      const body = { name: name.value, scopes: [scope.value], tasks: tasks.value.split(/[\s,]+/).filter(Boolean) };
      if (expires.value) body.expires_in = Number(expires.value);
      try {
        await this.tell(await post(`v1/keys?${WAIT}`, body));
        name.value = "";
      } catch (error) {
        fill(this.trouble, refusal(error));
      }
      send.disabled = false;
    };
    return el(
      "section",
      { class: "card" },
      el("h2", {}, "Make a key"),
      el(
        "form",
        { on: { submit } },
        el(
          "div",
          { class: "columns" },
          field("Name", name, "For people and logs."),
          field("Scope", scope, SCOPE_HINT),
          field("Tasks", tasks, "Patterns of names, such as trec* or *."),
          field("Expires", expires),
        ),
        this.trouble,
        el("div", { class: "row" }, send),
      ),
    );
  }

  /** Show a new key, this once. */
  tell(made) {
    const close = el("button", { type: "submit", class: "primary" }, "I have kept it");
    const form = el(
      "form",
      { method: "dialog" },
      el("h2", { id: "question" }, `The key ${made.name}`),
      el("p", {}, "Keep it now: it is shown this once, and the server holds only its hash."),
      code(made.token, "The key"),
      made.notice ? el("p", { class: "notice" }, spoken(made.notice)) : null,
      el("div", { class: "row end" }, close),
    );
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      dialog.close();
    });
    const dialog = opened(form, { kept: true });
    form.querySelector(".code button").focus();
    return new Promise((resolve) => {
      dialog.addEventListener("close", async () => {
        await this.settle();
        announce(`The key ${made.name} is made`);
        resolve();
      });
    });
  }

  revoke(key) {
    return confirmed({
      title: `Revoke ${key.name}?`,
      text:
        session().key?.id === key.id
          ? "This is the key that you signed in with. You are signed out at once."
          : "Whoever sends it is refused from then on.",
      does: "Revoke",
      danger: true,
      work: async () => {
        await remove(`v1/keys/${key.id}?${WAIT}`);
        await this.settle();
        return `The key ${key.name} is revoked`;
      },
    });
  }

  /** After a change: what the keys are now, and whether this page still has one. */
  async settle() {
    try {
      await look();
      if (locked()) await this.restart();
      else await this.reload();
    } catch (error) {
      if (error.name !== "AbortError") fill(this.list, refusal(error)); // the change itself is made
    }
  }
}
