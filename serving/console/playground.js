// Asking tasks: one, two side by side, or many at once.

import { Refusal, get, part, predict } from "./api.js";
import { answered, manyAnswers } from "./answers.js";
import { announce, button, el, field, fill, select } from "./dom.js";
import { Conversation, textRequest } from "./generation.js";
import { GENERATION, KINDS, fieldsOf, startingValues } from "./kinds.js";
import { Checklist, Target } from "./picker.js";
import { asCurl, asPython } from "./snippets.js";
import { code, refusal } from "./words.js";

const MODES = [
  ["one", "One task"],
  ["two", "Two side by side"],
  ["many", "Many at once"],
];
const BOUNDS = { least: 1, most: 64 };
const FIRST_TICKED = 8;

export async function show(main, { query, signal }) {
  const tasks = await get("v1/tasks", signal);
  if (tasks.length === 0) {
    fill(
      main,
      el("h1", { tabindex: "-1" }, "Playground"),
      el("p", { class: "card" }, "There are no tasks to ask yet."),
    );
    return;
  }
  const page = new Playground(tasks, query, signal);
  fill(main, page.element);
  await page.retarget();
}

class Playground {
  constructor(tasks, query, signal) {
    this.tasks = tasks;
    this.signal = signal;
    this.values = startingValues();
    this.kinds = new Map();
    this.busy = false;
    this.mode = query.has("with") ? "two" : "one";
    const first = query.get("task") ?? tasks[0].name;
    const changed = () => (this.targeting = this.retarget());
    this.first = new Target(tasks, "Task", first, changed);
    this.second = new Target(tasks, "Task beside it", query.get("with") ?? other(tasks, first), changed);
    this.list = new Checklist(
      tasks,
      tasks.slice(0, FIRST_TICKED).map((task) => task.name),
      BOUNDS,
      () => {
        this.letAsk();
        this.drawCode();
      },
    );
    this.targets = el("div");
    this.fields = el("div", { on: { input: () => this.drawCode(), change: () => this.drawCode() } });
    this.answers = el("div", { class: "answers", "aria-live": "polite" });
    this.code = el("div"); // stays in place, so that a click on its summary is not lost when a field is left
    this.stop = button("Stop", () => this.asking?.abort(), { disabled: true });
    this.clear = button("Start anew", () => this.anew());
    this.send = el("button", { type: "submit", class: "primary" }, "Ask");
    const form = el(
      "form",
      { class: "card", on: { submit: (event) => this.submitted(event) } },
      this.modes(),
      this.targets,
      this.fields,
      el(
        "div",
        { class: "row" },
        this.send,
        this.stop,
        this.clear,
        el("small", { class: "hint" }, "Ctrl + Enter asks, too."),
      ),
    );
    form.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
    });
    this.element = el(
      "div",
      {},
      el("h1", { tabindex: "-1" }, "Playground"),
      form,
      this.answers,
      el("details", { class: "card" }, el("summary", {}, "Copy as curl or Python"), this.code),
    );
  }

  modes() {
    const radios = MODES.map(([value, text]) =>
      el(
        "label",
        {},
        el("input", {
          type: "radio",
          name: "mode",
          value,
          checked: value === this.mode,
          on: { change: () => this.setMode(value) },
        }),
        text,
      ),
    );
    return el("fieldset", { class: "tabs" }, el("legend", { class: "hidden" }, "How many tasks"), radios);
  }

  setMode(mode) {
    this.mode = mode;
    this.targeting = this.retarget();
  }

  get asked() {
    return this.mode === "two" ? [this.first, this.second] : [this.first];
  }

  /** After another task, version or mode: show what it asks for, and remember it in the address. */
  async retarget() {
    const many = this.mode === "many";
    fill(this.targets, many ? this.list.element : this.asked.map((one) => one.element));
    this.remember();
    let kinds = ["text-classification"];
    let trouble = null;
    if (!many && this.first.known) {
      try {
        kinds = await this.kindsOf(this.first.name);
      } catch (error) {
        if (this.signal.aborted) return;
        trouble = refusal(error);
      }
    }
    this.own = kinds[0];
    this.offered = kinds.filter((kind) => kind in KINDS);
    if (!this.offered.includes(this.kind)) this.kind = this.offered[0] ?? "text-classification";
    this.anew();
    fill(this.answers, trouble);
  }

  remember() {
    if (this.mode === "many") return;
    const query = new URLSearchParams({ task: this.first.name });
    if (this.mode === "two") query.set("with", this.second.name);
    history.replaceState(null, "", `#/playground?${query}`);
  }

  /** Whether there is something to ask. */
  get ready() {
    return this.mode !== "many" || this.list.ready;
  }

  letAsk() {
    this.send.disabled = this.busy || !this.ready;
  }

  /** Forget answers and chats, and show the fields of the kind that is asked for. */
  anew() {
    this.asking?.abort();
    this.chats = null;
    fill(this.answers);
    const generates = this.mode !== "many" && this.kind === GENERATION;
    const choice = this.offered.length > 1 && this.mode !== "many" ? this.kindChoice() : null;
    const [inputs, parameters] = fieldsOf(this.mode === "many" ? "text-classification" : this.kind, this.values);
    fill(this.fields, choice, generates ? this.promptFields() : inputs, this.mode === "many" ? null : parameters);
    this.answers.setAttribute("aria-live", generates ? "off" : "polite"); // a chat's log is read out by itself
    this.stop.hidden = this.clear.hidden = !generates;
    this.letAsk();
    this.drawCode();
  }

  kindChoice() {
    const options = this.offered.map((kind) => [kind, KINDS[kind].name]);
    const choice = select(options, this.kind, {
      on: {
        change: () => {
          this.kind = choice.value;
          this.anew();
        },
      },
    });
    return field("Ask for", choice);
  }

  promptFields() {
    this.chat ??= true;
    const text = el("textarea", {
      rows: "3",
      value: this.chat ? "" : this.values.prompt,
      required: true,
      spellcheck: "false",
    });
    this.prompt = text;
    const system = el("input", {
      type: "text",
      value: this.values.system,
      on: { input: () => (this.values.system = system.value) },
    });
    const way = select(
      [
        ["chat", "A chat"],
        ["completion", "The continuation of a text"],
      ],
      this.chat ? "chat" : "completion",
      {
        on: {
          change: () => {
            this.chat = way.value === "chat";
            this.anew();
          },
        },
      },
    );
    return [
      field("As", way),
      this.chat ? field("System message", system, "Optional.") : null,
      field(this.chat ? "Message" : "Prompt", text),
    ];
  }

  async kindsOf(name) {
    if (!this.kinds.has(name)) this.kinds.set(name, await kindsOf(name, this.signal));
    return this.kinds.get(name);
  }

  async submitted(event) {
    event.preventDefault();
    await this.targeting; // a task that was typed just before
    if (!this.ready) return; // Ctrl + Enter asks for it all the same
    this.asking?.abort();
    this.asking = new AbortController();
    this.signal.addEventListener("abort", () => this.asking.abort(), { signal: this.asking.signal });
    this.busy = true;
    this.letAsk();
    this.stop.disabled = false;
    try {
      if (this.mode === "many") await this.askMany();
      else if (this.kind === GENERATION) await this.converse();
      else await this.askEach();
    } catch (error) {
      if (error.name !== "AbortError") fill(this.answers, refusal(error));
    }
    this.busy = false;
    this.letAsk();
    this.stop.disabled = true;
  }

  /** The request to a task, as code shows it and as it is sent. */
  request(target) {
    if (this.mode === "many") return { path: "v1/predict", body: { tasks: this.list.names, inputs: this.values.text } };
    if (this.kind === GENERATION) return this.nextText(target.name);
    const { inputs, parameters } = KINDS[this.kind].body(this.values);
    const body = { inputs };
    if (Object.keys(parameters).length) body.parameters = parameters;
    if (this.kind !== this.own) body.kind = this.kind;
    return { path: `v1/tasks/${part(target.name)}/predict`, body };
  }

  /** The text to ask for next; before somebody types one, that which was asked for last. */
  nextText(name) {
    const chat = this.chats?.[0];
    const { prompt, before } = this.prompt.value
      ? { prompt: this.prompt.value, before: chat?.messages }
      : (chat?.last ?? { prompt: this.values.prompt });
    return textRequest(name, prompt, this.settings, before);
  }

  get settings() {
    return {
      chat: this.chat,
      system: this.chat ? this.values.system : "",
      parameters: KINDS[GENERATION].body(this.values).parameters,
    };
  }

  async askEach() {
    const columns = this.asked.map((target) => ({
      target,
      shown: el("div", { "aria-busy": "true" }, el("p", { class: "quiet" }, "Asking…")),
    }));
    fill(
      this.answers,
      columns.map(({ target, shown }) => column(target.name, shown)),
    );
    await Promise.all(
      columns.map(async ({ target, shown }) => {
        const { path, body } = this.request(target);
        try {
          const { answer, headers } = await predict(path, body, this.asking.signal);
          fill(shown, answered(answer, headers, body));
        } catch (error) {
          if (!(error instanceof Refusal)) throw error;
          fill(shown, refusal(error));
        } finally {
          shown.removeAttribute("aria-busy");
        }
      }),
    );
  }

  async askMany() {
    const { path, body } = this.request();
    fill(this.answers, el("p", { class: "quiet" }, "Asking…"));
    const { answer } = await predict(path, body, this.asking.signal);
    fill(this.answers, column(`Answers of ${answer.results.length} tasks`, manyAnswers(answer.results)));
  }

  async converse() {
    const prompt = this.prompt.value;
    if (this.chats?.length !== this.asked.length) {
      this.chats = this.asked.map((target) => new Conversation(target.name));
      fill(
        this.answers,
        this.chats.map((chat) => column(chat.name, chat.element)),
      );
    }
    if (this.chat) this.prompt.value = "";
    await Promise.all(this.chats.map((chat) => chat.ask(prompt, this.settings, this.asking.signal)));
    this.drawCode();
    announce("The answer is complete");
    this.prompt.focus();
  }

  drawCode() {
    if (!this.offered) return;
    const request = this.request(this.first);
    fill(
      this.code,
      el("h3", {}, "curl"),
      code(asCurl(request), "The request for curl"),
      el("h3", {}, "Python"),
      code(asPython(request), "The request in Python"),
    );
  }
}

const other = (tasks, name) => (tasks.find((task) => task.name !== name.split("@")[0]) ?? tasks[0]).name;

function column(name, content) {
  return el("section", { class: "card" }, el("h2", {}, name), content);
}

/** The kinds that a task can be asked for, its own first. */
async function kindsOf(name, signal) {
  const [task, version] = name.split("@");
  const kept = await get(`v1/tasks/${part(task)}/kept${version ? `?version=${part(version)}` : ""}`, signal);
  return kept.kinds;
}
