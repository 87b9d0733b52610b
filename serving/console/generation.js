// Text as it is generated: a chat with a task, or the continuation of a prompt.

import { Refusal, part, stream } from "./api.js";
import { el, fill } from "./dom.js";
import { count, duration, short } from "./format.js";
import { refusal } from "./words.js";

/** The request for a text: after `before`, what was said so far in a chat. */
export function textRequest(name, prompt, { chat, system, parameters }, before = []) {
  const opening = system.trim() ? [{ role: "system", content: system }] : [];
  const messages = [...opening, ...before, { role: "user", content: prompt }];
  const body = { prompt: chat ? { messages } : prompt, parameters, stream: true };
  return { path: `v1/tasks/${part(name)}/generate`, body };
}

/** What one task has been asked and what it said, in a column of its own. */
export class Conversation {
  constructor(name) {
    this.name = name;
    this.messages = [];
    this.last = null;
    this.log = el("div", { class: "log", role: "log", "aria-label": `Texts of ${name}` });
    this.facts = el("p", { class: "quiet facts" });
    this.element = el("div", {}, this.log, this.facts);
  }

  /** Ask, and write the text as it comes, until it ends or `signal` ends it. */
  async ask(prompt, settings, signal) {
    this.last = { prompt, before: [...this.messages] };
    const { path, body } = textRequest(this.name, prompt, settings, this.messages);
    const text = el("p", { class: "text" });
    const turn = el("div", { class: "turn said", "aria-busy": "true" }, el("strong", {}, this.name), text);
    if (settings.chat)
      this.log.append(el("div", { class: "turn" }, el("strong", {}, "You"), el("p", { class: "text" }, prompt)));
    else fill(this.log);
    if (!settings.chat) text.append(el("span", { class: "quiet" }, prompt));
    this.log.append(turn);
    fill(this.facts, "Waiting for the first token…");
    const began = performance.now();
    let said = "";
    let first = null;
    try {
      for await (const { event, data } of stream(path, body, signal)) {
        if (event === "error") throw new Refusal(data);
        if (event === "end") this.tell(data, began, first);
        if (event !== "piece") continue;
        first ??= performance.now();
        said += data.text;
        text.append(data.text);
        this.log.scrollTop = this.log.scrollHeight;
      }
    } catch (error) {
      if (error.name !== "AbortError") turn.append(refusal(error));
      fill(this.facts, error.name === "AbortError" ? "Stopped." : "");
    }
    turn.removeAttribute("aria-busy");
    if (settings.chat && said)
      this.messages.push({ role: "user", content: prompt }, { role: "assistant", content: said });
  }

  tell(end, began, first) {
    const { generated_tokens: tokens } = end.usage;
    const seconds = (performance.now() - (first ?? began)) / 1000;
    const speed = tokens > 1 && seconds > 0 ? `, ${Math.round((tokens - 1) / seconds)} a second` : "";
    const start = first ? `, first text after ${duration((first - began) / 1000)}` : "";
    fill(
      this.facts,
      "Version ",
      el("code", { title: end.digest }, short(end.digest)),
      `: ${count(tokens, "token")}${speed}${start}`,
    );
  }
}
