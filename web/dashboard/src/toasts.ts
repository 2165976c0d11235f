// Toasts in the corner, a few at once. The announcer reads them to screen readers: routine as
// `status`, failures as `alert`. The toasts have the same roles, but are not live regions.

import type { Announcer } from "./announcer.js";
import { bdi, button, h, icon, setText, type Icon } from "./dom.js";
import { money } from "./format.js";
import { FAILURES_MAX, type Item, type Order } from "./model.js";
import { texts } from "./texts.js";
import type { Toast } from "./toast-plan.js";

const TOASTS_MAX = 3;
const ROUTINE_MS = 8_000;
const ALERT_MS = 20_000;
/** Shortest interval between changes of a text that a screen reader may repeat. */
const UPDATE_MS = 2_000;

interface Shown {
  element: HTMLElement;
  remaining: number;
  /** Returns whether all its notifications are marked or gone. */
  isSettled: () => boolean;
  failed?: {
    key: string;
    count: () => number;
    text: HTMLElement;
    sinceUpdateMs: number;
    items: Item[];
  };
}

export class Toasts {
  #shown: Shown[] = [];
  #more = 0;
  #moreRemaining = 0;
  /** Pointer or focus is on a toast: no toast closes by itself. */
  #hovered = false;
  #focused = false;
  #tickedAt = 0;
  readonly #list = h("div", { class: "toast-list" });
  readonly #moreText = h("p", { class: "toast-more", testid: "toast-more" });

