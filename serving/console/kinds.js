// What each kind of task asks for: the fields of its input, and the request that they make.

import { el, field, select } from "./dom.js";

const lines = (text) =>
  text
    .split("\n")
    .map((line) => line.trim())
    .filter(Boolean);
const optional = (name, text) => (text.trim() ? { [name]: Number(text) } : {});

/** Fields that keep what is typed in `values`, so that it survives a change of task. */
const area =
  (label, name, hint = null, rows = "4") =>
  (values) =>
    field(label, control("textarea", name, values, { rows }), hint);
const line =
  (label, name, hint = null) =>
  (values) =>
    field(label, control("input", name, values, { type: "text" }), hint);
const number =
  (label, name, hint = null, bounds = {}) =>
  (values) =>
    field(label, control("input", name, values, { type: "number", ...bounds }), hint);
const choice = (label, name, options) => (values) =>
  field(label, select(options, values[name], { on: { change: (event) => (values[name] = event.target.value) } }));
const flag = (label, name) => (values) =>
  el(
    "label",
    { class: "check" },
    el("input", {
      type: "checkbox",
      checked: values[name],
      on: { change: (event) => (values[name] = event.target.checked) },
    }),
    label,
  );

function control(tag, name, values, attributes) {
  return el(tag, {
    ...attributes,
    value: values[name],
    spellcheck: "false",
    on: { input: (event) => (values[name] = event.target.value) },
  });
}

/** What the fields hold before anybody types. */
export const startingValues = () => ({
  text: "How far is it to Denver?",
  pair: "",
  labels: "travel\nweather\nfood",
  multiple: false,
  query: "How far is it to Denver?",
  passages: "Denver is 200 miles away.\nI like rain.\nThe road to Denver is closed.",
  question: "How far is it to Denver?",
  context: "The road is long. Denver is 200 miles away, and it rains.",
  texts: "How far is it to Denver?\nIs Denver a long way from here?\nI like rain.",
  aggregation: "simple",
  topK: "",
  system: "",
  temperature: "",
  topP: "",
  maxTokens: "128",
  seed: "",
  prompt: "The road to Denver",
});

const TEXT = area("Text", "text");
const TEXTS = area("Texts, one a line", "texts", "The neighbours of the first are found among the others.", "6");

const embedding = { inputs: [TEXTS], parameters: [], body: ({ texts }) => ({ inputs: lines(texts), parameters: {} }) };

/** By kind: its name for people, its fields, and `body`, which makes a request of their values. */
export const KINDS = {
  "text-classification": {
    name: "Text classification",
    inputs: [TEXT],
    parameters: [
      line("Second text of a pair", "pair"),
      number("Labels to show", "topK", "All, if empty.", { min: "1" }),
    ],
    body: ({ text, pair, topK }) => ({
      inputs: pair ? { text, text_pair: pair } : text,
      parameters: optional("top_k", topK),
    }),
  },
  "zero-shot-classification": {
    name: "Zero-shot classification",
    inputs: [TEXT, area("Candidate labels, one a line", "labels")],
    parameters: [flag("Several labels may be true", "multiple")],
    body: ({ text, labels, multiple }) => ({
      inputs: text,
      parameters: { candidate_labels: lines(labels), multi_label: multiple },
    }),
  },
  rerank: {
    name: "Ranking",
    inputs: [line("Query", "query"), area("Passages, one a line", "passages", null, "6")],
    parameters: [],
    body: ({ query, passages }) => ({ inputs: { query, texts: lines(passages) }, parameters: {} }),
  },
  "token-classification": {
    name: "Entities",
    inputs: [TEXT],
    parameters: [
      choice(
        "Aggregation",
        "aggregation",
        ["none", "simple", "first", "average", "max"].map((one) => [one, one]),
      ),
    ],
    body: ({ text, aggregation }) => ({ inputs: text, parameters: { aggregation_strategy: aggregation } }),
  },
  "question-answering": {
    name: "Question answering",
    inputs: [line("Question", "question"), area("Context", "context", null, "6")],
    parameters: [number("Answers to show", "topK", "One, if empty.", { min: "1" })],
    body: ({ question, context, topK }) => ({ inputs: { question, context }, parameters: optional("top_k", topK) }),
  },
  "sentence-embeddings": { name: "Sentence vectors", ...embedding },
  "feature-extraction": { name: "Token vectors", ...embedding },
  "text-generation": {
    name: "Text generation",
    inputs: [],
    parameters: [
      number("Most tokens", "maxTokens", null, { min: "1" }),
      number("Temperature", "temperature", "As the task says, if empty. 0 takes the likeliest token.", {
        min: "0",
        step: "0.1",
      }),
      number("Top p", "topP", null, { min: "0", max: "1", step: "0.05" }),
      number("Seed", "seed"),
    ],
    body: ({ maxTokens, temperature, topP, seed }) => ({
      parameters: {
        ...optional("max_tokens", maxTokens),
        ...optional("temperature", temperature),
        ...optional("top_p", topP),
        ...optional("seed", seed),
      },
    }),
  },
};

export const GENERATION = "text-generation";

/** The fields of a kind, and those of its parameters, which are folded away as few change them. */
export function fieldsOf(kind, values) {
  const { inputs, parameters } = KINDS[kind];
  return [inputs.map((make) => make(values)), parameters.length ? folded(parameters.map((make) => make(values))) : null];
}

function folded(fields) {
  const details = el(
    "details",
    { class: "parameters" },
    el("summary", {}, "Parameters"),
    el("div", { class: "columns" }, fields),
  );
  // a browser says what is wrong with a field only where it can be seen
  details.addEventListener("invalid", () => (details.open = true), { capture: true });
  return details;
}
