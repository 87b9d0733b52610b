// Makes elements. Text goes in as text, never as markup, so names from outside can do no harm.

const SVG = "http://www.w3.org/2000/svg";
const PROPERTIES = new Set(["value", "checked", "disabled", "selected", "hidden", "open", "htmlFor"]);

/**
 * An element.
 *
 * `attributes` may hold `on` (listeners by event) and `style` (CSS properties, set one by one, as the page's policy
 * forbids style attributes). Null, undefined and false leave an attribute or a child out.
 */
export function el(name, attributes = {}, ...children) {
  return made(document.createElement(name), attributes, children);
}

/** An element of a drawing. */
export function svg(name, attributes = {}, ...children) {
  return made(document.createElementNS(SVG, name), attributes, children);
}

function made(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "on") {
      for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    } else if (key === "style") {
      for (const [property, one] of Object.entries(value)) element.style.setProperty(property, one);
    } else if (PROPERTIES.has(key) && key in element) {
      element[key] = value ?? "";
    } else if (value !== null && value !== undefined && value !== false) {
      element.setAttribute(key, value === true ? "" : value);
    }
  }
  element.append(...shown(children));
  return element;
}

/** Replace what an element holds. */
export function fill(element, ...children) {
  element.replaceChildren(...shown(children));
  return element;
}

function shown(children) {
  return children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false);
}

let counted = 0;

/** An id that no other element has. */
export function newId(stem) {
  counted += 1;
  return `${stem}-${counted}`;
}

/** A control with its label above it. `hint` is read out with it. */
export function field(label, control, hint = null) {
  control.id ||= newId("field");
  const described = hint ? el("small", { id: `${control.id}-hint`, class: "hint" }, hint) : null;
  if (described) control.setAttribute("aria-describedby", described.id);
  return el("div", { class: "field" }, el("label", { htmlFor: control.id }, label), control, described);
}

/** A `select` of `[value, text]` pairs. */
export function select(options, chosen, attributes = {}) {
  const choices = options.map(([value, text]) => el("option", { value, selected: value === chosen }, text));
  return el("select", attributes, choices);
}

/** A button. It never sends a form by accident. */
export function button(text, click, attributes = {}) {
  return el("button", { type: "button", ...attributes, on: { click } }, text);
}

/** A table that scrolls within itself, so that the page never does sideways. */
export function scrolled(label, table) {
  return el("div", { class: "scrolled", role: "region", "aria-label": label, tabindex: "0" }, table);
}

const SAID_SECONDS = 6;
let saying;

/** Say what was done, for a while: to the eye and to a screen reader. */
export function announce(text) {
  const place = document.getElementById("announcer");
  clearTimeout(saying);
  place.textContent = text;
  saying = setTimeout(() => (place.textContent = ""), SAID_SECONDS * 1000);
}
