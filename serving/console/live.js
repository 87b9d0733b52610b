// What the server does at present, for whichever page looks: its activity every few seconds, and its events.

import { Refusal, address, get } from "./api.js";
import { el, fill } from "./dom.js";

const LOOK_SECONDS = 3;
const FIRST_LOOK_SECONDS = 1;
const UPGRADE_SECONDS = 60;
const REOPEN_SECONDS = 10;
const EVENTS = ["change", "swap", "replica", "placement"];

/**
 * Call `work` now and then every so many seconds while the page is seen, until `signal` ends it. `work` may give another
 * number of seconds until the next time.
 */
export function every(seconds, signal, work) {
  let timer;
  const turn = async () => {
    clearTimeout(timer);
    if (signal.aborted) return;
    let next = seconds;
    try {
      if (!document.hidden) next = (await work()) ?? seconds;
    } catch (error) {
      if (error.name !== "AbortError") throw error;
    }
    if (!signal.aborted) timer = setTimeout(turn, next * 1000);
  };
  document.addEventListener("visibilitychange", () => document.hidden || turn(), { signal });
  signal.addEventListener("abort", () => clearTimeout(timer));
  turn();
}

/** Give `listener` the activity again and again, where the server tells it. */
export function followActivity(signal, listener) {
  signal.addEventListener("abort", () => tell(""));
  every(LOOK_SECONDS, signal, async () => {
    let found;
    try {
      found = await get("v1/activity", signal);
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      if (error.status === 404) {
        tell("");
        return UPGRADE_SECONDS; // a server of an older version has no such route
      }
      tell(`What you see here stands still. ${error.message}`);
      return LOOK_SECONDS;
    }
    tell("");
    listener(found);
    return found.seconds ? LOOK_SECONDS : FIRST_LOOK_SECONDS; // rates need two looks
  });
}

/** Say above all pages why figures stand still, until they do not. */
function tell(trouble) {
  const place = document.getElementById("trouble");
  if (place.textContent !== trouble) fill(place, trouble ? el("p", { class: "notice" }, trouble) : null);
}

/**
 * Give `listener` each event of the server as `(kind, told)`, and `("again", null)` when events may have been missed.
 *
 * The stream is closed while nobody sees the page, and opened again after a refusal, which `EventSource` does not do.
 */
export function followEvents(signal, listener) {
  let source = null;
  let timer;
  const open = () => {
    clearTimeout(timer);
    if (source !== null || signal.aborted || document.hidden) return;
    source = new EventSource(address("v1/events"));
    let opened = false;
    source.addEventListener("open", () => {
      if (opened) listener("again", null);
      opened = true;
    });
    source.addEventListener("error", () => {
      if (source.readyState !== EventSource.CLOSED) return;
      close();
      timer = setTimeout(() => {
        listener("again", null);
        open();
      }, REOPEN_SECONDS * 1000);
    });
    for (const kind of EVENTS) {
      source.addEventListener(kind, (event) => listener(kind, JSON.parse(event.data)));
    }
  };
  const close = () => {
    source?.close();
    source = null;
  };
  const seen = () => {
    if (document.hidden) return close();
    if (source === null) listener("again", null);
    return open();
  };
  document.addEventListener("visibilitychange", seen, { signal });
  signal.addEventListener("abort", () => {
    clearTimeout(timer);
    close();
  });
  open();
}
