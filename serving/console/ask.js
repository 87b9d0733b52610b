// Dialogs: a question before something is taken away, and what the server says against it.

import { Refusal } from "./api.js";
import { announce, button, el, fill } from "./dom.js";
import { refusal } from "./words.js";

const HEARD_MILLISECONDS = 100; // behind a dialog nothing is read out, and a while after it closes neither

/**
 * Ask before something is done, do it, and show a refusal in the same dialog.
 *
 * `work(insists)` does it, and gives what to announce then. `insist` offers, after a refusal with its status, to do it all the same. The promise gives
 * whether it was done.
 */
export function confirmed({ title, text, does, work, danger = false, content = null, insist = null }) {
  return new Promise((resolve) => {
    const trouble = el("div");
    let done = false;
    const attempt = async (insists) => {
      proceed.disabled = true;
      fill(trouble);
      try {
        const told = await work(insists);
        done = true;
        dialog.close();
        if (told) setTimeout(announce, HEARD_MILLISECONDS, told);
      } catch (error) {
        const may = insist && error instanceof Refusal && error.status === insist.status && !insists;
        fill(trouble, refusal(error), may ? button(insist.does, () => attempt(true), { class: "danger" }) : null);
        proceed.disabled = false;
      }
    };
    const proceed = el("button", { type: "submit", class: danger ? "danger" : "primary" }, does);
    const form = el(
      "form",
      {
        on: {
          submit: (event) => {
            event.preventDefault();
            attempt(false);
          },
        },
      },
      el("h2", { id: "question" }, title),
      text ? el("p", {}, text) : null,
      content,
      trouble,
      el(
        "div",
        { class: "row end" },
        button("Cancel", () => dialog.close()),
        proceed,
      ),
    );
    const dialog = opened(form);
    dialog.addEventListener("close", () => resolve(done));
  });
}

/** Close what is asked about a page that is left. */
export function dismiss() {
  for (const dialog of document.querySelectorAll('dialog:not([closedby="none"])')) dialog.close();
}

/**
 * A modal dialog around `content`, removed when it closes. Focus goes back to where it was, if that is still there.
 *
 * One with `kept` closes by its own button only: neither by Escape nor with the page behind it.
 */
export function opened(content, { kept = false } = {}) {
  const dialog = el("dialog", { "aria-labelledby": "question", closedby: kept ? "none" : null }, content);
  if (kept) dialog.addEventListener("cancel", (event) => event.preventDefault());
  dialog.addEventListener("close", () => {
    dialog.remove();
    if (document.activeElement === document.body) document.querySelector("main h1")?.focus();
  });
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}
