// Calls of the server's HTTP API, as a session in this browser: a cookie that scripts cannot read, and a token of its
// own that every change sends along.

/** The server refused, or could not be reached. The words are the server's. */
export class Refusal extends Error {
  constructor({ title, detail, status, request_id: requestId = null }) {
    super(detail || title);
    this.title = title;
    this.detail = detail;
    this.status = status;
    this.requestId = requestId;
  }
}

let csrf = null;
const unauthorised = new EventTarget();

/** Have `listener` called when the server no longer knows the session. */
export const onSignedOut = (listener) => unauthorised.addEventListener("401", listener);

/** The token that changes send along; null where the server needs no key. */
export function useToken(token) {
  csrf = token;
}

export const address = (path) => new URL(path, document.baseURI.split("#")[0]).href;

async function ask(method, path, body, signal, headers = {}) {
  const sent = { Accept: "application/json", ...headers };
  if (body !== undefined) sent["Content-Type"] = "application/json";
  if (csrf !== null && method !== "GET") sent["X-Ken-Csrf"] = csrf;
  let answer;
  try {
    answer = await fetch(address(path), {
      method,
      headers: sent,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
      credentials: "same-origin",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    const detail = "The server cannot be reached. It may be starting again; this page goes on by itself.";
    throw new Refusal({ title: "No answer", detail, status: 0 });
  }
  if (!answer.ok) throw await refusalOf(answer, path);
  return answer;
}

async function refusalOf(answer, path) {
  let told = {};
  try {
    told = await answer.json();
  } catch {
    // A proxy's answer may be no JSON; its status is told instead.
  }
  if (answer.status === 401 && path !== "v1/session") unauthorised.dispatchEvent(new Event("401"));
  return new Refusal({
    title: told.title ?? answer.statusText ?? "Refused",
    detail: told.detail ?? `The server answered with status ${answer.status}.`,
    status: answer.status,
    request_id: told.request_id,
  });
}

/** The answer to a call, as plain data; null where there is none. */
async function plain(method, path, body, signal) {
  const answer = await ask(method, path, body, signal);
  return answer.status === 204 ? null : answer.json();
}

export const get = (path, signal) => plain("GET", path, undefined, signal);
export const post = (path, body, signal) => plain("POST", path, body, signal);
export const put = (path, body, signal) => plain("PUT", path, body, signal);
export const remove = (path, signal) => plain("DELETE", path, undefined, signal);

/** An answer and its headers, for a prediction. */
export async function predict(path, body, signal) {
  const answer = await ask("POST", path, body, signal);
  return { answer: await answer.json(), headers: answer.headers };
}

/** The events of a streamed answer, as `{event, data}`, until it ends or `signal` ends it. */
export async function* stream(path, body, signal) {
  const answer = await ask("POST", path, body, signal, { Accept: "text/event-stream" });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    waiting += value;
    const parts = waiting.split("\n\n");
    waiting = parts.pop();
    for (const part of parts) {
      const found = eventOf(part);
      if (found) yield found;
    }
  }
}

function eventOf(part) {
  let event = "message";
  const data = [];
  for (const line of part.split("\n")) {
    if (line.startsWith("event:")) event = line.slice(6).trim();
    if (line.startsWith("data:")) data.push(line.slice(5).trimStart());
  }
  return data.length ? { event, data: JSON.parse(data.join("\n")) } : null;
}

/** A name as part of a path. */
export const part = encodeURIComponent;
