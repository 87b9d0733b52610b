// Words of the server for people: refusals, tiers, and code to copy.

import { Refusal } from "./api.js";
import { announce, button, el, fill } from "./dom.js";

/** A refusal as the server words it. */
export function refusal(error) {
  if (!(error instanceof Refusal)) console.error(error);
  const title = error.title ?? "Something went wrong on this page";
  const detail = error.detail ?? error.message;
  return el(
    "div",
    { class: "notice bad", role: "alert" },
    el("strong", {}, title),
    detail === title ? null : el("p", {}, spoken(detail)),
    error.requestId ? el("p", { class: "quiet" }, "Request ", el("code", {}, error.requestId)) : null,
  );
}

/** Words in which backquotes mark code. */
export const spoken = (text) => text.split("`").map((part, i) => (i % 2 ? el("code", {}, part) : part));

const TIERS = {
  materialised: ["On the device", "as full tensors, the fastest form", "good"],
  packed: ["On the device", "as a packed delta", "good"],
  host: ["Host memory", "of the replica; its next request takes it to the device", "mid"],
  disk: ["Disk", "of the replica; its next request takes it to the device", "mid"],
  store: ["Store", "its next request fetches it", "far"],
};

/** Where a delta is held. */
export function tier(name) {
  if (!name) return el("span", { class: "quiet" }, "–");
  const [text, more, tone] = TIERS[name] ?? [name, "", "far"];
  return el("span", { class: `tier ${tone}`, title: more ? `${name}: ${more}` : name }, text);
}

/** Lines of code, with a button that copies them. */
export function code(text, label = "Code") {
  const shown = el("pre", { tabindex: "0", "aria-label": label }, el("code", {}, text));
  return el(
    "div",
    { class: "code" },
    shown,
    copyButton(() => text),
  );
}

/** A button that copies what `text` gives. Where the browser forbids it, it says so. */
export function copyButton(text, label = "Copy", attributes = {}) {
  const made = button(
    label,
    async () => {
      const done = await copied(text());
      fill(made, done ? "Copied" : "Select and copy");
      announce(done ? "Copied" : "The browser did not allow copying");
      setTimeout(() => fill(made, label), 1500);
    },
    { class: "small", ...attributes },
  );
  return made;
}

async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return false; // browsers allow it on secure origins only
  }
}

/** A figure with its name. `value` may be filled in later through the returned `set`. */
export function tile(name) {
  const value = el("dd", {}, "–");
  const more = el("dd", { class: "quiet" });
  return {
    element: el("div", { class: "tile" }, el("dt", {}, name), value, more),
    set(text, note = "", bad = false) {
      value.textContent = text;
      value.classList.toggle("alarm", bad);
      more.textContent = note;
    },
  };
}

/** A bar from 0 to 1, for the eye; its number stands beside it. */
export function bar(share, extra = "") {
  const width = `${Math.max(0, Math.min(1, share)) * 100}%`;
  return el("span", { class: `bar ${extra}`, "aria-hidden": "true" }, el("i", { style: { width } }));
}
