// Other notifications: rows for those of the merchant's feed, banners for notices to everyone.

import { arrange, bdi, button, h, icon, setData, setText, whole } from "./dom.js";
import { ago, asText, exact } from "./format.js";
import { headline, type Item } from "./model.js";
import { texts } from "./texts.js";

const ROWS_MAX = 30;
const BANNERS_MAX = 2;
/** Older notices are not shown. */
const NOTICE_AGE_MS_MAX = 24 * 60 * 60 * 1_000;

export class Others {
  #rows = new Map<string, { element: HTMLElement; time: HTMLTimeElement; item: Item }>();
  readonly #list = h("ul", { class: "card list" });

  constructor(
    private readonly root: HTMLElement,
    private readonly take: (items: Item[]) => void,
  ) {
    root.replaceChildren(
      h(
        "div",
        { class: "heading" },
        h("h2", { attributes: { id: "others-heading" } }, texts.othersHeading),
      ),
      this.#list,
    );
  }

  render(items: Item[]): void {
    const part = items.slice(0, ROWS_MAX);
    const keys = new Set(part.map(({ key }) => key));
    for (const key of this.#rows.keys()) if (!keys.has(key)) this.#rows.delete(key);
    const now = Date.now();
    arrange(
      this.#list,
      part.map((item) => {
        const made = this.#rows.get(item.key);
        const row = made?.item === item ? made : this.#make(item);
        this.#rows.set(item.key, row);
        setData(row.element, "unread", String(item.marks.read_at === undefined));
        setText(row.time, ago(item.at, now));
        return row.element;
      }),
    );
    this.root.hidden = part.length === 0;
  }

  tick(now: number): void {
    for (const { time, item } of this.#rows.values()) setText(time, ago(item.at, now));
  }

  #make(item: Item) {
    const { notification } = item;
    const time = h("time", {
      attributes: { title: exact(item.at), datetime: new Date(item.at).toISOString() },
    });
    const title = headline(notification);
    const summary = h(
      "summary",
      { class: "row" },
      h("span", { class: "dot" }),
      h(
        "span",
        { class: "text" },
        h("span", { class: "title" }, bdi(title)),
        h(
          "span",
          { class: "meta" },
          time,
          title !== notification.event && h("span", {}, bdi(notification.event)),
        ),
      ),
    );
    const details = h("details", {}, summary);
    details.addEventListener("toggle", () => {
      if (!details.open) return;
      // Created when it is opened, because an event may be large.
      if (details.children.length === 1)
        details.append(h("div", { class: "details raw" }, whole(asText(notification.data))));
      if ((item.marks.read_at && item.marks.handled_at) === undefined) this.take([item]);
    });
    return {
      element: h(
        "li",
        { class: "other", testid: "other", attributes: { "data-seq": String(item.seq) } },
        details,
      ),
      time,
      item,
    };
  }
}

export class Notices {
  #hidden: Set<string>;
  #items: Item[] = [];
  #banners = new Map<string, { element: HTMLElement; item: Item }>();

  constructor(private readonly root: HTMLElement) {
    this.#hidden = new Set(stored());
  }

  render(items: Item[]): void {
    this.#items = items;
    const since = Date.now() - NOTICE_AGE_MS_MAX;
    const part = items
      .filter(({ key, at }) => at > since && !this.#hidden.has(key))
      .slice(0, BANNERS_MAX);
    const keys = new Set(part.map(({ key }) => key));
    for (const key of this.#banners.keys()) if (!keys.has(key)) this.#banners.delete(key);
    arrange(
      this.root,
      part.map((item) => {
        const made = this.#banners.get(item.key);
        const banner = made?.item === item ? made : { element: this.#make(item), item };
        this.#banners.set(item.key, banner);
        return banner.element;
      }),
    );
  }

  #make(item: Item): HTMLElement {
    const attributes = { "aria-label": texts.dismissNotice, title: texts.dismissNotice };
    const close = button(icon("close"), { class: "quiet icon-button", attributes }, () => {
      this.#hidden.add(item.key);
      try {
        localStorage.setItem(KEY, JSON.stringify([...this.#hidden].slice(-50)));
      } catch {
        // Hidden until the page is reloaded.
      }
      this.render(this.#items);
    });
    return h(
      "div",
      { class: "notice", testid: "notice", attributes: { "data-seq": String(item.seq) } },
      icon("megaphone"),
      h(
        "p",
        {},
        whole(headline(item.notification).slice(0, 600)),
        " ",
        h("time", { class: "muted" }, ago(item.at, Date.now())),
      ),
      close,
    );
  }
}

const KEY = "shopbell.dashboard.notices";

function stored(): string[] {
  try {
    return JSON.parse(localStorage.getItem(KEY) ?? "[]") as string[];
  } catch {
    return [];
  }
}
