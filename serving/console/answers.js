// Answers of every kind, for the eye: bars, marks in a text, ranks, neighbours.

import { el, scrolled } from "./dom.js";
import { count, duration, score, short } from "./format.js";
import { bar } from "./words.js";

const TONES = 6;

/** An answer to one request, with the version that gave it and how long that took. */
export function answered(answer, headers, asked) {
  const outputs = answer.outputs;
  const draw = DRAWN[answer.kind] ?? raw;
  return [
    answer.truncated.length ? el("p", { class: "notice" }, "The input was cut to what the model takes.") : null,
    el("div", { class: "output" }, draw(outputs, asked)),
    el(
      "p",
      { class: "quiet facts" },
      "Version ",
      el("code", { title: answer.digest }, short(answer.digest)),
      timing(headers),
    ),
    el(
      "details",
      {},
      el("summary", {}, "JSON"),
      el("pre", { tabindex: "0", "aria-label": "The answer as JSON" }, JSON.stringify(answer, cut, 2)),
    ),
  ];
}

/** Long vectors are shown by their first numbers. */
function cut(key, value) {
  if (Array.isArray(value) && value.length > 8 && typeof value[0] === "number")
    return [...value.slice(0, 8), `… ${value.length - 8} more`];
  return value;
}

function timing(headers) {
  const stages = [...(headers.get("Server-Timing") ?? "").matchAll(/(\w+);dur=([\d.]+)/g)].map(([, name, ms]) => [
    name,
    Number(ms) / 1000,
  ]);
  const replica = headers.get("X-Ken-Replica");
  const total = stages.reduce((sum, [, seconds]) => sum + seconds, 0);
  const parts = stages.map(([name, seconds]) => `${name} ${duration(seconds)}`).join(", ");
  return [replica ? ` by ${replica}` : "", stages.length ? el("span", { title: parts }, ` in ${duration(total)}`) : ""];
}

const DRAWN = {
  "text-classification": (outputs) => bars(outputs[0].map((one) => [one.label, one.score])),
  "zero-shot-classification": (outputs) => bars(outputs[0].labels.map((label, i) => [label, outputs[0].scores[i]])),
  rerank: (outputs, asked) => ranks(outputs[0].map((one) => [asked.inputs.texts[one.index], one.score])),
  "token-classification": (outputs, asked) => entities(asked.inputs, outputs[0]),
  "question-answering": (outputs, asked) => spans(asked.inputs.context, [outputs[0]].flat()),
  "sentence-embeddings": (outputs, asked) => neighbours(outputs, asked.inputs),
  "feature-extraction": (outputs, asked) => [
    neighbours(outputs.map(mean), asked.inputs),
    el(
      "p",
      { class: "quiet" },
      `By the mean over each text's vectors, of which there is one a token: ${outputs.map((one) => one.length).join(", ")}.`,
    ),
  ],
  "text-generation": (outputs) => el("p", { class: "text" }, outputs[0].generated_text),
};

const raw = (outputs) => el("pre", {}, JSON.stringify(outputs, cut, 2));

/** Labels with their scores as bars. */
export function bars(rows) {
  const lines = rows.map(([label, value]) =>
    el(
      "tr",
      {},
      el("th", { scope: "row" }, label),
      el("td", { class: "wide" }, bar(value)),
      el("td", { class: "number" }, score(value)),
    ),
  );
  return el("table", { class: "bars" }, el("tbody", {}, lines));
}

function ranks(rows) {
  return el(
    "ol",
    { class: "ranks" },
    rows.map(([text, value]) =>
      el("li", {}, el("span", { class: "text" }, text), el("span", { class: "scored" }, bar(value), score(value))),
    ),
  );
}

/**
 * A text with its entities marked. The server counts characters as Unicode does, JavaScript in halves of some of them,
 * so the text is taken apart first.
 */