  constructor(
    root: HTMLElement,
    private readonly announcer: Announcer,
    private readonly accept: (items: Item[]) => void,
    /** Returns the number of failed items of an import. */
    private readonly failedOf: (feed: string, id: string) => number,
  ) {
    root.replaceChildren(this.#list, this.#moreText);
    this.#showMore();
    root.addEventListener("pointerenter", () => void (this.#hovered = true));
    for (const event of ["pointerleave", "pointercancel"])
      root.addEventListener(event, () => void (this.#hovered = false));
    root.addEventListener("focusin", () => void (this.#focused = true));
    root.addEventListener(
      "focusout",
      (event) => void (this.#focused = root.contains(event.relatedTarget as Node | null)),
    );
    root.addEventListener("keydown", (event) => {
      const at = this.#shown.findIndex(({ element }) => element.contains(event.target as Node));
      if (event.key === "Escape" && at >= 0) this.#close(this.#shown[at] as Shown);
    });
    setInterval(() => this.#tick(performance.now()), 250);
  }

  show(toasts: Toast[]): void {
    for (const toast of toasts) {
      if (toast.kind === "failed" && this.#addFailures(toast)) continue;
      if (toast.kind === "finished") this.#closeFailed(toast.item);
      if (this.#shown.length >= TOASTS_MAX) {
        // An alert replaces the oldest routine toast.
        const routine = isAlert(toast) ? this.#shown.find(({ failed }) => !failed) : undefined;
        this.#more++;
        this.#moreRemaining = ROUTINE_MS;
        if (!routine) continue;
        this.#close(routine);
      }
      this.#put(this.#make(toast));
    }
    this.#showMore();
    if (this.#more > 0 && toasts.length > 0)
      this.announcer.announce("status", texts.toastMore(this.#more), "more");
  }

  /** Shows a text about the whole page. */
  showText(text: string): void {
    const element = this.#frame("alert", "alert", text, undefined);
    this.#add({ element, remaining: ALERT_MS, isSettled: () => false });
  }

  /** Closes the toasts of marked notifications. */
  settle(): void {
    for (const one of [...this.#shown]) if (one.isSettled()) this.#close(one);
  }

  #add(shown: Shown): void {
    if (this.#shown.length >= TOASTS_MAX) this.#close(this.#shown[0] as Shown);
    this.#put(shown);
  }

  #put(shown: Shown): void {
    this.#shown.push(shown);
    this.#list.append(shown.element);
    const words = [...shown.element.querySelectorAll(".toast-body p")].map(
      ({ textContent }) => textContent,
    );
    this.announcer.announce(
      shown.element.getAttribute("role") as "status" | "alert",
      words.join(", "),
    );
  }

  #tick(now: number): void {
    const passed = now - (this.#tickedAt || now);
    this.#tickedAt = now;
    if (this.#hovered || this.#focused || document.hidden) return;
    for (const one of [...this.#shown]) {
      one.remaining -= passed;
      const { failed } = one;
      if (failed && failed.sinceUpdateMs > UPDATE_MS) {
        setText(failed.text, texts.toastFailed(failed.count()));
        failed.sinceUpdateMs = 0;
      } else if (failed) failed.sinceUpdateMs += passed;
      if (one.remaining <= 0) this.#close(one);
    }
    this.#moreRemaining -= passed;
    if (this.#more > 0 && (this.#moreRemaining <= 0 || this.#shown.length === 0)) {
      this.#more = 0;
      this.#showMore();
    }
  }

  #showMore(): void {
    this.#moreText.hidden = this.#more === 0;
    setText(this.#moreText, this.#more > 0 ? texts.toastMore(this.#more) : "");
  }

  #close(one: Shown): void {
    this.#shown = this.#shown.filter((other) => other !== one);
    const hadFocus = one.element.contains(document.activeElement);
    one.element.remove();
    // A removed element fires no `pointerleave` and no `focusout`.
    if (this.#shown.length === 0) this.#hovered = false;
    if (!hadFocus) return;
    this.#focused = false;
    (
      this.#shown.at(-1)?.element.querySelector("button") ??
      document.querySelector<HTMLElement>('[data-testid="bell"]')
    )?.focus();
  }

  /** Adds failures to the toast of their import; returns whether there is one. */
  #addFailures(toast: Extract<Toast, { kind: "failed" }>): boolean {
    const one = this.#shown.find(({ failed }) => failed?.key === `${toast.feed}/${toast.id}`);
    if (!one?.failed) return false;
    one.failed.items = [...one.failed.items, ...toast.items].slice(-FAILURES_MAX);
    one.remaining = ALERT_MS;
    return true;
  }

  /** Closes the toast of an import's failures, because its result contains their number. */
  #closeFailed({ feed, notification }: Item): void {
    const key = `${feed}/${(notification.data as { import_id: string }).import_id}`;
    const one = this.#shown.find(({ failed }) => failed?.key === key);
    if (one) this.#close(one);
  }

  #make(toast: Toast): Shown {
    switch (toast.kind) {
      case "order":
        return this.#makeOrder(toast.item);
      case "failed":
        return this.#makeFailed(toast);
      case "finished":
        return this.#makeFinished(toast.item, isAlert(toast));
      case "other": {
        const { item } = toast;
        const text = bdi(item.notification.event);
        const element = this.#frame("bell", "status", text, undefined, item);
        return { element, remaining: ROUTINE_MS, isSettled: () => isSeen(item) };
      }
      case "away":
        return this.#makeAway(toast);
    }
  }

  #makeOrder(item: Item): Shown {
    const order = item.notification.data as Order;
    const text = h("span", {}, texts.toastOrder, " ", bdi(order.order_id));
    const detail = h(
      "span",
      {},
      h("strong", {}, money(order.total, order.currency)),
      ` · ${texts.items(Number(order.items))}`,
    );
    const element = this.#frame("bell", "status", text, detail, item);
    const accept = button(texts.accept, { class: "primary small", testid: "toast-accept" }, () =>
      this.accept([item]),
    );
    element.querySelector(".toast-body")?.after(accept);
    return { element, remaining: ROUTINE_MS, isSettled: () => isSeen(item) };
  }

  #makeFailed({ items, feed, id }: Extract<Toast, { kind: "failed" }>): Shown {
    const count = () => Math.max(failed.items.length, this.failedOf(feed, id));
    const text = h("span");
    const failed = { key: `${feed}/${id}`, count, text, sinceUpdateMs: 0, items };
    setText(text, texts.toastFailed(count()));
    const element = this.#frame("alert", "alert", text, bdi(id), items[0]);
    return { element, remaining: ALERT_MS, isSettled: () => failed.items.every(isSeen), failed };
  }

  #makeFinished(item: Item, isFailed: boolean): Shown {
    const { notification } = item;
    const data = notification.data as { import_id: string; status: string };
    const { done = 0, failed = 0 } = notification.progress ?? {};
    const tally = `: ${texts.tally(done - failed, failed)}`;
    const element = this.#frame(
      isFailed ? "alert" : "check",
      isFailed ? "alert" : "status",
      data.status === "aborted" ? texts.toastAborted : texts.toastFinished,
      h("span", {}, bdi(data.import_id), tally),
      item,
    );
    const remaining = isFailed ? ALERT_MS : ROUTINE_MS;
    return { element, remaining, isSettled: () => isSeen(item) };
  }

  #makeAway(toast: Extract<Toast, { kind: "away" }>): Shown {
    const parts = [
      toast.orders > 0 && texts.orders(toast.orders),
      toast.failed > 0 && texts.awayFailed(toast.failed),
      toast.imports > 0 && texts.awayImports(toast.imports),
      toast.others > 0 && texts.awayOthers(toast.others),
    ].filter((part) => part !== false);
    const role = toast.failed > 0 ? "alert" : "status";
    const element = this.#frame("away", role, texts.missed(parts), undefined);
    element.dataset["kind"] = "summary";
    return { element, remaining: ALERT_MS, isSettled: () => toast.items.every(isSeen) };
  }

  #frame(
    name: Icon,
    role: "status" | "alert",
    text: Node | string,
    detail: Node | undefined,
    item?: Item,
  ): HTMLElement {
    const close = button(
      icon("close"),
      {
        class: "quiet icon-button",
        testid: "toast-close",
        attributes: { "aria-label": texts.close },
      },
      () => {
        const one = this.#shown.find((shown) => shown.element === element);
        if (one) this.#close(one);
      },
    );
    const body = h(
      "div",
      { class: "toast-body" },
      h("p", { class: "toast-title" }, text),
      detail && h("p", { class: "toast-detail" }, detail),
    );
    const element = h(
      "div",
      {
        class: "toast",
        testid: "toast",
        attributes: { role, "aria-live": "off", "data-kind": name },
      },
      icon(name),
      body,
      close,
    );
    if (item) element.dataset["seq"] = String(item.seq);
    return element;
  }
}

function isSeen({ marks, gone }: Item): boolean {
  return gone === true || marks.handled_at !== undefined || marks.read_at !== undefined;
}

/** Whether the toast is about a failure. */
function isAlert(toast: Toast): boolean {
  if (toast.kind !== "finished") return toast.kind === "failed";
  const { data, progress } = toast.item.notification;
  return (data as { status: string }).status === "aborted" || (progress?.failed ?? 0) > 0;
}
