// Creates elements. Text becomes text nodes only; no markup is parsed.

import { clip, harmless } from "./format.js";

type Child = Node | string | undefined | false;
interface Properties {
  class?: string;
  testid?: string;
  attributes?: Record<string, string>;
  on?: Record<string, (event: Event) => void>;
}

export function h<Tag extends keyof HTMLElementTagNameMap>(
  tag: Tag,
  { class: name, testid, attributes, on }: Properties = {},
  ...children: Child[]
): HTMLElementTagNameMap[Tag] {
  const element = document.createElement(tag);
  if (name) element.className = name;
  if (testid) element.dataset["testid"] = testid;
  for (const [attribute, value] of Object.entries(attributes ?? {}))
    element.setAttribute(attribute, value);
  for (const [event, listener] of Object.entries(on ?? {}))
    element.addEventListener(event, listener);
  for (const child of children) if (child) element.append(child);
  return element;
}

export function button(
  label: Child,
  { class: name, testid, attributes, on }: Properties,
  click: () => void,
): HTMLButtonElement {
  const properties: Properties = {
    attributes: { type: "button", ...attributes },
    on: { click, ...on },
  };
  if (name) properties.class = name;
  if (testid) properties.testid = testid;
  return h("button", properties, label);
}

/** Text of an event on one line, with a text direction of its own. */
export function bdi(text: string, name = ""): HTMLElement {
  return h("bdi", name ? { class: name } : {}, clip(text));
}

/** Longer texts may scroll, so they need a tab stop for keyboards. */
const SCROLLS_CHARS = 250;

/** The whole text of an event, with a text direction of its own. */
export function whole(text: string): HTMLElement {
  return h(
    "bdi",
    { class: "whole", ...(text.length > SCROLLS_CHARS && { attributes: { tabindex: "0" } }) },
    harmless(text),
  );
}

/** Writes only if the text differs, because most texts stay the same. */
export function setText(node: Node, text: string): void {
  if (node.textContent !== text) node.textContent = text;
}

export function setData(element: HTMLElement, name: string, value: string): void {
  if (element.dataset[name] !== value) element.dataset[name] = value;
}

export function setAttribute(element: Element, name: string, value: string): void {
  if (element.getAttribute(name) !== value) element.setAttribute(name, value);
}

export function byId<E extends HTMLElement = HTMLElement>(id: string): E {
  const element = document.getElementById(id);
  if (!element) throw new Error(`index.html has no #${id}`);
  return element as E;
}

/** Gives `list` exactly these children in this order, with few moves. */
export function arrange(list: Element, children: Element[]): void {
  const wanted = new Set(children);
  for (const child of [...list.children]) if (!wanted.has(child)) child.remove();
  let at = list.firstElementChild;
  for (const child of children) {
    if (child === at) at = at.nextElementSibling;
    else list.insertBefore(child, at);
  }
}

const NAMESPACE = "http://www.w3.org/2000/svg";

/** Paths on a grid of 24. */
const ICONS = {
  bell: [
    "M12 3.2a5.8 5.8 0 0 0-5.8 5.8v3.9L4.5 16a1 1 0 0 0 .9 1.5h13.2a1 1 0 0 0 .9-1.5l-1.7-3.1V9A5.8 5.8 0 0 0 12 3.2Z",
    "M9.8 19.6a2.3 2.3 0 0 0 4.4 0",
    "M12 3.2V1.9",
  ],
  sound: [
    "M4 9.5v5h3.2L12 18.6V5.4L7.2 9.5H4Z",
    "M15.4 9a4.2 4.2 0 0 1 0 6",
    "M17.9 6.6a7.6 7.6 0 0 1 0 10.8",
  ],
  mute: ["M4 9.5v5h3.2L12 18.6V5.4L7.2 9.5H4Z", "m16 9.6 4.8 4.8", "m20.8 9.6-4.8 4.8"],
  close: ["m6.5 6.5 11 11", "m17.5 6.5-11 11"],
  check: ["m5 12.6 4.6 4.6L19 7.4"],
  chevron: ["m7 10 5 5 5-5"],
  box: ["M4 8.2 12 4l8 4.2v7.6L12 20l-8-4.2V8.2Z", "m4 8.2 8 4.2 8-4.2", "M12 12.4V20"],
  out: ["M14.5 8V5.5h-9v13h9V16", "M10.5 12H20", "m17 9 3 3-3 3"],
  alert: ["M12 4 2.8 19.5h18.4L12 4Z", "M12 10v4.4", "M12 16.9v.2"],
  megaphone: ["M4 10v4h2.6L15 18V6l-8.4 4H4Z", "M18 9.5a3.6 3.6 0 0 1 0 5", "M7.5 14.4 8.7 19"],
  away: ["M12 5v7l4.4 2.6", "M12 3.4a8.6 8.6 0 1 0 0 17.2 8.6 8.6 0 0 0 0-17.2Z"],
} as const;
export type Icon = keyof typeof ICONS;

export function icon(name: Icon): SVGSVGElement {
  const svg = document.createElementNS(NAMESPACE, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("class", `icon icon-${name}`);
  svg.setAttribute("aria-hidden", "true");
  for (const d of ICONS[name]) {
    const path = document.createElementNS(NAMESPACE, "path");
    path.setAttribute("d", d);
    svg.append(path);
  }
  return svg;
}

/** Shortest interval between drawings, because layout is expensive. */
const DRAW_INTERVAL_MS = 100;

/** Draws once in the next frame; not while the page is hidden. */
export class Frames {
  #requested = false;
  #drawnAt = 0;

  constructor(private readonly draw: () => void) {}

  ask(): void {
    if (this.#requested) return;
    this.#requested = true;
    const wait = this.#drawnAt + DRAW_INTERVAL_MS - performance.now();
    if (wait > 0) setTimeout(() => this.#inFrame(), wait);
    else this.#inFrame();
  }

  #inFrame(): void {
    requestAnimationFrame(() => {
      this.#requested = false;
      this.#drawnAt = performance.now();
      this.draw();
    });
  }
}
