// The list of orders, newest first; a bounded part of it is in the document.

import { arrange, bdi, button, h, icon, setAttribute, setData, setText, whole } from "./dom.js";
import { ago, asText, clip, exact, money } from "./format.js";
import type { Item, Order } from "./model.js";
import { texts } from "./texts.js";

/** Number of rows in the document, and step by which it grows. */
export const ROWS_STEP = 50;

/** Bound on rows created in one drawing, so that a slow machine stays responsive. */
const ROWS_MADE_MAX = 15;

export interface OrderActions {
  accept(items: Item[]): void;
  read(items: Item[]): void;
  readAll(): void;
  loadOlder(): void;
  isPending(key: string): boolean;
  /** Requests another drawing for the remaining rows. */
  drawMore(): void;
}

export type Older = "more" | "loading" | "end" | "failed";

export interface OrdersView {
  orders: Item[];
  unread: number;
  older: Older;
  /** The first page is loading. */
  loading: boolean;
  /** The page searches for unhandled orders. */
  searching: boolean;
}

export class Orders {
  #rows = new Map<string, Row>();
  #shown = ROWS_STEP;
  #filter: "all" | "waiting" = "all";
  #view: OrdersView = { orders: [], unread: 0, older: "more", loading: true, searching: false };
  readonly #list = h("ul", { class: "list", testid: "orders" });
  readonly #empty = h("div", { class: "empty" });
  readonly #badge = h("span", { class: "badge", testid: "badge" });
  readonly #readAll: HTMLButtonElement;
  readonly #all: HTMLButtonElement;
  readonly #waiting: HTMLButtonElement;
  readonly #waitingCount = h("span", { class: "number" });
  readonly #older: HTMLButtonElement;
  readonly #olderText = h("p", { class: "older-text" });

