// The frame around all pages: who is signed in, which page the address names, and going from one to another.

import { Refusal, onSignedOut } from "./api.js";
import { dismiss } from "./ask.js";
import { button, el, fill } from "./dom.js";
import * as keys from "./keys.js";
import * as overlap from "./overlap.js";
import * as playground from "./playground.js";
import * as replicas from "./replicas.js";
import { locked, look, may, session, signOut } from "./session.js";
import * as signin from "./signin.js";
import * as task from "./task.js";
import * as tasks from "./tasks.js";
import { refusal } from "./words.js";

const PAGES = [
  { path: "tasks", name: "Tasks", show: tasks.show },
  { path: "playground", name: "Playground", show: playground.show },
  { path: "overlap", name: "Overlap", show: overlap.show },
  { path: "replicas", name: "Replicas", show: replicas.show },
  { path: "keys", name: "Keys", show: keys.show, offered: () => may("admin") },
];
const RENEW_SECONDS = 600;

const main = document.getElementById("main");
let leaving = new AbortController();

/** Show the page that the address names, and end what the page before did. */
async function go(arrived = true) {
  leaving.abort();
  leaving = new AbortController();
  const { signal } = leaving;
  fill(document.getElementById("refused"));
  dismiss();
  frame();
  const place = locked() ? { show: signin.show, name: "Sign in" } : placeOf(location.hash);
  document.title = `${place.title ?? place.name} · ken-serve`;
  main.setAttribute("aria-busy", "true");
  fill(main, el("p", { class: "quiet" }, "Loading…"));
  try {
    await place.show(main, { ...place.given, signal, restart: start });
  } catch (error) {
    if (!signal.aborted) fill(main, el("h1", { tabindex: "-1" }, place.name), refusal(error), again());
  }
  if (signal.aborted) return;
  main.removeAttribute("aria-busy");
  if (arrived && !main.contains(document.activeElement)) main.querySelector("h1")?.focus();
}

const again = () => button("Try again", () => go());

/** What an address such as `#/tasks/trec?x=1` names. */
function placeOf(hash) {
  const [path, query = ""] = hash.replace(/^#\/?/, "").split("?");
  const [first, ...rest] = path.split("/").map(decoded);
  const given = { query: new URLSearchParams(query) };
  if (first === "tasks" && rest[0]) return { show: task.show, name: rest[0], given: { ...given, name: rest[0] } };
  return { ...(PAGES.find((page) => page.path === first) ?? PAGES[0]), given };
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

function frame() {
  const { key, needs_key: needsKey, untold, base, version } = session();
  const here = location.hash.replace(/^#\/?/, "").split(/[/?]/)[0] || "tasks";
  const links = PAGES.filter((page) => page.offered?.() ?? true).map((page) =>
    el("a", { href: `#/${page.path}`, "aria-current": page.path === here ? "page" : null }, page.name),
  );
  fill(document.getElementById("pages"), locked() ? [] : links);
  fill(
    document.getElementById("who"),
    needsKey && key
      ? [el("span", { title: `scopes: ${key.scopes.join(", ")}; tasks: ${key.tasks.join(", ")}` }, key.name)]
      : null,
    needsKey && key ? button("Sign out", leave, { class: "small" }) : null,
    needsKey || untold ? null : el("span", { class: "quiet" }, "Open: no key needed"),
  );
  fill(
    document.getElementById("foot"),
    el("span", {}, `ken-serve ${version ?? ""}`.trim(), base ? ` · base ${base}` : ""),
    el("a", { href: "docs" }, "HTTP API"),
  );
}

async function leave() {
  try {
    await signOut();
  } catch (error) {
    const told = new Refusal({ title: "You may still be signed in", detail: error.message, status: error.status });
    fill(document.getElementById("refused"), refusal(told));
    return;
  }
  go();
}

async function start() {
  try {
    await look();
  } catch (error) {
    fill(main, el("h1", { tabindex: "-1" }, "ken-serve"), refusal(error), button("Try again", start));
    return;
  }
  await go(false);
}

document.querySelector("a.skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address names the page
  main.focus();
});
addEventListener("hashchange", () => session() && go());
onSignedOut(() => locked() || check());
setInterval(check, RENEW_SECONDS * 1000);
document.addEventListener("visibilitychange", check);
start();

/** Renew the session, and notice that it ended, or that somebody signed in or out in another tab. */
async function check() {
  if (document.hidden || session() === null) return;
  const who = () => `${locked()} ${session().key?.id}`;
  const before = who();
  try {
    await look();
  } catch {
    return; // the page says so where it asks for more
  }
  if (who() !== before) go();
}
