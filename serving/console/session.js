// Who looks at this page, and what their key allows.

import { get, post, remove, useToken } from "./api.js";

const SCOPES = ["predict", "publish", "admin"];

/** What holds where the server is of an older version, which knows no sessions: as without keys, until it refuses. */
const UNTOLD = { needs_key: false, key: null, csrf: null, untold: true };

let current = null;

/** The session as the server tells it, with `key` null where there is none. */
export const session = () => current;

/** Whether somebody must sign in first. */
export const locked = () => current.needs_key && current.key === null;

/** Ask the server who we are. */
export async function look() {
  try {
    take(await get("v1/session"));
  } catch (error) {
    if (error.status !== 404) throw error;
    take(current ?? UNTOLD); // while replicas are upgraded, another one may know the session
  }
}

export async function signIn(key) {
  take(await post("v1/session", { key }));
}

export async function signOut() {
  await remove("v1/session");
  await look();
}

function take(told) {
  current = told;
  useToken(told.csrf);
}

/**
 * Whether the key may do what needs a scope: to a task, or without one to the whole server.
 *
 * This only decides what is offered. The server decides what is done.
 */
export function may(scope, task = null) {
  if (!current.needs_key) return true;
  if (current.key === null) return false;
  const highest = Math.max(...current.key.scopes.map((one) => SCOPES.indexOf(one)));
  if (highest < SCOPES.indexOf(scope)) return false;
  if (task === null) return scope !== "admin" || seesEveryTask();
  return seesEveryTask() || current.key.tasks.some((pattern) => matches(pattern, task));
}

/** Whether the key is one of every task. Only such a key is told of the whole server. */
export const seesEveryTask = () => !current.needs_key || current.key?.tasks.includes("*");

/** Whether a name matches a pattern with `*`, `?`, `[abc]` and `[!abc]`. */
export function matches(pattern, name) {
  const source = pattern.replace(/\[!?[^\]]+\]|[\s\S]/g, (found) => {
    if (found === "*") return ".*";
    if (found === "?") return ".";
    if (found.length > 1) return `[${found.startsWith("[!") ? `^${found.slice(2, -1)}` : found.slice(1, -1)}]`;
    return found.replace(/[.+^${}()|\\[\]]/, "\\$&");
  });
  try {
    return new RegExp(`^(?:${source})$`).test(name);
  } catch {
    return false; // a set such as [z-a] holds nothing
  }
}
