import { el, fill } from "./dom.js";
export function show(main) { fill(main, el("h1", {tabindex: "-1"}, "overlap")); }
