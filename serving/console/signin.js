// Signing in with an API key. The key goes to the server once; what stays here is a cookie that scripts cannot read.

import { el, field, fill } from "./dom.js";
import { signIn } from "./session.js";
import { refusal } from "./words.js";

export function show(main, { restart }) {
  const key = el("input", {
    type: "password",
    name: "key",
    required: true,
    autocomplete: "off",
    spellcheck: "false",
    placeholder: "ken_…",
  });
  const trouble = el("div");
  const proceed = el("button", { type: "submit", class: "primary" }, "Sign in");
  const form = el(
    "form",
    {
      class: "card narrow",
      on: {
        submit: async (event) => {
          event.preventDefault();
          proceed.disabled = true;
          fill(trouble);
          try {
            await signIn(key.value.trim());
            await restart();
          } catch (error) {
            fill(trouble, refusal(error));
            key.select();
            key.focus();
          }
          proceed.disabled = false;
        },
      },
    },
    el("h1", { tabindex: "-1" }, "Sign in"),
    el("p", {}, "This server needs a key. You see and change here what your key allows."),
    field("API key", key),
    trouble,
    proceed,
    el(
      "p",
      { class: "quiet" },
      "Somebody with the scope admin makes keys: ",
      el("code", {}, "ken keys create NAME --scope predict"),
    ),
  );
  fill(main, form);
  key.focus();
}