  constructor(
    root: HTMLElement,
    private readonly actions: OrderActions,
  ) {
    this.#readAll = button(texts.readAll, { class: "quiet", testid: "read-all" }, actions.readAll);
    this.#all = button(texts.filterAll, { testid: "filter-all" }, () => this.show("all"));
    this.#waiting = button(texts.filterWaiting, { testid: "filter-waiting" }, () =>
      this.show("waiting"),
    );
    this.#waiting.append(this.#waitingCount);
    this.#older = button(texts.loadOlder, { class: "secondary", testid: "load-older" }, () =>
      this.more(),
    );
    const filters = h(
      "div",
      { class: "segments", attributes: { role: "group", "aria-label": texts.filters } },
      this.#all,
      this.#waiting,
    );
    root.replaceChildren(
      h(
        "div",
        { class: "heading" },
        h("h2", { attributes: { id: "orders-heading" } }, texts.ordersHeading),
        filters,
        this.#badge,
        this.#readAll,
      ),
      h("div", { class: "card" }, this.#list, this.#empty),
      h("div", { class: "older" }, this.#older, this.#olderText),
    );
    // Loads more at the end of the list. The button is for keyboards and after failures.
    new IntersectionObserver(
      (entries) => {
        if (
          entries.some((entry) => entry.isIntersecting) &&
          scrollY > 200 &&
          this.#view.older === "more"
        )
          this.more();
      },
      { rootMargin: "0px 0px 200px" },
    ).observe(this.#older);
  }

  show(filter: "all" | "waiting"): void {
    this.#filter = filter;
    this.render(this.#view);
  }

  /** Shows more rows; loads older orders if necessary. */
  more(): void {
    if (this.#view.older === "loading") return;
    this.#shown += ROWS_STEP;
    if (this.#filtered().length < this.#shown && this.#view.older !== "end")
      this.actions.loadOlder();
    else this.render(this.#view);
  }

  render(view: OrdersView): void {
    this.#view = view;
    const waiting = view.orders.filter(({ marks }) => marks.handled_at === undefined).length;
    const items = this.#filtered();
    const part = items.slice(0, this.#shown);
    const keys = new Set(part.map(({ key }) => key));
    for (const [key, row] of this.#rows) {
      if (keys.has(key)) continue;
      if (row.element.contains(document.activeElement)) this.#focusAfter(row);
      this.#rows.delete(key);
    }
    const now = Date.now();
    const rows: Row[] = [];
    let made = 0;
    for (const item of part) {
      let row = this.#rows.get(item.key);
      if (row?.item !== item) {
        if (++made > ROWS_MADE_MAX) continue;
        row = new Row(item, this.actions, (row) => this.#focusAfter(row));
        this.#rows.set(item.key, row);
      }
      row.render(now);
      rows.push(row);
    }
    arrange(
      this.#list,
      rows.map(({ element }) => element),
    );
    if (made > ROWS_MADE_MAX) this.actions.drawMore();
    setText(this.#waitingCount, waiting > 0 ? String(waiting) : "");
    setAttribute(this.#all, "aria-pressed", String(this.#filter === "all"));
    setAttribute(this.#waiting, "aria-pressed", String(this.#filter === "waiting"));
    setText(this.#badge, view.unread > 0 ? texts.unreadCount(view.unread) : "");
    setData(this.#badge, "count", String(view.unread));
    this.#badge.hidden = view.unread === 0;
    this.#readAll.hidden = view.unread === 0;
    this.#showEmpty(items.length === 0);
    const beyond = items.length > this.#shown;
    this.#older.hidden =
      view.loading || (view.older === "end" && !beyond) || (this.#filter === "waiting" && !beyond);
    setText(
      this.#older,
      view.older === "loading"
        ? texts.loading
        : view.older === "failed"
          ? texts.again
          : texts.loadOlder,
    );
    const end = view.older === "end" && !beyond && items.length > 10 && this.#filter === "all";
    setText(
      this.#olderText,
      view.older === "failed" ? texts.historyFailed : end ? texts.noOlder : "",
    );
  }

  /** Updates the relative times. */
  tick(now: number): void {
    for (const row of this.#rows.values()) row.tick(now);
  }

  #filtered(): Item[] {
    const { orders } = this.#view;
    return this.#filter === "all"
      ? orders
      : orders.filter(({ marks }) => marks.handled_at === undefined);
  }

  #showEmpty(isEmpty: boolean): void {
    this.#list.hidden = isEmpty;
    this.#empty.hidden = !isEmpty;
    if (!isEmpty) return;
    const state = this.#view.loading
      ? "loading"
      : this.#view.searching
        ? "searching"
        : this.#filter;
    if (this.#empty.dataset["state"] === state) return;
    this.#empty.dataset["state"] = state;
    if (state === "loading")
      return this.#empty.replaceChildren(h("p", { class: "muted" }, texts.loading));
    if (state === "searching")
      return this.#empty.replaceChildren(h("p", { class: "muted" }, texts.searching));
    const [title, hint] =
      state === "all"
        ? [texts.noOrders, texts.noOrdersHint]
        : [texts.noWaiting, texts.noWaitingHint];
    this.#empty.replaceChildren(
      icon(state === "all" ? "bell" : "check"),
      h("p", { class: "strong" }, title),
      h("p", { class: "muted" }, hint),
    );
  }

  /** The focused button disappears: focuses the next order's button. */
  #focusAfter(row: Row): void {
    for (let next = row.element.nextElementSibling; next; next = next.nextElementSibling) {
      const accept = next.querySelector<HTMLElement>('[data-testid="accept"]');
      if (accept) return accept.focus({ preventScroll: true });
    }
    const first = this.#list.querySelector<HTMLElement>('[data-testid="accept"]');
    (
      first ?? (this.#list.contains(row.element) && row.element.isConnected ? row.main : this.#all)
    ).focus({ preventScroll: true });
  }
}

class Row {
  readonly element: HTMLLIElement;
  readonly main: HTMLButtonElement;
  readonly #time = h("time");
  readonly #unread = h("span", { class: "hidden-text" });
  readonly #act = h("div", { class: "act" });
  #details: HTMLElement | undefined;
  #shows = "";

  constructor(
    readonly item: Item,
    private readonly actions: OrderActions,
    private readonly focusAfter: (row: Row) => void,
  ) {
    const order = item.notification.data as Order;
    const { seq, feed } = item;
    const customer = customerOf(order);
    this.#time.dateTime = new Date(item.at).toISOString();
    this.#time.title = exact(item.at);
    const meta = h(
      "span",
      { class: "meta" },
      this.#time,
      h("span", { class: "pieces" }, texts.items(Number(order.items))),
      customer !== "" && h("span", {}, bdi(customer)),
    );
    const id = h("span", { class: "title" }, this.#unread, bdi(order.order_id, "id"));
    const total = h("span", { class: "total" }, money(order.total, order.currency));
    this.main = button(
      h("span", { class: "dot" }),
      { class: "row", testid: "order-open", attributes: { "aria-expanded": "false" } },
      () => this.#toggle(),
    );
    this.main.append(h("span", { class: "text" }, id, meta), total, icon("chevron"));
    this.element = h(
      "li",
      {
        class: "order",
        testid: "order",
        attributes: { "data-seq": String(seq), "data-feed": feed },
      },
      this.main,
      this.#act,
    );
  }

  render(now: number): void {
    const { marks, key } = this.item;
    const unread = marks.read_at === undefined;
    const handled = marks.handled_at !== undefined;
    const pending = !handled && this.actions.isPending(key);
    setData(this.element, "unread", String(unread));
    setData(this.element, "handled", String(handled));
    setText(this.#unread, unread ? `${texts.unread}: ` : "");
    this.tick(now);
    const shows = `${handled}/${pending}/${marks.handled_by ?? ""}`;
    if (shows === this.#shows) return;
    const focused = this.#act.contains(document.activeElement);
    this.#shows = shows;
    if (handled) {
      const by = marks.handled_by;
      const words = h(
        "span",
        { class: "by" },
        by === undefined ? texts.accepted : texts.acceptedBy(""),
        by !== undefined && bdi(by),
      );
      this.#act.replaceChildren(
        h("span", { class: "accepted", testid: "accepted" }, icon("check"), words),
      );
      if (focused) this.focusAfter(this);
    } else {
      const accept = this.#act.querySelector("button") ?? this.#acceptButton();
      setText(accept, pending ? texts.accepting : texts.accept);
      setAttribute(accept, "aria-disabled", String(pending));
      if (accept.parentNode !== this.#act) this.#act.replaceChildren(accept);
    }
    if (this.#details) this.#fill(this.#details);
  }

  tick(now: number): void {
    setText(this.#time, ago(this.item.at, now));
  }

  #acceptButton(): HTMLButtonElement {
    const { order_id } = this.item.notification.data as Order;
    const attributes = { "aria-label": texts.acceptLabel(clip(order_id, 60)) };
    return button("", { class: "tonal", testid: "accept", attributes }, () => {
      if (!this.actions.isPending(this.item.key)) this.actions.accept([this.item]);
    });
  }

  #toggle(): void {
    const open = this.#details === undefined;
    this.main.setAttribute("aria-expanded", String(open));
    this.element.classList.toggle("open", open);
    if (open) {
      this.#details = h("dl", { class: "details", testid: "order-details" });
      this.#fill(this.#details);
      this.element.append(this.#details);
      if (this.item.marks.read_at === undefined) this.actions.read([this.item]);
    } else {
      this.#details?.remove();
      this.#details = undefined;
    }
  }

  #fill(list: HTMLElement): void {
    const { notification, at, marks, seq, feed } = this.item;
    const { order_id, total, currency, items, customer, placed_at, ...more } =
      notification.data as Order & Record<string, unknown>;
    const rows: [string, Node | string][] = [
      [texts.order, whole(order_id)],
      [texts.total, money(total, currency)],
      [texts.pieces, asText(items)],
    ];
    if (customer !== undefined)
      rows.push([
        texts.customer,
        whole(customerOf(notification.data as Order) || asText(customer)),
      ]);
    rows.push([texts.received, exact(at)]);
    if (placed_at !== undefined && Date.parse(placed_at) !== at)
      rows.push([texts.placed, exactOf(placed_at)]);
    if (marks.handled_at !== undefined) {
      rows.push([
        texts.acceptedAt,
        h(
          "span",
          {},
          exactOf(marks.handled_at),
          marks.handled_by !== undefined && texts.by,
          marks.handled_by !== undefined && bdi(marks.handled_by),
        ),
      ]);
    }
    if (Object.keys(more).length > 0) rows.push([texts.data, whole(JSON.stringify(more))]);
    rows.push([
      texts.eventId,
      h("span", {}, whole(notification.id), texts.from, whole(notification.source)),
    ]);
    rows.push([texts.number, h("span", {}, `${seq}${texts.inFeed}`, bdi(feed))]);
    list.replaceChildren(
      ...rows.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))),
    );
  }
}

function exactOf(text: string): string {
  const at = Date.parse(text);
  return Number.isNaN(at) ? clip(text, 60) : exact(at);
}

/** `customer` may be any JSON. */
function customerOf({ customer }: Order): string {
  if (typeof customer === "string") return customer;
  const fields =
    typeof customer === "object" && customer !== null ? (customer as Record<string, unknown>) : {};
  return typeof fields["name"] === "string" ? fields["name"] : "";
}