function entities(text, found) {
  if (found.length === 0)
    return [el("p", { class: "text" }, text), el("p", { class: "quiet" }, "No entities were found.")];
  const named = found.map((one) => ({ ...one, name: one.entity_group ?? one.entity }));
  const names = [...new Set(named.map((one) => one.name.replace(/^[BI]-/, "")))].sort();
  const tone = (name) => names.indexOf(name.replace(/^[BI]-/, "")) % TONES;
  const marks = named.map((one) => ({ ...one, tone: tone(one.name), label: one.name }));
  return [
    marked(text, marks),
    el(
      "details",
      {},
      el("summary", {}, count(found.length, "entity", "entities")),
      bars(named.map((one) => [`${one.word} · ${one.name}`, one.score])),
    ),
  ];
}

function spans(context, answers) {
  const best = answers.filter((one) => one.answer);
  return [
    best.length
      ? el("p", { class: "answer" }, best[0].answer)
      : el("p", { class: "answer quiet" }, "No answer in this context"),
    marked(
      context,
      best.slice(0, 1).map((one) => ({ ...one, tone: 0, label: "answer" })),
    ),
    bars(answers.map((one) => [one.answer || "no answer", one.score])),
  ];
}

function marked(text, marks) {
  const letters = Array.from(text);
  const pieces = [];
  let at = 0;
  for (const one of [...marks].sort((a, b) => a.start - b.start)) {
    if (one.start < at) continue; // it overlaps the one before
    pieces.push(letters.slice(at, one.start).join(""));
    pieces.push(
      el(
        "mark",
        { class: `tone${one.tone}`, title: `${one.label}, ${score(one.score)}` },
        letters.slice(one.start, one.end).join(""),
        el("small", {}, one.label),
      ),
    );
    at = one.end;
  }
  pieces.push(letters.slice(at).join(""));
  return el("p", { class: "text marked" }, pieces);
}

/** How near the other texts are to the first, by the cosine of their vectors. */
function neighbours(vectors, inputs) {
  const texts = [inputs].flat();
  const shape = el(
    "p",
    { class: "quiet" },
    `Vectors of ${vectors[0].length} numbers; the first begins ${vectors[0]
      .slice(0, 4)
      .map((one) => one.toFixed(3))
      .join(", ")}.`,
  );
  if (texts.length < 2) return [el("p", {}, "Give several texts to see which are near the first."), shape];
  const near = vectors.slice(1).map((vector, i) => [texts[i + 1], cosine(vectors[0], vector)]);
  near.sort((a, b) => b[1] - a[1]);
  return [el("p", { class: "text" }, "Nearest to “", el("strong", {}, texts[0]), "”"), ranks(near), shape];
}

function cosine(a, b) {
  const dot = (x, y) => x.reduce((sum, one, i) => sum + one * y[i], 0);
  return dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b));
}

function mean(vectors) {
  return vectors[0].map((_, i) => vectors.reduce((sum, one) => sum + one[i], 0) / vectors.length);
}

/** The answers of many tasks to one question, side by side in a table. */
export function manyAnswers(results) {
  const lines = results.map((one) =>
    el("tr", {}, el("th", { scope: "row" }, one.task), one.error ? refused(one.error) : brief(one)),
  );
  const heads = ["Task", "Answer", "", "Score"].map((text, i) =>
    text ? el("th", { scope: "col", class: i === 3 ? "number" : null }, text) : el("td", { class: "wide" }),
  );
  return scrolled(
    "Answers",
    el("table", { class: "bars" }, el("thead", {}, el("tr", {}, heads)), el("tbody", {}, lines)),
  );
}

function refused(error) {
  return el("td", { colspan: "3", class: "alarm" }, `${error.title}: ${error.detail}`);
}

function brief({ kind, outputs }) {
  const one = outputs[0];
  if (kind === "text-classification" && one.length)
    return [
      el("td", {}, one[0].label),
      el("td", { class: "wide" }, bar(one[0].score)),
      el("td", { class: "number" }, score(one[0].score)),
    ];
  const text = {
    "token-classification": () =>
      one.map((found) => `${found.word} (${found.entity_group ?? found.entity})`).join(", ") || "no entities",
    "sentence-embeddings": () => `a vector of ${one.length} numbers`,
    "feature-extraction": () => `${one.length} vectors of ${one[0].length} numbers`,
    "text-generation": () => one.generated_text,
  }[kind];
  return el("td", { colspan: "3" }, text ? text() : JSON.stringify(one));
}
