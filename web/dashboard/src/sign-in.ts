// The form for a token, with the reason why the last one was refused.

import { h, icon } from "./dom.js";
import { texts } from "./texts.js";
import { asToken } from "./token.js";

export function showSignIn(
  root: HTMLElement,
  reason: string | undefined,
  take: (token: string) => void,
): void {
  const field = h("textarea", {
    testid: "token",
    attributes: {
      id: "token",
      rows: "5",
      spellcheck: "false",
      autocomplete: "off",
      autocapitalize: "off",
      "aria-describedby": "token-hint token-error",
      placeholder: "eyJhbGciOi…",
    },
  });
  const error = h("p", {
    class: "error-text",
    testid: "token-error",
    attributes: { id: "token-error", role: "alert" },
  });
  const refuse = (text: string) => {
    error.textContent = text;
    field.setAttribute("aria-invalid", "true");
    field.focus();
  };
  const submit = h(
    "button",
    { class: "primary large", testid: "token-submit", attributes: { type: "submit" } },
    texts.signIn,
  );
  const form = h(
    "form",
    {
      class: "card sign-in-card",
      on: {
        submit: (event) => {
          event.preventDefault();
          const token = asToken(field.value);
          if (field.value.trim() === "") refuse(texts.tokenEmpty);
          else if (token === undefined) refuse(texts.tokenNotOne);
          else take(token);
        },
      },
    },
    h("div", { class: "emblem" }, icon("bell")),
    h("h1", {}, texts.product),
    h("p", { class: "muted" }, texts.signInHint),
    h("label", { attributes: { for: "token" } }, texts.tokenLabel),
    field,
    h("p", { class: "muted small", attributes: { id: "token-hint" } }, texts.tokenHint),
    error,
    submit,
  );
  field.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey) return;
    event.preventDefault();
    form.requestSubmit();
  });
  root.replaceChildren(form);
  root.hidden = false;
  if (reason !== undefined) refuse(reason);
}
